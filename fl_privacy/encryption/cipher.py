"""BFV ciphertexts as they travel: the public half, which adds and never decrypts.

Scheme: seeded symmetric BFV, N = 4096, one 60-bit prime q, batching prime t, 192-bit security as enforced by SEAL. A fresh
ciphertext is (c0, seed of c1); a sum is (c0, c1). On the wire stand coefficients of 60 bits and seeds, nothing of SEAL's own
format: that framing, with its lengths and compression, is written here around checked coefficients, never read from a peer.

Container: kind, digest of the order R_t, position of the owner, number of blocks; then blocks of one fixed size.
Source: Fan and Vercauteren 2012; Microsoft SEAL 4 (``Ciphertext::save_members``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from fl_privacy.encryption.packing import COEFF_BITS, DEGREE, Slots, block_count
from fl_privacy.errors import CiphertextInvalid, EncodingOverflow, EncryptionError
from fl_privacy.messages import RoundOrder

POLYNOMIAL_BYTES = DEGREE * COEFF_BITS // 8
_SEED_BYTES = 64
_HEADER = struct.Struct("<8s32sII")
_SEAL_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version, compression, reserved, size with this header
_RAW, _ZSTD = 0, 2
_ZSTD_FRAME = bytes.fromhex("28b52ffd60")  # magic; one segment, content size in two bytes
_UNKNOWN_FORM = "this SEAL writes a form that is not known here; install the pinned TenSEAL"


@dataclass(frozen=True)
class Kind:
    """What a container holds: an owner's update or a sum."""

    tag: bytes
    block_bytes: int


UPDATE = Kind(b"FLUPD\0\0\1", POLYNOMIAL_BYTES + _SEED_BYTES)
TOTAL = Kind(b"FLSUM\0\0\1", 2 * POLYNOMIAL_BYTES)


@lru_cache(maxsize=8)
def context(modulus_bits: int) -> Any:
    """The public SEAL context; SEAL itself refuses parameters below 192-bit security. Raises: EncodingOverflow."""
    try:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
        parameters.set_poly_modulus_degree(DEGREE)
        parameters.set_coeff_modulus(seal.CoeffModulus.Create(DEGREE, [COEFF_BITS]))
        parameters.set_plain_modulus(seal.PlainModulus.Batching(DEGREE, modulus_bits))
        made = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC192)
    except (RuntimeError, ValueError) as problem:
        raise EncodingOverflow(f"no batching prime of {modulus_bits} bits: {problem}") from None
    if not made.parameters_set():
        raise EncodingOverflow(f"SEAL refuses a plain modulus of {modulus_bits} bits: {made.parameters_error_message()}")
    return made


def plain_modulus(modulus_bits: int) -> int:
    """The batching prime t."""
    return int(context(modulus_bits).first_context_data().parms().plain_modulus().value())


@lru_cache(maxsize=1)
def coeff_modulus() -> int:
    """The ciphertext prime q."""
    return int(seal.CoeffModulus.Create(DEGREE, [COEFF_BITS])[0].value())


def write_container(kind: Kind, order: RoundOrder, position: int, blocks: Iterable[bytes]) -> bytes:
    """Join the blocks of one update or sum under a header bound to the order."""
    container = BytesIO()
    container.write(_HEADER.pack(kind.tag, bytes.fromhex(order.digest()), position, block_count(order)))
    for block in blocks:
        container.write(block)
    return container.getvalue()


def read_container(blob: bytes, kind: Kind, order: RoundOrder) -> tuple[int, Iterator[memoryview]]:
    """Check the header and the exact length before anything is read further.

    Returns: the owner's position in the sorted cohort (zero for a sum), and the blocks.
    Raises: CiphertextInvalid (another kind, another order, truncated, trailing bytes).
    """
    if len(blob) < _HEADER.size:
        raise CiphertextInvalid(f"a container of {len(blob)} bytes is shorter than its header")
    tag, digest, position, blocks = _HEADER.unpack_from(blob)
    if tag != kind.tag:
        raise CiphertextInvalid("the container is of another kind or version")
    if digest.hex() != order.digest():
        raise CiphertextInvalid(f"the container was made for order {digest.hex()[:16]}…, not {order.digest()[:16]}…")
    expected = _HEADER.size + block_count(order) * kind.block_bytes
    if blocks != block_count(order) or len(blob) != expected:
        raise CiphertextInvalid(f"the container has {len(blob)} bytes, the order's tensors and encoding need {expected}")
    view = memoryview(blob)
    return position, (view[at : at + kind.block_bytes] for at in range(_HEADER.size, expected, kind.block_bytes))


def save_update(ciphertext: Any, modulus_bits: int) -> bytes:
    """The block of a seeded ciphertext, as ``encrypt_symmetric`` returns it without a destination."""
    payload = saved(ciphertext.save)
    prefix, middle = _members(modulus_bits, DEGREE), _seal_header(_RAW, 1 + _SEED_BYTES) + b"\1"
    c0, seed = _split(payload, prefix, middle)
    return pack_coefficients(c0) + seed


def save_total(ciphertext: Any, modulus_bits: int) -> bytes:
    """The block of a ciphertext in full."""
    both, _ = _split(saved(ciphertext.save), _members(modulus_bits, 2 * DEGREE), b"")
    return pack_coefficients(both)


def load_block(block: bytes | memoryview, kind: Kind, modulus_bits: int) -> Any:
    """Load a block of either kind; every coefficient is below q before SEAL sees it. Raises: CiphertextInvalid."""
    seed_bytes = _SEED_BYTES if kind is UPDATE else 0
    if len(block) != kind.block_bytes:
        raise CiphertextInvalid(f"a ciphertext has {len(block)} bytes, expected {kind.block_bytes}")
    coefficients = unpack_coefficients(block[: len(block) - seed_bytes])
    payload = _members(modulus_bits, coefficients.size) + coefficients.tobytes()
    if kind is UPDATE:  # generator type 1 is BLAKE2xb, SEAL's default
        payload += _seal_header(_RAW, 1 + _SEED_BYTES) + b"\1" + bytes(block[-_SEED_BYTES:])
    chain, ciphertext = context(modulus_bits), seal.Ciphertext()
    try:
        load(lambda path: ciphertext.load(chain, path), payload)
    except (RuntimeError, ValueError):
        raise CiphertextInvalid("SEAL refuses the ciphertext") from None
    shape = (ciphertext.size(), ciphertext.poly_modulus_degree(), ciphertext.coeff_modulus_size(), ciphertext.is_ntt_form())
    if shape != (2, DEGREE, 1, False) or ciphertext.parms_id() != chain.first_parms_id() or ciphertext.is_transparent():
        raise CiphertextInvalid("the ciphertext has another shape or parameters, or hides nothing (c1 = 0)")
    return ciphertext


def pack_coefficients(coefficients: Slots) -> bytes:
    """Two 60-bit coefficients in 15 bytes, little-endian."""
    low, high = coefficients[0::2], coefficients[1::2]
    pairs = np.stack([low | high << np.uint64(COEFF_BITS), high >> np.uint64(64 - COEFF_BITS)], axis=1).astype("<u8")
    packed: bytes = pairs.view(np.uint8).reshape(-1, 16)[:, :15].tobytes()
    return packed


def unpack_coefficients(data: bytes | memoryview) -> Slots:
    """The inverse of ``pack_coefficients``. Raises: CiphertextInvalid when a coefficient is not below q."""
    pairs = np.zeros((len(data) // 15, 16), np.uint8)
    pairs[:, :15] = np.frombuffer(data, np.uint8).reshape(-1, 15)
    words = pairs.view("<u8")
    coefficients = np.empty(2 * len(words), np.uint64)
    coefficients[0::2] = words[:, 0] & np.uint64((1 << COEFF_BITS) - 1)
    coefficients[1::2] = words[:, 0] >> np.uint64(COEFF_BITS) | words[:, 1] << np.uint64(64 - COEFF_BITS)
    if int(coefficients.max()) >= coeff_modulus():
        raise CiphertextInvalid("a coefficient is not reduced modulo q")
    return coefficients


def saved(save: Callable[[str], None]) -> bytes:
    """What a SEAL object saves, without header and compression frame. Raises: EncryptionError on a form that is not known.

    Saved sizes are below 64 KiB + 256 bytes, and 60-bit noise gains too little for zstd to store anything but the plain bytes.
    """
    descriptor = os.memfd_create("fl_privacy", os.MFD_CLOEXEC)  # SEAL writes to paths only; never on a disk, never shared
    try:
        save(f"/proc/self/fd/{descriptor}")
        data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)
    size = len(data) - 26  # 16 SEAL header, 5 frame, 2 content size, 3 block header; random coefficients do not compress
    framing = _seal_header(_ZSTD, size + 10) + _ZSTD_FRAME + struct.pack("<HI", max(size - 256, 0), size << 3 | 1)[:5]
    if data[:26] != framing:
        raise EncryptionError(_UNKNOWN_FORM)
    return data[26:]


def load(load_from: Callable[[str], None], payload: bytes) -> None:
    """Hand a payload to a SEAL object, under a header that says it is not compressed."""
    descriptor = os.memfd_create("fl_privacy", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as scratch:
            scratch.write(_seal_header(_RAW, len(payload)) + payload)
        load_from(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def array_header(coefficients: int) -> bytes:
    """SEAL's framing of an array of 64-bit words."""
    return _seal_header(_RAW, 8 + 8 * coefficients) + struct.pack("<Q", coefficients)


def _seal_header(compression: int, size: int) -> bytes:
    return _SEAL_HEADER.pack(0xA15E, _SEAL_HEADER.size, 4, 3, compression, 0, _SEAL_HEADER.size + size)


def _members(modulus_bits: int, coefficients: int) -> bytes:
    """Parameter id, not NTT, two polynomials, N, one prime, scale 1, correction factor 1; then the array's header."""
    members = struct.pack("<4Q?3QdQ", *context(modulus_bits).first_parms_id(), False, 2, DEGREE, 1, 1.0, 1)
    return members + array_header(coefficients)


def _split(payload: bytes, prefix: bytes, middle: bytes) -> tuple[Slots, bytes]:
    """Coefficients and seed of a payload whose framing must be the expected one, byte for byte."""
    words = int.from_bytes(prefix[-8:], "little")
    end = len(prefix) + 8 * words
    expected = end + (len(middle) + _SEED_BYTES if middle else 0)
    if len(payload) != expected or not payload.startswith(prefix) or payload[end : end + len(middle)] != middle:
        raise EncryptionError(_UNKNOWN_FORM)
    return np.frombuffer(payload, "<u8", words, len(prefix)), payload[end + len(middle) :]
