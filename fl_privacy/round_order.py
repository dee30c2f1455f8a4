"""RoundOrder: what a scientist orders from every owner of a cohort, and how updates are encoded for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer

from fl_privacy.messages import Digest, Message, OwnerName, Purpose, TensorSpec


class Encoding(Message):
    """How an update becomes integers in the coefficients of BFV plaintexts; public and the same for the whole cohort.

    A coordinate x is clipped to [-value_range, value_range], scaled to signed integers of ``value_bits`` bits, and placed in a
    field of ``field_bits`` bits (head-room for the sum); ``fields_per_coefficient`` fields and a zero bit below them share one
    coefficient modulo 2**modulus_bits.
    """

    scheme: Literal["bfv"] = "bfv"
    value_range: Annotated[float, Field(gt=0)]
    value_bits: Annotated[int, Field(ge=2, le=16)]
    field_bits: Annotated[int, Field(ge=2, le=32)]
    fields_per_coefficient: Annotated[int, Field(ge=1, le=16)]
    modulus_bits: Annotated[int, Field(ge=20, le=60)]


class CkksEncoding(Message):
    """Coordinates as CKKS floats, clipped to [-value_range, value_range]. No masks exist for it; see ``encryption.ckks``."""

    scheme: Literal["ckks"] = "ckks"
    value_range: Annotated[float, Field(gt=0)]


class Control(Message):
    """SCAFFOLD's control variates as an order has them: the server's, and which of an owner's own goes with it.

    ``blob`` is the sha256 of the server's variate (safetensors); None: it is zero, and nothing was summed into it yet.
    ``since`` is the round before which all variates were zero. ``after`` names, for each owner of the cohort, its latest order
    whose sum is in the server's variate; None: none since then.
    """

    blob: Digest | None
    since: Annotated[int, Field(ge=0)]
    after: tuple[Digest | None, ...]


class Compression(Message):
    """What the map of a round (``compression.codec``) needs besides the plan, which tells its steps.

    ``coordinates`` are sent of each update. ``ranges`` are the bounds of each tensor's coordinates, where they adapt; ``kept``
    is the sha256 of the indices of the coordinates to send (little-endian uint32, rising), where they are not drawn.
    """

    coordinates: Annotated[int, Field(ge=1)]
    ranges: tuple[Annotated[float, Field(gt=0, le=10)], ...] | None = None
    kept: Digest | None = None


class RoundOrder(Message):
    """What the scientist orders from every owner of a cohort for one attempt at one round; its digest is R_t.

    R_t is bound into mask keys, check values, ciphertext headers and every signature of the round, so that nothing made for one
    order is of use in another. ``key`` names the HE secret key that the owners share; ``weights`` are the declared corpus
    sizes, in the order of ``cohort``; ``model`` is the sha256 of the safetensors blob. An order to evaluate is for the model
    that round ``round`` starts from, or, if that is the number of rounds, for the finished one. ``control`` is in the orders
    to train by SCAFFOLD, ``compression`` in those of plans that compress, and only in them in the canonical form, so that all
    other orders keep their digest.
    """

    version: Literal[3] = 3
    purpose: Purpose = "train"
    plan: Digest
    code: Digest
    registry: Digest
    key: Digest
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=0)]
    model: Digest
    tensors: Annotated[tuple[TensorSpec, ...], Field(min_length=1)]
    cohort: tuple[OwnerName, ...]
    weights: tuple[Annotated[int, Field(ge=1)], ...]
    encoding: Annotated[Encoding | CkksEncoding, Field(discriminator="scheme")]
    control: Control | None = None
    compression: Compression | None = None

    @model_serializer(mode="wrap")
    def _without_absent(self, serialized: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        fields = serialized(self)
        return {name: told for name, told in fields.items() if told is not None or name not in ("control", "compression")}

    @property
    def coordinates(self) -> int:
        """How many coordinates of an update are encoded and summed."""
        return self.compression.coordinates if self.compression else sum(math.prod(spec.shape) for spec in self.tensors)

    @property
    def turn(self) -> tuple[int, bool, int]:
        """Where the order stands among those of its plan: a round's evaluation comes before its training."""
        return self.round, self.purpose == "train", self.attempt
