"""Counts of private records, released once with noise: a Gaussian mechanism on a sum of clipped vectors."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.randomness import OwnerRandomness

Counts = NDArray[np.float64]


def clipped(counts: Counts, bound: float) -> Counts:
    """A vector scaled down to an L2 norm of ``bound`` if it is longer; zeros if a number in it is not finite.

    Scaling keeps the ratios within the vector, such as a record's own accuracy; the record only weighs less among others.
    Not finite is what hostile weights can provoke for chosen records: the sum would tell without noise that one is there.
    """
    norm = float(np.linalg.norm(counts))
    if not math.isfinite(norm):
        return np.zeros_like(counts)
    return counts * min(1.0, bound / norm) if norm > 0 else counts


def release_counts(
    units: Iterable[Iterable[Counts]],
    size: int,
    *,
    bound: float,
    noise_multiplier: float,
    randomness: OwnerRandomness | None = None,
) -> Counts:
    """The sum over units of their clipped counts, plus N(0, (noise_multiplier * bound)^2) on each of ``size`` counts.

    Args: units gives, for each record or subject, the counts (size,) of its records; those of one unit are added before they
        are clipped.
    Raises: PrivacyError when no noise is asked for.
    Privacy: the Gaussian mechanism with ``noise_multiplier``, for adding or removing one unit, against whoever does not know
        the noise: let each unit's counts depend on that unit alone (and on what is public). Then two corpora that differ by one
        unit give sums that differ by that unit's clipped vector, whose norm is at most ``bound``; the number of units is
        not told, as a unit more is a vector more in the same sum. In an accountant: one step, sample rate 1.
    Source: Dwork and Roth 2014, appendix A; Balle and Wang 2018, theorem 8, for the exact curve.
    """
    for name, value in (("noise_multiplier", noise_multiplier), ("bound", bound)):
        if not 0 < value < math.inf:
            raise PrivacyError(f"{name} must be a finite number above 0; without it there is no privacy")
    total = np.zeros(size)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out
        for records in units:
            total += clipped(sum(records, np.zeros(size)), bound)
    return total + (randomness or OwnerRandomness()).gaussian((size,), noise_multiplier * bound)
