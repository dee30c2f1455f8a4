"""A public warm start: a language model trained WITHOUT ANY PRIVACY on public text, for private runs to start from.

Private training from random weights mostly learns noise; see README.md, "A base model".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fl_privacy.errors import CorpusError
from fl_privacy.learning.checkpoint import Checkpoint
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.metrics import Counts
from fl_privacy.learning.models import ModelBundle, build_model, load_bundle, new_bundle, save_pretrained
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import build_vocabulary, tokenizer_of
from fl_privacy.messages import Row
from fl_privacy.model_spec import ModelSpec
from fl_privacy.parameters import from_bytes
from fl_privacy.plan import TrainingPlan

# BERT shapes; a model of the two smaller ones is trained for few steps and underfits, where dropout only adds noise
_SMALL = {"max_position_embeddings": 128, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SIZES: dict[str, dict[str, Any]] = {
    "tiny": _SMALL | {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512},
    "small": _SMALL | {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}
CHECKPOINT = "checkpoint.pt"
_HELD_OUT = 500  # rows at most, and at most a tenth, to see how good the model has become


class Settings(NamedTuple):
    """How to train. More tokens are hidden than BERT's 15 %: a short training learns more from them."""

    steps: int = 4000
    batch_size: int = 128
    learning_rate: float = 2e-3
    max_length: int = 48
    mask_probability: float = 0.2
    vocabulary_size: int = 8000
    seed: int = 1


class Pretrained(NamedTuple):
    """What came out: the model as it stands in the folder, and how it does on rows that it was not trained on."""

    spec: ModelSpec
    held_out: Counts


def start(model: str, rows: Sequence[Row], settings: Settings, vocabulary: bytes | None = None) -> ModelBundle:
    """The untrained model: one of ``SIZES`` with the vocabulary, or else one made from the rows; or a folder or hub name.

    Raises: ModelError.
    """
    if model not in SIZES:
        return load_bundle(model, settings.seed)
    vocabulary = vocabulary or build_vocabulary((row.text for row in rows), settings.vocabulary_size)
    return new_bundle(SIZES[model], vocabulary, settings.seed, f"fl-privacy-{model}")


def pretrain(
    bundle: ModelBundle,
    rows: Sequence[Row],
    out: Path,
    settings: Settings,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    device: torch.device | None = None,
) -> Pretrained:
    """Train a language model on public rows, without privacy; goes on from the checkpoint in ``out`` if there is one.

    The same arguments give the same weights on the same machine, library versions and number of threads, stopped in between
    or not.

    Args: on_step(done, steps) is called after each step; device is where the model computes, by default the CPU.
    Raises: CorpusError, ModelError, PlanError.
    Privacy: none; every word of the rows may be found in the model.
    """
    held_out = min(_HELD_OUT, len(rows) // 10)
    if not held_out:
        raise CorpusError(f"{len(rows)} rows are too few to train a language model; give at least 10")
    plan = _plan(bundle, settings)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = Checkpoint(out / CHECKPOINT, plan.digest())
    trained = train_without_privacy(
        plan,
        from_bytes(bundle.weights),
        bundle.vocabulary,
        rows[held_out:],
        generator=np.random.default_rng(settings.seed),
        on_step=on_step,
        checkpoint=checkpoint,
        device=device,
    )
    save_pretrained(out, bundle.spec, bundle.vocabulary, trained)
    checkpoint.path.unlink(missing_ok=True)
    model = build_model(bundle.spec, bundle.vocabulary, trained)
    model.to(device)
    return Pretrained(bundle.spec, evaluate(plan, model, tokenizer_of(bundle.vocabulary), rows[:held_out], settings.seed))


def _plan(bundle: ModelBundle, settings: Settings) -> TrainingPlan:
    return TrainingPlan.create(
        name="public-base",
        purpose="Train a base model on public text, in one place and without privacy.",
        task=bundle.spec.head,
        model=bundle.spec,
        owners=("public", "none", "nobody"),  # a plan names three owners; this one is only a set of training settings
        rounds=1,
        local_steps=settings.steps,
        batch_size=settings.batch_size,
        mask_probability=settings.mask_probability,
        max_length=min(settings.max_length, bundle.spec.positions),
        learning_rate=settings.learning_rate,
        warmup_steps=settings.steps // 20,
    )
