"""Stochastic rounding: unbiased, bounded, clipped; sums come back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.encryption.packing import Fields, choose_encoding
from fl_privacy.encryption.quantise import Dither, dequantise_sum, quantise
from fl_privacy.errors import ChecksumMismatch, EncodingOverflow
from fl_privacy.parameters import Vector
from fl_privacy.round_order import Encoding

ENCODING = choose_encoding(3, 8, 0.05)
TOP = 127
STEP = 0.05 / TOP
RANDOM = np.random.default_rng()
EVERY_DITHER = np.arange(1 << 16).astype(np.uint16)


def drawn(values: Vector, encoding: Encoding = ENCODING) -> Fields:
    return quantise(values, 1.0, encoding, RANDOM.integers(0, 1 << 16, values.size, np.uint16))


def mean_over_all_dithers(value: np.float32, weight: float, encoding: Encoding) -> float:
    """The exact expectation of one field, in steps from the middle."""
    top = 2 ** (encoding.value_bits - 1) - 1
    return float(quantise(np.full(1 << 16, value), weight, encoding, EVERY_DITHER).astype(np.int64).mean()) - top


@given(st.floats(-0.046875, 0.046875, width=32), st.integers(2, 16), st.floats(0.01, 1))
def test_rounding_is_unbiased(value: float, bits: int, weight: float) -> None:
    """Over all 2**16 dithers: to 2**-16 of a step, and what float32 loses of the value."""
    encoding = choose_encoding(3, bits, 0.05)
    exact = value * weight / 0.05 * (2 ** (bits - 1) - 1)
    mean = mean_over_all_dithers(np.float32(value), weight, encoding)
    assert abs(mean - exact) <= 2.0**-16 + 2.0**-23 * abs(exact)


@given(st.integers(-TOP, TOP))
def test_multiples_of_the_step_come_out_as_they_are_whatever_is_drawn(number: int) -> None:
    exact = choose_encoding(3, 8, float(TOP))
    assert np.unique(quantise(np.full(1 << 16, np.float32(number)), 1.0, exact, EVERY_DITHER)).tolist() == [number + TOP]


def test_rounding_takes_one_of_the_two_neighbours() -> None:
    fields = quantise(np.full(1 << 16, np.float32(3.25 * STEP)), 1.0, ENCODING, EVERY_DITHER)
    assert np.unique(fields).tolist() == [TOP + 3, TOP + 4]


def test_values_beyond_the_range_are_clipped_to_it() -> None:
    values = np.array([-np.float32(3e38), -0.06, -0.05, 0.0, 0.05, 0.06, 3e38], np.float32)
    fields = drawn(values, choose_encoding(3, 8, float(np.float32(0.05))))
    assert fields.tolist() == [0, 0, 0, TOP, 2 * TOP, 2 * TOP, 2 * TOP]


@pytest.mark.parametrize("sign", [-1, 1])
def test_clipping_is_after_weighting_on_either_side(sign: int) -> None:
    values = np.full(4, sign * 0.2, np.float32)
    dither: Dither = np.full(4, 0xFFFF, np.uint16)
    assert quantise(values, 0.5, ENCODING, dither).tolist() == [TOP + sign * TOP] * 4
    inside = quantise(values, 0.125, ENCODING, dither).astype(np.int64) - TOP
    assert np.abs(inside - sign * TOP / 2).max() <= 1


@pytest.mark.parametrize("value_range", [1e-30, 1e-3, 1e30, 1e300])
def test_extreme_ranges_keep_fields_in_bounds(value_range: float) -> None:
    fields = drawn(np.array([-1, 0, 1], np.float32), choose_encoding(3, 8, value_range))
    assert int(fields.max()) <= 2 * TOP and fields[1] == TOP


def test_a_range_that_float32_cannot_scale_is_refused() -> None:
    with pytest.raises(EncodingOverflow, match="too small"):
        drawn(np.array([-1, 0, 1], np.float32), choose_encoding(3, 8, 1e-300))


def test_one_vector_comes_back_within_one_step() -> None:
    values = np.random.default_rng(1).uniform(-0.05, 0.05, 10_000).astype(np.float32)
    assert np.abs(dequantise_sum(drawn(values), ENCODING, 1) - values).max() < STEP * 1.0001


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 50, 99])
def test_a_value_that_is_not_finite_is_refused(bad: float, place: int) -> None:
    values = np.zeros(100, np.float32)
    values[place] = bad
    with pytest.raises(EncodingOverflow, match="not finite"):
        drawn(values)


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("dither", [0, 0xFFFF])
def test_the_largest_draw_never_rounds_beyond_the_top(bits: int, dither: int) -> None:
    encoding = choose_encoding(3, bits, 0.05)
    top = 2 ** (bits - 1) - 1
    fields = quantise(np.array([-1, 0, 1], np.float32), 1.0, encoding, np.full(3, dither, np.uint16))
    assert fields.tolist() == [0, top, 2 * top]


def test_a_sum_that_no_cohort_can_make_is_refused() -> None:
    possible = np.array([3 * 2 * TOP], np.uint64)
    assert dequantise_sum(possible, ENCODING, 3)[0] == np.float32(3 * 0.05)
    with pytest.raises(ChecksumMismatch):
        dequantise_sum(possible + np.uint64(1), ENCODING, 3)
