"""A cohort for benchmarks: keys made from the owners' names, updates on the grid of the encoding, the product's own steps.

The updates are whole numbers after weighting, so stochastic rounding changes nothing and a plain sum of integers says what an
opened sum must be, bit for bit. A cohort is a small value that can be handed to another process: nothing of the size of a model
is kept in it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tenseal.sealapi as seal
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from fl_privacy.encryption import cipher
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.keys import Identity, generate_secret_key, key_name, load_secret_key
from fl_privacy.encryption.packing import DEGREE, bfv_encoding, block_count, choose_encoding, coordinates_per_block
from fl_privacy.encryption.registry import Registry, build_registry
from fl_privacy.encryption.secret_sum import open_sum, protect_update
from fl_privacy.messages import TensorSpec
from fl_privacy.parameters import Vector, count
from fl_privacy.round_order import RoundOrder

VALUE_BITS = 8  # the default of a plan
TOP = 2 ** (VALUE_BITS - 1) - 1  # the integer that value_range maps to; as value_range itself it makes the grid the integers
PIECE = 1 << 20  # coordinates drawn at a time, so that drawing needs no memory
NOTHING = "0" * 64  # where an order names a plan, code or model, of which there are none here


@dataclass(frozen=True)
class BenchmarkCohort:
    """Owners and an order for all of them; updates, ciphertexts and sum lie in ``folder``."""

    folder: Path
    registry: Registry
    order: RoundOrder
    secret_key: bytes
    self_masks: tuple[bytes, ...]

    @property
    def coordinates(self) -> int:
        """Parameters of the model."""
        return count(self.order.tensors)

    @property
    def update_files(self) -> list[Path]:
        """Where the encrypted updates lie, in the order of the cohort."""
        return [self.folder / f"{owner}.bin" for owner in self.order.cohort]

    @property
    def total_file(self) -> Path:
        """Where the encrypted sum lies."""
        return self.folder / "total.bin"

    def grid(self, index: int) -> Iterator[NDArray[np.int8]]:
        """One owner's weighted update as integers in -TOP .. TOP, piece by piece; the same at every call."""
        draw = np.random.default_rng(index)
        for start in range(0, self.coordinates, PIECE):
            yield draw.integers(-TOP, TOP, min(PIECE, self.coordinates - start), np.int8, endpoint=True)

    def update(self, index: int) -> Vector:
        """The same before weighting; exact, for every weight is a power of two."""
        factor = np.float32(sum(self.order.weights) / self.order.weights[index])
        update: Vector = np.empty(self.coordinates, np.float32)
        for start, piece in zip(range(0, self.coordinates, PIECE), self.grid(index), strict=True):
            np.multiply(piece, factor, out=update[start : start + PIECE])
        return update

    def expected(self) -> Iterator[NDArray[np.int32]]:
        """The plain sum of all owners' integers, piece by piece."""
        for pieces in zip(*map(self.grid, range(len(self.order.cohort))), strict=True):
            yield sum((piece.astype(np.int32) for piece in pieces), start=np.zeros(pieces[0].size, np.int32))

    def protect(self, index: int, update: Vector) -> None:
        """One owner's step: weight, quantise, pack, mask, encrypt, write."""
        owner = self.order.cohort[index]
        with self.update_files[index].open("wb") as file:
            protect_update(
                update, self.order, owner, identity_of(owner), self.registry, self.secret_key, self.self_masks[index], file
            )

    def encrypt(self) -> int:
        """The part of ``protect`` that the baseline has too: encrypt and serialise coefficients that are packed and masked.

        Returns: bytes of the blocks.
        """
        bits = bfv_encoding(self.order).modulus_bits
        encryptor, plain = seal.Encryptor(cipher.context(bits), load_secret_key(self.secret_key, bits)), seal.Plaintext()
        masked = np.arange(DEGREE, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) & cipher.modulo(bits)
        written = 0
        with cipher.Scratch() as scratch:
            for _ in range(block_count(self.order)):
                cipher.load_plaintext(plain, masked, bits, scratch)
                written += len(cipher.save_update(encryptor.encrypt_symmetric(plain), bits, scratch))
        return written

    def add(self) -> None:
        """The scientist's step: read, check, add, write."""
        add_updates(self.update_files, self.order, self.total_file)

    def open(self) -> Vector:
        """The opening owner's step: read, decrypt, check, take off the self-masks, unpack, dequantise."""
        with self.total_file.open("rb") as file:
            return open_sum(file, self.order, self.secret_key, self.self_masks)

    def is_exact(self, opened: Vector) -> bool:
        """Whether an opened sum is the plain sum, bit for bit."""
        starts = range(0, opened.size, PIECE)
        return opened.shape == (self.coordinates,) and all(
            np.array_equal(opened[start : start + PIECE], piece) for start, piece in zip(starts, self.expected(), strict=True)
        )


def make_cohort(size: int, tensors: Sequence[TensorSpec], folder: Path) -> BenchmarkCohort:
    """A cohort of ``size`` owners for a model with these tensors."""
    owners = tuple(f"owner-{index:03d}" for index in range(size))
    registry, secret_key = build_registry([identity_of(owner).card(owner) for owner in owners]), generate_secret_key()
    power = 1 << (size - 1).bit_length()  # weights of one and two with a sum that is a power of two
    order = RoundOrder(
        plan=NOTHING,
        code=NOTHING,
        registry=registry.digest(),
        key=key_name(secret_key),
        round=0,
        attempt=0,
        model=NOTHING,
        tensors=tuple(tensors),
        cohort=owners,
        weights=tuple(2 if index < power - size else 1 for index in range(size)),
        encoding=choose_encoding(size, VALUE_BITS, float(TOP)),
    )
    return BenchmarkCohort(folder, registry, order, secret_key, tuple(os.urandom(32) for _ in owners))


def whole_blocks(size: int, coordinates: int) -> int:
    """``coordinates`` rounded to full ciphertexts of a cohort of ``size``, at least one."""
    step = coordinates_per_block(choose_encoding(size, VALUE_BITS, float(TOP)))
    return max(round(coordinates / step), 1) * step


def one_tensor(coordinates: int) -> tuple[TensorSpec]:
    """A model of one tensor."""
    return (TensorSpec(name="w", shape=(coordinates,)),)


def bert_base() -> tuple[TensorSpec, ...]:
    """The trained tensors of bert-base-chinese with its masked-language head: 102,290,312 parameters."""
    hidden, feed_forward, vocabulary = 768, 3072, 21128
    shapes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, hidden),
        "bert.embeddings.position_embeddings.weight": (512, hidden),
        "bert.embeddings.token_type_embeddings.weight": (2, hidden),
        "cls.predictions.bias": (vocabulary,),
    }
    linear = {"cls.predictions.transform.dense": (hidden, hidden)}
    norms = ["bert.embeddings.LayerNorm", "cls.predictions.transform.LayerNorm"]
    for layer in (f"bert.encoder.layer.{index}" for index in range(12)):
        square = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        linear |= {f"{layer}.{name}": (hidden, hidden) for name in square}
        linear |= {f"{layer}.intermediate.dense": (feed_forward, hidden), f"{layer}.output.dense": (hidden, feed_forward)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name, (rows, columns) in linear.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (hidden,), f"{name}.bias": (hidden,)}
    return tuple(TensorSpec(name=name, shape=shapes[name]) for name in sorted(shapes))


def identity_of(owner: str) -> Identity:
    """An owner's keys, made from its name: good for benchmarks only."""
    signing, agreement = (hashlib.sha256(f"benchmark {use} {owner}".encode()).digest() for use in ("signing", "agreement"))
    return Identity(Ed25519PrivateKey.from_private_bytes(signing), X25519PrivateKey.from_private_bytes(agreement))
