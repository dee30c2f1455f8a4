"""Owners of the accuracy benchmarks and the rounds that they train in: the product's training, rounding and strategies.

Updates are in fixed point as they are when they travel. Encryption is left out: it adds these integers exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fl_privacy.encryption.packing import Fields, plan_encoding
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.guard.admission import plan_spends, round_spend
from fl_privacy.guard.control_variates import next_control
from fl_privacy.guard.corpus import round_down
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters, Vector, count, flatten, unflatten
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.accounting import epsilon
from fl_privacy.privacy.audit import pld_epsilon
from fl_privacy.round_order import Encoding
from fl_privacy.strategies.registry import strategy_of


class Site(NamedTuple):
    """Where rows lie together: an owner, or all in one place. ``private``: whether DP-SGD is what they are trained with."""

    rows: list[Row]
    private: bool

    @property
    def size(self) -> int:
        """The size that an owner would declare, which sets its sample rate and its weight."""
        return round_down(len(self.rows))

    def update(
        self,
        plan: TrainingPlan,
        order_round: int,
        model: Parameters,
        vocabulary: bytes,
        seed: int,
        correction: Parameters | None = None,
    ) -> Parameters:
        """local - global of one round, the trained tensors only; ``correction`` is SCAFFOLD's c - c_k."""
        if self.private:
            return train_update(
                plan,
                order_round,
                model,
                vocabulary,
                self.rows,
                self.size,
                round_spend(plan, self.size).noise_multiplier,
                lambda step, steps: None,
                correction=correction,
            )
        local = train_without_privacy(
            plan,
            model,
            vocabulary,
            self.rows,
            generator=np.random.default_rng([seed, order_round]),
            first_step=order_round * plan.local_steps,
            steps=plan.local_steps,
            correction=correction,
        )
        return {spec.name: local[spec.name] - model[spec.name] for spec in specs_for(plan)}

    def epsilons(self, plan: TrainingPlan) -> tuple[float, float]:
        """What a whole plan costs here: as the ledger counts it, and as ``dp-accounting`` does."""
        spends = plan_spends(plan, self.size)
        return epsilon(spends, plan.delta, plan.accountant), pld_epsilon(spends, plan.delta)


def federate(plan: TrainingPlan, model: Parameters, vocabulary: bytes, sites: Sequence[Site], seed: int) -> Parameters:
    """All rounds of the plan's strategy from ``model`` on, owners weighted by declared size; the whole model's parameters."""
    strategy, specs, sizes = strategy_of(plan), specs_for(plan), [site.size for site in sites]
    state, encoding, generator = strategy.init(model), plan_encoding(plan, sizes), np.random.default_rng(seed)
    controls = Controls(plan, len(sites)) if plan.strategy == "scaffold" else None
    while state.round < plan.rounds:
        server = strategy.configure(state)
        terms = [controls.term(place, server) if controls else None for place in range(len(sites))]
        updates = [
            site.update(plan, state.round, state.model, vocabulary, seed + 1000 * place, term)
            for place, (site, term) in enumerate(zip(sites, terms, strict=True))
        ]
        fields = in_fixed_point([flatten(update, specs) for update in updates], sizes, encoding, generator)
        if controls:
            controls.advance(state.round, server, [sent(*told, encoding) for told in zip(fields, weights(sizes), strict=True)])
        state = strategy.apply(state, unflatten(mean_update(fields, encoding), specs), 1.0)
    return state.model


class Controls:
    """Every owner's control variate c_k of SCAFFOLD, zero at first. ``server`` is c, empty for zero."""

    def __init__(self, plan: TrainingPlan, owners: int) -> None:
        self._plan, self._specs = plan, specs_for(plan)
        self.own = [np.zeros(count(self._specs), np.float32)] * owners

    def term(self, place: int, server: Parameters) -> Parameters:
        """c - c_k, which an owner adds to its gradients."""
        return unflatten(self._flat(server) - self.own[place], self._specs)

    def advance(self, order_round: int, server: Parameters, updates: Sequence[Vector]) -> None:
        """Move each c_k by what its owner sent in a round."""
        common, rate_sum, damping = self._flat(server), sum(self._plan.rates(order_round)), self._plan.scaffold_damping
        self.own = [next_control(own, common, update, rate_sum, damping) for own, update in zip(self.own, updates, strict=True)]

    def _flat(self, server: Parameters) -> Vector:
        return flatten(server, self._specs) if server else np.zeros(count(self._specs), np.float32)


def weights(sizes: Sequence[int]) -> list[float]:
    """p_k = n_k / n."""
    return [size / sum(sizes) for size in sizes]


def in_fixed_point(
    updates: Sequence[Vector], sizes: Sequence[int], encoding: Encoding, generator: np.random.Generator
) -> list[Fields]:
    """p_k u_k of every owner, as it travels."""
    return [
        quantise(update, weight, encoding, generator.integers(1 << 16, size=update.size, dtype=np.uint16))
        for update, weight in zip(updates, weights(sizes), strict=True)
    ]


def sent(fields: Fields, weight: float, encoding: Encoding) -> Vector:
    """u_k as the sum has it."""
    return dequantise_sum(fields, encoding, 1) / np.float32(weight)


def mean_update(fields: Sequence[Fields], encoding: Encoding) -> Vector:
    """sum_k p_k u_k, as an opened sum has it."""
    return dequantise_sum(sum(fields), encoding, len(fields))
