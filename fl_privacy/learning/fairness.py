"""How evenly a model serves the owners, from one number an owner; and how far its probabilities can be believed.

Privacy: an owner's number tells about its records. Use this where they are public, as mock rows are, or where each number was
released with noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fl_privacy.learning.evaluation import calibration, evaluate
from fl_privacy.learning.metrics import CalibrationCounts
from fl_privacy.messages import Row
from fl_privacy.plan import TrainingPlan


class Fairness(NamedTuple):
    """Over owners; in the unit of what was measured."""

    minimum: float
    tenth_percentile: float
    deviation: float  # standard deviation of these owners, not an estimate for others
    gap: float  # largest - smallest
    benefit_rate: float | None  # share of owners whom the model serves better than one of their own; None if unknown


class OwnerScores(NamedTuple):
    """How one model, or each owner's own, does on each owner's rows."""

    headlines: dict[str, float]  # ``Counts.headline`` by owner
    uncounted: tuple[str, ...]  # owners whose rows hold nothing that the task predicts
    calibration: CalibrationCounts  # over all predictions, at all owners


def fairness(measured: Mapping[str, float], alone: Mapping[str, float] | None = None) -> Fairness:
    """Args: measured by owner, higher is better, for at least one owner; alone is the same of a model that each owner trained
    by itself.

    Raises: ValueError when ``alone`` has other owners.
    """
    if not measured:
        raise ValueError("fairness needs the number of at least one owner")
    if alone is not None and alone.keys() != measured.keys():
        raise ValueError(f"owners {sorted(alone.keys() ^ measured.keys())} are measured once only")
    values = np.array(list(measured.values()))
    return Fairness(
        minimum=float(values.min()),
        tenth_percentile=float(np.quantile(values, 0.1)),
        deviation=float(values.std()),
        gap=float(values.max() - values.min()),
        benefit_rate=None if alone is None else float(np.mean([measured[owner] > alone[owner] for owner in measured])),
    )


def scores_by_owner(
    plan: TrainingPlan,
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    rows: Mapping[str, Sequence[Row]],
    seed: int,
) -> OwnerScores:
    """Measure on each owner's *public* rows the model that serves it: the same for all, or each owner's own.

    Args: models and rows by owner; seed as in ``evaluate``.
    Privacy: exact figures of single owners.
    """
    believed = {owner: calibration(plan, models[owner], tokenizer, own, seed) for owner, own in rows.items()}
    counted = [owner for owner in rows if believed[owner].predictions]
    return OwnerScores(
        headlines={owner: evaluate(plan, models[owner], tokenizer, rows[owner], seed).headline for owner in counted},
        uncounted=tuple(owner for owner in rows if owner not in counted),
        calibration=sum(believed.values(), CalibrationCounts()),
    )
