"""Baseline A of the secure sum: CKKS vectors of TenSEAL, as federated frameworks that build on it use them.

N = 8192, primes of 60, 40 and 40 bits, scale 2**40, 4096 coordinates to a ciphertext; every client holds the secret key and
there are no masks. The goals are for public-key encryption, the default of TenSEAL. NVIDIA FLARE provisions the same with
``ENCRYPTION_TYPE.SYMMETRIC`` (nvflare/lighter/impl/he.py), which encrypts in about half the time and is measured beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tenseal as ts

from fl_privacy.parameters import Vector

DEGREE = 8192
CHUNK = DEGREE // 2  # coordinates in one ciphertext
PRIME_BITS = (60, 40, 40)
SCALE = 2.0**40


class CkksBaseline:
    """A client's context, which encrypts and decrypts, and the server's, which adds and has no secret key."""

    def __init__(self, symmetric: bool = False) -> None:
        kind = ts.ENCRYPTION_TYPE.SYMMETRIC if symmetric else ts.ENCRYPTION_TYPE.ASYMMETRIC
        self._client = ts.context(
            ts.SCHEME_TYPE.CKKS, poly_modulus_degree=DEGREE, coeff_mod_bit_sizes=list(PRIME_BITS), encryption_type=kind
        )
        self._client.global_scale = SCALE
        self._server = ts.context_from(self._client.serialize(save_secret_key=False))

    def encrypt(self, update: Vector) -> list[bytes]:
        """Encrypt and serialise one update, a chunk at a time."""
        pieces = (update[start : start + CHUNK] for start in range(0, update.size, CHUNK))
        return [ts.ckks_vector(self._client, piece.tolist()).serialize() for piece in pieces]

    def add(self, updates: Sequence[Sequence[bytes]]) -> list[Any]:
        """Load every owner's ciphertexts and add them in place; the sum is not serialised."""
        sums = [ts.ckks_vector_from(self._server, blob) for blob in updates[0]]
        for update in updates[1:]:
            for total, blob in zip(sums, update, strict=True):
                total += ts.ckks_vector_from(self._server, blob)  # in place: TenSEAL's __iadd__
        return sums

    def open(self, total: Sequence[bytes]) -> Vector:
        """Load and decrypt a serialised sum."""
        return np.concatenate([np.array(ts.ckks_vector_from(self._client, blob).decrypt(), np.float32) for blob in total])
