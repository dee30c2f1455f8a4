"""Accountants against published values, closed forms, and each other's laws."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy import accounting
from fl_privacy.privacy.accounting import Spend, calibrate, epsilon

DELTA = 1e-5

# (sample rate, noise multiplier, steps) -> epsilon by RDP and by PLD, from Google's dp-accounting 0.6.0: delta 1e-5, add or
# remove one record, Poisson sampling. PLD is tight to 4 digits; PRV's upper bound lies about 0.01 above it.
ANCHORS = [
    (0.01, 1.0, 1000, 2.101, 1.829),
    (0.01, 0.8, 3000, 5.845, 5.243),
    (0.02, 1.0, 1500, 5.296, 4.814),
    (0.0256, 1.0, 150, 2.524, 2.118),
    (0.004, 0.7, 7500, 5.095, 4.458),
    (1.0, 10.0, 50, 3.189, 2.943),
    (0.05, 1.0, 1000, 11.98, 10.99),
    (0.01, 0.6, 1000, 8.67, 7.43),
    (0.2, 2.0, 300, 10.08, 9.31),
]


def spend(noise: float = 1.0, rate: float = 0.02, steps: int = 100) -> Spend:
    return Spend(noise_multiplier=noise, sample_rate=rate, steps=steps)


@pytest.mark.parametrize(("rate", "noise", "steps", "rdp", "pld"), ANCHORS)
def test_published_values(rate, noise, steps, rdp, pld):
    spends = [spend(noise, rate, steps)]
    assert epsilon(spends, DELTA, "rdp") == pytest.approx(rdp, rel=0.01)
    prv = epsilon(spends, DELTA, "prv")
    assert prv == pytest.approx(pld, rel=0.02)
    assert prv > pld - 0.006  # an upper bound, up to the rounding of the table


def test_value_pinned_by_opacus_own_tests():
    # opacus/tests/accountants_test.py: sigma 1.5, q 0.04, 60 / 0.04 * 1.5 = 2250 steps
    assert epsilon([spend(1.5, 0.04, 2250)], DELTA, "rdp") == pytest.approx(7.32911117143, rel=1e-6)


def rdp_by_hand(rate: float, noise: float, steps: int) -> float:
    """Mironov et al. 2019, section 3.3, at integer orders a: the binomial sum, then the conversion of Balle et al. 2020."""

    def bound(a: int) -> float:
        terms = [
            math.comb(a, j) * (1 - rate) ** (a - j) * rate**j * math.exp(j * (j - 1) / (2 * noise**2)) for j in range(a + 1)
        ]
        renyi = math.log(sum(terms)) / (a - 1)
        return steps * renyi + math.log((a - 1) / a) - (math.log(DELTA) + math.log(a)) / (a - 1)

    return min(bound(a) for a in range(2, 33))


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.01, 1.0, 1000), (0.0256, 1.0, 150), (0.02, 2.0, 2000)])
def test_rdp_is_the_formula_of_the_paper(rate, noise, steps):
    assert epsilon([spend(noise, rate, steps)], DELTA, "rdp") == pytest.approx(rdp_by_hand(rate, noise, steps), rel=0.01)


def exact_gaussian(noise: float, steps: int, delta: float = DELTA) -> float:
    """T releases with multiplier z are one Gaussian release with mu = sqrt(T) / z, whose privacy curve is known exactly:

    delta(eps) = Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)   (Balle & Wang 2018, theorem 8)
    """
    mu = math.sqrt(steps) / noise
    return brentq(lambda e: norm.cdf(mu / 2 - e / mu) - math.exp(e) * norm.cdf(-mu / 2 - e / mu) - delta, 0, 100)


@pytest.mark.parametrize(("noise", "steps", "known"), [(1, 1, 4.377), (5, 1, 0.7255), (10, 50, 2.943), (20, 50, 1.3565)])
def test_without_sampling_prv_is_the_exact_gaussian(noise, steps, known):
    # PRV's numerical curve is right within 0.01 in epsilon and delta / 1000 in delta; its upper bound allows for both once
    # more, so it is at most two errors away from the truth (Gopi et al. 2021, theorem 5.5)
    exact = exact_gaussian(noise, steps)
    assert exact == pytest.approx(known, abs=1e-3)
    assert exact <= epsilon([spend(noise, 1.0, steps)], DELTA, "prv") <= exact_gaussian(noise, steps, 0.998 * DELTA) + 0.02


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_rounds_add_up_to_one_run(accountant):
    rounds = [spend(1.0, 0.02, 20)] * 10
    assert epsilon(rounds, DELTA, accountant) == epsilon([spend(1.0, 0.02, 200)], DELTA, accountant)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_the_order_of_a_mixed_history_does_not_matter(accountant):
    mixed = [spend(1.0, 0.02, 20), spend(1.5, 0.03, 50), spend(1.0, 0.02, 30)]
    assert epsilon(mixed, DELTA, accountant) == epsilon(mixed[::-1], DELTA, accountant)
    assert epsilon(mixed, DELTA, accountant) > epsilon(mixed[:2], DELTA, accountant)


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_an_empty_history_costs_nothing(accountant):
    assert epsilon([], DELTA, accountant) == 0.0


@settings(max_examples=12, deadline=None)
@given(noise=st.floats(0.6, 5), rate=st.floats(0.002, 0.3), steps=st.integers(1, 2000), more=st.floats(1.05, 2))
def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise(noise, rate, steps, more):
    base = epsilon([spend(noise, rate, steps)], DELTA, "rdp")
    slack = 1e-9 + 1e-6 * base  # of floating point
    assert epsilon([spend(noise, rate, steps + 1)], DELTA, "rdp") >= base - slack
    assert epsilon([spend(noise, min(1.0, rate * more), steps)], DELTA, "rdp") >= base - slack
    assert epsilon([spend(noise * more, rate, steps)], DELTA, "rdp") <= base + slack
    assert epsilon([spend(noise, rate, steps), spend(noise * more, rate, 1)], DELTA, "rdp") >= base - slack


@settings(max_examples=6, deadline=None)
@given(noise=st.floats(0.7, 4), rate=st.floats(0.005, 0.2), steps=st.integers(1, 500))
def test_the_two_accountants_agree_on_the_scale(noise, rate, steps):
    spends = [spend(noise, rate, steps)]
    assert epsilon(spends, DELTA, "prv") <= epsilon(spends, DELTA, "rdp") + 0.02  # RDP is the looser upper bound


def test_a_long_history_gets_a_coarser_grid_and_stays_an_upper_bound():
    # q 0.01, sigma 5, a million steps: 10.1245 by dp-accounting 0.6.0 (PLD, grid 1e-5; 10.1244 at 3e-5, 10.1267 at 1e-4).
    # At PRV's finest error of 0.01 the grid would not fit; the next level adds 0.03, twice that at the most.
    bound = epsilon([spend(5.0, 0.01, 1_000_000)], DELTA, "prv")
    assert 10.1245 <= bound <= 10.1245 + 0.06


@pytest.mark.parametrize(
    ("bad", "delta"),
    [
        (spend(1.0, 0.02, 100), 1e-15),  # below what double precision can certify
        (spend(0.7, 0.95, 700), 3e-8),  # no finite interval
        (spend(0.3, 1.0, 10**7), DELTA),  # no grid that fits
        (spend(), 0.0),
        (spend(), 1.0),
        (spend(), math.nan),
    ],
)
def test_what_prv_cannot_certify_is_an_error_and_not_a_number(bad, delta):
    with pytest.raises(PrivacyError):
        epsilon([bad], delta, "prv")


@settings(max_examples=6, deadline=None)
@given(target=st.floats(0.2, 12), rate=st.floats(0.005, 0.2), steps=st.integers(20, 1000))
def test_calibrated_noise_is_never_over_the_target_and_close_to_it(target, rate, steps):
    noise = calibrate(target, DELTA, rate, steps, "rdp")
    reached = epsilon([spend(noise, rate, steps)], DELTA, "rdp")
    assert reached <= target
    assert reached >= 0.99 * target or noise == 0.3
    assert noise == round(noise, 4)


@pytest.mark.parametrize(
    ("target", "noise"),
    # q 0.05, 400 steps; Opacus' own search, with a tolerance of 0.01 in epsilon, gives .917 / 1.626 / 3.926
    [(8.0, 0.917), (3.0, 1.626), (1.0, 3.926)],
)
def test_calibration_with_prv(target, noise):
    found = calibrate(target, DELTA, 0.05, 400, "prv")
    assert found == pytest.approx(noise, rel=0.01)
    assert 0.99 * target <= epsilon([spend(found, 0.05, 400)], DELTA, "prv") <= target


def test_a_root_on_the_wrong_side_is_not_returned(monkeypatch):
    monkeypatch.setattr(accounting, "brentq", lambda *args, **kwargs: brentq(*args, **kwargs) - 5e-4)
    noise = calibrate(2.5, DELTA, 0.05, 100, "rdp")
    assert epsilon([spend(noise, 0.05, 100)], DELTA, "rdp") <= 2.5
    calibrate.cache_clear()


def test_calibration_gives_the_same_number_again():
    first = calibrate(3.0, DELTA, 0.05, 100, "rdp")
    calibrate.cache_clear()
    assert calibrate(3.0, DELTA, 0.05, 100, "rdp") == first


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_a_target_out_of_reach_is_an_error_that_says_what_to_do(accountant):
    with pytest.raises(PrivacyError, match="fewer steps"):
        calibrate(0.001, DELTA, 1.0, 1000, accountant)


def test_a_generous_target_still_gets_the_least_noise():
    assert calibrate(50.0, DELTA, 0.001, 1, "rdp") == 0.3
