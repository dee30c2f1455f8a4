"""What DP-SGD costs: epsilon of a history of spends, and the noise that keeps a plan within a target.

Two accountants from Opacus: "prv" (Gopi et al. 2021, the upper end of its certified interval) and "rdp" (Mironov et al.
2019, converted by Balle et al. 2020). The central-limit "GDP" accountant can lie below the truth and is not offered.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent
from scipy.optimize import brentq

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.entries import Accountant, Spend

__all__ = ["Accountant", "Spend", "calibrate", "epsilon"]

History = tuple[tuple[float, float, int], ...]  # (noise_multiplier, sample_rate, steps)

ORDERS = [*RDPAccountant.DEFAULT_ALPHAS, 64, 128, 256, 512, 1024]  # the large ones matter when epsilon is below 0.1
PRV_ERRORS = (0.01, 0.03, 0.1)  # added to epsilon; a longer history needs a coarser grid
PRV_GRID = 2**22  # points; about a second and 0.3 GB
MIN_NOISE, MAX_NOISE = 0.3, 1000.0  # where the accountants' numerics hold

warnings.filterwarnings("ignore", message="Optimal order is the", module=r"opacus\.accountants")  # looser, not wrong


def epsilon(spends: Sequence[Spend], delta: float, accountant: Accountant) -> float:
    """Upper bound on the epsilon of all spends together, at this delta; 0.0 for none.

    Raises: PrivacyError when the accountant cannot certify a bound; never a guess.
    Privacy: (epsilon, delta)-DP for adding or removing one record, Poisson sampling, noise drawn freshly for each step,
    against anyone who sees every step; spends may be chosen adaptively.
    Source: Gopi et al. 2021 (prv); Mironov et al. 2019, Balle et al. 2020 (rdp).
    """
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta}, it must lie between 0 and 1")
    merged: Counter[tuple[float, float]] = Counter()
    for spend in spends:
        merged[spend.noise_multiplier, spend.sample_rate] += spend.steps
    if not merged:
        return 0.0
    history = tuple(sorted((sigma, q, steps) for (sigma, q), steps in merged.items()))
    bound = _prv(history, delta) if accountant == "prv" else _rdp(history, delta)
    if not math.isfinite(bound):
        raise PrivacyError(f"the {accountant} accountant finds no finite epsilon at delta {delta:g}; use more noise")
    return max(bound, 0.0)


@lru_cache(maxsize=256)
def calibrate(
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: Accountant,
    besides: tuple[Spend, ...] = (),
) -> float:
    """The least noise multiplier, rounded up to 4 decimals, with which ``steps`` steps and ``besides`` cost at most the target.

    A pure function of its arguments, so that scientist, owners and auditor find the same number. Never below 0.3, where
    even a target that allows less is given that much.
    Args: besides is what is released in addition, such as a plan's evaluations or all that a ledger holds already.
    Raises: PrivacyError when no noise multiplier up to 1000 reaches the target.
    """
    alone = epsilon(besides, delta, accountant)
    if alone >= target_epsilon:
        raise PrivacyError(
            f"epsilon {target_epsilon:g} at delta {delta:g} leaves nothing for these {steps} steps: what is released besides"
            f" costs {alone:.4f} alone ({accountant}); use more noise there, or a larger target"
        )

    def excess(sigma: float) -> float:
        spend = Spend(noise_multiplier=sigma, sample_rate=sample_rate, steps=steps)
        return epsilon([spend, *besides], delta, accountant) - target_epsilon

    high = 1.0
    if accountant == "prv":  # RDP is cheap and needs a few per cent more noise: a good place to start
        within_reach = max(target_epsilon, epsilon(besides, delta, "rdp") + 0.5)
        high = calibrate(within_reach, delta, sample_rate, steps, "rdp", besides)
    while excess(high) > 0:
        high *= 1.25
        if high > MAX_NOISE:
            raise PrivacyError(
                f"epsilon {target_epsilon:g} at delta {delta:g} is out of reach for {steps} steps at sample rate"
                f" {sample_rate:g} ({accountant}); use fewer steps, smaller batches or a larger target"
            )
    low = high / 1.25
    while low > MIN_NOISE and excess(low) <= 0:
        low, high = low / 1.25, low
    if low <= MIN_NOISE:
        low = MIN_NOISE
        if excess(low) <= 0:
            return MIN_NOISE
    sigma = math.ceil(brentq(excess, low, high, xtol=1e-5) * 10_000) / 10_000
    while excess(sigma) > 0:  # the root finder may stop on either side
        sigma = round(sigma + 1e-4, 4)
    return float(sigma)


@lru_cache(maxsize=4096)
def _one_step(sigma: float, q: float) -> NDArray[np.float64]:
    try:
        vector: NDArray[np.float64] = compute_rdp(q=q, noise_multiplier=sigma, steps=1, orders=ORDERS)
    except (ValueError, OverflowError, ZeroDivisionError) as problem:
        raise PrivacyError(f"no Renyi bound at noise multiplier {sigma:g}, sample rate {q:g}: {problem}") from None
    return np.maximum(vector, 0.0)  # the logarithm of a sum near 1 may round below 0


def _rdp(history: History, delta: float) -> float:
    """Renyi vectors are additive over steps, so a history costs one cached vector per (noise multiplier, rate)."""
    total = sum((steps * _one_step(sigma, q) for sigma, q, steps in history), np.zeros(len(ORDERS)))
    bound, _ = get_privacy_spent(orders=ORDERS, rdp=total, delta=delta)
    return float(bound)


@lru_cache(maxsize=1024)
def _prv(history: History, delta: float) -> float:
    accountant = PRVAccountant()
    accountant.history = list(history)
    try:
        with np.errstate(all="ignore"):  # log(1 - q) at q = 1; a result that is not finite is refused by the caller
            return float(accountant.get_epsilon(delta, eps_error=_prv_error(history, delta)))
    except (ValueError, RuntimeError, IndexError, ArithmeticError, MemoryError) as problem:
        raise PrivacyError(f"the prv accountant cannot certify delta {delta:g}: {problem}; use the rdp accountant") from None


def _prv_error(history: History, delta: float) -> float:
    """The finest error whose grid fits; mesh and width as in Gopi et al. 2021, section 5."""
    delta_error = delta / 1000
    half_width = _rdp(history, delta_error / 4) + 3
    per_error = 2 * half_width * math.sqrt(sum(steps for *_, steps in history) * math.log(12 / delta_error) / 2)
    for error in PRV_ERRORS:
        if per_error / error <= PRV_GRID:
            return error
    raise PrivacyError(
        f"the prv accountant needs a grid of {per_error / PRV_ERRORS[-1]:.1e} points for this history; use more noise, fewer"
        " steps or the rdp accountant"
    )
