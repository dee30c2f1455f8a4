"""Guard bits and check coefficients: they let the sum of a whole cohort pass and nothing else, each by itself."""

from __future__ import annotations

import numpy as np
import pytest

from fl_privacy.encryption import checks
from fl_privacy.encryption.checks import CheckLane
from fl_privacy.encryption.keys import generate_secret_key
from fl_privacy.encryption.packing import CHECKS, DATA, Fields, Words, coordinates_per_block, pack, unpack
from fl_privacy.errors import ChecksumMismatch
from tests.secure_cohort import SecureCohort, make_cohort

COHORT = make_cohort(3, 60_000)
LANE = CheckLane(COHORT.order, COHORT.secret_key)
BITS = COHORT.order.encoding.modulus_bits


def drawn(seed: int, cohort: SecureCohort = COHORT) -> Fields:
    size = coordinates_per_block(cohort.order.encoding)
    return np.random.default_rng(seed).integers(0, 255, size, np.uint16)


def term(seed: int, block: int = 0, cohort: SecureCohort = COHORT) -> Words:
    """One owner's block before it is masked."""
    fields, lane = drawn(seed, cohort), CheckLane(cohort.order, cohort.secret_key)
    return np.concatenate([pack(fields, cohort.order.encoding), lane.checks(block, fields)])


def reduced(coefficients: Words) -> Words:
    return coefficients & np.uint64((1 << BITS) - 1)


TOTAL = reduced(term(0) + term(1) + term(2))


def test_the_sum_of_the_cohort_passes() -> None:
    fields = LANE.verified_fields(0, TOTAL)
    assert np.array_equal(fields, sum(drawn(seed).astype(np.uint64) for seed in range(3)))


@pytest.mark.parametrize("size", [3, 16, 100])
def test_the_largest_sum_passes(size: int) -> None:
    cohort = make_cohort(size, 60_000)
    encoding = cohort.order.encoding
    fields: Fields = np.full(coordinates_per_block(encoding), 254, np.uint16)
    lane = CheckLane(cohort.order, cohort.secret_key)
    block = np.concatenate([pack(fields, encoding), lane.checks(0, fields)])
    total = (np.uint64(size) * block) & np.uint64((1 << encoding.modulus_bits) - 1)
    assert lane.verified_fields(0, total).tolist() == [254 * size] * fields.size


@pytest.mark.parametrize(
    "wrong",
    [term(0), term(0) + term(1), term(0) + term(1) + term(2) + term(0), 3 * TOTAL, TOTAL - TOTAL],
    ids=["one", "two", "four", "scaled", "zero"],
)
def test_another_number_of_terms_does_not_pass_even_without_masks(wrong: Words) -> None:
    with pytest.raises(ChecksumMismatch):
        LANE.verified_fields(0, reduced(wrong))


def test_another_block_order_or_key_does_not_pass() -> None:
    attempt = COHORT.ordering(attempt=1)
    for lane, block in (
        (LANE, 1),
        (CheckLane(attempt.order, COHORT.secret_key), 0),
        (CheckLane(COHORT.order, generate_secret_key()), 0),
    ):
        with pytest.raises(ChecksumMismatch, match=f"block {block}"):
            lane.verified_fields(block, TOTAL)


@pytest.mark.parametrize("place", [0, 1, 2048, DATA - 1])
@pytest.mark.parametrize("moved", [1, -1])
def test_a_coefficient_that_noise_moved_is_found_by_its_guard_bit_alone(
    place: int, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when checks would pass by chance; here they are made to."""
    noisy = TOTAL.copy()
    noisy[place] = (int(noisy[place]) + moved) % (1 << BITS)
    with pytest.raises(ChecksumMismatch):
        LANE.verified_fields(0, noisy)
    agreeing = np.concatenate([noisy[:DATA], reduced(LANE.checks(0, unpack(noisy[:DATA], COHORT.order.encoding), 3))])
    with pytest.raises(ChecksumMismatch):
        LANE.verified_fields(0, agreeing)
    monkeypatch.setattr(checks, "guards_are_zero", lambda _: True)  # it was the guard bit, nothing else
    LANE.verified_fields(0, agreeing)


@pytest.mark.parametrize("place", [0, 1, 2048, DATA - 1, DATA, DATA + 1])
@pytest.mark.parametrize("shift", [*range(1, BITS, 7), BITS - 2, BITS - 1])
def test_a_number_added_to_any_coefficient_is_found(place: int, shift: int) -> None:
    """Also half of t, or a multiple of two that no guard bit shows: what somebody without the key can add to c0 unseen
    by SEAL. Adding it to the checks too does not help without r."""
    for sign in (1, -1):
        changed = TOTAL.copy()
        changed[place] = (int(changed[place]) + sign * (1 << shift)) % (1 << BITS)
        with pytest.raises(ChecksumMismatch):
            LANE.verified_fields(0, changed)
        if place >= DATA:
            continue
        changed[DATA] = (int(changed[DATA]) + (1 << shift) * 12345) % (1 << BITS)
        with pytest.raises(ChecksumMismatch):
            LANE.verified_fields(0, changed)


def test_exchanged_coefficients_and_moved_fields_are_found() -> None:
    for first, second in ((0, 1), (5, DATA - 1)):
        changed = TOTAL.copy()
        changed[[first, second]] = changed[[second, first]]
        with pytest.raises(ChecksumMismatch):
            LANE.verified_fields(0, changed)


def test_changes_pass_no_more_often_than_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    """r delta takes each of 2**(b - v) values for delta = odd * 2**v; here r has four bits, so 1 in 16 passes."""
    fields = drawn(0)
    changed = fields.copy()
    changed[7] ^= 1 << 6  # off by 2**6
    passed = 0
    for attempt in range(4000):
        lane = CheckLane(COHORT.order, COHORT.secret_key)
        monkeypatch.setattr(lane, "_factors", np.random.default_rng(attempt).integers(0, 16, fields.size, np.uint64))
        passed += int(lane.checks(0, fields)[0] == lane.checks(0, changed)[0])
    assert 150 < passed < 350


def test_check_values_differ_between_blocks_orders_and_keys() -> None:
    lanes = [
        LANE,
        CheckLane(COHORT.ordering(attempt=1).order, COHORT.secret_key),
        CheckLane(COHORT.order, generate_secret_key()),
    ]
    nothing: Fields = np.zeros(1, np.uint16)
    values = {value for lane in lanes for block in range(10) for value in lane.checks(block, nothing).tolist()}
    assert len(values) == 3 * 10 * CHECKS
