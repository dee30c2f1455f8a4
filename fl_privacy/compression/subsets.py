"""Which coordinates all owners send in a round: the same for everyone, and computed from public values alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fl_privacy.compression.keystream import keystream
from fl_privacy.errors import CompressionError
from fl_privacy.parameters import Vector

Indices = NDArray[np.int64]  # of coordinates of a flat update, rising
_DRAWN_AT_ONCE = 1 << 20  # words, 8 MB


def random_subset(seed: bytes, size: int, kept: int) -> Indices:
    """``kept`` of the coordinates 0 .. size - 1, every such subset as likely as any other; rising.

    The first distinct ones of a sequence of independent, uniform coordinates; of more than half, what such a draw leaves out.
    A coordinate is a 64-bit little-endian word of the keystream modulo ``size``, words from the largest multiple of ``size`` on
    being passed over. Block i of the stream has as many words as are missing before it, but at most 2**20.
    Raises: CompressionError unless 0 < kept <= size.
    """
    _check_counts(size, kept)
    if kept <= size - kept:
        return _rising(_drawn(seed, size, kept))
    return _rising(~_drawn(seed, size, size - kept))


def shared_top(mean: Vector, kept: int, at_random: int, seed: bytes) -> Indices:
    """The coordinates in which the last public mean was largest, and ``at_random`` or more of the others, drawn; rising.

    Among equals the first come first. A coordinate that was zero is never one of the largest: after a mean of zeros, as before
    the first round, all are drawn. Every owner keeps what it did not send (``codec``), or what is never drawn is never learnt.
    Args: mean (n,), finite. Raises: CompressionError unless 0 <= at_random <= kept, 0 < kept <= n, and the mean is finite.
    """
    _check_counts(mean.size, kept)
    if not 0 <= at_random <= kept:
        raise CompressionError(f"{at_random} of {kept} coordinates cannot be drawn at random")
    chosen = _largest(mean, kept - at_random)
    missing = kept - np.count_nonzero(chosen)
    if missing:
        others = np.flatnonzero(~chosen)
        chosen[others[random_subset(seed, others.size, missing)]] = True
    return _rising(chosen)


def _drawn(seed: bytes, size: int, count: int) -> NDArray[np.bool_]:
    """Which of ``size`` coordinates are among the first ``count`` distinct ones of the stream."""
    drawn = np.zeros(size, bool)
    last = np.uint64(2**64 - 1 - 2**64 % size)
    block, missing = 0, count
    while missing:
        words = np.frombuffer(keystream("subset", seed, block, 8 * min(missing, _DRAWN_AT_ONCE)), "<u8")
        drawn[(words[words <= last] % np.uint64(size)).astype(np.int64)] = True
        block, missing = block + 1, count - np.count_nonzero(drawn)
    return drawn


def _largest(mean: Vector, count: int) -> NDArray[np.bool_]:
    """Which coordinates are the ``count`` largest by magnitude; fewer where the others are zero."""
    if not np.isfinite(mean).all():
        raise CompressionError("the last mean holds a value that is not finite; its largest coordinates mean nothing")
    magnitudes = np.abs(mean)
    count = min(count, np.count_nonzero(magnitudes))
    if not count:
        return np.zeros(mean.size, bool)
    threshold = np.partition(magnitudes, mean.size - count)[mean.size - count]
    chosen: NDArray[np.bool_] = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return chosen


def _rising(chosen: NDArray[np.bool_]) -> Indices:
    return np.flatnonzero(chosen).astype(np.int64, copy=False)


def _check_counts(size: int, kept: int) -> None:
    if not 0 < kept <= size:
        raise CompressionError(f"{kept} of {size} coordinates cannot be sent; send at least one and at most all")
