"""Federated averaging (McMahan et al. 2017, Algorithm 1), in update form."""

from __future__ import annotations

from dataclasses import dataclass

from fl_privacy import parameters
from fl_privacy.errors import ModelError
from fl_privacy.parameters import Parameters
from fl_privacy.strategies.base import ServerState


@dataclass(frozen=True)
class FedAvg:
    """w <- w + server_lr * sum_k p_k (w_k - w); with server_lr = 1 this is the weighted mean of the local models."""

    server_lr: float = 1.0

    def init(self, model: Parameters) -> ServerState:
        """The state before round 0."""
        return ServerState(round=0, model=model)

    def apply(self, state: ServerState, mean: Parameters) -> ServerState:
        """Add the scaled mean update; tensors that were not trained are carried over untouched.

        Raises: ModelError when the mean names a tensor that the model does not have, or another shape.
        """
        unknown = mean.keys() - state.model.keys()
        if unknown:
            raise ModelError(f"the mean update names tensors that the model does not have: {sorted(unknown)[:3]}")
        trained = {name: state.model[name] for name in mean}
        moved = parameters.add(trained, parameters.scale(mean, self.server_lr))
        return ServerState(round=state.round + 1, model=state.model | moved)
