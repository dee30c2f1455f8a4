"""CKKS ciphertexts as they travel, and their sum: the public half, which adds and never decrypts. No secret key is used here.

Scheme: TenSEAL ``ckks_vector``, N = 8192, primes of 60 and 40 bits and one more of 40 that only keys use, scale 2**40; SEAL
itself refuses parameters below 128-bit security. Encryption is symmetric: all owners hold the secret key, a public one
would only add noise, time and bytes.

Container: kind, digest of the order R_t, position of the owner, number of vectors; then the vectors of 4096 slots, each after
its length.

TenSEAL trusts a serialised vector: without ``sizes`` or without a ciphertext it crashes the process, with a large size it
reads past its memory. So bytes from another party reach it only if they are, byte for byte, the one form in which TenSEAL
writes a vector of 4096 slots around one SEAL object, and if that object cannot unfold to more than a few MiB. A template is
shorter and stricter than a protobuf parser, which accepts unknown, repeated and reordered fields. What is in the compressed
part SEAL checks while loading; its shape is checked after that, before anything is added or decrypted.
Source: Cheon, Kim, Kim and Song 2017 (CKKS); RFC 8878, section 3.1.1 (zstd frames and blocks).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import tenseal as ts

from fl_privacy.encryption.registry import check_cohort
from fl_privacy.errors import CiphertextInvalid, CohortMismatch, EncodingOverflow, EncryptionError
from fl_privacy.round_order import RoundOrder

DEGREE = 8192
SLOTS = DEGREE // 2
CHECK_SLOTS = 8  # slots per vector that prove the sum; see ``encryption.ckks``
DATA_SLOTS = SLOTS - CHECK_SLOTS
SCALE = 2.0**40
MAXIMAL_RANGE = 16.0  # more than a plan may ask for; doubles encode sums this large well within the check slots' tolerance
UPDATE, TOTAL = b"FLCKU\0\0\1", b"FLCKS\0\0\1"

_PRIME_BITS = [60, 40, 40]
_CONTAINER = struct.Struct("<8s32sII")
_LENGTH = struct.Struct("<I")
_SEAL_HEADER = struct.Struct("<HBBBBHQ")  # magic, header size, version, compression (2 is zstd), reserved, size with header
_ZSTD_FRAME = bytes.fromhex("28b52ffda0")  # magic; one segment, content size in the four bytes that follow
_ZSTD_BLOCK = 128 * 1024  # the most that one block unfolds to; zstd checks it
_ZSTD_BLOCKS = 40  # zstd splits no finer than 8 KiB, so an honest object has at most 33
_CIPHERTEXT_BYTES = 2 * 2 * DEGREE * 8 + 97  # two polynomials modulo two primes, and SEAL's members
_LONGEST_VECTOR = _CIPHERTEXT_BYTES + 1024
_VECTOR_HEAD = bytes.fromhex("0a02 8020 12")  # sizes = [4096]; then ciphertexts, by length
_VECTOR_TAIL = b"\x19" + struct.pack("<d", SCALE)
FOREIGN = (RuntimeError, ValueError, IndexError, MemoryError)  # how C++ exceptions arrive


@lru_cache(maxsize=1)
def parameters() -> bytes:
    """These parameters as TenSEAL writes a context without keys."""
    return serialised(new_context(), secret_key=False)


@lru_cache(maxsize=1)
def public_context() -> Any:
    """The context that adds: fixed parameters, no secret key."""
    return ts.context_from(parameters(), n_threads=1)


def new_context() -> Any:
    """A TenSEAL context of these parameters, with a fresh secret key of its own."""
    symmetric = ts.ENCRYPTION_TYPE.SYMMETRIC
    context = ts.context(ts.SCHEME_TYPE.CKKS, DEGREE, -1, _PRIME_BITS, encryption_type=symmetric, n_threads=1)
    context.global_scale = SCALE
    return context


def serialised(context: Any, secret_key: bool) -> bytes:
    """A context as TenSEAL writes it, with its secret key or without."""
    data: bytes = context.serialize(
        save_public_key=False, save_secret_key=secret_key, save_galois_keys=False, save_relin_keys=False
    )
    return data


def load_vector(context: Any, data: bytes) -> Any:
    """Load a vector of 4096 slots after checking every byte around its compressed part. Raises: CiphertextInvalid."""
    ciphertext = data[len(_VECTOR_HEAD) + 3 : -len(_VECTOR_TAIL)]
    head = _VECTOR_HEAD + varint(len(ciphertext))
    if not (data.startswith(head) and data.endswith(_VECTOR_TAIL) and is_seal_object(ciphertext, _CIPHERTEXT_BYTES)):
        raise CiphertextInvalid(f"not one CKKS ciphertext of {SLOTS} slots at scale 2**40")
    try:
        vector = ts.ckks_vector_from(context, data)
        loaded = vector.ciphertext()[0]
    except FOREIGN:
        raise CiphertextInvalid("SEAL refuses the ciphertext") from None
    shape = (loaded.size(), loaded.poly_modulus_degree(), loaded.coeff_modulus_size(), loaded.is_ntt_form(), loaded.scale)
    if shape != (2, DEGREE, 2, True, SCALE) or loaded.is_transparent():
        raise CiphertextInvalid("the ciphertext has another shape or scale, or hides nothing (c1 = 0)")
    return vector


def check_order(order: RoundOrder) -> None:
    """Refuse an order for another scheme, or with a range whose sums CKKS cannot hold precisely enough.

    Raises: CohortTooSmall, CohortMismatch, EncryptionError, EncodingOverflow.
    """
    check_cohort(order)
    if order.encoding.scheme != "ckks":
        raise EncryptionError(f"the order is for {order.encoding.scheme}, not for CKKS")
    if order.encoding.value_range > MAXIMAL_RANGE:
        raise EncodingOverflow(f"value_range {order.encoding.value_range:g} is more than {MAXIMAL_RANGE:g}")


def vector_count(order: RoundOrder) -> int:
    """Ciphertexts that one update of this order fills."""
    return math.ceil(order.coordinates / DATA_SLOTS)


def write_header(file: BinaryIO, kind: bytes, order: RoundOrder, position: int) -> None:
    """Begin a container: an owner's update, or a total (whose position is zero)."""
    file.write(_CONTAINER.pack(kind, bytes.fromhex(order.digest()), position, vector_count(order)))


def write_vector(file: BinaryIO, vector: Any) -> None:
    """Add one vector to a container."""
    data: bytes = vector.serialize()
    file.write(_LENGTH.pack(len(data)) + data)


def read_header(file: BinaryIO, kind: bytes, order: RoundOrder) -> int:
    """Check that a container is of this kind and was made for this order.

    Returns: the owner's position in the sorted cohort. Raises: CiphertextInvalid.
    """
    tag, digest, position, vectors = _CONTAINER.unpack(_read(file, _CONTAINER.size))
    if tag != kind:
        raise CiphertextInvalid("the container is of another kind or version")
    if digest.hex() != order.digest():
        raise CiphertextInvalid(f"the container was made for order {digest.hex()[:16]}…, not {order.digest()[:16]}…")
    if vectors != vector_count(order):
        raise CiphertextInvalid(f"the container has {vectors} ciphertexts, the order's tensors need {vector_count(order)}")
    if position >= (1 if kind == TOTAL else len(order.cohort)):
        raise CiphertextInvalid(f"the container's position {position} is not in the cohort")
    return int(position)


def read_vector(file: BinaryIO, context: Any) -> Any:
    """The next vector of a container. Raises: CiphertextInvalid."""
    (length,) = _LENGTH.unpack(_read(file, _LENGTH.size))
    if length > _LONGEST_VECTOR:
        raise CiphertextInvalid(f"a ciphertext of {length} bytes; no CKKS ciphertext has more than {_LONGEST_VECTOR}")
    return load_vector(context, _read(file, length))


def check_end(file: BinaryIO) -> None:
    """Refuse bytes after the last vector. Raises: CiphertextInvalid."""
    if file.read(1):
        raise CiphertextInvalid("the container goes on after its last ciphertext")


def add_updates(updates: Sequence[Path], order: RoundOrder, total: Path) -> None:
    """Add one encrypted update of each owner of the cohort, given in any order; one vector at a time is in memory.

    Check each file against its owner's signed receipt first: the position in it is not authenticated by itself. ``total``
    appears only when it is complete; until then its name ends in ``.partial``.

    Raises: CiphertextInvalid, CohortMismatch (an owner missing or twice), CohortTooSmall, EncryptionError, EncodingOverflow.
    Privacy: reads nothing and adds no noise; without the key a ciphertext is pseudo-random.
    """
    check_order(order)
    if len(updates) != len(order.cohort):
        raise CohortMismatch(f"{len(updates)} updates for a cohort of {len(order.cohort)}")
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in updates]
        present = {read_header(file, UPDATE, order) for file in files}
        if len(present) < len(files):
            missing = [owner for position, owner in enumerate(sorted(order.cohort)) if position not in present]
            raise CohortMismatch(f"no update of {', '.join(missing)}, but another one twice")
        partial = total.with_name(f"{total.name}.partial")
        stack.callback(partial.unlink, missing_ok=True)
        out = stack.enter_context(partial.open("wb"))
        write_header(out, TOTAL, order, 0)
        for _ in range(vector_count(order)):
            write_vector(out, _sum_of_next(files))
        for file in files:
            check_end(file)
        out.close()
        partial.replace(total)


def _sum_of_next(files: Sequence[BinaryIO]) -> Any:
    first, *others = files
    total = read_vector(first, public_context())
    for file in others:
        try:
            total.add_(read_vector(file, public_context()))
        except FOREIGN:  # SEAL adds nothing that would leave c1 = 0
            raise CiphertextInvalid("SEAL refuses to add the ciphertexts") from None
    return total


def _read(file: BinaryIO, length: int) -> bytes:
    data = file.read(length)
    if len(data) != length:
        raise CiphertextInvalid("the container is truncated")
    return data


def varint(number: int) -> bytes:
    """Protobuf's form of a length that takes three bytes; for other lengths a form that protobuf never writes."""
    return bytes((number & 0x7F | 0x80, number >> 7 & 0x7F | 0x80, number >> 14 & 0x7F))


def is_seal_object(data: bytes, unfolded: int) -> bool:
    """Whether the bytes frame one compressed SEAL object that claims the right size and can unfold to 5 MiB at most.

    The claim alone bounds nothing, since zstd compares it only with all that came out; so blocks are counted, and runs (four
    bytes for 128 KiB) refused. SEAL 4.3 happens to unfold no more than it reads; this does not depend on that.
    """
    head = _SEAL_HEADER.pack(0xA15E, _SEAL_HEADER.size, 4, 3, 2, 0, len(data)) + _ZSTD_FRAME + struct.pack("<I", unfolded)
    if len(data) < 1 << 14 or not data.startswith(head):
        return False
    at = len(head)
    for _ in range(_ZSTD_BLOCKS):
        block = int.from_bytes(data[at : at + 3], "little")
        is_last, form, size = block & 1, block >> 1 & 3, block >> 3
        if form not in (0, 2) or size > _ZSTD_BLOCK:  # plain or compressed
            return False
        at += 3 + size
        if is_last:
            return at == len(data)
    return False
