"""How evenly a model serves the owners, from one number an owner.

Privacy: an owner's number tells about its records. Use this where they are public, as mock rows are, or where each number was
released with noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Fairness(NamedTuple):
    """Over owners; in the unit of what was measured."""

    minimum: float
    tenth_percentile: float
    deviation: float  # standard deviation of these owners, not an estimate for others
    gap: float  # largest - smallest
    benefit_rate: float | None  # share of owners whom the model serves better than one of their own; None if unknown


def fairness(measured: Mapping[str, float], alone: Mapping[str, float] | None = None) -> Fairness:
    """Args: measured by owner, higher is better, for at least one owner; alone is the same of a model that each owner trained
    by itself.

    Raises: ValueError when ``alone`` has other owners.
    """
    if not measured:
        raise ValueError("fairness needs the number of at least one owner")
    if alone is not None and alone.keys() != measured.keys():
        raise ValueError(f"owners {sorted(alone.keys() ^ measured.keys())} are measured once only")
    values = np.array(list(measured.values()))
    return Fairness(
        minimum=float(values.min()),
        tenth_percentile=float(np.quantile(values, 0.1)),
        deviation=float(values.std()),
        gap=float(values.max() - values.min()),
        benefit_rate=None if alone is None else float(np.mean([measured[owner] > alone[owner] for owner in measured])),
    )
