"""The whole way of an update: the opened sum is the integer sum, bit for bit, at the price that was announced."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from fl_privacy.encryption import cipher, secret_sum
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.keys import Identity, generate_secret_key, key_name
from fl_privacy.encryption.packing import DATA, Fields, coordinates_per_block
from fl_privacy.encryption.quantise import Dither, dequantise_sum, quantise
from fl_privacy.errors import (
    ChecksumMismatch,
    CiphertextInvalid,
    CohortMismatch,
    CohortTooSmall,
    DigestMismatch,
    EncodingOverflow,
    EncryptionError,
    FlPrivacyError,
    KeyMissing,
)
from fl_privacy.parameters import Vector, count
from fl_privacy.round_order import Encoding
from tests.secure_cohort import SecureCohort, make_cohort


def plain_and_secure_sums(
    cohort: SecureCohort, updates: list[Vector], monkeypatch: pytest.MonkeyPatch
) -> tuple[Vector, Vector]:
    """The sum of the very integers that the owners encrypted, in numpy; and the opened sum."""
    drawn: list[Fields] = []

    def recording(values: Vector, weight: float, encoding: Encoding, dither: Dither) -> Fields:
        drawn.append(quantise(values, weight, encoding, dither))
        return drawn[-1]

    monkeypatch.setattr(secret_sum, "quantise", recording)
    opened = cohort.open(cohort.total(updates))
    blocks = len(drawn) // len(updates)
    integers = [np.concatenate(drawn[start : start + blocks]) for start in range(0, len(drawn), blocks)]
    return dequantise_sum(np.sum(integers, axis=0, dtype=np.uint64), cohort.order.encoding, len(updates)), opened


def refused_by_all(cohort: SecureCohort, error: type[FlPrivacyError], update: Vector, total: bytes = b"") -> None:
    """The owner who encrypts, the scientist who adds and the owner who opens each refuse the order."""
    with pytest.raises(error):
        cohort.protect("owner-00", update)
    with pytest.raises(error):
        cohort.add([])
    with pytest.raises(error):
        cohort.open(total)


@pytest.mark.parametrize(
    ("size", "coordinates", "bits"), [(3, 45_000, 8), (4, 1, 8), (16, 20_000, 8), (3, 9_000, 16), (5, 70_000, 4), (100, 300, 8)]
)
def test_secure_path_equals_the_integer_path(size: int, coordinates: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make_cohort(size, coordinates, bits)
    updates = cohort.updates()
    plain, opened = plain_and_secure_sums(cohort, updates, monkeypatch)
    assert opened.dtype == np.float32 and opened.tobytes() == plain.tobytes()
    encoding = cohort.order.encoding
    step = encoding.value_range / (2 ** (encoding.value_bits - 1) - 1)
    assert np.abs(opened - np.mean(updates, axis=0)).max() < size * step


@pytest.mark.parametrize(("size", "sign"), [(3, -1), (3, 1), (16, -1), (16, 1), (100, 1)])
def test_extremes_come_out_exactly(size: int, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every owner at or beyond the range: the sum is K times the range, the largest one that fields must hold."""
    coordinates = 21_000 if size < 100 else 300
    cohort = make_cohort(size, coordinates, value_range=0.05)
    updates = [np.full(coordinates, sign * 1e30, np.float32)] * size
    plain, opened = plain_and_secure_sums(cohort, updates, monkeypatch)
    assert opened.tobytes() == plain.tobytes()
    assert np.allclose(opened, sign * size * 0.05, rtol=1e-6)


def test_weights_are_the_declared_shares() -> None:
    cohort = make_cohort(3, 50, value_bits=16, value_range=1.0)
    cohort = cohort.ordering(weights=(1, 2, 5), cohort=("owner-02", "owner-00", "owner-01"))
    updates = [np.full(50, value, np.float32) for value in (0.8, -0.4, 0.16)]
    opened = cohort.open(cohort.total(updates))
    assert np.abs(opened - (0.8 / 8 - 0.4 * 2 / 8 + 0.16 * 5 / 8)).max() < 3 / 32_767


def test_the_order_of_arrival_does_not_matter() -> None:
    cohort = make_cohort(3, 20 * 5 * 4094)  # more blocks than are read at a time
    blobs = cohort.protect_all(cohort.updates())
    totals = {cohort.add(arrival) for arrival in permutations(blobs)}
    assert len(totals) == 1
    cohort.open(totals.pop())


def test_memory_to_protect_an_update_is_below_the_update_itself(tmp_path: Path) -> None:
    """Beyond the update, what is held is of the size of a few ciphertexts, whatever the model: below a quarter of 8 MB."""
    cohort = make_cohort(3, 2_000_000)
    update = cohort.updates()[0]
    cohort.ordering(tensors=[{"name": "w", "shape": [1]}]).protect("owner-00", update[:1])  # what is made once for all
    with (tmp_path / "update").open("wb") as file:
        tracemalloc.start()
        try:
            secret_sum.protect_update(
                update,
                cohort.order,
                "owner-00",
                cohort.identities["owner-00"],
                cohort.registry,
                cohort.secret_key,
                cohort.seeds["owner-00"],
                file,
            )
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < update.nbytes / 4


ADD = """
import resource, sys
from pathlib import Path
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.round_order import RoundOrder
folder = Path(sys.argv[1])
order = RoundOrder.parse((folder / "order").read_bytes())
add_updates([folder / owner for owner in order.cohort], order, folder / "total")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_to_add_grows_neither_with_the_model_nor_with_the_cohort(tmp_path: Path) -> None:
    """The peak of a fresh process, all native memory included: 3 updates of 31 kB, then 12 of 6 MB."""
    peaks = []
    for size, blocks in ((3, 1), (12, 200)):
        folder = tmp_path / f"{size}-{blocks}"
        folder.mkdir()
        cohort = make_cohort(size)
        step = coordinates_per_block(cohort.order.encoding)
        small = cohort.ordering(tensors=[{"name": "w", "shape": [step]}])
        large = small.ordering(tensors=[{"name": "w", "shape": [step * blocks]}])
        block = small.protect("owner-00", np.zeros(step, np.float32))[48:]
        (folder / "order").write_bytes(large.order.canonical())
        for place, owner in enumerate(cohort.owners):
            with (folder / owner).open("wb") as file:
                cipher.write_header(file, cipher.Kind.UPDATE, large.order, place)
                file.writelines([block] * blocks)
        command = [sys.executable, "-c", ADD, str(folder)]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout) / 1024)
    assert peaks[1] - peaks[0] < 9  # MiB


def test_a_sum_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    """The second update is invalid in its last block; neither a total nor the beginning of one is left."""
    cohort = make_cohort(3, 45_000)
    paths = [tmp_path / owner for owner in cohort.owners]
    for path, blob in zip(paths, cohort.protect_all(cohort.updates()), strict=True):
        path.write_bytes(blob)
    spoilt = bytearray(paths[1].read_bytes())
    spoilt[-30_784 : -30_784 + 15] = b"\xff" * 15  # a coefficient of the last block that is not below q
    paths[1].write_bytes(spoilt)
    with pytest.raises(CiphertextInvalid):
        add_updates(paths, cohort.order, tmp_path / "total")
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_price_per_coordinate() -> None:
    """Up: 7.5 bytes for c0 per coefficient of 5 coordinates, and a seed; down: three seeds. Headers and checks below 0.5 %."""
    cohort = make_cohort(3, 10 * 5 * 4094)
    coordinates = count(cohort.order.tensors)
    blobs = cohort.protect_all(cohort.updates())
    total = cohort.add(blobs)
    assert {len(blob) for blob in blobs} == {48 + 10 * (4096 * 60 // 8 + 64)}
    assert len(total) == 48 + 10 * (4096 * 60 // 8 + 3 * 64)
    assert 1.5 <= len(blobs[0]) / coordinates < 1.5 * 1.005
    assert 1.5 <= len(total) / coordinates < 1.5 * 1.01


def test_equal_updates_give_unequal_ciphertexts() -> None:
    cohort = make_cohort(3)
    zero = np.zeros(100, np.float32)
    blobs = [cohort.protect("owner-00", zero), cohort.protect("owner-00", zero), cohort.protect("owner-01", zero)]
    assert len({blob[48:] for blob in blobs}) == 3


@pytest.mark.parametrize("change", [{"field_bits": 9}, {"fields_per_coefficient": 6, "modulus_bits": 60}, {"value_bits": 16}])
def test_an_encoding_that_could_wrap_is_refused_by_all(change: dict[str, int]) -> None:
    cohort = make_cohort(3)
    updates, total = cohort.updates(), cohort.total(cohort.updates())
    wrapping = cohort.ordering(encoding=cohort.order.encoding.model_dump() | change)
    refused_by_all(wrapping, EncodingOverflow, updates[0], total)


@pytest.mark.parametrize("drawn", [(1023, 1023, 1023, 0, 0), (0, 0, 0, 0, 342), (0, 0, 0, 0, 1023), (0, 255, 0, 0, 0)])
def test_fields_beyond_the_range_are_found_when_the_sum_is_opened(
    drawn: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Owners whose code does not clip: a field too large, or one that carries out of its coefficient, is refused, not wrapped.

    Three times 342 is 1026: above the ten bits of the fifth field, which alone would read as 2.
    """
    cohort = make_cohort(3, 5 * DATA)
    fields = np.repeat(np.array(drawn, np.uint16), DATA)  # the first to the fifth field of every coefficient
    monkeypatch.setattr(secret_sum, "quantise", lambda *_: fields)
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


def test_a_key_that_the_order_does_not_name_is_used_by_nobody() -> None:
    cohort, update = make_cohort(3), np.zeros(100, np.float32)
    total = cohort.total(cohort.updates())
    other = replace(cohort, secret_key=generate_secret_key())
    with pytest.raises(KeyMissing, match=cohort.order.key[:16]):
        other.protect("owner-00", update)
    with pytest.raises(KeyMissing, match=key_name(other.secret_key)[:16]):
        other.open(total)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_self_mask_must_have_32_bytes(length: int) -> None:
    cohort = make_cohort(3)
    total, short = cohort.total(cohort.updates()), replace(cohort, seeds=cohort.seeds | {"owner-01": bytes(length)})
    with pytest.raises(EncryptionError, match="owner-01"):
        short.protect("owner-01", np.zeros(100, np.float32))
    with pytest.raises(EncryptionError, match="owner-01"):
        short.open(total)


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


def test_the_sum_of_representable_updates_is_exact() -> None:
    """What an owner knows of its own part: rounded with the cohort's weight, clipped, unbiased."""
    cohort = make_cohort(3, 30_000).ordering(weights=(10, 30, 60))
    draw, reach = np.random.default_rng(4), cohort.order.encoding.value_range
    updates = [(draw.uniform(-1.2, 1.2, 30_000) * reach).astype(np.float32) for _ in range(3)]
    known = [
        secret_sum.representable(update, cohort.order, owner)
        for update, owner in zip(updates, cohort.order.cohort, strict=True)
    ]
    opened = cohort.open(cohort.total(known))
    off = np.abs(opened - sum(weight * vector for weight, vector in zip((0.1, 0.3, 0.6), known, strict=True)))
    step = reach / 127
    assert (off > 0.01 * step).mean() < 1e-3 and off.max() < 4 * step
    for weight, update, vector in zip((0.1, 0.3, 0.6), updates, known, strict=True):
        clipped = np.clip(update, -reach / weight, reach / weight)
        assert np.abs(vector - clipped).max() <= 1.001 * step / weight
        assert abs(float((vector - clipped).mean())) < 6 * step / weight / np.sqrt(30_000)
