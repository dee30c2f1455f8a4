"""Owners with F_k(w) = a_k / 2 |w - b_k|^2, one coordinate each, to try federations on.

Of the five owners some are steeper, so that local steps pull the mean away from the optimum of sum_k p_k F_k.
"""

from __future__ import annotations

import numpy as np

from fl_privacy.parameters import Parameters

CURVATURE = np.array([1.0, 3.0, 0.4, 2.0, 0.7])  # a_k
CENTRE = np.array([-1.0, 2.0, 5.0, 0.5, -3.0])  # b_k
SIZES = np.array([50, 30, 20, 10, 40])  # n_k
OPTIMUM = float((SIZES * CURVATURE * CENTRE).sum() / (SIZES * CURVATURE).sum())


def gradient(owner: int, place: float) -> float:
    """Of F_k."""
    return float(CURVATURE[owner] * (place - CENTRE[owner]))


def weighted_mean(updates: dict[int, float]) -> tuple[Parameters, float]:
    """What a secure sum gives for a cohort, weights renormalised over it, and the cohort's share of all owners."""
    members = list(updates)
    total = SIZES[members].sum()
    mean = sum(SIZES[owner] / total * update for owner, update in updates.items())
    return {"w": np.array([mean], np.float32)}, float(total / SIZES.sum())
