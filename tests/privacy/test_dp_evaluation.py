"""Counts with noise: what one unit can change, what hostile numbers cannot do, and how much noise there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.dp_evaluation import clipped, release_counts
from fl_privacy.privacy.randomness import OwnerRandomness
from tests.tiny_model import NoNoise

any_number = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.inf, -math.inf, math.nan, 1e300, 5e-324]))
vectors = st.lists(any_number, min_size=3, max_size=3).map(np.array)
units = st.lists(st.lists(vectors, min_size=1, max_size=3), max_size=6)


def total(of: list[list[NDArray[np.float64]]], bound: float) -> NDArray[np.float64]:
    return release_counts(of, 3, bound=bound, noise_multiplier=1.0, randomness=NoNoise())


@settings(max_examples=200, deadline=None)
@given(before=units, unit=st.lists(vectors, min_size=1, max_size=3), after=units, bound=st.floats(0.01, 100))
def test_one_unit_more_or_less_moves_the_sum_by_the_bound_at_most(
    before: list[list[NDArray[np.float64]]],
    unit: list[NDArray[np.float64]],
    after: list[list[NDArray[np.float64]]],
    bound: float,
) -> None:
    moved = total([*before, unit, *after], bound) - total([*before, *after], bound)
    assert np.linalg.norm(moved) <= bound * (1 + 1e-9)


def test_a_vector_within_the_bound_stays_and_a_longer_one_keeps_its_ratios() -> None:
    assert clipped(np.array([3.0, 4.0]), 5.0).tolist() == [3.0, 4.0]
    assert clipped(np.array([30.0, 40.0]), 5.0).tolist() == pytest.approx([3.0, 4.0])
    assert clipped(np.zeros(2), 5.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("hostile", [math.nan, math.inf, -math.inf, 1e200])
def test_a_number_that_is_not_finite_or_overflows_adds_nothing(hostile: float) -> None:
    assert total([[np.array([1.0, hostile, 0.0])], [np.array([1.0, 0.0, 0.0])]], 2.0).tolist() == [1.0, 0.0, 0.0]


def test_the_records_of_one_unit_share_one_bound() -> None:
    record = np.array([3.0, 4.0, 0.0])
    assert np.linalg.norm(total([[record] * 10], 5.0)) == pytest.approx(5.0)
    assert np.linalg.norm(total([[record]] * 10, 5.0)) == pytest.approx(50.0)


def test_without_any_unit_there_is_noise_of_the_promised_size_and_nothing_else() -> None:
    released = release_counts([], 200_000, bound=3.0, noise_multiplier=2.0, randomness=OwnerRandomness())
    assert released.std() == pytest.approx(6.0, rel=0.02) and abs(released.mean()) < 6 * 6.0 / math.sqrt(200_000)


def test_two_releases_of_the_same_counts_differ() -> None:
    same = [[np.array([1.0, 2.0, 3.0])]]
    first, second = (release_counts(same, 3, bound=4.0, noise_multiplier=1.0) for _ in range(2))
    assert (first != second).all()


@pytest.mark.parametrize("noise", [0.0, -1.0, math.nan, math.inf])
def test_noise_cannot_be_turned_off(noise: float) -> None:
    with pytest.raises(PrivacyError, match="noise_multiplier must be"):
        release_counts([], 3, bound=1.0, noise_multiplier=noise)
    with pytest.raises(PrivacyError, match="bound must be"):
        release_counts([], 3, bound=noise, noise_multiplier=1.0)
