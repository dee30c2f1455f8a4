"""BFV ciphertexts as they travel: the public half, which never decrypts.

Scheme: seeded symmetric BFV, N = 4096, one 60-bit prime q, plain modulus t = 2**b, 192-bit security as enforced by SEAL. Fields
stand in the coefficients of the plaintext, which are added one by one; so t need not be a batching prime. A ciphertext is
(c0, c1) with c1 = PRG(seed). Seeds stay as they are until a sum is opened: the block of a sum is the sum of all c0 and then
every owner's seed, so adding needs no polynomial arithmetic, and no ciphertext can enter a sum but once and unscaled.
On the wire stand coefficients of 60 bits and seeds, nothing of SEAL's own format: that framing, with its lengths and
compression, is written here around checked coefficients, never read from a peer.

Container: kind, digest of the order R_t, position of the owner, number of blocks; then blocks of one fixed size.
Source: Fan and Vercauteren 2012; Microsoft SEAL 4 (``Ciphertext::save_members``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from enum import Enum
from functools import lru_cache
from typing import Any, BinaryIO, Self

import numpy as np
import tenseal.sealapi as seal

from fl_privacy.encryption.packing import COEFF_BITS, DEGREE, POLYNOMIAL_BYTES, SEED_BYTES, Words, block_count
from fl_privacy.errors import CiphertextInvalid, EncodingOverflow, EncryptionError
from fl_privacy.round_order import RoundOrder

_PAIR_BYTES = 15  # two coefficients of 60 bits
_COEFFICIENT = np.uint64((1 << COEFF_BITS) - 1)
_HIGH = np.uint64(56)  # the bits of a coefficient above its first seven bytes,
_SHIFT = np.uint64(4)  # which are four
_HEADER = struct.Struct("<8s32sII")
_SEAL_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version, compression, reserved, size with this header
_RAW, _ZSTD = 0, 2
_ZSTD_FRAME = bytes.fromhex("28b52ffd60")  # magic; one segment, content size in two bytes
_UNKNOWN_FORM = "this SEAL writes a form that is not known here; install the pinned TenSEAL"


class Kind(Enum):
    """What a container holds: an owner's update or a sum."""

    UPDATE = b"FLUPD\0\0\2"
    TOTAL = b"FLSUM\0\0\3"

    def block_bytes(self, order: RoundOrder) -> int:
        """The size of each block: c0, and one seed for every ciphertext in it."""
        return POLYNOMIAL_BYTES + SEED_BYTES * (len(order.cohort) if self is Kind.TOTAL else 1)


@lru_cache(maxsize=8)
def context(modulus_bits: int) -> Any:
    """The public SEAL context; SEAL itself refuses parameters below 192-bit security. Raises: EncodingOverflow."""
    try:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [COEFF_BITS]))
        parameters.set_plain_modulus(seal.Modulus(1 << modulus_bits))
        made = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC192)
    except (RuntimeError, ValueError) as problem:
        raise EncodingOverflow(f"no plain modulus of {modulus_bits} bits: {problem}") from None
    if not made.parameters_set():
        raise EncodingOverflow(f"SEAL refuses a plain modulus of {modulus_bits} bits: {made.parameters_error_message()}")
    return made


def modulo(modulus_bits: int) -> np.uint64:
    """t - 1: a bitwise and with it is the remainder modulo t."""
    return np.uint64((1 << modulus_bits) - 1)


@lru_cache(maxsize=1)
def coeff_modulus() -> int:
    """The ciphertext prime q."""
    return int(seal.CoeffModulus.Create(DEGREE, [COEFF_BITS])[0].value())


def write_header(file: BinaryIO, kind: Kind, order: RoundOrder, position: int) -> None:
    """Begin a container that is bound to the order; its blocks follow."""
    file.write(_HEADER.pack(kind.value, bytes.fromhex(order.digest()), position, block_count(order)))


def read_header(file: BinaryIO, kind: Kind, order: RoundOrder) -> int:
    """Check the header and the exact length before anything is read further; ``file`` must be seekable.

    Returns: the owner's position in the sorted cohort (zero for a sum).
    Raises: CiphertextInvalid (another kind, another order, truncated, trailing bytes).
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise CiphertextInvalid(f"a container of {length} bytes is shorter than its header")
    tag, digest, position, blocks = _HEADER.unpack(header)
    if tag != kind.value:
        raise CiphertextInvalid("the container is of another kind or version")
    if digest.hex() != order.digest():
        raise CiphertextInvalid(f"the container was made for order {digest.hex()[:16]}…, not {order.digest()[:16]}…")
    expected = block_offset(kind, order, block_count(order))
    if blocks != block_count(order) or length != expected:
        raise CiphertextInvalid(f"the container has {length} bytes, the order's tensors and encoding need {expected}")
    return int(position)


def block_offset(kind: Kind, order: RoundOrder, index: int) -> int:
    """Where a block of a container begins, in bytes."""
    return _HEADER.size + index * kind.block_bytes(order)


def read_blocks(file: BinaryIO, kind: Kind, order: RoundOrder, blocks: range) -> Iterator[memoryview]:
    """Consecutive blocks of a container, in one read. Raises: CiphertextInvalid (truncated since its header was read)."""
    size = kind.block_bytes(order)
    file.seek(block_offset(kind, order, blocks.start))
    data = memoryview(file.read(size * len(blocks)))
    if len(data) != size * len(blocks):
        raise CiphertextInvalid(f"the container ends within blocks {blocks.start} to {blocks.stop - 1}")
    return (data[at : at + size] for at in range(0, len(data), size))


def save_update(ciphertext: Any, modulus_bits: int, scratch: Scratch) -> bytes:
    """The block of a seeded ciphertext, as ``encrypt_symmetric`` returns it without a destination."""
    payload = scratch.saved(ciphertext.save)
    prefix, suffix = _members(modulus_bits), _seed_header()
    end = len(prefix) + 8 * DEGREE
    seed = end + len(suffix)
    if len(payload) != seed + SEED_BYTES or payload[: len(prefix)] != prefix or payload[end:seed] != suffix:
        raise EncryptionError(_UNKNOWN_FORM)
    return pack_coefficients(np.frombuffer(payload, "<u8", DEGREE, len(prefix))) + payload[seed:]


def load_block(block: bytes | memoryview, modulus_bits: int, scratch: Scratch) -> Any:
    """The ciphertext of a block of either kind; coefficients are checked before SEAL sees them. Raises: CiphertextInvalid."""
    c0, seeds = split_block(block)
    total = _load_seeded(c0, seeds[0], modulus_bits, scratch)
    if len(seeds) > 1:
        evaluator, nothing = seal.Evaluator(context(modulus_bits)), np.zeros(DEGREE, np.uint64)
        for seed in seeds[1:]:
            evaluator.add_inplace(total, _load_seeded(nothing, seed, modulus_bits, scratch))
    return total


def split_block(block: bytes | memoryview) -> tuple[Words, list[bytes]]:
    """c0 (DEGREE,), each coefficient below q, and the seeds. Raises: CiphertextInvalid."""
    view = memoryview(block)
    seeds, rest = divmod(len(view) - POLYNOMIAL_BYTES, SEED_BYTES)
    if rest or seeds < 1:
        raise CiphertextInvalid(f"a block has {len(view)} bytes, not {POLYNOMIAL_BYTES} and {SEED_BYTES} for each seed")
    starts = range(POLYNOMIAL_BYTES, len(view), SEED_BYTES)
    return unpack_coefficients(view[:POLYNOMIAL_BYTES]), [bytes(view[at : at + SEED_BYTES]) for at in starts]


def pack_coefficients(coefficients: Words) -> bytes:
    """Coefficients of 60 bits one after the other, little-endian; their number is even."""
    first, second = coefficients[0::2], coefficients[1::2]
    packed = bytearray(_PAIR_BYTES * len(first))
    low, high = _overlapping(packed)
    low[:] = first
    high[:] = first >> _HIGH | second << _SHIFT
    return bytes(packed)


def unpack_coefficients(data: bytes | memoryview) -> Words:
    """The inverse of ``pack_coefficients``. Raises: CiphertextInvalid when a coefficient is not below q."""
    low, high = _overlapping(data)
    coefficients = np.empty(2 * len(low), np.uint64)
    np.bitwise_and(low, _COEFFICIENT, out=coefficients[0::2])
    np.right_shift(high, _SHIFT, out=coefficients[1::2])
    if int(coefficients.max()) >= coeff_modulus():
        raise CiphertextInvalid("a coefficient is not reduced modulo q")
    return coefficients


def add_coefficients(total: Words, other: Words) -> None:
    """Add modulo q, in place."""
    total += other
    np.minimum(total, total - np.uint64(coeff_modulus()), out=total)  # the difference wraps to a large number below zero


def load_plaintext(plaintext: Any, coefficients: Words, modulus_bits: int, scratch: Scratch) -> None:
    """Fill a SEAL plaintext. Args: coefficients (DEGREE,), each below t, or SEAL raises."""
    chain = context(modulus_bits)
    scratch.load(lambda path: plaintext.load(chain, path), plain_members(bytes(32)), coefficients.data.cast("B"))


def plaintext_coefficients(plaintext: Any) -> Words:
    """The coefficients of a SEAL plaintext, (DEGREE,); SEAL leaves out leading zeros."""
    found = np.zeros(DEGREE, np.uint64)
    size = plaintext.coeff_count()
    found[:size] = np.fromiter(map(plaintext.data, range(size)), np.uint64, size)
    return found


class Scratch:
    """A file in memory to exchange data with SEAL, which reads and writes paths only; never on a disk.

    One for each piece of work: threads that share one would mix up ciphertexts without a sign.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("fl_privacy", os.MFD_CLOEXEC)
        self._path = f"/proc/self/fd/{self._descriptor}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def saved(self, save: Callable[[str], None]) -> bytes:
        """What a SEAL object saves, without header and compression frame. Raises: EncryptionError on a form that is not known.

        Saved sizes are below 64 KiB + 256 bytes, and 60-bit noise gains too little for zstd to store anything but plain bytes.
        """
        save(self._path)  # which truncates
        data = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        size = len(data) - 26  # 16 SEAL header, 5 frame, 2 content size, 3 block header; random coefficients do not compress
        framing = _seal_header(_ZSTD, size + 10) + _ZSTD_FRAME + struct.pack("<HI", max(size - 256, 0), size << 3 | 1)[:5]
        if data[:26] != framing:
            raise EncryptionError(_UNKNOWN_FORM)
        return data[26:]

    def load(self, load_from: Callable[[str], None], *payload: bytes | memoryview) -> None:
        """Hand a payload, given in parts, to a SEAL object, under a header that says how long it is and not compressed."""
        size = sum(map(len, payload))
        if os.pwritev(self._descriptor, [_seal_header(_RAW, size), *payload], 0) != _SEAL_HEADER.size + size:
            raise EncryptionError("a file in memory took only a part of a ciphertext; memory is short")
        load_from(self._path)


def plain_members(parameter_id: bytes) -> bytes:
    """SEAL's framing of a plaintext or key: parameter id (zero unless in NTT form), N, scale 1, header of the array."""
    return parameter_id + struct.pack("<Qd", DEGREE, 1.0) + _array_header()


def _array_header() -> bytes:
    return _seal_header(_RAW, 8 + 8 * DEGREE) + struct.pack("<Q", DEGREE)


def _seal_header(compression: int, size: int) -> bytes:
    return _SEAL_HEADER.pack(0xA15E, _SEAL_HEADER.size, 4, 3, compression, 0, _SEAL_HEADER.size + size)


@lru_cache(maxsize=8)
def _members(modulus_bits: int) -> bytes:
    """Parameter id, not NTT, two polynomials, N, one prime, scale 1, correction factor 1; then the header of c0's array."""
    members = struct.pack("<4Q?3QdQ", *context(modulus_bits).first_parms_id(), False, 2, DEGREE, 1, 1.0, 1)
    return members + _array_header()


def _seed_header() -> bytes:
    """Between c0 and the seed of c1; generator type 1 is BLAKE2xb, SEAL's default."""
    return _seal_header(_RAW, 1 + SEED_BYTES) + b"\1"


def _load_seeded(c0: Words, seed: bytes, modulus_bits: int, scratch: Scratch) -> Any:
    chain, ciphertext = context(modulus_bits), seal.Ciphertext()
    try:
        scratch.load(lambda path: ciphertext.load(chain, path), _members(modulus_bits), c0.tobytes(), _seed_header(), seed)
    except (RuntimeError, ValueError):
        raise CiphertextInvalid("SEAL refuses the ciphertext") from None
    shape = (ciphertext.size(), ciphertext.poly_modulus_degree(), ciphertext.coeff_modulus_size(), ciphertext.is_ntt_form())
    if shape != (2, DEGREE, 1, False) or ciphertext.parms_id() != chain.first_parms_id() or ciphertext.is_transparent():
        raise CiphertextInvalid("the ciphertext has another shape or parameters, or hides nothing (c1 = 0)")
    return ciphertext


def _overlapping(data: bytes | bytearray | memoryview) -> tuple[Words, Words]:
    """Two views of packed pairs as 64-bit words, from the first byte of each pair and from the eighth: byte 7 is in both."""
    pairs, start = len(data) // _PAIR_BYTES, _PAIR_BYTES - 8
    low: Words = np.ndarray((pairs,), "<u8", data, 0, (_PAIR_BYTES,))
    high: Words = np.ndarray((pairs,), "<u8", data, start, (_PAIR_BYTES,))
    return low, high
