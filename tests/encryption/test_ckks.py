"""CKKS sums: as exact as stated, in the stated space, streamed, and refused when anything but the order's whole cohort."""

from __future__ import annotations

import math
import tracemalloc
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tenseal as ts

from fl_privacy.encryption import blind_sum, ckks, secret_sum
from fl_privacy.encryption import ckks_wire as wire
from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.packing import choose_encoding, plan_encoding
from fl_privacy.errors import (
    ChecksumMismatch,
    CohortMismatch,
    CohortTooSmall,
    DigestMismatch,
    EncodingOverflow,
    EncryptionError,
    KeyMissing,
)
from tests.builders import tiny_bundle, tiny_plan
from tests.ckks_cohort import CkksCohort, make_cohort

COHORT = make_cohort(3)


def error_bound(cohort: CkksCohort) -> float:
    """Eight standard deviations of the noise, and half a float32 step at the largest value."""
    limit = cohort.order.encoding.value_range
    return 8 * ckks.slot_noise(len(cohort.order.cohort)) + limit * 2.0**-24


@pytest.mark.parametrize(("size", "coordinates"), [(3, 9000), (16, 5000), (3, 1), (3, 4088), (3, 4089)])
def test_a_sum_is_the_weighted_plain_sum_within_the_stated_bound(size: int, coordinates: int, tmp_path: Path) -> None:
    cohort = make_cohort(size, coordinates)
    updates = cohort.updates()
    opened = cohort.open(cohort.add(cohort.protect_all(updates), tmp_path))
    assert opened.dtype == np.float32 and opened.shape == (coordinates,)
    assert np.abs(opened - cohort.plain_sum(updates)).max() < error_bound(cohort)


def test_an_order_for_ckks_goes_the_same_way_as_any_other(tmp_path: Path) -> None:
    """Through the functions that serve both schemes; the self-mask is not used."""
    updates, paths, order = COHORT.updates(), [tmp_path / owner for owner in COHORT.order.cohort], COHORT.order
    for owner, update, path in zip(order.cohort, updates, paths, strict=True):
        identity = COHORT.identities[owner]
        with path.open("wb") as file:
            secret_sum.protect_update(update, order, owner, identity, COHORT.registry, COHORT.secret_key, bytes(32), file)
    blind_sum.add_updates(paths, order, tmp_path / "total")
    with (tmp_path / "total").open("rb") as total:
        opened = secret_sum.open_sum(total, order, COHORT.secret_key, ())
    assert np.abs(opened - COHORT.plain_sum(updates)).max() < error_bound(COHORT)


def test_the_order_in_which_updates_are_given_does_not_matter(tmp_path: Path) -> None:
    blobs = COHORT.protect_all(COHORT.updates())
    assert np.array_equal(COHORT.open(COHORT.add(blobs, tmp_path)), COHORT.open(COHORT.add(blobs[::-1], tmp_path)))


def test_coordinates_beyond_the_range_are_clipped_before_they_are_weighted(tmp_path: Path) -> None:
    updates = [np.full(300, value, np.float32) for value in (1e9, -1e9, 0.01)]
    clipped = [np.clip(update, -0.05, 0.05) for update in updates]
    opened = COHORT.open(COHORT.add(COHORT.protect_all(updates), tmp_path))
    assert np.abs(opened - COHORT.plain_sum(clipped)).max() < error_bound(COHORT)


def test_a_plans_range_bounds_updates_before_they_are_weighted(tmp_path: Path) -> None:
    """The largest update that a plan allows is summed whole, however unequal the owners' weights are."""
    plan = tiny_plan(tiny_bundle(), encryption="ckks", update_range=0.05)
    weights = (1000, 10, 10)
    cohort = COHORT.ordering(weights=weights, encoding=plan_encoding(plan, weights).model_dump())
    updates = [np.full(300, value, np.float32) for value in (0.05, -0.05, 0.05)]
    opened = cohort.open(cohort.add(cohort.protect_all(updates), tmp_path))
    assert np.abs(opened - cohort.plain_sum(updates)).max() < error_bound(cohort)


def test_the_largest_range_opens_and_a_larger_one_is_refused(tmp_path: Path) -> None:
    cohort = make_cohort(3, 5000, wire.MAXIMAL_RANGE)
    updates = [np.full(5000, wire.MAXIMAL_RANGE, np.float32)] * 3
    assert np.allclose(cohort.open(cohort.add(cohort.protect_all(updates), tmp_path)), wire.MAXIMAL_RANGE)
    wide = cohort.ordering(encoding={"scheme": "ckks", "value_range": 17.0})
    with pytest.raises(EncodingOverflow):
        wide.protect("owner-00", updates[0])


def test_the_noise_of_a_slot_is_what_the_formula_says() -> None:
    context = wire.new_context()
    errors = np.concatenate([ts.ckks_vector(context, [0.01] * 4096).decrypt() for _ in range(10)]) - 0.01
    assert errors.std() == pytest.approx(ckks.slot_noise(1), rel=0.05)


@pytest.mark.parametrize("size", [3, 16])
def test_an_honest_sum_is_within_half_of_the_tolerance_and_not_far_below(
    size: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tolerance is twelve standard deviations of a tag: a hundred tags are within six, and hardly ever all within one."""
    cohort = make_cohort(size, 13 * wire.DATA_SLOTS)
    total = cohort.add(cohort.protect_all(cohort.updates()), tmp_path)
    monkeypatch.setattr(ckks, "NOISE_TAIL", 6)
    cohort.open(total)
    monkeypatch.setattr(ckks, "NOISE_TAIL", 1)
    with pytest.raises(ChecksumMismatch):
        cohort.open(total)


def test_the_tolerance_is_the_stated_one() -> None:
    assert ckks.CheckLane(COHORT.order, COHORT.secret_key).tolerance == pytest.approx(1.45e-7, rel=0.01)
    hundred = make_cohort(100)
    assert ckks.CheckLane(hundred.order, hundred.secret_key).tolerance == pytest.approx(8.4e-7, rel=0.01)


def test_tags_are_different_for_each_owner_block_order_and_key() -> None:
    data = np.linspace(-0.05, 0.05, wire.DATA_SLOTS)
    lane = ckks.CheckLane(COHORT.order, COHORT.secret_key)
    later = ckks.CheckLane(COHORT.ordering(attempt=1).order, COHORT.secret_key)
    other = ckks.CheckLane(COHORT.order, ckks.generate_key())
    tags = [lane.tags(0, data, 0), lane.tags(0, data, 1), lane.tags(1, data, 0), later.tags(0, data, 0), other.tags(0, data, 0)]
    assert len(np.unique(np.concatenate(tags))) == 5 * wire.CHECK_SLOTS


def test_a_container_takes_58_bytes_a_parameter_at_most(tmp_path: Path) -> None:
    cohort = make_cohort(3, 10 * wire.DATA_SLOTS)
    blobs = cohort.protect_all(cohort.updates())
    for blob in (*blobs, cohort.add(blobs, tmp_path)):
        assert 57 < len(blob) / (10 * wire.DATA_SLOTS) < 58


def test_memory_does_not_grow_with_the_number_of_vectors_or_owners(tmp_path: Path) -> None:
    """What Python allocates: bytes, lists and arrays of a vector; SEAL's own memory is one vector's as well."""
    peaks = []
    for size, vectors in ((3, 2), (3, 12), (9, 2)):
        cohort = make_cohort(size, vectors * wire.DATA_SLOTS)
        blobs = cohort.protect_all(cohort.updates())
        cohort.add(blobs, tmp_path)
        paths = [tmp_path / f"{index}.bin" for index in range(size)]
        tracemalloc.start()
        wire.add_updates(paths, cohort.order, tmp_path / "again.bin")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 2 * min(peaks) < 4_000_000


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """TenSEAL prints a warning when it has to chunk; vectors of 4096 slots never are."""
    cohort = make_cohort(3, 5000)
    cohort.open(cohort.add(cohort.protect_all(cohort.updates()), tmp_path))
    assert capfd.readouterr() == ("", "")


def test_encryption_is_randomised() -> None:
    update = np.zeros(300, np.float32)
    assert COHORT.protect("owner-00", update) != COHORT.protect("owner-00", update)


def test_adding_is_possible_with_a_context_that_cannot_decrypt() -> None:
    assert wire.public_context().is_public() and not wire.public_context().has_secret_key()
    vector = wire.load_vector(wire.public_context(), ts.ckks_vector(wire.new_context(), [0.0] * 4096).serialize())
    with pytest.raises(ValueError, match="secret_key"):
        vector.decrypt()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_is_refused(value: float) -> None:
    update = COHORT.updates()[0]
    update[-1] = value
    with pytest.raises(EncodingOverflow):
        COHORT.protect("owner-00", update)


def test_an_update_that_does_not_belong_here_is_refused() -> None:
    update, owners = COHORT.updates()[0], COHORT.order.cohort
    with pytest.raises(EncryptionError, match="shape"):
        COHORT.protect("owner-00", update[:-1])
    with pytest.raises(DigestMismatch):
        COHORT.ordering(registry="0" * 64).protect("owner-00", update)
    with pytest.raises(CohortTooSmall):
        COHORT.ordering(cohort=owners[:2], weights=(1, 1)).protect(owners[0], update)
    with pytest.raises(EncryptionError, match="not for CKKS"):
        COHORT.ordering(encoding=choose_encoding(3, 8, 0.05).model_dump()).protect("owner-00", update)
    four = make_cohort(4)
    with pytest.raises(CohortMismatch):
        four.ordering(cohort=owners, weights=(1, 1, 1)).protect("owner-03", update)
    four.identities["owner-00"] = Identity.generate()
    with pytest.raises(KeyMissing):
        four.protect("owner-00", update)


def test_a_key_is_a_context_of_these_parameters_with_a_secret_key() -> None:
    ckks.check_key(COHORT.secret_key)
    assert len(COHORT.secret_key) < 170_000
    context = ts.context_from(COHORT.secret_key)
    assert context.has_secret_key() and context.global_scale == 2**40


def contexts_that_are_no_key() -> dict[str, bytes]:
    """Contexts as TenSEAL writes them, each wrong in one respect."""
    symmetric = ts.ENCRYPTION_TYPE.SYMMETRIC
    smaller = ts.context(ts.SCHEME_TYPE.CKKS, 8192, -1, [60, 40, 50], encryption_type=symmetric)
    asymmetric = ts.context(ts.SCHEME_TYPE.CKKS, 8192, -1, [60, 40, 40])
    coarse = wire.new_context()
    coarse.global_scale = 2**30
    smaller.global_scale = asymmetric.global_scale = 2**40
    return {
        "nothing": b"",
        "no secret": wire.parameters(),
        "other primes": wire.serialised(smaller, True),
        "asymmetric": wire.serialised(asymmetric, True),
        "with relinearisation keys": wire.new_context().serialize(save_secret_key=True) + b"\x08\x01",
        "other scale": wire.serialised(coarse, True),
        "cut": COHORT.secret_key[:-1],
        "longer": COHORT.secret_key + b"\0",
        "damaged": COHORT.secret_key[:150] + bytes(len(COHORT.secret_key) - 152) + COHORT.secret_key[-2:],
    }


NO_KEYS = contexts_that_are_no_key()


@pytest.mark.parametrize("name", NO_KEYS)
def test_anything_else_is_not_a_key(name: str) -> None:
    with pytest.raises(KeyMissing) as refused:
        ckks.check_key(NO_KEYS[name])
    assert len(str(refused.value)) < 200
    with pytest.raises(KeyMissing):
        ckks.open_sum(BytesIO(b""), COHORT.order, NO_KEYS[name])
