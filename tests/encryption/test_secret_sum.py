"""The whole way of an update: the opened sum is the integer sum, bit for bit, at the price that was announced."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import numpy as np
import pytest

from fl_privacy.encryption import secret_sum
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.packing import Slots, coordinates_per_block
from fl_privacy.encryption.quantise import dequantise_sum, quantise
from fl_privacy.errors import (
    ChecksumMismatch,
    CohortMismatch,
    CohortTooSmall,
    DigestMismatch,
    EncodingOverflow,
    EncryptionError,
    FlPrivacyError,
    KeyMissing,
)
from fl_privacy.messages import Encoding
from fl_privacy.parameters import Vector, count
from tests.secure_cohort import SecureCohort, make_cohort


def plain_and_secure_sums(
    cohort: SecureCohort, updates: list[Vector], monkeypatch: pytest.MonkeyPatch
) -> tuple[Vector, Vector]:
    """The sum of the very integers that the owners encrypted, in numpy; and the opened sum."""
    drawn: list[Slots] = []

    def recording(values: Vector, encoding: Encoding) -> Slots:
        drawn.append(quantise(values, encoding))
        return drawn[-1]

    monkeypatch.setattr(secret_sum, "quantise", recording)
    opened = cohort.open(cohort.total(updates))
    blocks = len(drawn) // len(updates)
    integers = [np.concatenate(drawn[start : start + blocks]) for start in range(0, len(drawn), blocks)]
    return dequantise_sum(np.sum(integers, axis=0), cohort.order.encoding, len(updates)), opened


def refused_by_all(cohort: SecureCohort, error: type[FlPrivacyError], update: Vector, total: bytes = b"") -> None:
    """The owner who encrypts, the scientist who adds and the owner who opens each refuse the order."""
    with pytest.raises(error):
        cohort.protect("owner-00", update)
    with pytest.raises(error):
        add_updates([], cohort.order)
    with pytest.raises(error):
        cohort.open(total)


@pytest.mark.parametrize(
    ("size", "coordinates", "bits"), [(3, 45_000, 8), (4, 1, 8), (16, 20_000, 8), (3, 9_000, 16), (5, 70_000, 4)]
)
def test_secure_path_equals_the_integer_path(size: int, coordinates: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make_cohort(size, coordinates, bits)
    updates = cohort.updates()
    plain, opened = plain_and_secure_sums(cohort, updates, monkeypatch)
    assert opened.dtype == np.float32 and opened.tobytes() == plain.tobytes()
    encoding = cohort.order.encoding
    step = encoding.value_range / (2 ** (encoding.value_bits - 1) - 1)
    assert np.abs(opened - np.mean(updates, axis=0)).max() < size * step


@pytest.mark.parametrize("size", [3, 16])
@pytest.mark.parametrize("sign", [-1, 1])
def test_extremes_come_out_exactly(size: int, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every owner at or beyond the range: the sum is K times the range, the largest one that fields must hold."""
    cohort = make_cohort(size, 21_000, value_range=0.05)
    updates = [np.full(21_000, sign * 1e30, np.float32)] * size
    plain, opened = plain_and_secure_sums(cohort, updates, monkeypatch)
    assert opened.tobytes() == plain.tobytes()
    assert np.array_equal(opened, np.full(21_000, np.float32(sign * size * 0.05)))


def test_weights_are_the_declared_shares() -> None:
    cohort = make_cohort(3, 50, value_bits=16, value_range=1.0)
    cohort = cohort.ordering(weights=(1, 2, 5), cohort=("owner-02", "owner-00", "owner-01"))
    updates = [np.full(50, value, np.float32) for value in (0.8, -0.4, 0.16)]
    opened = cohort.open(cohort.total(updates))
    assert np.abs(opened - (0.8 / 8 - 0.4 * 2 / 8 + 0.16 * 5 / 8)).max() < 3 / 32_767


def test_the_order_of_arrival_does_not_matter() -> None:
    cohort = make_cohort(3, 500)
    blobs = cohort.protect_all(cohort.updates())
    totals = {add_updates(arrival, cohort.order) for arrival in permutations(blobs)}
    assert len(totals) == 1
    cohort.open(totals.pop())


def test_owners_are_streamed() -> None:
    """The blind sum takes an iterator and never holds two updates."""
    cohort = make_cohort(3, 10)
    updates = cohort.updates()
    alive: list[int] = []

    def arriving() -> Any:
        for index, owner in enumerate(cohort.owners):
            alive.append(index)
            yield cohort.protect(owner, updates[index])

    cohort.open(add_updates(arriving(), cohort.order))
    assert alive == [0, 1, 2]


def test_price_per_coordinate() -> None:
    """Up: 7.5 bytes for c0 per slot of 5 coordinates, plus a seed; down: c0 and c1. Headers and check slots below 0.5 %."""
    cohort = make_cohort(3, 10 * 5 * 4094)
    coordinates = count(cohort.order.tensors)
    blobs = cohort.protect_all(cohort.updates())
    total = add_updates(blobs, cohort.order)
    assert {len(blob) for blob in blobs} == {48 + 10 * (4096 * 60 // 8 + 64)}
    assert len(total) == 48 + 10 * 2 * 4096 * 60 // 8
    assert 1.5 <= len(blobs[0]) / coordinates < 1.5 * 1.005
    assert 3.0 <= len(total) / coordinates < 3.0 * 1.005


def test_equal_updates_give_unequal_ciphertexts() -> None:
    cohort = make_cohort(3)
    zero = np.zeros(100, np.float32)
    blobs = [cohort.protect("owner-00", zero), cohort.protect("owner-00", zero), cohort.protect("owner-01", zero)]
    assert len({blob[48:] for blob in blobs}) == 3


@pytest.mark.parametrize("change", [{"field_bits": 9}, {"fields_per_slot": 6, "modulus_bits": 60}, {"value_bits": 16}])
def test_an_encoding_that_could_wrap_is_refused_by_all(change: dict[str, int]) -> None:
    cohort = make_cohort(3)
    updates, total = cohort.updates(), cohort.total(cohort.updates())
    wrapping = cohort.ordering(encoding=cohort.order.encoding.model_dump() | change)
    refused_by_all(wrapping, EncodingOverflow, updates[0], total)


@pytest.mark.parametrize("drawn", [(1023, 1023, 1023), (0, 0, 0, 0, 342), (0, 0, 0, 0, 1023)])
def test_fields_beyond_the_range_are_found_when_the_sum_is_opened(
    drawn: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owners whose code does not clip: a field too large, or a slot that overflows its top field, is refused, not wrapped.

    Three times 342 is 1026: above the ten bits of the fifth field, which alone would read as 2.
    """
    cohort = make_cohort(3)
    monkeypatch.setattr(secret_sum, "quantise", lambda values, encoding: np.resize(np.array(drawn, np.uint64), values.size))
    total = cohort.total(cohort.updates())
    with pytest.raises(ChecksumMismatch):
        cohort.open(total)


def test_two_owners_are_refused_on_both_sides() -> None:
    refused_by_all(make_cohort(2), CohortTooSmall, np.zeros(100, np.float32))


def test_a_name_twice_does_not_make_a_cohort() -> None:
    """Two real owners dressed as three: each would read the other's update from the sum."""
    twice = make_cohort(3).ordering(cohort=("owner-00", "owner-01", "owner-01"))
    uneven = make_cohort(3).ordering(weights=(1, 2))
    for cohort in (twice, uneven):
        refused_by_all(cohort, CohortMismatch, np.zeros(100, np.float32))


def test_an_owner_protects_only_its_own_update_for_its_own_registry() -> None:
    cohort, update = make_cohort(4), np.zeros(100, np.float32)
    part = cohort.ordering(cohort=cohort.owners[:3], weights=(1, 1, 1))
    with pytest.raises(CohortMismatch):
        part.protect("owner-03", update)
    with pytest.raises(DigestMismatch):
        cohort.ordering(registry="0" * 64).protect("owner-00", update)
    cohort.identities["owner-00"] = Identity.generate()
    with pytest.raises(KeyMissing):
        cohort.protect("owner-00", update)


def test_an_update_of_another_size_is_refused() -> None:
    cohort = make_cohort(3)
    for shape in ((99,), (101,), (10, 10)):
        with pytest.raises(EncryptionError, match="does not fit"):
            cohort.protect("owner-00", np.zeros(shape, np.float32))


def test_an_update_that_is_not_finite_is_refused() -> None:
    cohort = make_cohort(3, coordinates_per_block(make_cohort(3).order.encoding) + 1)
    update = cohort.updates()[0]
    update[-1] = np.nan
    with pytest.raises(EncodingOverflow):
        cohort.protect("owner-00", update)


def test_threads_do_not_disturb_each_other() -> None:
    """SEAL reads and writes files only; a scratch file shared between threads would mix ciphertexts silently."""
    cohort = make_cohort(3, 45_000)
    updates = cohort.updates()
    expected = cohort.open(cohort.total(updates))
    step = cohort.order.encoding.value_range / 127
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: cohort.open(cohort.total(updates)), range(8)))
    assert all(np.abs(values - expected).max() < 2 * 3 * step for values in opened)
