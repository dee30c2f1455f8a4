"""Laws of the secure sum, for any values, cohort and precision."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_privacy.encryption.packing import Fields, choose_encoding, pack, unpack
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.parameters import Vector
from fl_privacy.round_order import Encoding
from tests.secure_cohort import SecureCohort, make_cohort

VALUES = arrays(np.float32, st.integers(1, 60), elements=st.floats(-0.125, 0.125, width=32))
RANDOM = np.random.default_rng()
COHORTS: dict[tuple[int, int], SecureCohort] = {}


def quantised(values: Vector, encoding: Encoding) -> Fields:
    return quantise(values, 1.0, encoding, RANDOM.integers(0, 1 << 16, values.size, np.uint16))


def cohort_of(size: int, value_bits: int, coordinates: int) -> SecureCohort:
    """Keys are made once per size and precision; the order changes with the length."""
    if (size, value_bits) not in COHORTS:
        COHORTS[size, value_bits] = make_cohort(size, 1, value_bits, 0.125)
    return COHORTS[size, value_bits].ordering(tensors=[{"name": "w", "shape": (coordinates,)}])


@given(VALUES, st.integers(2, 16), st.integers(3, 100))
def test_quantised_and_packed_values_come_back_within_a_step(values: Vector, bits: int, size: int) -> None:
    encoding = choose_encoding(size, bits, 0.125)
    fields = unpack(pack(quantised(values, encoding), encoding), encoding)[: values.size]
    assert np.abs(dequantise_sum(fields, encoding, 1) - values).max() <= 0.125 / (2 ** (bits - 1) - 1) * 1.00001


@given(VALUES, st.integers(2, 16), st.integers(3, 100))
def test_packing_commutes_with_adding(values: Vector, bits: int, size: int) -> None:
    encoding = choose_encoding(size, bits, 0.125)
    drawn = [quantised(sign * values, encoding) for sign in (1, -1, 1)]
    packed = np.sum([pack(fields, encoding) for fields in drawn], axis=0)
    assert np.array_equal(unpack(packed, encoding)[: values.size], np.sum(drawn, axis=0, dtype=np.uint64))


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(3, 6), st.sampled_from([4, 8, 12]), st.integers(1, 60))
def test_the_opened_sum_is_the_weighted_sum(data: st.DataObject, size: int, bits: int, coordinates: int) -> None:
    cohort = cohort_of(size, bits, coordinates)
    weights = data.draw(st.lists(st.integers(1, 10_000), min_size=size, max_size=size))
    cohort = cohort.ordering(weights=weights, attempt=data.draw(st.integers(0, 9)))
    column = arrays(np.float32, coordinates, elements=st.floats(-0.125, 0.125, width=32))
    updates = [data.draw(column) for _ in range(size)]
    opened = cohort.open(cohort.total(updates))
    exact = sum(weight / sum(weights) * update.astype(np.float64) for weight, update in zip(weights, updates, strict=True))
    assert opened.shape == (coordinates,)
    assert np.abs(opened - exact).max() < size * 0.125 / (2 ** (bits - 1) - 1) * 1.00001
