"""The table of encodings, and fields that neither carry nor get lost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fl_privacy.encryption import packing
from fl_privacy.encryption.packing import check_encoding, choose_encoding, pack, unpack
from fl_privacy.errors import CohortTooSmall, EncodingOverflow
from tests.secure_cohort import make_cohort


@pytest.mark.parametrize(
    ("cohort", "bits", "fields", "field_bits", "modulus_bits"),
    [(3, 8, 5, 10, 51), (4, 8, 5, 10, 51), (5, 8, 4, 11, 45), (16, 8, 4, 12, 49), (17, 8, 3, 13, 40), (100, 8, 3, 15, 46),
     (1000, 6, 3, 16, 49), (3, 4, 8, 6, 49), (3, 12, 3, 14, 43), (3, 16, 2, 18, 37)],
)  # fmt: skip
def test_table(cohort: int, bits: int, fields: int, field_bits: int, modulus_bits: int) -> None:
    encoding = choose_encoding(cohort, bits, 0.05)
    assert (encoding.fields_per_slot, encoding.field_bits, encoding.modulus_bits) == (fields, field_bits, modulus_bits)


@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
@pytest.mark.parametrize("cohort", [3, 4, 5, 8, 9, 16, 17, 64, 65, 100, 1000])
def test_every_encoding_leaves_room_for_the_sum_and_for_the_noise(cohort: int, bits: int) -> None:
    """q / 2t, with q > 2**59.9 and t < 2**modulus_bits, is at least 8.5 deviations of K centred binomials of variance 21/2."""
    encoding = choose_encoding(cohort, bits, 1.0)
    assert cohort * (2**bits - 2) < 2**encoding.field_bits
    assert encoding.fields_per_slot * encoding.field_bits < encoding.modulus_bits
    assert 2 ** (58.9 - encoding.modulus_bits) > 0.93 * 8.5 * math.sqrt(cohort * (21 / 2 + 1 / 12))


@pytest.mark.parametrize("cohort", [-1, 0, 1, 2])
def test_fewer_than_three_owners_are_refused(cohort: int) -> None:
    with pytest.raises(CohortTooSmall):
        choose_encoding(cohort, 8, 0.05)


@pytest.mark.parametrize(("cohort", "bits", "value_range"), [(2**20, 16, 1.0), (3, 60, 1.0), (3, 17, 1.0), (3, 1, 1.0),
                                                             (3, 8, 0.0), (3, 8, math.inf), (3, 8, math.nan)])  # fmt: skip
def test_what_fits_nowhere_is_refused(cohort: int, bits: int, value_range: float) -> None:
    with pytest.raises(EncodingOverflow):
        choose_encoding(cohort, bits, value_range)


@pytest.mark.parametrize("change", [{"field_bits": 8}, {"modulus_bits": 50}, {"fields_per_slot": 6}, {"value_bits": 9}])
def test_an_order_may_not_choose_another_encoding(change: dict[str, int]) -> None:
    cohort = make_cohort(3)
    check_encoding(cohort.order)
    altered = cohort.order.encoding.model_dump() | change
    with pytest.raises(EncodingOverflow):
        check_encoding(cohort.ordering(encoding=altered).order)


@pytest.mark.parametrize("cohort", [3, 5, 16, 100])
def test_sums_of_the_largest_fields_do_not_carry(cohort: int) -> None:
    encoding = choose_encoding(cohort, 8, 1.0)
    largest = np.full(encoding.fields_per_slot * 7, 254, np.uint64)
    summed = pack(largest, encoding) * np.uint64(cohort)
    assert int(summed.max()) < 2 ** (encoding.modulus_bits - 1)
    assert np.array_equal(unpack(summed, encoding), largest * np.uint64(cohort))


def test_a_field_that_does_not_fit_is_refused() -> None:
    encoding = choose_encoding(3, 8, 1.0)
    with pytest.raises(EncodingOverflow):
        pack(np.array([0, 1 << encoding.field_bits], np.uint64), encoding)


def test_blocks_are_counted_up() -> None:
    per_block = packing.coordinates_per_block(choose_encoding(3, 8, 0.05))
    assert per_block == 5 * 4094
    for coordinates, blocks in ((1, 1), (per_block, 1), (per_block + 1, 2)):
        assert packing.block_count(make_cohort(3, coordinates).order) == blocks
