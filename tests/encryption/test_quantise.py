"""Stochastic rounding: unbiased, bounded, clipped; sums come back."""

from __future__ import annotations

import numpy as np
import pytest

from fl_privacy.encryption.packing import choose_encoding
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.errors import ChecksumMismatch, EncodingOverflow

ENCODING = choose_encoding(3, 8, 0.05)
TOP = 127
STEP = 0.05 / TOP


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("base", [-127, -1, 0, 126])
def test_rounding_is_unbiased(base: int, fraction: float) -> None:
    """The mean of n draws of floor(v) + Bernoulli(f) is v, with standard deviation sqrt(f (1 - f) / n)."""
    n = 40_000
    value = np.float32((base + fraction) * STEP)
    exact = float(value) / STEP
    mean = quantise(np.full(n, value), ENCODING).astype(np.int64).mean() - TOP
    part = exact - np.floor(exact)
    assert abs(mean - exact) < 6 * np.sqrt(part * (1 - part) / n)


def test_values_beyond_the_range_are_clipped_to_it() -> None:
    values = np.array([-np.float32(3e38), -0.06, -0.05, 0.0, 0.05, 0.06, 3e38], np.float32)
    fields = quantise(values, choose_encoding(3, 8, float(np.float32(0.05))))
    assert fields.tolist() == [0, 0, 0, TOP, 2 * TOP, 2 * TOP, 2 * TOP]


@pytest.mark.parametrize("value_range", [1e-300, 1e-3, 1e30])
def test_extreme_ranges_keep_fields_in_bounds(value_range: float) -> None:
    fields = quantise(np.array([-1, 0, 1], np.float32), choose_encoding(3, 8, value_range))
    assert int(fields.max()) <= 2 * TOP and fields[1] == TOP


def test_one_vector_comes_back_within_one_step() -> None:
    values = np.random.default_rng(1).uniform(-0.05, 0.05, 10_000).astype(np.float32)
    assert np.abs(dequantise_sum(quantise(values, ENCODING), ENCODING, 1) - values).max() < STEP * 1.0001


def test_each_call_rounds_afresh() -> None:
    values = np.full(200, 0.3 * STEP, np.float32)
    assert not np.array_equal(quantise(values, ENCODING), quantise(values, ENCODING))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(EncodingOverflow, match="not finite"):
        quantise(np.array([0.0, bad], np.float32), ENCODING)


def test_a_sum_that_no_cohort_can_make_is_refused() -> None:
    possible = np.array([3 * 2 * TOP], np.uint64)
    assert dequantise_sum(possible, ENCODING, 3)[0] == np.float32(3 * 0.05)
    with pytest.raises(ChecksumMismatch):
        dequantise_sum(possible + np.uint64(1), ENCODING, 3)
