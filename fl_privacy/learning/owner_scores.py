"""How a model does on each owner's rows, and how far its probabilities can be believed there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fl_privacy.learning.evaluation import calibration, evaluate
from fl_privacy.learning.metrics import CalibrationCounts
from fl_privacy.messages import Row
from fl_privacy.plan import TrainingPlan


class OwnerScores(NamedTuple):
    """How one model, or each owner's own, does on each owner's rows."""

    headlines: dict[str, float]  # ``Counts.headline`` by owner
    uncounted: tuple[str, ...]  # owners whose rows hold nothing that the task predicts
    calibration: CalibrationCounts  # over all predictions, at all owners


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
