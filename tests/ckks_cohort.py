"""A cohort that sums in CKKS: owners with real keys, an order, and its containers in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fl_privacy.encryption import ckks
from fl_privacy.encryption import ckks_wire as wire
from fl_privacy.encryption.keys import Identity, key_name
from fl_privacy.encryption.registry import Registry, build_registry
from fl_privacy.messages import TensorSpec
from fl_privacy.parameters import Vector, count
from fl_privacy.round_order import CkksEncoding, RoundOrder

SOME_DIGEST = "5a" * 32
HEADER = 48  # kind 8, order 32, position 4, vectors 4


@dataclass(frozen=True)
class CkksCohort:
    """Owners owner-00, owner-01, ... and an order for all of them."""

    identities: dict[str, Identity]
    registry: Registry
    order: RoundOrder
    secret_key: bytes

    def ordering(self, **changes: Any) -> CkksCohort:
        """The same owners under a changed order."""
        return replace(self, order=RoundOrder.model_validate(self.order.model_dump() | changes))

    def protect(self, owner: str, update: Vector) -> bytes:
        file = BytesIO()
        ckks.protect_update(update, self.order, owner, self.identities[owner], self.registry, self.secret_key, file)
        return file.getvalue()

    def protect_all(self, updates: Sequence[Vector]) -> list[bytes]:
        return [self.protect(owner, update) for owner, update in zip(self.order.cohort, updates, strict=True)]

    def add(self, blobs: Sequence[bytes], folder: Path) -> bytes:
        """The total of containers, by way of files."""
        paths = [folder / f"{index}.bin" for index in range(len(blobs))]
        for path, blob in zip(paths, blobs, strict=True):
            path.write_bytes(blob)
        wire.add_updates(paths, self.order, folder / "total.bin")
        return (folder / "total.bin").read_bytes()

    def open(self, total: bytes) -> Vector:
        return ckks.open_sum(BytesIO(total), self.order, self.secret_key)

    def updates(self, seed: int = 0) -> list[Vector]:
        """Random updates that are never clipped."""
        draw, limit = np.random.default_rng(seed), self.order.encoding.value_range
        return [draw.uniform(-limit, limit, count(self.order.tensors)).astype(np.float32) for _ in self.order.cohort]

    def plain_sum(self, updates: Sequence[Vector]) -> np.ndarray[Any, np.dtype[np.float64]]:
        """sum_k p_k * update_k in double precision."""
        weights = np.array(self.order.weights) / sum(self.order.weights)
        return np.asarray(sum(p * update.astype(np.float64) for p, update in zip(weights, updates, strict=True)))


def make_cohort(size: int, coordinates: int = 300, value_range: float = 0.05) -> CkksCohort:
    """Unequal weights, given out of order."""
    owners = tuple(f"owner-{index:02d}" for index in range(size))
    identities = {owner: Identity.generate() for owner in owners}
    secret_key = ckks.generate_key()
    registry = build_registry([identities[owner].card(owner) for owner in owners])
    order = RoundOrder(
        plan=SOME_DIGEST,
        code=SOME_DIGEST,
        registry=registry.digest(),
        key=key_name(secret_key),
        round=0,
        attempt=0,
        model=SOME_DIGEST,
        tensors=(TensorSpec(name="w", shape=(coordinates,)),),
        cohort=owners[1:] + owners[:1],
        weights=tuple(100 + 30 * index for index in range(size)),
        encoding=CkksEncoding(value_range=value_range),
    )
    return CkksCohort(identities, registry, order, secret_key)


def vectors_of(blob: bytes) -> list[bytes]:
    """The serialised vectors of a container."""
    found, at = [], HEADER
    while at < len(blob):
        length = int.from_bytes(blob[at : at + 4], "little")
        found.append(blob[at + 4 : at + 4 + length])
        at += 4 + length
    return found


def with_vectors(blob: bytes, *vectors: bytes) -> bytes:
    """The same header before other vectors."""
    return blob[:HEADER] + b"".join(len(vector).to_bytes(4, "little") + vector for vector in vectors)
