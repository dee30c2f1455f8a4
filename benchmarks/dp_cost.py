"""What privacy costs in training: time and peak memory of a DP step over a plain one, ours and Opacus'.

Time is CPU time of one process in which the kinds of step take turns; memory is the peak of a process of its own. Linux only.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from full_model import in_own_process
from numpy.typing import NDArray
from opacus import PrivacyEngine
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from fl_privacy.privacy.randomness import OwnerRandomness

KINDS = ("plain", "ours", "hooks", "ghost")  # the last two are Opacus'
TINY = BertConfig(vocab_size=21128, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024)
BASE = BertConfig(vocab_size=21128)
CLASSES, PLACES = 10, 0.15  # of a classification; share of tokens that a masked language model predicts
SIGMA, CLIP = 1.0, 1.0
Losses = Callable[[nn.Module, NDArray[np.int64]], Tensor]


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    config: BertConfig
    task: str  # classes | words
    trained: str  # all | last 3 | lora
    batch: int  # expected batch size: examples in one step
    part: int  # examples in one pass, except ours, which chooses for itself
    tokens: int
    goal: tuple[float, float | None]  # time and memory over plain


CASES = (
    Case("tiny, all, classes", TINY, "classes", "all", 256, 32, 64, (1.5, None)),
    Case("tiny, all, words", TINY, "words", "all", 256, 32, 64, (1.5, None)),
    Case("base, last 3 layers + head", BASE, "classes", "last 3", 64, 32, 64, (1.25, 1.3)),
    Case("base, LoRA r = 8", BASE, "classes", "lora", 64, 32, 64, (1.25, 1.3)),
)


class Setup(NamedTuple):
    """A model and what a step needs."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Losses


class GivenLosses(nn.Module):
    """Opacus' ghost clipping wants a criterion; ours are computed already."""

    reduction = "mean"

    def forward(self, values: Tensor, _: None) -> Tensor:
        """The losses as they are."""
        return values


def set_up(case: Case) -> Setup:
    """A model with random weights and random examples; every call gives the same."""
    torch.manual_seed(0)
    case.config.num_labels = CLASSES
    model: Any = (BertForSequenceClassification if case.task == "classes" else BertForMaskedLM)(case.config)
    if case.trained == "lora":
        model = get_peft_model(model, LoraConfig(r=8, target_modules=["query", "value"]))
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(_is_trained(name, case))
    if case.task == "words":
        model.cls.predictions._parameters.pop("bias")  # Opacus takes a second name of a tensor for a layer of its own
    ids = torch.randint(5, case.config.vocab_size, (case.batch, case.tokens))
    places = torch.arange(case.tokens).expand(case.batch, -1).contiguous()
    hidden = torch.arange(0, case.tokens, round(1 / PLACES))

    def losses(called: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        some = ids[indices]
        fields = {"input_ids": some, "position_ids": places[: len(some)], "token_type_ids": torch.zeros_like(some)}
        if case.task == "classes":
            return functional.cross_entropy(called(**fields).logits, some[:, 0] % CLASSES, reduction="none")
        scores = called(**fields).logits[:, hidden]
        return functional.cross_entropy(scores.transpose(1, 2), some[:, hidden], reduction="none").mean(dim=1)

    optimizer = torch.optim.AdamW([tensor for tensor in model.parameters() if tensor.requires_grad], lr=1e-4)
    return Setup(model.train(), optimizer, losses)


def _is_trained(name: str, case: Case) -> bool:
    head = "classifier" in name or "pooler" in name
    last = any(f"layer.{case.config.num_hidden_layers - back}." in name for back in (1, 2, 3))
    return {"all": True, "last 3": head or last, "lora": "lora_" in name or "classifier" in name}[case.trained]


def stepper(case: Case, kind: str) -> Callable[[], None]:
    """A step of plain training or of Opacus'. Raises: NotImplementedError where Opacus cannot."""
    model, optimizer, losses = set_up(case)
    parts = [np.arange(start, min(start + case.part, case.batch)) for start in range(0, case.batch, case.part)]
    if kind == "plain":
        return lambda: _plain_step(model, optimizer, losses, parts)
    if kind == "ghost" and case.task == "words":
        raise NotImplementedError("Opacus' ghost clipping takes no shared tensors")
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(case.batch)), batch_size=case.batch)
    made = PrivacyEngine(accountant="rdp").make_private(
        module=model,
        optimizer=optimizer,
        data_loader=data,
        criterion=GivenLosses(),
        noise_multiplier=SIGMA,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        grad_sample_mode=kind,
    )
    private, noisy = made[0], made[1]
    if kind == "hooks":
        return lambda: _opacus_step(noisy, parts, lambda part: losses(private, part).mean())
    return lambda: _opacus_step(noisy, parts, lambda part: made[2](losses(private, part), None))


def _plain_step(model: nn.Module, optimizer: Any, losses: Losses, parts: Sequence[NDArray[np.int64]]) -> None:
    optimizer.zero_grad(set_to_none=True)
    for part in parts:
        losses(model, part).mean().backward()
    optimizer.step()


def _opacus_step(optimizer: Any, parts: Sequence[NDArray[np.int64]], loss: Callable[[NDArray[np.int64]], Any]) -> None:
    for place, part in enumerate(parts):
        optimizer.signal_skip_step(place < len(parts) - 1)
        optimizer.zero_grad()
        loss(part).backward()
        optimizer.step()


def our_steps(case: Case, steps: int, between: Callable[[], None]) -> list[float]:
    """CPU seconds of each of our steps; ``between`` is called after each."""
    model, optimizer, losses = set_up(case)
    seconds, started = [], time.process_time()

    def after_step(step: int) -> None:
        nonlocal started
        seconds.append(time.process_time() - started)
        between()
        started = time.process_time()

    train_privately(
        model,
        optimizer,
        DPSettings(noise_multiplier=SIGMA, max_grad_norm=CLIP, sample_rate=1.0, expected_batch_size=case.batch),
        rows=case.batch,
        steps=steps,
        losses=lambda indices: losses(model, indices),
        after_step=after_step,
    )
    return seconds


def measure_time(case: Case, steps: int) -> dict[str, float]:
    """Median CPU seconds of a step of each kind that runs, the first step left out."""
    others = {}
    for kind in KINDS:
        if kind != "ours":
            try:
                others[kind] = stepper(case, kind)
            except NotImplementedError:
                continue
    found: dict[str, list[float]] = {kind: [] for kind in others}

    def turns() -> None:
        for kind, step in others.items():
            started = time.process_time()
            step()
            found[kind].append(time.process_time() - started)

    found["ours"] = our_steps(case, steps + 1, turns)
    return {kind: statistics.median(found[kind][1:]) for kind in KINDS if kind in found}


def two_steps(case: Case, kind: str) -> None:
    """Enough for the peak of memory: the optimizer's state is there from the second step on."""
    warnings.simplefilter("ignore")
    if kind == "ours":
        our_steps(case, 2, lambda: None)
        return
    step = stepper(case, kind)
    step()
    step()


def noise_seconds(case: Case) -> float:
    """CPU seconds of one step's noise, whatever the batch."""
    sizes = [tensor.numel() for tensor in set_up(case).model.parameters() if tensor.requires_grad]
    started = time.process_time()
    OwnerRandomness().gaussian((sum(sizes),), SIGMA)
    return time.process_time() - started


def measure(case: Case, steps: int) -> dict[str, Any]:
    """One row: seconds, bytes, and both over plain."""
    seconds = measure_time(case, steps)
    costs = {kind: in_own_process(two_steps, case, kind, method="forkserver") for kind in seconds}
    memory = {kind: cost.peak_bytes - cost.idle_bytes for kind, cost in costs.items()}
    ratios = {
        kind: {"time": seconds[kind] / seconds["plain"], "memory": memory[kind] / memory["plain"]}
        for kind in seconds
        if kind != "plain"
    }
    return {
        "name": case.name,
        "batch": case.batch,
        "tokens": case.tokens,
        "seconds": seconds,
        "bytes": memory,
        "ratios": ratios,
        "noise_seconds": noise_seconds(case),
        "goal": case.goal,
    }


def quick(case: Case) -> Case:
    """The same with less to do. The noise, which does not shrink with the batch, weighs more."""
    if case.config is TINY:
        return replace(case, batch=32, tokens=32)
    lower = BertConfig(vocab_size=1000, num_hidden_layers=4)
    return replace(case, name=f"{case.name} (of 4)", config=lower, batch=8, tokens=32)


def show(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """The table."""
    table = Table(
        "case", "plain s", "noise s", *(f"{kind} {what}" for kind in KINDS[1:] for what in ("time", "memory")), "goal"
    )
    for row in rows:
        ratios = [row["ratios"].get(kind) for kind in KINDS[1:]]
        cells = [f"{one[what]:.2f}" if one else "-" for one in ratios for what in ("time", "memory")]
        goal = " / ".join("-" if value is None else f"{value:.2f}" for value in row["goal"])
        table.add_row(row["name"], f"{row['seconds']['plain']:.2f}", f"{row['noise_seconds']:.2f}", *cells, goal)
    console.print(table)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller batches and fewer repetitions, under a minute")
    parser.add_argument("--only", help="the cases whose name holds this")
    parser.add_argument("--json", type=Path, help="write all results here")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [quick(case) if asked.quick else case for case in CASES if (asked.only or "") in case.name]
    console = Console(width=None if sys.stdout.isatty() else 140)
    rows = []
    for case in cases:
        rows.append(measure(case, 3 if asked.quick else 5))
        console.print(f"{case.name}: done", highlight=False)
    show(rows, console)
    if asked.json:
        packages = {name: version(name) for name in ("torch", "opacus", "transformers", "peft")}
        results = {"cases": rows, "threads": torch.get_num_threads(), "machine": platform.processor(), "versions": packages}
        asked.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
