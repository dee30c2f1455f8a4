"""SCAFFOLD, option II (Karimireddy et al. 2020, arXiv 1910.06378, Algorithm 1), with nothing sent up but the update.

An owner k steps with g - c_k + c, where g is its gradient (clipped, noised), c_k its own control variate and c the server's,
and afterwards c_k <- c_k - rho (c + D_k / L): D_k is its update and L the sum of the round's learning rates. What c_k changes
by does not depend on c_k, so that the server finds the change of c = sum_k p_k c_k over all owners from the mean update alone.
Control variates are kept for each tensor by itself: those of tensors that a round does not train stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fl_privacy import parameters
from fl_privacy.parameters import Parameters
from fl_privacy.strategies.base import FromModel, ServerState, moved

CONTROL = "control"


@dataclass(frozen=True)
class Scaffold(FromModel):
    """w <- w + server_lr D and c <- c - rho s (c + D / L), with D the cohort's mean update and s its share of all owners.

    ``rate_sum`` gives L of a round, ``damping`` is rho: below 1 less of a round's noise goes into the control variates.
    """

    rate_sum: Callable[[int], float]
    damping: float = 0.5
    server_lr: float = 1.0

    def configure(self, state: ServerState) -> Parameters:
        """The server's control variate c; nothing while it is zero."""
        return state.slots.get(CONTROL, {})

    def apply(self, state: ServerState, mean: Parameters, cohort_share: float) -> ServerState:
        """Move the model and the control variate. Raises: ModelError."""
        weight = self.damping * cohort_share
        before = state.slots.get(CONTROL, {})
        control = parameters.scale(mean, -weight / self.rate_sum(state.round))
        control |= {name: np.float32(1 - weight) * before[name] + control[name] for name in mean if name in before}
        model = moved(state.model, parameters.scale(mean, self.server_lr))
        return replace(state, round=state.round + 1, model=model, slots={CONTROL: before | control})

    @staticmethod
    def anew(state: ServerState) -> ServerState:
        """The state with all control variates zero again, the owners' too; for when an owner has lost its own."""
        return replace(state, slots={}, since=state.round)
