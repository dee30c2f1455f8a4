"""Check coefficients: what proves that an opened block is the sum over the whole cohort.

Every block ends in two coefficients, u + r f and v, modulo t = 2**b. f are the fields of the block; u and v, new for every
block, and r, one number for each field, are uniform and derived from the HE secret key and the order. Both are linear, so the
sum over K owners must hold K u + r F and K v, F being the fields that were opened. What does not pass:

- Noise beyond its margin moves a coefficient by one, so its guard bit shows it: with certainty. By two it would move only
  beyond three margins, at least 25.5 standard deviations: p < 2**-470. Even that would change F.
- Partial sums, repeated or scaled terms, blocks out of place, other orders or keys, and self-masks that are missing or wrong
  leave all coefficients uniform modulo t. They pass the checks with t**-2, and the guard bits besides with 2**-4094.
- Any other change by somebody without the HE key, who therefore cannot tell r from random: damage on the way, or numbers added
  to coefficients. Some field of w bits then is off by delta, 0 < |delta| < 2**w, and r delta is one of at least 2**(b - w + 1)
  values that are equally likely: p <= 2**-(b - w + 1), which is 2**-42, 2**-38, 2**-32 for 3, 16, 100 owners at 8 bits.

Whoever has the key and carries the sum, an owner together with the aggregator, can add what it likes and adapt the checks. This
is found by adding the signed ciphertexts again.
Source: Agrawal and Boneh 2009 (homomorphic MACs), here over integers modulo 2**b.
"""

from __future__ import annotations

import numpy as np

from fl_privacy.encryption.cipher import modulo
from fl_privacy.encryption.masks import UniformStream, derive_seed, uniform
from fl_privacy.encryption.packing import (
    CHECKS,
    DATA,
    Fields,
    Words,
    bfv_encoding,
    coordinates_per_block,
    guards_are_zero,
    unpack,
)
from fl_privacy.errors import ChecksumMismatch
from fl_privacy.round_order import RoundOrder


class CheckLane:
    """The check coefficients of one order, made by owners and verified when a sum is opened."""

    def __init__(self, order: RoundOrder, secret_key: bytes) -> None:
        digest, self._encoding, self._cohort_size = order.digest(), bfv_encoding(order), len(order.cohort)
        fields = coordinates_per_block(self._encoding)
        self._factors = uniform(derive_seed(secret_key, "check-factors", digest), 0, fields)
        self._values = UniformStream(derive_seed(secret_key, "check", digest))
        self._order = digest

    def checks(self, block: int, fields: Fields | Words, owners: int = 1) -> Words:
        """The two check coefficients of the sum of so many owners, modulo 2**64. Args: fields (n,) of the sum."""
        checks = np.uint64(owners) * self._values.block(block, CHECKS)
        checks[:1] += fields.astype(np.uint64) @ self._factors[: fields.size]
        return checks

    def verified_fields(self, block: int, coefficients: Words) -> Words:
        """The fields of an opened block (DEGREE,), modulo t and without masks. Raises: ChecksumMismatch."""
        fields = unpack(coefficients[:DATA], self._encoding)
        expected = self.checks(block, fields, self._cohort_size) & modulo(self._encoding.modulus_bits)
        if not (guards_are_zero(coefficients[:DATA]) and np.array_equal(coefficients[DATA:], expected)):
            raise ChecksumMismatch(f"block {block} is not the sum of the whole cohort for order {self._order[:16]}…")
        return fields
