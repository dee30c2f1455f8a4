"""Server optimizers over the owners' mean update, which stands for a gradient (with the sign turned).

Moments are kept for each tensor by itself: one that a round does not train keeps its moments as they are.

Sources: Hsu et al. 2019 (FedAvgM); Reddi et al. 2021, arXiv 2003.00295, Algorithm 2 (FedAdam, FedYogi), without bias
correction, as published.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fl_privacy import parameters
from fl_privacy.parameters import Parameters
from fl_privacy.strategies.base import FromModel, ServerState, moved

MOMENTUM, SECOND_MOMENT = "momentum", "second_moment"


@dataclass(frozen=True)
class FedAvgM(FromModel):
    """v <- beta v + D, w <- w + server_lr v, D the mean update. In the long run a step is 1 / (1 - beta) times FedAvg's."""

    beta: float = 0.9
    server_lr: float = 1.0

    def apply(self, state: ServerState, mean: Parameters, cohort_share: float = 1.0) -> ServerState:
        """One step with momentum. Raises: ModelError."""
        before = state.slots.get(MOMENTUM, {})
        momentum = {name: np.float32(self.beta) * before[name] + mean[name] if name in before else mean[name] for name in mean}
        model = moved(state.model, parameters.scale(momentum, self.server_lr))
        return replace(state, round=state.round + 1, model=model, slots={MOMENTUM: before | momentum})


@dataclass(frozen=True)
class FedAdam(FromModel):
    """m <- b1 m + (1 - b1) D, v <- b2 v + (1 - b2) D^2, w <- w + server_lr m / (sqrt(v) + tau); m = 0 and v = tau^2 at first.

    D is the mean update, with the owners' noise in it: v gathers the noise's variance, so that tau should not be below the
    noise's standard deviation in D.
    """

    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    server_lr: float = 0.01

    def apply(self, state: ServerState, mean: Parameters, cohort_share: float = 1.0) -> ServerState:
        """One adaptive step. Raises: ModelError."""
        before = {slot: state.slots.get(slot, {}) for slot in (MOMENTUM, SECOND_MOMENT)}
        first = {name: before[MOMENTUM].get(name, np.zeros_like(array)) for name, array in mean.items()}
        second = {name: before[SECOND_MOMENT].get(name, np.full_like(array, self.tau**2)) for name, array in mean.items()}
        first = parameters.add(parameters.scale(first, self.beta1), parameters.scale(mean, 1 - self.beta1))
        second = self._second_moment(second, {name: np.square(array) for name, array in mean.items()})
        step = {
            name: np.float32(self.server_lr) * first[name] / (np.sqrt(second[name]) + np.float32(self.tau)) for name in mean
        }
        slots = {MOMENTUM: before[MOMENTUM] | first, SECOND_MOMENT: before[SECOND_MOMENT] | second}
        return replace(state, round=state.round + 1, model=moved(state.model, step), slots=slots)

    def _second_moment(self, second: Parameters, squares: Parameters) -> Parameters:
        return parameters.add(parameters.scale(second, self.beta2), parameters.scale(squares, 1 - self.beta2))


@dataclass(frozen=True)
class FedYogi(FedAdam):
    """FedAdam with v <- v - (1 - b2) D^2 sign(v - D^2): v moves by the same amount however far it is from D^2."""

    def _second_moment(self, second: Parameters, squares: Parameters) -> Parameters:
        rate = np.float32(1 - self.beta2)
        return {name: array - rate * squares[name] * np.sign(array - squares[name]) for name, array in second.items()}
