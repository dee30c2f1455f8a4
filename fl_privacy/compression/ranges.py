"""A range for each tensor, from the last public mean, so that tensors of small updates use as many levels as those of large.

The secure sum has one public ``value_range``. So each tensor is multiplied by value_range / its own range before it is encoded,
and divided again after the sum has been opened: with 2**b levels a step is then as small as that tensor allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from fl_privacy.errors import CompressionError
from fl_privacy.parameters import Vector

DEVIATIONS = 4  # of one owner's coordinates within the range; of a Gaussian, one in 16 000 is clipped
MOST_CHANGE = 2  # of a range from one round to the next, either way
SMALLEST = 2.0**-40


def adaptive_ranges(mean: Vector, sizes: Sequence[int], owners: int, before: Sequence[float]) -> tuple[float, ...]:
    """The range of each tensor in the next round: 4 RMS sqrt(K), between half and twice what it was.

    A weighted mean of K owners' independent updates has at least 1 / sqrt(K) of their deviation, so sqrt(K) RMS is no less than
    that of one owner. A tensor of which nothing was sent keeps its range. The first round's are constants.

    Args: mean (sum(sizes),) of the updates of ``owners`` owners, finite; ``sizes`` coordinates of each tensor; ``before`` the
        ranges that were in force. Returns: the same bits on every machine.
    Raises: CompressionError.
    """
    if not np.isfinite(mean).all():
        raise CompressionError("the opened mean holds a value that is not finite; it gives no range")
    return tuple(
        _next_range(DEVIATIONS * math.sqrt(owners * _mean_square(piece)), old) if piece.size else old
        for piece, old in zip(_pieces(mean, sizes), before, strict=True)
    )


def scaled(vector: Vector, sizes: Sequence[int], ranges: Sequence[float], value_range: float) -> Vector:
    """Each tensor multiplied by value_range / its range. Args: vector (sum(sizes),), not changed."""
    return _multiplied(vector, sizes, [value_range / own for own in ranges])


def unscaled(vector: Vector, sizes: Sequence[int], ranges: Sequence[float], value_range: float) -> Vector:
    """The inverse of ``scaled``, but for float32's rounding."""
    return _multiplied(vector, sizes, [own / value_range for own in ranges])


def _next_range(wanted: float, before: float) -> float:
    return max(SMALLEST, min(MOST_CHANGE * before, max(before / MOST_CHANGE, wanted)))


def _mean_square(piece: Vector) -> float:
    """The mean of the squares, folded in halves: numpy's own sums depend on its version and the processor."""
    squares, size = np.square(piece, dtype=np.float64), piece.size
    while size > 1:
        half = size // 2
        squares[:half] += squares[size - half : size]
        size -= half
    return float(squares[0]) / piece.size


def _multiplied(vector: Vector, sizes: Sequence[int], factors: Sequence[float]) -> Vector:
    product = vector.astype(np.float32)
    for piece, factor in zip(_pieces(product, sizes), factors, strict=True):
        piece *= np.float32(factor)
    return product


def _pieces(vector: Vector, sizes: Sequence[int]) -> Iterator[Vector]:
    if vector.shape != (sum(sizes),):
        raise CompressionError(f"a vector of shape {vector.shape} does not fit tensors of {sum(sizes)} coordinates")
    start = 0
    for size in sizes:
        yield vector[start : start + size]
        start += size
