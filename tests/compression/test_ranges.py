"""A range for each tensor: its closed form, its bounds, and that scaling is undone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_privacy.compression.ranges import SMALLEST, adaptive_ranges, scaled, unscaled
from fl_privacy.errors import CompressionError
from fl_privacy.parameters import Vector

FINITE = st.floats(-1000, 1000, width=32)


@given(arrays(np.float32, st.integers(1, 200), elements=FINITE), st.integers(1, 100))
def test_a_range_is_four_deviations_of_one_owner(mean: Vector, owners: int) -> None:
    exact = 4 * math.sqrt(owners * math.fsum(float(x) ** 2 for x in mean) / mean.size)
    before = max(exact, SMALLEST)  # no bound is reached
    assert adaptive_ranges(mean, [mean.size], owners, [before])[0] == pytest.approx(before, rel=1e-12)


def test_noise_of_one_owner_is_found_from_the_mean_of_many() -> None:
    draw, owners = np.random.default_rng(0), 25
    mean = draw.normal(scale=0.03, size=(owners, 40_000)).mean(axis=0).astype(np.float32)
    assert adaptive_ranges(mean, [mean.size], owners, [0.1])[0] == pytest.approx(4 * 0.03, rel=0.02)


def test_each_tensor_has_its_own_range() -> None:
    mean = np.array([3, -3, 3, 0.5, -0.5], np.float32)
    assert adaptive_ranges(mean, [3, 2], 4, [30.0, 3.0]) == (24.0, 4.0)


@given(st.floats(0, 1e6, width=32), st.floats(SMALLEST, 1e6))
def test_a_range_at_most_doubles_and_at_most_halves(size: float, before: float) -> None:
    (after,) = adaptive_ranges(np.full(7, size, np.float32), [7], 9, [before])
    assert after <= 2 * before
    assert after >= max(before / 2, SMALLEST)


def test_tensors_that_never_move_keep_a_range_above_zero() -> None:
    ranges: tuple[float, ...] = (0.05,)
    for _ in range(200):
        ranges = adaptive_ranges(np.zeros(10, np.float32), [10], 3, ranges)
    assert ranges == (SMALLEST,)


def test_a_tensor_of_which_nothing_was_sent_keeps_its_range() -> None:
    assert adaptive_ranges(np.ones(4, np.float32), [0, 4, 0], 1, [0.3, 4.0, 0.7]) == (0.3, 4.0, 0.7)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_mean_that_is_not_finite_gives_no_range(bad: float) -> None:
    with pytest.raises(CompressionError, match="not finite"):
        adaptive_ranges(np.array([1, bad], np.float32), [2], 3, [1.0])


def test_the_range_of_each_tensor_is_scaled_to_the_common_one() -> None:
    ends = np.array([0.5, -0.5, 8, -8, 0.03125], np.float32)
    assert scaled(ends, [2, 2, 1], [0.5, 8.0, 0.03125], 2.0).tolist() == [2, -2, 2, -2, 2]


@given(arrays(np.float32, 6, elements=FINITE), st.lists(st.floats(1e-6, 1e3), min_size=3, max_size=3))
def test_unscaled_undoes_scaled(vector: Vector, ranges: list[float]) -> None:
    sizes = [3, 1, 2]
    back = unscaled(scaled(vector, sizes, ranges, 0.05), sizes, ranges, 0.05)
    assert np.allclose(back, vector, rtol=5e-7, atol=1e-35)


@pytest.mark.parametrize("size", [4, 6])
def test_a_vector_of_other_length_than_its_tensors_is_refused(size: int) -> None:
    with pytest.raises(CompressionError, match="does not fit tensors of 5"):
        scaled(np.ones(size, np.float32), [2, 3], [1.0, 1.0], 1.0)
