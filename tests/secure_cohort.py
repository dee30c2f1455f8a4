"""A cohort of owners with real keys, and an order for it: what every test of the secure sum starts from."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tenseal.sealapi as seal
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.encryption import cipher
from fl_privacy.encryption.agreement import commit, survivor_list
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.keys import Identity, generate_secret_key, key_name, load_secret_key
from fl_privacy.encryption.packing import block_count, choose_encoding
from fl_privacy.encryption.registry import Registry, build_registry
from fl_privacy.encryption.secret_sum import open_sum, protect_update
from fl_privacy.messages import CloseRequest, OpenRequest, SelfMaskReveal, Signed, TensorSpec, UpdateReceipt, sign
from fl_privacy.parameters import Vector, count
from fl_privacy.round_order import RoundOrder

SOME_DIGEST = "5a" * 32


@dataclass(frozen=True)
class SecureCohort:
    """Owners owner-00, owner-01, ... with equal weights, an order for all of them, and their self-mask seeds."""

    owners: tuple[str, ...]
    identities: dict[str, Identity]
    registry: Registry
    order: RoundOrder
    secret_key: bytes
    seeds: dict[str, bytes]
    scientist: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)

    def ordering(self, **changes: Any) -> SecureCohort:
        """The same owners under a changed order."""
        return replace(self, order=RoundOrder.model_validate(self.order.model_dump() | changes))

    def protect(self, owner: str, update: Vector) -> bytes:
        """One owner's container."""
        file, identity, seed = BytesIO(), self.identities[owner], self.seeds[owner]
        protect_update(update, self.order, owner, identity, self.registry, self.secret_key, seed, file)
        return file.getvalue()

    def protect_all(self, updates: Sequence[Vector]) -> list[bytes]:
        return [self.protect(owner, update) for owner, update in zip(self.order.cohort, updates, strict=True)]

    def add(self, blobs: Sequence[bytes]) -> bytes:
        """The total of containers, by way of files."""
        with TemporaryDirectory() as name:
            folder = Path(name)
            paths = [folder / f"{index}.bin" for index in range(len(blobs))]
            for path, blob in zip(paths, blobs, strict=True):
                path.write_bytes(blob)
            add_updates(paths, self.order, folder / "total.bin")
            return (folder / "total.bin").read_bytes()

    def total(self, updates: Sequence[Vector]) -> bytes:
        return self.add(self.protect_all(updates))

    def open(self, total: bytes) -> Vector:
        return open_sum(BytesIO(total), self.order, self.secret_key, [self.seeds[owner] for owner in self.order.cohort])

    def updates(self, seed: int = 0) -> list[Vector]:
        """Random updates that are never clipped."""
        draw = np.random.default_rng(seed)
        limit = self.order.encoding.value_range
        return [draw.uniform(-limit, limit, count(self.order.tensors)).astype(np.float32) for _ in self.order.cohort]

    def coefficients_of(self, blob: bytes) -> Any:
        """What a key holder sees in one owner's container: (blocks, 4096) coefficients modulo t."""
        bits, file = self.order.encoding.modulus_bits, BytesIO(blob)
        chain = cipher.context(bits)
        decryptor, plain, rows = seal.Decryptor(chain, load_secret_key(self.secret_key, bits)), seal.Plaintext(), []
        cipher.read_header(file, cipher.Kind.UPDATE, self.order)
        for block in cipher.read_blocks(file, cipher.Kind.UPDATE, self.order, range(block_count(self.order))):
            with cipher.Scratch() as scratch:
                decryptor.decrypt(cipher.load_block(block, bits, scratch), plain)
            rows.append(cipher.plaintext_coefficients(plain))
        return np.array(rows)

    def receipts(self, blobs: Sequence[bytes]) -> tuple[Signed, ...]:
        """Every owner's signed receipt for its container, in the order of the cohort."""
        digest = self.order.digest()
        return tuple(
            sign(
                UpdateReceipt(
                    order=digest,
                    owner=owner,
                    ciphertext=hashlib.sha256(blob).hexdigest(),
                    self_mask=commit(self.seeds[owner], digest, owner),
                    ciphertext_bytes=len(blob),
                    training_seconds=1,
                    encryption_seconds=1,
                    epsilon_spent=0.5,
                    epsilon_budget=8,
                    delta=1e-5,
                    ledger_head=SOME_DIGEST,
                ),
                self.identities[owner].signing_key,
            )
            for owner, blob in zip(self.order.cohort, blobs, strict=True)
        )

    def agreed(self, blobs: Sequence[bytes], total: bytes) -> OpenRequest:
        """What the scientist shows to open ``total``: receipts, survivor lists and self-masks of the whole cohort."""
        digest, receipts = self.order.digest(), self.receipts(blobs)
        total_digest = hashlib.sha256(total).hexdigest()
        close = CloseRequest(order=sign(self.order, self.scientist), receipts=receipts, total=total_digest)
        words = [UpdateReceipt.parse(receipt.body) for receipt in receipts]
        keys = [(owner, self.identities[owner].signing_key) for owner in self.order.cohort]
        reveals = (SelfMaskReveal(order=digest, owner=owner, seed=self.seeds[owner].hex()) for owner in self.order.cohort)
        return OpenRequest(
            **dict(close),
            survivors=tuple(sign(survivor_list(close, self.order, words, owner), key) for owner, key in keys),
            reveals=tuple(sign(reveal, key) for reveal, (_, key) in zip(reveals, keys, strict=True)),
        )


def make_cohort(size: int, coordinates: int = 100, value_bits: int = 8, value_range: float = 0.05) -> SecureCohort:
    """A cohort and an order; with fewer than three owners the order is one that everybody must refuse."""
    owners = tuple(f"owner-{index:02d}" for index in range(size))
    enrolled = tuple(f"owner-{index:02d}" for index in range(max(size, 3)))
    identities = {owner: Identity.generate() for owner in enrolled}
    registry, secret_key = build_registry(identities[owner].card(owner) for owner in enrolled), generate_secret_key()
    order = RoundOrder(
        plan=SOME_DIGEST,
        code=SOME_DIGEST,
        registry=registry.digest(),
        key=key_name(secret_key),
        round=0,
        attempt=0,
        model=SOME_DIGEST,
        tensors=(TensorSpec(name="w", shape=(coordinates,)),),
        cohort=owners,
        weights=(100,) * size,
        encoding=choose_encoding(max(size, 3), value_bits, value_range),
    )
    seeds = {owner: secrets.token_bytes(32) for owner in enrolled}
    return SecureCohort(owners, identities, registry, order, secret_key, seeds)
