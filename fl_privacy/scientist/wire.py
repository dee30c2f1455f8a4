"""How a run's messages become small: the map of each order, how its opened sum is read, and steps of the model to the owners.

What later rounds need of it is in ``ServerState.wire``: ``ranges`` by tensor, the last ``mean``, and the ``residual`` that
8-bit steps have left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fl_privacy import parameters
from fl_privacy.compression.codec import Codec
from fl_privacy.compression.order_codec import codec_of, compression_of, top_of
from fl_privacy.compression.steps import make_step, rounded_step
from fl_privacy.learning.local_start import sent_specs
from fl_privacy.learning.models import ModelBundle
from fl_privacy.parameters import Parameters, Vector
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import Compression, RoundOrder
from fl_privacy.scientist.deliveries import Delivery, ModelStep
from fl_privacy.strategies.base import ServerState

RANGES, MEAN, RESIDUAL = "ranges", "mean", "residual"


@dataclass
class Wire:
    """The messages of one run; steps are forgotten with the process, and models then go whole once."""

    plan: TrainingPlan
    bundle: ModelBundle
    _steps: dict[str, tuple[ModelStep, ...]] = field(default_factory=dict)  # by the model that they lead to, the best first
    _kept: bytes | None = None
    _map: tuple[RoundOrder, Codec | None] | None = None

    def compression(self, state: ServerState) -> Compression | None:
        """What the next order to train says of its map."""
        ranges = {name: float(bound.item()) for name, bound in state.wire.get(RANGES, {}).items()}
        specs, kept = sent_specs(self.plan, state.round), self.kept(state)
        return compression_of(self.plan, specs, ranges, kept)

    def kept(self, state: ServerState) -> bytes | None:
        """The blob of indices that goes with the next order to train, if one does."""
        if self.plan.sent != "shared-top":
            return None
        specs, last = sent_specs(self.plan, state.round), state.wire.get(MEAN)
        zero = np.zeros(parameters.count(specs), np.float32)
        self._kept = top_of(self.plan, state.round, zero if last is None else parameters.flatten(last, specs))
        return self._kept

    def mean(self, order: RoundOrder, values: Vector) -> Parameters:
        """The mean update that an opened sum stands for."""
        codec = self._codec(order)
        return parameters.unflatten(values if codec is None else codec.restore(values), order.tensors)

    def after(self, before: ServerState, moved: ServerState, order: RoundOrder, values: Vector) -> ServerState:
        """The state after a round, as owners will have it, with what the next rounds' messages need.

        Args: moved is what the strategy has made of ``before``; values is the opened sum.
        """
        wire, codec = dict(before.wire), self._codec(order)
        if codec is not None and codec.ranges is not None:
            told = zip(order.tensors, codec.next_ranges(values, len(order.cohort)), strict=True)
            wire[RANGES] = wire.get(RANGES, {}) | {spec.name: np.array([bound], np.float32) for spec, bound in told}
        if codec is not None and self.plan.sent == "shared-top":
            wire[MEAN] = parameters.unflatten(codec.restore(values), order.tensors)
        base = parameters.from_bytes(self.bundle.weights) if order.round == 0 else before.model
        if self.plan.downlink_bits == 8:
            change, model, wire[RESIDUAL] = rounded_step(base, moved.model, wire.get(RESIDUAL, {}))
        else:
            change, model = make_step(base, moved.model), moved.model
        blob = parameters.to_bytes(model)
        steps = [ModelStep(order.model, change)]
        if self._keeps_first:
            steps.append(ModelStep(self.bundle.spec.weights, make_step(parameters.from_bytes(self.bundle.weights), model)))
        self._steps = {_digest(blob): tuple(step for step in steps if len(step.change) < len(blob))}
        return replace(moved, model=model, wire=wire)

    def _codec(self, order: RoundOrder) -> Codec | None:
        """The order's map; to draw it takes seconds where there are a hundred million coordinates."""
        if self._map is None or self._map[0] != order:
            kept = self._kept if order.compression and order.compression.kept else None
            self._map = (order, codec_of(self.plan, order, kept))
        return self._map[1]

    def deliveries(self, model: bytes) -> tuple[Delivery, ...]:
        """A model on its way to an owner, by a step where one leads to it; the plan's own first, if all steps are from it."""
        told = Delivery(model, self._steps.get(_digest(model), ()))
        return (Delivery(self.bundle.weights), told) if self._keeps_first else (told,)

    @property
    def _keeps_first(self) -> bool:
        """Whether all that ever moves is small, so that a step from the plan's own model is as good as any."""
        return self.plan.adapter is not None and self.plan.downlink_bits == 32


def still_owed(wire: Mapping[str, Parameters], before: Parameters, after: Parameters) -> dict[str, Parameters]:
    """What the next messages need when some tensors were replaced: what 8-bit steps left of those is of no use."""
    replaced = {name for name in after if after[name] is not before[name]}
    owed = {name: left for name, left in wire.get(RESIDUAL, {}).items() if name not in replaced}
    return dict(wire) | ({RESIDUAL: owed} if RESIDUAL in wire else {})


def _digest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()
