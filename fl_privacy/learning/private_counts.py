"""What an evaluation on private rows releases: a task's counts as one tensor of an order, and how its opened sum is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fl_privacy.learning.local_start import sent_specs
from fl_privacy.learning.metrics import ClassificationCounts, Counts, EntityCounts, TokenCounts
from fl_privacy.messages import Purpose, TensorSpec
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan

COUNTS = "evaluation.counts"
NATS = 10.0  # log-likelihoods are counted in units of so many nats, or they would leave the hits little of a record's bound
_DRAWS = 500  # of the noise, to see how far it moves a ratio


@dataclass(frozen=True)
class PrivateCounts:
    """Counts over a cohort's held-out units, noise included, and the noise's standard deviation in each.

    A unit whose counts were longer than the plan's ``evaluation_bound`` weighs less than the others: a ratio of such counts is
    a weighted mean.
    """

    counts: Counts
    deviations: NDArray[np.float64]  # (len(counts.names),)

    @property
    def headline_deviation(self) -> float:
        """How far the noise moves ``counts.headline``, one standard deviation; infinite when it may well drown all counts.

        Found by adding fresh noise to the noised counts: exact for ratios that are nearly linear in the noise.
        """
        draws = np.random.default_rng(0).normal(size=(_DRAWS, len(self.deviations)))
        drawn = [self.counts.from_vector(self.counts.vector + draw * self.deviations).headline for draw in draws]
        return float(np.std(drawn)) if np.isfinite([*drawn, self.counts.headline]).all() else math.inf


def no_counts(plan: TrainingPlan) -> Counts:
    """The counts of no record, for the plan's task."""
    if plan.task == "classification":
        return ClassificationCounts(plan.model.labels)
    return EntityCounts(plan.model.labels) if plan.task == "ner" else TokenCounts()


def order_specs(plan: TrainingPlan, purpose: Purpose, round_index: int = 0) -> tuple[TensorSpec, ...]:
    """The tensors that an order of a plan is for: what the round trains and sends, or the counts. Raises: ModelError."""
    if purpose == "evaluate":
        return (TensorSpec(name=COUNTS, shape=(len(no_counts(plan).names),)),)
    return sent_specs(plan, round_index)


def units_of(counts: Counts) -> NDArray[np.float64]:
    """What one is worth of each released count: ``NATS`` of a log-likelihood, one of anything else."""
    return np.array([NATS if name == "nll" else 1.0 for name in counts.names])


def read_sum(plan: TrainingPlan, opened: Parameters, weights: Sequence[int]) -> PrivateCounts:
    """The cohort's counts from an opened sum.

    Each owner sends its noised counts per unit that it is expected to hold out, holdout * its declared size, and the order
    weights owners by declared size; so the mean times holdout * all declared sizes is the sum of the owners' counts.
    Args: opened is the mean of an order to evaluate, weights are the order's.
    """
    nothing = no_counts(plan)
    units, expected = units_of(nothing), plan.holdout * sum(weights)
    sums = nothing.from_vector(opened[COUNTS].astype(np.float64) * expected * units)
    return PrivateCounts(sums, plan.evaluation_noise * plan.evaluation_bound * math.sqrt(len(weights)) * units)
