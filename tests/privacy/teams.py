"""Real teams for tests: processes split off a fresh one, which tell what became of each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fl_privacy.errors import FlPrivacyError
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.losses import per_example_loss
from fl_privacy.learning.models import build_model, parameters_of, with_adapters
from fl_privacy.learning.tasks.mlm import MaskedLanguageTask
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import freeze_except, specs_for
from fl_privacy.parameters import Parameters
from fl_privacy.privacy import team as team_module
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from fl_privacy.privacy.randomness import OwnerRandomness
from fl_privacy.privacy.team import Team
from tests.tiny_model import ROWS, VOCABULARY, NoNoise, tiny_bundle, tiny_plan, weights_of

_servers = multiprocessing.get_context("forkserver")
_servers.set_forkserver_preload(["tests.privacy.teams"])


def in_team(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What ``work(team, *arguments)`` gave in each process by rank: its result, the error it raised, or None if it died."""
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = _servers.Pipe(duplex=False)
        _servers.Process(target=_work, args=(size, Path(folder), theirs, work, arguments)).start()
        theirs.close()
        with ours, contextlib.suppress(EOFError):
            ours.recv_bytes()  # nothing is sent: it ends when the last process does
        told = [Path(folder) / str(rank) for rank in range(size)]
        return [pickle.loads(path.read_bytes()) if path.exists() else None for path in told]  # noqa: S301 - our own


def _work(size: int, folder: Path, pipe: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    team, result = Team(size), None
    try:
        team.split()
        result = work(team, *arguments)
    except FlPrivacyError as error:
        result = error
    finally:
        (folder / str(team.rank)).write_bytes(pickle.dumps(result))
        os._exit(0)


def train(team: Team, trainable: str, samples: list[list[int]], optimizer: str, noise: bool, device: str = "cpu") -> Parameters:
    """A tiny tied BERT after a step for each of the leader's samples; masks are fixed."""
    team.meet()
    plan = tiny_plan(tiny_bundle(), trainable=trainable, lora_rank=2)
    model = build_model(plan.model, VOCABULARY, with_adapters(plan, weights_of(tiny_bundle())), plan.adapter)
    freeze_except(model, specs_for(plan))
    model.to(device)
    batch = MaskedLanguageTask(tokenizer_of(VOCABULARY), 40, 0.4).batch(ROWS[:24:3], np.random.default_rng(1)).to(model.device)
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    train_privately(
        model,
        kind(trained, lr=0.1),
        DPSettings(noise_multiplier=1.0, max_grad_norm=0.5, sample_rate=0.5, expected_batch_size=1),
        rows=len(batch.labels),
        steps=len(samples),
        losses=lambda indices: per_example_loss(model, _some(batch, indices)),
        after_step=lambda step: None,
        # the leader's samples alone may count
        randomness=_Sampled(*samples) if noise else NoNoise(*(samples if team.leads else [[7]] * len(samples))),
        team=team,
    )
    return parameters_of(model)


class _Sampled(OwnerRandomness):
    """Real noise, given samples."""

    def __init__(self, *samples: list[int]) -> None:
        super().__init__()
        self.poisson_sample = NoNoise(*samples).poisson_sample  # type: ignore[method-assign]


def _some(batch: Any, indices: Any) -> Any:
    return type(batch)(*(tensor[indices] for tensor in (batch.input_ids, batch.attention_mask, batch.places, batch.labels)))


def owners_update(team: Team) -> Parameters:
    """What an owner's whole part of a round gives in each process, with real samples, masks and noise."""
    team.meet()
    plan = tiny_plan(tiny_bundle(hidden_dropout_prob=0.1), local_steps=3, optimizer="adamw")
    weights = weights_of(tiny_bundle(hidden_dropout_prob=0.1))
    return train_update(plan, 0, weights, VOCABULARY, ROWS, 75, 1.0, lambda done, steps: None, team=team)


def noise_alone(team: Team, samples: list[list[int]]) -> np.ndarray[Any, Any]:
    """What is released where all gradients are zero: sigma C / B is 1.5 * 0.4 / 30."""
    team.meet()
    model = nn.Linear(20_000, 1, bias=False)
    nn.init.zeros_(model.weight)
    train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        DPSettings(noise_multiplier=1.5, max_grad_norm=0.4, sample_rate=0.5, expected_batch_size=30),
        rows=4,
        steps=len(samples),
        losses=lambda indices: model(torch.zeros(len(indices), 20_000)).squeeze(1),
        after_step=lambda step: None,
        randomness=_Sampled(*samples),
        team=team,
    )
    return model.weight.detach().numpy().copy()


def seen_by(team: Team, rows: int) -> list[list[int]]:
    """Which rows this process computes, step by step, of real Poisson samples; one process's model is empty of them."""
    team.meet()
    model, seen = nn.Linear(1, 1), []

    def losses(indices: Any) -> torch.Tensor:
        seen[-1] += indices.tolist()
        told: torch.Tensor = model(torch.zeros(len(indices), 1)).squeeze(1)
        return told

    seen.append([])
    train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        DPSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=0.3, expected_batch_size=1),
        rows=rows,
        steps=5,
        losses=losses,
        after_step=lambda step: seen.append([]),
        team=team,
    )
    return seen[:-1]


def leave(team: Team, who: int, how: str) -> None:
    """One process ends in the middle of a step, in its own way."""
    team.meet()
    model = nn.Linear(1, 1)

    def losses(indices: Any) -> torch.Tensor:
        if team.rank == who:
            if how == "killed":
                os.kill(os.getpid(), 9)
            raise FlPrivacyError("a damaged row")
        told: torch.Tensor = model(torch.zeros(len(indices), 1)).squeeze(1)
        return told

    train_privately(
        model,
        torch.optim.SGD(model.parameters(), lr=1.0),
        DPSettings(noise_multiplier=1.0, max_grad_norm=1.0, sample_rate=1.0, expected_batch_size=1),
        rows=8,
        steps=1000,
        losses=losses,
        after_step=lambda step: None,
        team=team,
    )


def meet_a_stranger(team: Team) -> None:
    """The last process does not know the key of the others."""
    if team.rank == team.size - 1:
        team._key = bytes(32)
    team.meet()


def nobody_comes(team: Team) -> None:
    """All but the leader end before they have met."""
    team_module.MEETING = timedelta(seconds=1)
    if team.leads:
        team.meet()
