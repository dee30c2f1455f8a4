"""Federated averaging (McMahan et al. 2017, Algorithm 1), in update form."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fl_privacy import parameters
from fl_privacy.parameters import Parameters
from fl_privacy.strategies.base import FromModel, ServerState, moved


@dataclass(frozen=True)
class FedAvg(FromModel):
    """w <- w + server_lr * sum_k p_k (w_k - w); with server_lr = 1 this is the weighted mean of the local models.

    With a part of the owners the p_k are those of the cohort: they always add up to 1. FedProx (Li et al. 2020) is the same
    here; its proximal term is the owners' (``learning.drift``).
    """

    server_lr: float = 1.0

    def apply(self, state: ServerState, mean: Parameters, cohort_share: float = 1.0) -> ServerState:
        """Add the scaled mean update. Raises: ModelError."""
        model = moved(state.model, parameters.scale(mean, self.server_lr))
        return replace(state, round=state.round + 1, model=model)
