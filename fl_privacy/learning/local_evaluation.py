"""One owner's part of an evaluation: what the global model gets right on held-out rows, counted and noised."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fl_privacy.learning.evaluation import scored
from fl_privacy.learning.models import build_model, with_adapters
from fl_privacy.learning.private_counts import COUNTS, units_of
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import PrivacyUnit, Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.dp_evaluation import release_counts
from fl_privacy.privacy.randomness import OwnerRandomness

SEED = 20250911  # of hidden tokens: the same record hides the same ones in every round, so that rounds can be compared
STEPS = 10  # of progress that are told; how many rows there are is not


def evaluate_privately(
    plan: TrainingPlan,
    parameters: Parameters,
    vocabulary: bytes,
    rows: Sequence[Row],
    declared_size: int,
    noise_multiplier: float,
    on_step: Callable[[int, int], None],
    *,
    unit: PrivacyUnit = "record",
    randomness: OwnerRandomness | None = None,
    device: torch.device | None = None,
) -> Parameters:
    """Count, clip for each unit, add, and noise.

    The model sees one record at a time: the scientist chose its weights, and could make the rounding of a batch matter, where
    one record's numbers depend a little on those beside it. On a CPU that takes twice the time of batches for a model of width
    128, and no more for BERT-base.

    Args: rows are the held-out ones; declared_size is the owner's public number of units, held out or not; on_step(done, steps)
        is called in steps of a tenth; device is where the model computes, by default the CPU.
    Returns: the noised counts (``private_counts``), divided by the units that the owner is expected to hold out, float32.
    Raises: PrivacyError when no noise is asked for; ModelError, PlanError.
    Privacy: one Gaussian mechanism with ``noise_multiplier`` (``privacy.dp_evaluation``), for adding or removing one row, or
        with ``unit = "subject"`` one subject with all its rows.
    """
    model = build_model(plan.model, vocabulary, with_adapters(plan, parameters), plan.adapter)
    model.to(device)
    task = task_of(plan, tokenizer_of(vocabulary))
    units, done = units_of(task.nothing), 0

    def counts_of(row: Row) -> NDArray[np.float64]:
        nonlocal done
        ((alone, examples, told),) = scored(plan, task, model, [row], SEED)
        done += 1
        if done * STEPS // len(rows) > (done - 1) * STEPS // len(rows):
            on_step(done * STEPS // len(rows), STEPS)
        counts: NDArray[np.float64] = task.per_example_counts(alone, examples, told)[0]
        return counts / units

    noised = release_counts(
        (map(counts_of, records) for records in _by_unit(rows, unit)),
        len(units),
        bound=plan.evaluation_bound,
        noise_multiplier=noise_multiplier,
        randomness=randomness,
    )
    return {COUNTS: (noised / (plan.holdout * declared_size)).astype(np.float32)}


def _by_unit(rows: Sequence[Row], unit: PrivacyUnit) -> Iterator[list[Row]]:
    if unit == "record":
        yield from ([row] for row in rows)
        return
    places: dict[int | None, list[int]] = {}
    for place, row in enumerate(rows):
        places.setdefault(row.subject, []).append(place)
    yield from ([rows[place] for place in own] for own in places.values())
