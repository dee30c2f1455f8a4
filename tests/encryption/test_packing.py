"""The table of encodings, and fields that neither carry nor get lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, norm

from fl_privacy.encryption import cipher, packing
from fl_privacy.encryption.packing import (
    DATA,
    DEGREE,
    bfv_encoding,
    block_count,
    check_encoding,
    choose_encoding,
    failure_log2,
    guards_are_zero,
    pack,
    plan_encoding,
    unpack,
)
from fl_privacy.errors import CohortTooSmall, EncodingOverflow
from fl_privacy.round_order import CkksEncoding, RoundOrder
from tests.builders import tiny_bundle, tiny_plan
from tests.secure_cohort import make_cohort

SMALL = make_cohort(3).order


def order_for(size: int, bits: int = 8, coordinates: int = 1) -> RoundOrder:
    """An order for a cohort of any size; nobody has keys for it."""
    changes = {
        "cohort": [f"owner-{index:03d}" for index in range(size)],
        "weights": [1] * size,
        "tensors": [{"name": "w", "shape": [coordinates]}],
        "encoding": choose_encoding(size, bits, 0.05).model_dump(),
    }
    return RoundOrder.model_validate(SMALL.model_dump() | changes)


@pytest.mark.parametrize(
    ("cohort", "bits", "fields", "field_bits", "modulus_bits"),
    [(3, 8, 5, 10, 51), (4, 8, 5, 10, 51), (5, 8, 4, 11, 45), (16, 8, 4, 12, 49), (17, 8, 3, 13, 40), (100, 8, 3, 15, 46),
     (3, 4, 8, 6, 49), (3, 12, 3, 14, 43), (3, 16, 2, 18, 37)],
)  # fmt: skip
def test_table(cohort: int, bits: int, fields: int, field_bits: int, modulus_bits: int) -> None:
    encoding = choose_encoding(cohort, bits, 0.05)
    assert (encoding.fields_per_coefficient, encoding.field_bits, encoding.modulus_bits) == (fields, field_bits, modulus_bits)


@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
@pytest.mark.parametrize("cohort", [3, 4, 5, 8, 9, 16, 17, 64, 65, 99, 100])
def test_every_encoding_leaves_room_for_the_sum_and_for_the_noise(cohort: int, bits: int) -> None:
    """q / 2t, with q > 2**59.99 and t = 2**modulus_bits, is at least 8.5 deviations of K centred binomials of variance 21/2."""
    encoding = choose_encoding(cohort, bits, 1.0)
    assert cohort * (2**bits - 2) < 2**encoding.field_bits
    assert encoding.fields_per_coefficient * encoding.field_bits + 1 == encoding.modulus_bits
    assert 2 ** (58.99 - encoding.modulus_bits) > 0.99 * 8.5 * math.sqrt(cohort * (21 / 2 + 1 / 12))


@pytest.mark.parametrize("cohort", [-1, 0, 1, 2])
def test_fewer_than_three_owners_are_refused(cohort: int) -> None:
    with pytest.raises(CohortTooSmall):
        choose_encoding(cohort, 8, 0.05)


@pytest.mark.parametrize(
    ("cohort", "bits", "value_range"),
    [(101, 8, 1.0), (2**20, 16, 1.0), (3, 60, 1.0), (3, 17, 1.0), (3, 1, 1.0), (3, 8, 0.0), (3, 8, math.inf), (3, 8, math.nan)],
)
def test_what_fits_nowhere_is_refused(cohort: int, bits: int, value_range: float) -> None:
    with pytest.raises(EncodingOverflow):
        choose_encoding(cohort, bits, value_range)


@pytest.mark.parametrize("bits", [2, 3, 8, 12, 16])
def test_no_cohort_fails_more_often_than_announced(bits: int) -> None:
    """Below 2**-55 for one coefficient; over a ciphertext of 4096 of them, and over all ciphertexts, by the union bound."""
    for size in range(3, 101):
        one = failure_log2(order_for(size, bits)) - math.log2(DEGREE)
        assert one < -55
        large = order_for(size, bits, 100_000_000)
        assert failure_log2(large) == pytest.approx(one + math.log2(DEGREE * block_count(large)))


@pytest.mark.parametrize("size", [84, 85])
def test_the_failure_probability_is_the_gaussian_tail(size: int) -> None:
    """Where it is largest, at 8.5 to 8.6 deviations: twice the upper tail, 4096 times, with q and t as SEAL has them."""
    order = order_for(size, 3)
    edge = cipher.coeff_modulus() / (2 << bfv_encoding(order).modulus_bits)
    exact = math.log2(2 * DEGREE * norm.sf(edge / math.sqrt(size * (21 / 2 + 1 / 12))))
    assert exact == pytest.approx(failure_log2(order), abs=1e-6)


def test_the_noise_is_rarer_at_the_edge_than_a_gaussian_one() -> None:
    """An error is the difference of two sums of 21 coins; of K owners it is exactly Binomial(42 K, 1/2) - 21 K."""
    for size in range(3, 101):
        for bits in range(2, 17):
            edge = 2.0 ** (59 - choose_encoding(size, bits, 1.0).modulus_bits)
            coins = binom.logsf(math.ceil(21 * size + edge) - 1, 42 * size, 0.5)
            assert coins <= norm.logsf(edge / math.sqrt(size * (21 / 2 + 1 / 12)))
            assert bits != 8 or 21.5 * size < edge


def test_the_edge_taken_is_the_real_one() -> None:
    """q is so close to 2**60 that 2**59 / t and q / 2t do not differ by a thousandth of the smallest noise."""
    for bits in range(20, 54):
        assert cipher.coeff_modulus() / (2 << bits) == pytest.approx(2.0 ** (59 - bits), rel=1e-12)


def test_a_plan_says_which_encoding_its_cohort_uses() -> None:
    plan = tiny_plan(tiny_bundle(), update_range=0.02, update_bits=8)
    assert plan_encoding(plan, [1, 2, 5]) == choose_encoding(3, 8, 0.02 * 5 / 8)
    floats = plan.model_copy(update={"encryption": "ckks"})
    assert plan_encoding(floats, [1, 2, 5]) == CkksEncoding(value_range=0.02)


def test_an_order_for_floats_has_no_encoding_as_integers() -> None:
    order = RoundOrder.model_validate(SMALL.model_dump() | {"encoding": {"scheme": "ckks", "value_range": 0.05}})
    for refuse in (bfv_encoding, check_encoding, failure_log2, block_count):
        with pytest.raises(EncodingOverflow, match="ckks"):
            refuse(order)
    assert bfv_encoding(SMALL) == SMALL.encoding


@pytest.mark.parametrize("change", [{"field_bits": 8}, {"modulus_bits": 50}, {"fields_per_coefficient": 6}, {"value_bits": 9}])
def test_an_order_may_not_choose_another_encoding(change: dict[str, int]) -> None:
    cohort = make_cohort(3)
    check_encoding(cohort.order)
    altered = cohort.order.encoding.model_dump() | change
    with pytest.raises(EncodingOverflow):
        check_encoding(cohort.ordering(encoding=altered).order)


@pytest.mark.parametrize("size", [1, DATA - 1, DATA, DATA + 1, 3 * DATA + 7, 5 * DATA])
def test_the_first_fields_stand_lowest_above_a_zero_bit_and_missing_ones_are_zero(size: int) -> None:
    encoding, fields = choose_encoding(3, 8, 1.0), np.random.default_rng(size).integers(1, 1024, size, np.uint16)
    expected = [0] * DATA
    for index, field in enumerate(fields.tolist()):
        expected[index % DATA] += field << (1 + 10 * (index // DATA))
    packed = pack(fields, encoding)
    assert packed.tolist() == expected
    assert unpack(packed, encoding).tolist() == fields.tolist() + [0] * (5 * DATA - size)


@pytest.mark.parametrize("cohort", [3, 5, 16, 100])
def test_sums_of_the_largest_fields_do_not_carry(cohort: int) -> None:
    encoding = choose_encoding(cohort, 8, 1.0)
    largest = np.full(packing.coordinates_per_block(encoding), 254, np.uint64)
    summed = pack(largest, encoding) * np.uint64(cohort)
    assert int(summed.max()) < 2**encoding.modulus_bits and guards_are_zero(summed)
    assert np.array_equal(unpack(summed, encoding), largest * np.uint64(cohort))


@pytest.mark.parametrize("place", [0, 1, 2048, DATA - 1])
def test_one_guard_bit_that_is_not_zero_is_seen(place: int) -> None:
    packed = pack(np.full(5 * DATA, 254, np.uint16), choose_encoding(3, 8, 1.0))
    assert guards_are_zero(packed)
    for moved in (1, -1):
        noisy = packed.copy()
        noisy[place] = int(noisy[place]) + moved
        assert not guards_are_zero(noisy)


def test_a_field_that_does_not_fit_is_refused() -> None:
    encoding = choose_encoding(3, 8, 1.0)
    with pytest.raises(EncodingOverflow):
        pack(np.array([0, 1 << encoding.field_bits], np.uint64), encoding)


def test_blocks_are_counted_up() -> None:
    per_block = packing.coordinates_per_block(choose_encoding(3, 8, 0.05))
    assert per_block == 5 * 4094
    for coordinates, blocks in ((1, 1), (per_block, 1), (per_block + 1, 2)):
        assert packing.block_count(make_cohort(3, coordinates).order) == blocks
