"""What a server strategy is: pure functions over named arrays.

A strategy sees only the cohort's weighted mean update, never one owner's: that is all that a secure sum gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fl_privacy import parameters
from fl_privacy.errors import ModelError
from fl_privacy.parameters import Parameters


@dataclass(frozen=True)
class ServerState:
    """The scientist's state between rounds; nothing else is needed to go on.

    ``round`` is the next round's index and ``model`` the global model (all tensors, frozen ones too). ``slots`` are the
    strategy's own tensors by name (``momentum``, ``second_moment``, ``control``), for the trained tensors only; empty until
    the first round. ``since`` is the round from which on the slots were gathered. ``wire``
    is no strategy's: what the next rounds' messages need (``scientist.wire``).
    """

    round: int
    model: Parameters
    slots: Mapping[str, Parameters] = field(default_factory=dict)
    since: int = 0
    wire: Mapping[str, Parameters] = field(default_factory=dict)


class Strategy(Protocol):
    """How the global model moves when a round's mean update is known."""

    def init(self, model: Parameters) -> ServerState:
        """The state before round 0."""

    def configure(self, state: ServerState) -> Parameters:
        """What owners get in a round besides the model: SCAFFOLD's control variate, or nothing."""

    def apply(self, state: ServerState, mean: Parameters, cohort_share: float) -> ServerState:
        """The state after a round.

        Args: mean is sum_k p_k * (local_k - global), trained tensors only, with p_k = n_k over the sum of the cohort's;
            cohort_share is that sum over the sum of all owners' declared sizes: 1 when all took part.
        Raises: ModelError when the mean does not fit the model.
        """


class FromModel:
    """What most strategies have in common: they begin with the model alone, and owners need nothing else."""

    def init(self, model: Parameters) -> ServerState:
        """The state before round 0; what a strategy keeps besides the model starts with the first mean update."""
        return ServerState(round=0, model=model)

    def configure(self, state: ServerState) -> Parameters:
        """Nothing besides the model."""
        return {}


def moved(model: Parameters, step: Parameters) -> Parameters:
    """The whole model after ``step``, which is of the trained tensors; the others are carried over untouched.

    Raises: ModelError when the step names a tensor that the model does not have, or another shape.
    """
    unknown = step.keys() - model.keys()
    if unknown:
        raise ModelError(f"the mean update names tensors that the model does not have: {sorted(unknown)[:3]}")
    return model | parameters.add({name: model[name] for name in step}, step)
