"""Federated rounds of any plan as the product runs them: its schedules, local models, compression, rounding and model steps.

Encryption is left out: it adds the same integers exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from accuracy_federation import Site, in_fixed_point, mean_update, weights
from benchmark_cohort import NOTHING

from fl_privacy import parameters
from fl_privacy.compression.order_codec import codec_of
from fl_privacy.encryption.packing import bfv_encoding, plan_encoding
from fl_privacy.encryption.secret_sum import representable
from fl_privacy.learning.local_start import grown, local_start, own_specs, sent_specs
from fl_privacy.learning.models import ModelBundle, with_adapters
from fl_privacy.parameters import Parameters, Vector
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import RoundOrder
from fl_privacy.scientist.wire import Wire, still_owed
from fl_privacy.strategies.base import ServerState
from fl_privacy.strategies.registry import strategy_of


class Outcome(NamedTuple):
    """The global model, and the layers that each owner has kept to itself (FedSplitBERT; else none)."""

    model: Parameters
    own: dict[str, Parameters]


class Federation:
    """Owners of a plan, with what each carries from round to round (as ``guard.carried`` does)."""

    def __init__(self, plan: TrainingPlan, bundle: ModelBundle, sites: Mapping[str, Site], seed: int, exact: bool) -> None:
        """Args: exact updates are added in float32, as plain federated learning does; no secure sum can."""
        self._plan, self._vocabulary, self._seed, self._exact = plan, bundle.vocabulary, seed, exact
        self._first = parameters.from_bytes(bundle.weights)
        self._sites, self._sizes = sites, [site.size for site in sites.values()]
        self._wire, self._dither = Wire(plan, bundle), np.random.default_rng(seed)
        self.own: dict[str, Parameters] = {owner: {} for owner in sites}
        self._memory: dict[str, Vector] = {}

    def train(self) -> Outcome:
        """All rounds of the plan's strategy."""
        strategy = strategy_of(self._plan)
        state = strategy.init(with_adapters(self._plan, self._first))
        while state.round < self._plan.rounds:
            order = self._order(state)
            updates = [self._sent(owner, state, order) for owner in self._sites]
            values = self._mean(updates, order)
            moved = strategy.apply(state, self._wire.mean(order, values), 1.0)
            state = self._grown(self._wire.after(state, moved, order, values))
        return Outcome(state.model, self.own)

    def _order(self, state: ServerState) -> RoundOrder:
        """The order of a round; owners, weights and encoding are the real ones."""
        nothing = dict.fromkeys(("code", "registry", "key", "model"), NOTHING)
        return RoundOrder(
            plan=self._plan.digest(),
            round=state.round,
            attempt=0,
            tensors=sent_specs(self._plan, state.round),
            cohort=tuple(self._sites),
            weights=tuple(self._sizes),
            encoding=plan_encoding(self._plan, self._sizes),
            compression=self._wire.compression(state),
            **nothing,
        )

    def _sent(self, owner: str, state: ServerState, order: RoundOrder) -> Vector:
        """What an owner protects in a round; its own layers, and what was left out, are kept."""
        place = list(self._sites).index(owner)
        plan, start = local_start(self._plan, state.round, state.model | self.own[owner], owner, order.digest())
        seed = self._seed + 1000 * place
        update = self._sites[owner].update(plan, state.round, start, self._vocabulary, seed)
        self.own[owner] = {spec.name: start[spec.name] + update[spec.name] for spec in own_specs(self._plan)}
        whole = parameters.flatten(update, order.tensors)
        if (codec := codec_of(self._plan, order, self._wire.kept(state))) is None:
            return whole
        if owner in self._memory:
            whole += self._memory[owner]
        sent = codec.send(whole)
        if codec.error_feedback:
            sent = representable(sent, order, owner)
            self._memory[owner] = codec.remaining(whole, sent)
        return sent

    def _mean(self, updates: Sequence[Vector], order: RoundOrder) -> Vector:
        if self._exact:
            return sum(weight * update for weight, update in zip(weights(self._sizes), updates, strict=True))
        encoding = bfv_encoding(order)
        return mean_update(in_fixed_point(updates, self._sizes, encoding, self._dither), encoding)

    def _grown(self, state: ServerState) -> ServerState:
        model = grown(self._plan, state.round, state.model, self._first)
        if model is None:
            return state
        wire = still_owed(state.wire, state.model, model)
        return replace(state, model=model, slots={}, since=state.round, wire=wire)


def apart(plan: TrainingPlan, bundle: ModelBundle, site: Site, seed: int) -> Parameters:
    """The model of one site alone, by a plan of one round."""
    model = with_adapters(plan, parameters.from_bytes(bundle.weights))
    update = site.update(plan, 0, model, bundle.vocabulary, seed)
    return model | parameters.add({name: model[name] for name in update}, update)


def at_once(plan: TrainingPlan, batch_size: int) -> TrainingPlan:
    """The same steps as one round, so with one optimizer throughout."""
    return TrainingPlan.create(**(plan.model_dump() | {"rounds": 1, "local_steps": plan.total_steps, "batch_size": batch_size}))
