"""From the whole global model to what an owner trains or tries in a round (``round_plan``)."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from fl_privacy.layer_schedules import drawn_layers
from fl_privacy.learning.local_models import local_parameters
from fl_privacy.learning.models import outline
from fl_privacy.learning.trainable import specs_for, trainable_specs
from fl_privacy.messages import TensorSpec
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_plan import depths_of, evaluated_plan, lone_layer, round_plan


@lru_cache(maxsize=1024)
def sent_specs(plan: TrainingPlan, round_index: int) -> tuple[TensorSpec, ...]:
    """The tensors whose updates leave an owner in a round: what is trained, but for an owner's own. Raises: ModelError."""
    kept = {spec.name for spec in own_specs(plan)}
    return tuple(spec for spec in specs_for(round_plan(plan, round_index)) if spec.name not in kept)


def own_specs(plan: TrainingPlan) -> tuple[TensorSpec, ...]:
    """The tensors that stay with each owner: ``local_layers``, and the head with them. Most plans have none."""
    return trainable_specs(outline(plan.model), f"layers:{plan.local_layers}") if plan.local_layers else ()


def local_start(
    plan: TrainingPlan, round_index: int, parameters: Parameters, owner: str, order: str
) -> tuple[TrainingPlan, Parameters]:
    """The plan of a round for the model that one owner trains, and the values which that starts from.

    In FedBT's stage 1 the layers above the trained one are drawn, anew for each owner and order, unless there is room for all:
    a function of these two, which costs no privacy. Tensors that are trained have the same names and values as in the whole
    model.
    Args: parameters are the whole global model; order is the order's digest. Raises: ModelError.
    """
    if plan.layer_schedule == "fixed":
        return plan, parameters
    layers = plan.model.num_layers
    depth, slot = plan.depth_at(plan.owners.index(owner), layers), lone_layer(plan, round_index)
    if slot is None or depth == layers:
        stage = round_plan(plan, round_index)
        return stage, local_parameters(stage.model, parameters, range(stage.model.num_layers))
    drawn = drawn_layers(hashlib.sha256(f"{order}/{owner}".encode()).digest(), slot, depth, layers)
    stage = round_plan(plan, round_index, depth)
    return stage, local_parameters(stage.model, parameters, drawn)


def evaluated_start(plan: TrainingPlan, round_index: int, parameters: Parameters) -> tuple[TrainingPlan, Parameters]:
    """``evaluated_plan``, and the values of its model out of the whole global model. Raises: ModelError."""
    if plan.layer_schedule == "fixed":
        return plan, parameters
    stage = evaluated_plan(plan, round_index)
    return stage, local_parameters(stage.model, parameters, range(stage.model.num_layers))


def grown(plan: TrainingPlan, round_index: int, parameters: Parameters, first: Parameters) -> Parameters | None:
    """The whole model with its head as it was at ``first``, where the model of ProgFed has grown before a round; else None."""
    if plan.layer_schedule != "progfed" or not 0 < round_index < plan.rounds:
        return None
    before, now = depths_of(plan)[round_index - 1 : round_index + 1]
    return parameters | {spec.name: first[spec.name] for spec in _head(plan)} if now > before else None


def _head(plan: TrainingPlan) -> tuple[TensorSpec, ...]:
    return trainable_specs(outline(plan.model), "head")
