"""A cohort of owners with real keys, and an order for it: what every test of the secure sum starts from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from fl_privacy.encryption import cipher
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.keys import Identity, generate_secret_key, load_secret_key
from fl_privacy.encryption.packing import choose_encoding
from fl_privacy.encryption.registry import Registry, build_registry
from fl_privacy.encryption.secret_sum import open_sum, protect_update
from fl_privacy.messages import RoundOrder, TensorSpec
from fl_privacy.parameters import Vector, count

SOME_DIGEST = "5a" * 32


@dataclass(frozen=True)
class SecureCohort:
    """Owners a, b, c, ... with equal weights and an order for all of them."""

    owners: tuple[str, ...]
    identities: dict[str, Identity]
    registry: Registry
    order: RoundOrder
    secret_key: bytes

    def ordering(self, **changes: Any) -> SecureCohort:
        """The same owners under a changed order."""
        return replace(self, order=RoundOrder.model_validate(self.order.model_dump() | changes))

    def protect(self, owner: str, update: Vector) -> bytes:
        return protect_update(update, self.order, owner, self.identities[owner], self.registry, self.secret_key)

    def protect_all(self, updates: Sequence[Vector]) -> list[bytes]:
        return [self.protect(owner, update) for owner, update in zip(self.order.cohort, updates, strict=True)]

    def total(self, updates: Sequence[Vector]) -> bytes:
        return add_updates(self.protect_all(updates), self.order)

    def open(self, total: bytes) -> Vector:
        return open_sum(total, self.order, self.secret_key)

    def updates(self, seed: int = 0) -> list[Vector]:
        """Random updates that are never clipped."""
        draw = np.random.default_rng(seed)
        limit = self.order.encoding.value_range
        return [draw.uniform(-limit, limit, count(self.order.tensors)).astype(np.float32) for _ in self.order.cohort]

    def slots_of(self, blob: bytes) -> Any:
        """What a key holder sees in one owner's blob: (blocks, 4096) slots modulo t."""
        bits = self.order.encoding.modulus_bits
        chain = cipher.context(bits)
        decryptor, encoder = seal.Decryptor(chain, load_secret_key(self.secret_key, bits)), seal.BatchEncoder(chain)
        plain, rows = seal.Plaintext(), []
        for block in cipher.read_container(blob, cipher.UPDATE, self.order)[1]:
            decryptor.decrypt(cipher.load_block(block, cipher.UPDATE, bits), plain)
            rows.append(np.array(encoder.decode_uint64(plain), np.uint64))
        return np.array(rows)


def make_cohort(size: int, coordinates: int = 100, value_bits: int = 8, value_range: float = 0.05) -> SecureCohort:
    """A cohort and an order; with fewer than three owners the order is one that everybody must refuse."""
    owners = tuple(f"owner-{index:02d}" for index in range(size))
    enrolled = tuple(f"owner-{index:02d}" for index in range(max(size, 3)))
    identities = {owner: Identity.generate() for owner in enrolled}
    registry = build_registry(identities[owner].card(owner) for owner in enrolled)
    order = RoundOrder(
        plan=SOME_DIGEST,
        code=SOME_DIGEST,
        registry=registry.digest(),
        round=0,
        attempt=0,
        model=SOME_DIGEST,
        tensors=(TensorSpec(name="w", shape=(coordinates,)),),
        cohort=owners,
        weights=(100,) * size,
        encoding=choose_encoding(max(size, 3), value_bits, value_range),
    )
    return SecureCohort(owners, identities, registry, order, generate_secret_key())
