"""Fixed-point form of an update: real coordinates to small non-negative integers and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_privacy.encryption.packing import Fields, Words
from fl_privacy.errors import ChecksumMismatch, EncodingOverflow
from fl_privacy.parameters import Vector
from fl_privacy.round_order import Encoding

Dither = NDArray[np.uint16]  # uniform random bits that rounding adds
_FRACTION_BITS = 16  # of a step


def quantise(values: Vector, weight: float, encoding: Encoding, dither: Dither) -> Fields:
    """Weight, clip to [-value_range, value_range], scale, and round stochastically: floor(x + dither / 2**16).

    The expectation is the clipped x, off by at most 2**-16 of a step and what float32 loses (2**-23 of x): for values of 8 bits
    that are both together 2**-15. Multiples of the step come out as they are.

    Args: values (n,); dither (n,), fresh and uniform on all 16 bits. It has to be independent of the data; it hides nothing.
    Returns: fields uint16 (n,) in 0 .. 2 * (2**(value_bits - 1) - 1); zero is the middle.
    Raises: EncodingOverflow when a coordinate is not finite, or value_range so small that float32 cannot hold the scale.
    Privacy: post-processing of ``values`` with noise that does not depend on them; adds nothing to epsilon.
    Source: Alistarh et al. 2017 (QSGD), section 3.1.
    """
    low, high = values.min(), values.max()  # a coordinate that is not a number carries through
    if not (np.isfinite(low) and np.isfinite(high)):
        raise EncodingOverflow("a coordinate of the update is not finite; training diverged")
    top = _top(encoding)
    limit = np.float32(top << _FRACTION_BITS)  # exact, and at most 2**31 - 2**16: with any dither within int32
    scale = weight * float(limit) / encoding.value_range
    if scale > np.finfo(np.float32).max:
        raise EncodingOverflow(f"a value range of {encoding.value_range} is too small for float32; use a larger one")
    factor = np.float32(scale)
    with np.errstate(over="ignore"):  # infinity is clipped
        scaled = values * factor
        if max(-low, high) * factor > limit:
            np.clip(scaled, -limit, limit, out=scaled)
    integers = np.rint(scaled, out=scaled).astype(np.int32)
    integers += dither
    integers >>= _FRACTION_BITS
    integers += top
    fields: Fields = integers.astype(np.uint16)
    return fields


def dequantise_sum(fields: Fields | Words, encoding: Encoding, cohort_size: int) -> Vector:
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
