"""What a plan trains in one round, and on which model, where that changes from round to round.

The plan of a round is a plan whose model, task and ``trainable`` are that round's alone: whatever trains or evaluates by a plan
works with it. It is not one to propose: it is not validated as a whole, and its digest is nobody's. Sources: as
``layer_schedules``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from fl_privacy.layer_schedules import fine_tuning_layers, further_pretraining_layers, growing_depths
from fl_privacy.plan import TrainingPlan

_FIXED = {name: TrainingPlan.model_fields[name].default for name in ("layer_schedule", "pretraining_rounds", "local_depths")}
_FIXED |= {"layer_cycle": 0, "growth_stages": 0, "warmup_rounds": 0}


@lru_cache(maxsize=1024)
def round_plan(plan: TrainingPlan, round_index: int, depth: int | None = None) -> TrainingPlan:
    """The plan as it is for the training of one round.

    Args: depth is how many layers the model has that an owner trains in FedBT's stage 1, by default all. Which tensors are
        trained does not depend on it.
    """
    if plan.layer_schedule == "fixed":
        return plan
    layers = plan.model.num_layers
    if plan.layer_schedule == "progfed":
        depths = depths_of(plan)
        first = depths.index(depths[round_index])  # of the rounds with so many layers
        warms_up = first > 0 and round_index - first < plan.warmup_rounds
        trained = f"layers:{depths[first - 1]}-{depths[round_index] - 1}" if warms_up else "all"
        return _fixed(plan, model=plan.model.with_layers(depths[round_index]), trainable=trained)
    if (slot := lone_layer(plan, round_index)) is not None:
        model = plan.model.language_model.with_layers(depth or layers)
        return _fixed(plan, model=model, task=model.head, trainable=f"layers:{slot}-{slot}")
    stage_2 = plan.rounds - plan.pretraining_rounds
    lowest = fine_tuning_layers(stage_2, layers, plan.cycle)[round_index - plan.pretraining_rounds]
    return _fixed(plan, trainable=f"layers:{lowest}-{layers - 1}")


def evaluated_plan(plan: TrainingPlan, round_index: int) -> TrainingPlan:
    """The plan as it is for trying the model that a round starts from; ``plan.rounds`` stands for the finished model."""
    if plan.layer_schedule == "fixed":
        return plan
    if plan.layer_schedule == "progfed" and round_index < plan.rounds:
        return _fixed(plan, model=plan.model.with_layers(depths_of(plan)[round_index]))
    return _fixed(plan)


def depths_of(plan: TrainingPlan) -> tuple[int, ...]:
    """ProgFed: how many layers the model has in each round."""
    return growing_depths(plan.rounds, plan.model.num_layers, plan.stages)


def lone_layer(plan: TrainingPlan, round_index: int) -> int | None:
    """The one layer that a round of FedBT's stage 1 trains; None in any other round."""
    rounds = plan.stage_1_rounds(plan.rounds, bool(plan.model.labels)) if plan.layer_schedule == "fedbt" else 0
    return further_pretraining_layers(rounds)[round_index] if round_index < rounds else None


def _fixed(plan: TrainingPlan, **changes: Any) -> TrainingPlan:
    own = {"model": plan.model.model_copy(update={"language_head": False})}
    return plan.model_copy(update=_FIXED | own | changes)
