"""Fixed-point form of an update: real coordinates to small non-negative integers and back."""

from __future__ import annotations

import numpy as np

from fl_privacy.encryption.packing import Slots
from fl_privacy.errors import ChecksumMismatch, EncodingOverflow
from fl_privacy.messages import Encoding
from fl_privacy.parameters import Vector


def quantise(values: Vector, encoding: Encoding) -> Slots:
    """Clip to [-value_range, value_range], scale, and round stochastically, so that the expectation is the clipped value.

    The generator is seeded from the operating system at each call. It need not be cryptographic: rounding has to be unbiased
    and independent of the data, it hides nothing.

    Args: values (n,). Returns: fields (n,) in 0 .. 2 * (2**(value_bits - 1) - 1); zero is the middle.
    Raises: EncodingOverflow when a coordinate is not finite.
    Privacy: post-processing of ``values`` with noise that does not depend on them; adds nothing to epsilon.
    Source: Alistarh et al. 2017 (QSGD), section 3.1.
    """
    if not np.isfinite(values).all():
        raise EncodingOverflow("a coordinate of the update is not finite; training diverged")
    top = _top(encoding)
    scaled = np.clip(values.astype(np.float64), -encoding.value_range, encoding.value_range) / encoding.value_range * top
    rounded = np.floor(scaled + np.random.default_rng().random(values.shape))
    return (rounded + top).astype(np.uint64)


def dequantise_sum(fields: Slots, encoding: Encoding, cohort_size: int) -> Vector:
    """The sum of ``cohort_size`` quantised vectors, as real numbers; off by less than K / scale per coordinate.

    Args: fields (n,), sums of K fields. Returns: float32 (n,).
    Raises: ChecksumMismatch when a field is more than K owners can add up to.
    """
    top = _top(encoding)
    if fields.size and int(fields.max()) > 2 * top * cohort_size:
        raise ChecksumMismatch(f"a field is larger than a sum of {cohort_size} values")
    centred = fields.astype(np.int64) - top * cohort_size
    return (centred * (encoding.value_range / top)).astype(np.float32)


def _top(encoding: Encoding) -> int:
    """The integer that ``value_range`` maps to."""
    return int(2 ** (encoding.value_bits - 1)) - 1
