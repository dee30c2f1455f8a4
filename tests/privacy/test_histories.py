"""Mixed histories: trainings of several plans and evaluations in one ledger, and noise that fits beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.accounting import calibrate, epsilon
from fl_privacy.privacy.audit import pld_epsilon
from fl_privacy.privacy.entries import Spend
from fl_privacy.privacy.ledger import Ledger

DELTA = 1e-5
EVALUATION = Spend(noise_multiplier=10.0, sample_rate=1.0, steps=1)


def random_history(seed: int) -> list[Spend]:
    """One to four kinds of DP-SGD steps, and up to ten evaluations at full rate."""
    draw = np.random.default_rng(seed)
    kinds = [
        Spend(
            noise_multiplier=float(draw.uniform(0.7, 4.0)),
            sample_rate=float(np.exp(draw.uniform(np.log(0.002), np.log(0.1)))),
            steps=int(draw.integers(1, 300)),
        )
        for _ in range(draw.integers(1, 5))
    ]
    noise = float(draw.uniform(4.0, 40.0))
    return kinds + [Spend(noise_multiplier=noise, sample_rate=1.0, steps=1)] * int(draw.integers(0, 11))


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[] if seed < 4 else pytest.mark.slow) for seed in range(50)])
def test_both_accountants_bound_what_an_independent_one_finds(seed: int) -> None:
    """PLD (Google's dp-accounting) rounds up by its grid of 1e-4; PRV's upper end is at most two errors of 0.01 too large."""
    history = random_history(seed)
    pld, prv, rdp = pld_epsilon(history, DELTA), epsilon(history, DELTA, "prv"), epsilon(history, DELTA, "rdp")
    assert prv >= pld - 1e-3, "PRV's upper end lies below the truth"
    assert prv <= pld + 0.03
    assert rdp >= pld - 1e-3 and rdp >= prv - 0.03, "RDP is the looser bound"


@pytest.mark.parametrize("accountant", ["rdp", pytest.param("prv", marks=pytest.mark.slow)])
def test_calibrated_noise_keeps_training_and_what_is_besides_within_the_target_and_is_the_least(accountant: str) -> None:
    besides = (EVALUATION,) * 5
    sigma = calibrate(3.0, DELTA, 0.02, 200, accountant, besides)
    assert sigma > calibrate(3.0, DELTA, 0.02, 200, accountant)
    for noise, fits in ((sigma, True), (sigma - 0.002, False)):
        spends = [Spend(noise_multiplier=noise, sample_rate=0.02, steps=200), *besides]
        assert (epsilon(spends, DELTA, accountant) <= 3.0) == fits
        assert pld_epsilon(spends, DELTA) <= 3.0 + 0.01


def test_what_costs_the_whole_target_alone_leaves_nothing_to_calibrate() -> None:
    with pytest.raises(PrivacyError, match="leaves nothing for these 100 steps: what is released besides costs 2"):
        calibrate(2.0, DELTA, 0.02, 100, "rdp", (Spend(noise_multiplier=1.5, sample_rate=1.0, steps=1),))


def test_noise_calibrated_beside_a_ledgers_spends_fits_what_is_left_of_its_budget(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", "bank", Ed25519PrivateKey.generate(), 4.0, DELTA, "rdp")
    held = (Spend(noise_multiplier=1.1, sample_rate=0.02, steps=200), EVALUATION)
    for number, spend in enumerate(held):
        ledger.reserve(f"{number:064x}", "cd" * 32, spend)
    later = calibrate(4.0, DELTA, 0.02, 200, "rdp", held)
    assert later > calibrate(4.0, DELTA, 0.02, 200, "rdp")
    assert ledger.forecast([Spend(noise_multiplier=later, sample_rate=0.02, steps=200)]) <= 4.0
    assert ledger.forecast([Spend(noise_multiplier=later - 0.002, sample_rate=0.02, steps=200)]) > 4.0
    ledger.close()


def test_the_ledger_counts_an_evaluation_like_the_auditor(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", "bank", Ed25519PrivateKey.generate(), 4.0, DELTA, "prv")
    spends = [Spend(noise_multiplier=1.2, sample_rate=0.05, steps=20), EVALUATION, EVALUATION]
    for number, spend in enumerate(spends):
        ledger.reserve(f"{number:064x}", "cd" * 32, spend)
    assert ledger.spent == epsilon(spends, DELTA, "prv")
    assert pld_epsilon(spends, DELTA) <= ledger.spent <= pld_epsilon(spends, DELTA) + 0.03
    ledger.close()
