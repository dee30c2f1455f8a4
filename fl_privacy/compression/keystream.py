"""Public pseudorandom bytes: the same on every machine and with every version of numpy, whose generators promise neither."""

from __future__ import annotations

import hashlib


def keystream(label: str, seed: bytes, block: int, size: int) -> bytes:
    """``size`` bytes of one block of the stream that label and seed name; shorter reads are prefixes of longer ones.

    SHAKE-256 of "fl_privacy/v1/compression/" label NUL block (8 bytes, big-endian) seed. No two (label, block, seed) are the
    same input, since labels hold no NUL. The seed is public: this spreads coordinates fairly, it hides nothing.
    Source: FIPS 202 (SHA-3).
    """
    context = b"fl_privacy/v1/compression/" + label.encode() + b"\0" + block.to_bytes(8, "big")
    return hashlib.shake_256(context + seed).digest(size)
