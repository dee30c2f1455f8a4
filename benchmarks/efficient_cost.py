"""What a round of a method costs an owner: FLOPs, seconds, memory, bytes up and down; fresh weights, random rows.

Compute is that of the product's own calls, in processes of their own. Rounds that train the same tensors of a model of the same
depth cost the same, so each kind of round is measured once. Linux only: peaks of memory are read from /proc.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from benchmark_cohort import NOTHING, make_cohort, one_tensor, whole_blocks
from efficient_methods import Method, Task
from full_model import in_own_process
from torch.utils.flop_counter import FlopCounterMode

from fl_privacy import parameters
from fl_privacy.compression.codec import Codec
from fl_privacy.compression.order_codec import seed_of, sent_count
from fl_privacy.compression.steps import make_step
from fl_privacy.compression.subsets import random_subset
from fl_privacy.learning.local_start import local_start, sent_specs
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, new_bundle
from fl_privacy.learning.pretraining import SIZES
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.messages import Row
from fl_privacy.model_spec import ModelSpec
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_plan import round_plan

OWNERS = tuple(f"owner-{index}" for index in range(5))
LABELS = tuple(f"class-{index}" for index in range(10))
STEPS = 2  # the first, which also allocates, is not timed
MEASURED = 10_000_000  # coordinates; what is larger is encrypted on paper, by the size of its blocks
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = [*range(0x4E00, 0xA000), *range(0x3400, 0x4DC0)]  # each one token


class Shape(NamedTuple):
    """The model and the batch that are measured."""

    config: Mapping[str, Any]
    vocabulary_size: int
    examples: int
    tokens: int


BERT_BASE = Shape(SIZES["base"], 21128, 4, 64)
SMALL = Shape(SIZES["base"] | {"hidden_size": 48, "intermediate_size": 96, "max_position_embeddings": 64}, 500, 2, 16)


class Part(NamedTuple):
    """One owner's part in one round, as its worker has it."""

    plan: TrainingPlan
    round: int
    weights: Path
    vocabulary: bytes
    told: Path  # where the process leaves its figures


def vocabulary_of(size: int) -> bytes:
    """A vocabulary of special tokens and single characters."""
    return "\n".join([*SPECIAL, *map(chr, _CHARACTERS[: size - len(SPECIAL)])]).encode()


def bundle_of(shape: Shape, task: Task) -> ModelBundle:
    """The whole model, with fresh weights."""
    labels = LABELS if task == "classification" else ()
    return new_bundle(shape.config, vocabulary_of(shape.vocabulary_size), 0, "bert-base-shape", task, labels)


def plan_of(method: Method, shape: Shape, model: ModelSpec) -> TrainingPlan:
    """The plan of a method for a model of this shape."""
    return TrainingPlan.create(
        name="efficient",
        purpose="Measure what one owner's part in a round costs.",
        task=method.task,
        model=model,
        owners=OWNERS,
        rounds=method.rounds,
        local_steps=STEPS,
        batch_size=shape.examples,
        max_length=shape.tokens,
        **method.fields(model.num_layers),
    )


def kind_of(shape: Shape, plan: TrainingPlan, round_index: int) -> str:
    """What the compute of a round depends on, besides the code."""
    stage = round_plan(plan, round_index, plan.depth_at(0, plan.model.num_layers))
    told = repr((shape, stage.model.architecture, stage.task, stage.trainable, stage.adapter))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def kinds_of(plan: TrainingPlan) -> Counter[int]:
    """How many rounds are alike, by the first of them."""
    first: dict[tuple[str, str], int] = {}
    stages = (round_plan(plan, index) for index in range(plan.rounds))
    return Counter(first.setdefault((one.model.architecture, one.trainable), index) for index, one in enumerate(stages))


def compute_cost(bundle: ModelBundle, plan: TrainingPlan, round_index: int) -> dict[str, float]:
    """FLOPs of an example without privacy, CPU seconds of a step without and with, and the peak memory of a step with.

    Memory is that of the owner's whole part beyond the idle interpreter: the global model is read, what the owner trains is
    taken out of it, and DP-SGD goes on from there.
    """
    multiprocessing.set_forkserver_preload(["fl_privacy.guard.worker"])  # what takes long to import
    with TemporaryDirectory(prefix="efficient-") as folder:
        weights, told = Path(folder) / "weights.safetensors", Path(folder) / "told.json"
        weights.write_bytes(bundle.weights)
        part = Part(plan, round_index, weights, bundle.vocabulary, told)
        in_own_process(_plain_steps, part, method="forkserver")
        plain = json.loads(told.read_text("utf-8"))
        cost = in_own_process(_private_steps, part, method="forkserver")
        private = json.loads(told.read_text("utf-8"))
    return {
        "flops": plain["flops"],
        "plain_seconds": plain["seconds"],
        "private_seconds": private["seconds"],
        "private_bytes": float(cost.peak_bytes - cost.idle_bytes),
    }


def _plain_steps(part: Part) -> None:
    counter, clock = FlopCounterMode(display=False), _Clock()
    plan, start = _started(part)
    with ExitStack() as counting:

        def on_step(step: int, steps: int) -> None:
            counting.close()  # which slows: the steps after the first are timed
            clock.on_step(step, steps)

        counting.enter_context(counter)
        rows, generator = _rows(part), np.random.default_rng(0)
        train_without_privacy(plan, start, part.vocabulary, rows, generator=generator, steps=STEPS, on_step=on_step)
    _tell(part, flops=counter.get_total_flops() / plan.batch_size, seconds=clock.last)


def _private_steps(part: Part) -> None:
    clock = _Clock()
    plan, start = _started(part)
    train_update(plan, part.round, start, part.vocabulary, _rows(part), plan.batch_size, 1.0, clock.on_step)
    _tell(part, seconds=clock.last)


def _started(part: Part) -> tuple[TrainingPlan, parameters.Parameters]:
    whole = parameters.from_bytes(part.weights.read_bytes())
    return local_start(part.plan, part.round, whole, OWNERS[0], NOTHING)


def _rows(part: Part) -> list[Row]:
    """As many rows as a batch has, each of as many tokens as the plan lets it have."""
    plan, draw = part.plan, np.random.default_rng(1)
    known = part.vocabulary.decode().split("\n")[len(SPECIAL) :]
    texts = ("".join(draw.choice(known, plan.max_length - 2)) for _ in range(plan.batch_size))
    label = LABELS[0] if plan.task == "classification" else None
    return [Row(text=text, label=label) for text in texts]


def _tell(part: Part, **figures: float) -> None:
    part.told.write_text(json.dumps(figures), encoding="utf-8")


class _Clock:
    """CPU seconds of the last step."""

    def __init__(self) -> None:
        self.last, self._started = 0.0, time.process_time()

    def on_step(self, step: int, steps: int) -> None:
        now = time.process_time()
        self.last, self._started = now - self._started, now


def wire_cost(bundle: ModelBundle, plan: TrainingPlan, round_index: int) -> dict[str, float]:
    """Bytes of one owner in one round, up in three forms and down in two; ``whole`` is the whole model, as it goes once."""
    specs = sent_specs(plan, round_index)
    shared = parameters.count(specs)
    sent = sent_count(plan, shared)
    kept = random_subset(seed_of(plan, round_index), shared, sent) if plan.sent == "random" else None
    codec = Codec(specs, kept=kept, error_feedback=plan.error_feedback)
    mean = codec.restore(np.full(sent, 1e-3, np.float32))
    base = {spec.name: np.zeros(spec.shape, np.float32) for spec in specs}
    moved = parameters.unflatten(mean, specs)
    return {
        "shared": shared,
        "sent": sent,
        "up_float32": 4 * sent,
        "up_int8": sent,
        "up_encrypted": encrypted_bytes(sent),
        "encrypted_is_measured": float(sent <= MEASURED),
        "down_float32": len(make_step(base, moved, 32)),
        "down_int8": len(make_step(base, moved, 8)),
        "whole": len(bundle.weights),
    }


def encrypted_bytes(coordinates: int) -> int:
    """The size of one owner's file: that of ``protect_update`` up to MEASURED coordinates, from there on its blocks'."""
    if coordinates <= MEASURED:
        return _protected_bytes(coordinates)
    block = whole_blocks(len(OWNERS), 1)
    one, two = _protected_bytes(block), _protected_bytes(2 * block)
    return one + (-(-coordinates // block) - 1) * (two - one)


@cache
def _protected_bytes(coordinates: int) -> int:
    with TemporaryDirectory(prefix="efficient-") as folder:
        cohort = make_cohort(len(OWNERS), one_tensor(coordinates), Path(folder))
        cohort.protect(0, cohort.update(0))
        return cohort.update_files[0].stat().st_size


def mean_of(costs: Iterable[tuple[Mapping[str, float], int]]) -> dict[str, float]:
    """The mean over rounds of so many of each kind; memory is the largest."""
    kinds = list(costs)
    rounds = sum(count for _, count in kinds)
    means = {name: sum(cost[name] * count for cost, count in kinds) / rounds for name in kinds[0][0]}
    return means | {"private_bytes": max(cost["private_bytes"] for cost, _ in kinds)}
