"""When a run ends before all of its rounds are done, and which round's model is its result.

Everything here is a function of public numbers: scores on rows that are not private, and norms of opened sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl_privacy import parameters
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan


@dataclass(frozen=True)
class Stopping:
    """The plan's rules: ``rounds`` at most; ``patience`` rounds without a better score; updates of at most ``minimal_update``.

    Zero turns one of the last two off.
    """

    rounds: int
    patience: int = 0
    minimal_update: float = 0.0

    @classmethod
    def of(cls, plan: TrainingPlan) -> Stopping:
        """The rules of a plan."""
        return cls(plan.rounds, plan.patience, plan.minimal_update)

    def verdict(self, round_index: int, scores: Sequence[float], updates: Sequence[float]) -> str | None:
        """Why the run ends before round ``round_index``, in words; None: it goes on.

        Args: scores of the models so far, the first model's first, larger is better, one that is not a number is no gain;
            updates are ``relative_update`` of the rounds so far. Rounds that were skipped are in neither.
        """
        if round_index >= self.rounds:
            return f"all {self.rounds} rounds are done"
        if self.patience and scores and len(scores) - 1 - best_model(scores) >= self.patience:
            return f"{self.patience} rounds without a better validation score"
        if self.minimal_update and updates and updates[-1] <= self.minimal_update:
            return f"a round moved the model by {updates[-1]:.2g} of its norm; minimal_update is {self.minimal_update:g}"
        return None


def best_model(scores: Sequence[float]) -> int:
    """The place of the best score; of equal ones the first, since a tie is no gain."""
    return max(range(len(scores)), key=lambda place: (not math.isnan(scores[place]), scores[place], -place))


def relative_update(before: Parameters, after: Parameters, trained: Sequence[str]) -> float:
    """||after - before|| / max(1, ||before||) over the trained tensors: what a round did to the model."""
    old, new = ({name: model[name] for name in trained} for model in (before, after))
    return parameters.norm(parameters.subtract(new, old)) / max(1.0, parameters.norm(old))


def noise_floor(
    plan: TrainingPlan,
    round_index: int,
    coordinates: int,
    noise_multipliers: Mapping[str, float],
    sizes: Mapping[str, int],
) -> float | None:
    """The norm that a round's mean update would have if the owners' gradients were nothing but their noise.

    ``minimal_update`` ends no run while it is below this, times ``server_lr``, over the norm of the model. For SGD, exact in
    the mean square but for weight decay; None for AdamW, which divides the noise's own size out, and where FedProx or SCAFFOLD
    add terms of their own, or only a part of the coordinates is sent.
    Args: coordinates that are trained; noise_multipliers and declared sizes by owner, of the round's cohort.
    """
    if plan.optimizer != "sgd" or plan.strategy in ("fedprox", "scaffold") or plan.sent != "all":
        return None
    total = sum(sizes.values())
    length = float(np.linalg.norm(plan.rates(round_index))) * plan.max_grad_norm / plan.batch_size
    return length * math.sqrt(coordinates * sum((sizes[owner] * noise_multipliers[owner] / total) ** 2 for owner in sizes))
