"""What an aggregator, or anybody on the way, tries on CKKS sums: messages that crash TenSEAL, and sums that are none."""

from __future__ import annotations

import random
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal as ts

from fl_privacy.encryption import ckks
from fl_privacy.encryption import ckks_wire as wire
from fl_privacy.encryption.keys import key_name
from fl_privacy.errors import ChecksumMismatch, CiphertextInvalid, CohortMismatch, EncryptionError, KeyMissing
from tests.ckks_cohort import HEADER, CkksCohort, make_cohort, vectors_of, with_vectors

SECRET = ts.context_from(ckks.generate_key(), n_threads=1)
GOOD = ts.ckks_vector(SECRET, [0.5] * wire.SLOTS).serialize()
SIZES, CIPHERTEXT, SCALE = GOOD[:4], GOOD[4:-9], GOOD[-9:]
INNER = CIPHERTEXT[4:]  # without protobuf's tag and length

COHORT = make_cohort(3)
UPDATES = COHORT.updates()
BLOBS = COHORT.protect_all(UPDATES)


def total_of(cohort: CkksCohort, *vectors: Any) -> bytes:
    """A total as an aggregator may make it up."""
    file = BytesIO()
    wire.write_header(file, wire.TOTAL, cohort.order, 0)
    for vector in vectors:
        wire.write_vector(file, vector)
    return file.getvalue()


def loaded(blob: bytes, at: int = 0) -> Any:
    return ts.ckks_vector_from(wire.public_context(), vectors_of(blob)[at])


def weighted(*factors: int) -> Any:
    """sum_k factor_k * ciphertext_k, for the order's cohort; additions and negations are all that is needed."""
    total = None
    for factor, blob in zip(factors, BLOBS, strict=True):
        for _ in range(abs(factor)):
            term = loaded(blob) if factor > 0 else -loaded(blob)
            total = term if total is None else total + term
    return total


TOTAL = total_of(COHORT, weighted(1, 1, 1))
OPENED = COHORT.open(TOTAL)


# --- TenSEAL's own loader, and the check before it


CRASHES = {
    "no sizes": ("vector(CIPHERTEXT + SCALE).decrypt()", CIPHERTEXT + SCALE),
    "no ciphertext": ("vector(GOOD).add_(vector(SIZES + SCALE))", SIZES + SCALE),
}


@pytest.mark.parametrize("name", CRASHES)
def test_tenseal_itself_dies_of_a_message_that_is_refused_here(name: str) -> None:
    """Why messages are checked before TenSEAL sees them: the process is killed by a signal, no exception is raised."""
    crash, message = CRASHES[name]
    code = (
        "import tenseal as ts\nfrom tests.trust.test_ckks_messages import *\n"
        f"vector = lambda data: ts.ckks_vector_from(SECRET, data)\n{crash}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0
    with pytest.raises(CiphertextInvalid):
        wire.load_vector(SECRET, message)


def test_tenseal_survives_the_same_calls_with_a_whole_message() -> None:
    """The test above can fail: it is the message that kills, not the way in which it is fed."""
    vector = ts.ckks_vector_from(SECRET, GOOD)
    vector.add_(ts.ckks_vector_from(SECRET, GOOD))
    assert np.allclose(vector.decrypt(), 1.0)


def test_tenseal_itself_reads_past_its_memory_where_a_size_is_too_large() -> None:
    """4096 values were encrypted; what comes after them is whatever lay there."""
    message = b"\x0a\x02\xc0\x2e" + CIPHERTEXT + SCALE  # sizes = [5952]
    code = (
        "import tenseal as ts\nfrom tests.trust.test_ckks_messages import *\n"
        f"print(len(ts.ckks_vector_from(SECRET, {message[:4]!r} + CIPHERTEXT + SCALE).decrypt()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode < 0 or int(done.stdout) == 5952 > wire.SLOTS
    with pytest.raises(CiphertextInvalid):
        wire.load_vector(SECRET, message)


def framed(inner: bytes) -> bytes:
    """A vector around other bytes than a ciphertext."""
    return SIZES + b"\x12" + wire.varint(len(inner)) + inner + SCALE


def seal_object(frame: bytes) -> bytes:
    return struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 2, 0, 16 + len(frame)) + frame


def as_vector(vector: Any) -> bytes:
    data: bytes = vector.serialize()
    return data


def of_another_context(*arguments: Any, scale: float = 2.0**40, slots: int = wire.SLOTS) -> bytes:
    context = ts.context(ts.SCHEME_TYPE.CKKS, *arguments)
    context.global_scale = scale
    return as_vector(ts.ckks_vector(context, [0.5] * slots))


def product(rescaled: bool) -> bytes:
    """A square without relinearisation: three polynomials; or a product with a number: one level lower."""
    context = wire.new_context()
    context.auto_relin = context.auto_rescale = rescaled
    vector = ts.ckks_vector(context, [0.5] * wire.SLOTS)
    return as_vector(vector * 0.5 if rescaled else vector * vector)


RUN = (131072 << 3 | 2).to_bytes(3, "little") + b"\0"  # 128 KiB from four bytes
LAST_RUN = (131072 << 3 | 3).to_bytes(3, "little") + b"\0"
FRAME = INNER[16:25]
HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "only framing": framed(b""),
    "two sizes": SIZES + SIZES + CIPHERTEXT + SCALE,
    "two sizes, packed": b"\x0a\x04\x80\x20\x80\x20" + CIPHERTEXT + SCALE,
    "a size that is not packed": b"\x08\x80\x20" + CIPHERTEXT + SCALE,
    "size 4095": b"\x0a\x02\xff\x1f" + CIPHERTEXT + SCALE,
    "size 0": b"\x0a\x01\x00" + CIPHERTEXT + SCALE,
    "size 2**31": b"\x0a\x05\x80\x80\x80\x80\x08" + CIPHERTEXT + SCALE,
    "size in a longer form": b"\x0a\x03\x80\xa0\x00" + CIPHERTEXT + SCALE,
    "two ciphertexts": SIZES + CIPHERTEXT + CIPHERTEXT + SCALE,
    "another scale": SIZES + CIPHERTEXT + b"\x19" + struct.pack("<d", 2.0**41),
    "a scale that is not a number": SIZES + CIPHERTEXT + b"\x19" + struct.pack("<d", float("nan")),
    "no scale": SIZES + CIPHERTEXT,
    "two scales": GOOD + SCALE,
    "another order of fields": CIPHERTEXT + SIZES + SCALE,
    "an unknown field": GOOD + b"\x20\x01",
    "a byte more": GOOD + b"\0",
    "a byte less": GOOD[:-1],
    "a length in a longer form": SIZES + b"\x12" + CIPHERTEXT[1:3] + bytes([CIPHERTEXT[3] | 0x80, 0]) + INNER + SCALE,
    "another compression": framed(INNER[:5] + b"\1" + INNER[6:]),
    "another SEAL version": framed(INNER[:3] + b"\3" + INNER[4:]),
    "a SEAL object that claims 2**63 bytes": framed(INNER[:8] + b"\0\0\0\0\0\0\0\x80" + INNER[16:]),
    "another content size": framed(seal_object(FRAME[:5] + struct.pack("<I", 2**31) + INNER[25:])),
    "an empty frame": framed(seal_object(FRAME + b"\1\0\0" + bytes(20_000))),
    "runs that unfold to 640 MiB": framed(seal_object(FRAME + RUN * 5000 + LAST_RUN)),
    "runs in a frame without content size": framed(seal_object(FRAME[:4] + b"\0\x58" + RUN * 5000 + LAST_RUN)),
    "blocks without end": framed(seal_object(FRAME + b"\0\0\0" * 10_000)),
    "a block that is too large": framed(seal_object(FRAME + (200_000 << 3 | 1).to_bytes(3, "little") + bytes(200_000))),
    "two frames": framed(seal_object(INNER[16:] + INNER[16:])),
    "zeros": framed(seal_object(FRAME + ((131072 << 3).to_bytes(3, "little") + bytes(131072)) * 2 + b"\x09\x03\0" + bytes(97))),
    "noise": framed(random.Random(0).randbytes(len(INNER))),
    "a BFV vector": as_vector(ts.bfv_vector(ts.context(ts.SCHEME_TYPE.BFV, 8192, 1032193), [1] * 4096)),
    "fewer slots": of_another_context(8192, -1, [60, 40, 40], slots=100),
    "half the degree": of_another_context(4096, -1, [54, 55], slots=2048),
    "other primes": of_another_context(8192, -1, [60, 40, 50]),
    "one prime more": of_another_context(8192, -1, [60, 40, 40, 40]),
    "half the scale": of_another_context(8192, -1, [60, 40, 40], scale=2.0**39),
    "three polynomials": product(rescaled=False),
    "a level lower": product(rescaled=True),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_vector_in_any_other_form_is_refused(name: str) -> None:
    with pytest.raises(CiphertextInvalid):
        wire.load_vector(wire.public_context(), HOSTILE[name])


def test_runs_are_found_where_a_count_of_their_bytes_would_skip_them() -> None:
    """A run of 60,000 bytes takes one byte, not 60,000: what stands in the others are more blocks to zstd, here 1.9 GB."""
    unfolded = struct.unpack("<I", FRAME[5:])[0]
    skipped = b"\0" + RUN * 14_998 + LAST_RUN + bytes(3)
    for form, passes in ((0, True), (1, False)):  # plain bytes, a run
        frame = FRAME + (60_000 << 3 | form << 1).to_bytes(3, "little") + skipped + b"\1\0\0"
        assert wire.is_seal_object(seal_object(frame), unfolded) == passes


def test_the_same_vector_in_the_one_right_form_is_loaded() -> None:
    """The changes above fail for what they change: put together again, the pieces load."""
    for data in (GOOD, SIZES + CIPHERTEXT + SCALE, framed(INNER), framed(seal_object(INNER[16:]))):
        assert np.allclose(wire.load_vector(SECRET, data).decrypt(), 0.5)


def built(c0: int, c1: int, polynomials: int = 2, primes: int = 2, scale: float = 2.0**40, is_ntt: bool = True) -> bytes:
    """A vector whose ciphertext is written here: all coefficients of its first and second half the same, nothing compressed."""
    chain = SECRET.seal_context().data
    level = chain.first_parms_id() if primes == 2 else chain.last_parms_id()
    members = struct.pack("<4Q?3QdQ", *level, is_ntt, polynomials, wire.DEGREE, primes, scale, 1)
    words = polynomials * primes * wire.DEGREE
    array = struct.pack("<HBBBBHQQ", 0xA15E, 16, 4, 3, 0, 0, 24 + 8 * words, words)
    data = members + array + np.repeat(np.array([c0, c1], "<u8"), words // 2).tobytes()
    blocks = [data[at : at + 131072] for at in range(0, len(data), 131072)]
    heads = [(len(block) << 3 | (block is blocks[-1])).to_bytes(3, "little") for block in blocks]
    return framed(seal_object(FRAME + b"".join(head + block for head, block in zip(heads, blocks, strict=True))))


def test_the_shape_inside_a_well_framed_ciphertext_is_checked_after_loading() -> None:
    wire.load_vector(SECRET, built(5, 7))
    wrong = {
        "hides nothing": built(5, 0),
        "another scale": built(5, 7, scale=2.0**41),
        "four polynomials, a level lower": built(5, 7, polynomials=4, primes=1),
    }
    for data in wrong.values():
        assert ts.ckks_vector_from(SECRET, data).size() == wire.SLOTS  # SEAL has nothing against it
        with pytest.raises(CiphertextInvalid, match="shape or scale"):
            wire.load_vector(SECRET, data)
    for data in (built(5, 7, is_ntt=False), built(5, 2**63), built(5, 7, scale=float("nan"))):
        with pytest.raises(CiphertextInvalid):
            wire.load_vector(SECRET, data)


def test_a_sum_that_would_hide_nothing_is_not_formed(tmp_path: Path) -> None:
    """x + (-x) has c1 = 0."""
    negative = with_vectors(BLOBS[1], as_vector(-loaded(BLOBS[0])))
    with pytest.raises(CiphertextInvalid):
        COHORT.add([BLOBS[0], negative, BLOBS[2]], tmp_path)


# --- containers


def test_a_container_of_another_kind_order_or_length_is_refused(tmp_path: Path) -> None:
    blob = BLOBS[0]
    later = COHORT.ordering(attempt=1)
    more = blob[:44] + struct.pack("<I", 2) + blob[48:]
    huge = blob[:HEADER] + struct.pack("<I", 2**32 - 1) + blob[HEADER + 4 :]
    wrong = [b"", blob[:47], blob[:-1], blob + b"\0", TOTAL, b"X" + blob[1:], more, more + blob[HEADER:], huge]
    wrong += [later.protect("owner-00", UPDATES[0]), blob[:40] + struct.pack("<I", 3) + blob[44:]]
    for container in wrong:
        with pytest.raises(CiphertextInvalid):
            COHORT.add([container, *BLOBS[1:]], tmp_path)
    for container in (b"", TOTAL[:-1], TOTAL + b"\0", blob, TOTAL[:40] + struct.pack("<I", 1) + TOTAL[44:]):
        with pytest.raises(CiphertextInvalid):
            COHORT.open(container)


def test_an_update_twice_or_not_at_all_is_refused(tmp_path: Path) -> None:
    for blobs in ([], BLOBS[:2], [*BLOBS, BLOBS[0]], [BLOBS[0], BLOBS[0], BLOBS[1]]):
        with pytest.raises(CohortMismatch):
            COHORT.add(blobs, tmp_path)


def test_a_total_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    with pytest.raises(CiphertextInvalid):
        COHORT.add([*BLOBS[:2], BLOBS[2] + b"\0"], tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin"} and not (tmp_path / "total.bin").exists()
    COHORT.add(BLOBS, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"0.bin", "1.bin", "2.bin", "total.bin"}


# --- sums that are none


@pytest.mark.parametrize(
    "factors", [(1, 0, 0), (3, 0, 0), (1, 1, 0), (2, 1, 0), (2, 2, -1), (2, 2, 2), (-1, -1, -1), (1, 1, 2), (0, 0, 1)]
)
def test_whole_multiples_of_updates_do_not_open_but_for_the_sum(factors: tuple[int, int, int]) -> None:
    """Also K times one owner, and weights that add up to K: owners have different values in their check slots."""
    with pytest.raises(ChecksumMismatch):
        COHORT.open(total_of(COHORT, weighted(*factors)))
    assert np.array_equal(COHORT.open(total_of(COHORT, weighted(1, 1, 1))), OPENED)


@pytest.mark.parametrize("slot", [0, 299, 2000, wire.DATA_SLOTS, wire.SLOTS - 1])
def test_a_number_added_to_one_slot_does_not_open(slot: int) -> None:
    shift = [0.0] * wire.SLOTS
    shift[slot] = 1e-3
    with pytest.raises(ChecksumMismatch):
        COHORT.open(total_of(COHORT, weighted(1, 1, 1) + shift))


def test_factors_on_the_data_slots_alone_do_not_pass() -> None:
    """Check values that do not depend on the data would let this through: one owner amplified, its check slots intact."""
    lane = ckks.CheckLane(COHORT.order, COHORT.secret_key)
    draw = np.random.default_rng(1)
    vectors = []
    for position in range(3):
        data = draw.uniform(-0.01, 0.01, wire.DATA_SLOTS)
        vectors.append(np.concatenate([data, lane.tags(0, data, position)]))
    lane.check(0, sum(vectors))
    for slots in (slice(0, wire.DATA_SLOTS), slice(7, 8)):
        for factor in (0.0, 1.01, 3.0, -1.0):
            changed = vectors[1].copy()
            changed[slots] *= factor
            with pytest.raises(ChecksumMismatch):
                lane.check(0, vectors[0] + changed + vectors[2])


def test_what_the_check_slots_find_and_what_they_do_not() -> None:
    """A slot off by 100 tolerances passes with p <= 1e-16; a hundredth of the tolerance in one slot is not found."""
    draw = np.random.default_rng(2)
    for attempt in range(50):
        lane = ckks.CheckLane(COHORT.ordering(attempt=attempt).order, COHORT.secret_key)
        data = draw.uniform(-0.01, 0.01, (3, wire.DATA_SLOTS))
        total = sum(np.concatenate([row, lane.tags(0, row, position)]) for position, row in enumerate(data))
        slot = draw.integers(wire.DATA_SLOTS)
        total[slot] += lane.tolerance / 100
        lane.check(0, total)
        total[slot] += 100 * lane.tolerance
        with pytest.raises(ChecksumMismatch):
            lane.check(0, total)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_slots_that_are_no_numbers_do_not_pass(value: float) -> None:
    lane = ckks.CheckLane(COHORT.order, COHORT.secret_key)
    for slot in (0, wire.SLOTS - 1):
        slots = np.zeros(wire.SLOTS)
        slots[slot] = value
        with pytest.raises(ChecksumMismatch), np.errstate(invalid="ignore"):
            lane.check(0, slots)


def test_a_sum_beyond_what_the_owners_clip_to_does_not_pass() -> None:
    """Tags are right, as a holder of the key can make them; but no cohort whose owners clip has such a sum."""
    lane = ckks.CheckLane(COHORT.order, COHORT.secret_key)
    for value, refused in ((0.0499, False), (0.0501, True)):
        data = np.full((3, wire.DATA_SLOTS), value / 3)
        total = sum(np.concatenate([row, lane.tags(0, row, position)]) for position, row in enumerate(data))
        with pytest.raises(ChecksumMismatch) if refused else nullcontext():
            lane.check(0, total)


def test_vectors_out_of_place_do_not_open(tmp_path: Path) -> None:
    cohort = make_cohort(3, 3 * wire.DATA_SLOTS)
    total = cohort.add(cohort.protect_all(cohort.updates()), tmp_path)
    first, second, third = vectors_of(total)
    cohort.open(with_vectors(total, first, second, third))
    for vectors in ((second, first, third), (first, first, third)):
        with pytest.raises(ChecksumMismatch):
            cohort.open(with_vectors(total, *vectors))


def test_an_update_under_another_owners_position_does_not_open(tmp_path: Path) -> None:
    """The aggregator puts one owner's ciphertext in place of another's."""
    forged = BLOBS[1][:HEADER] + BLOBS[0][HEADER:]
    with pytest.raises(ChecksumMismatch):
        COHORT.open(COHORT.add([BLOBS[0], forged, BLOBS[2]], tmp_path))


@pytest.mark.parametrize("change", [{"attempt": 1}, {"round": 1}, {"model": "0" * 64}, {"weights": (1, 2, 3)}])
def test_ciphertexts_of_another_order_are_of_no_use(change: dict[str, object], tmp_path: Path) -> None:
    """Refused by their label; when relabelled, they do not open."""
    later = COHORT.ordering(**change)
    old, fresh = later.ordering().add(later.protect_all(UPDATES), tmp_path), later.protect_all(UPDATES)
    assert np.isfinite(later.open(old)).all()
    with pytest.raises(CiphertextInvalid):
        later.open(TOTAL)
    with pytest.raises(ChecksumMismatch):
        later.open(with_vectors(old, *vectors_of(TOTAL)))
    with pytest.raises(ChecksumMismatch):
        later.open(later.add([with_vectors(fresh[0], *vectors_of(BLOBS[0])), *fresh[1:]], tmp_path))


def test_a_wrong_key_does_not_open() -> None:
    """Neither one that the order does not name, nor the named one if the owners have encrypted with another."""
    other = ckks.generate_key()
    with pytest.raises(KeyMissing, match="is for HE key"):
        ckks.open_sum(BytesIO(TOTAL), COHORT.order, other)
    renamed = replace(COHORT.ordering(key=key_name(other)), secret_key=other)
    with pytest.raises(ChecksumMismatch):
        renamed.open(total_of(renamed, loaded(TOTAL)))


def test_without_the_key_other_keys_read_noise_in_an_update() -> None:
    read = np.array(wire.load_vector(SECRET, vectors_of(BLOBS[0])[0]).decrypt())
    assert np.abs(read).min() > 1e3 * np.abs(UPDATES[0]).max()


def test_any_owner_reads_a_single_update_that_it_gets_hold_of() -> None:
    """The stated weakness of this scheme: no masks. With them (BFV) a single ciphertext decrypts to noise."""
    context = ts.context_from(COHORT.secret_key)
    read = np.array(ts.ckks_vector_from(context, vectors_of(BLOBS[0])[0]).decrypt())[:300]
    weight = COHORT.order.weights[0] / sum(COHORT.order.weights)
    assert np.allclose(read, weight * UPDATES[0], atol=1e-8)


def test_adding_loads_no_code_that_uses_keys() -> None:
    code = (
        "import sys, fl_privacy.encryption.ckks_wire\n"
        "loaded = {'keys', 'secret_sum', 'masks', 'ckks'} & {name.rsplit('.')[-1] for name in sys.modules"
        " if name.startswith('fl_privacy.')}\n"
        "print(sorted(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


# --- messages spoiled at random


def spoiled(draw: random.Random, blob: bytes) -> bytes:
    """Bytes flipped, overwritten, cut out or repeated, mostly in the framing; half of the time the length is put right."""
    data = bytearray(blob)
    places = (draw.randrange(HEADER + 4), HEADER + 4 + draw.randrange(40), len(data) - 1 - draw.randrange(12))
    at = draw.choice((*places, draw.randrange(len(data)), draw.randrange(len(data))))
    run = draw.randint(1, 40)
    match draw.randrange(5):
        case 0 | 1:
            data[at] ^= 1 << draw.randrange(8)
        case 2:
            data[at : at + run] = draw.randbytes(len(data[at : at + run]))
        case 3:
            del data[at : at + run]
        case 4:
            data[at:at] = data[at : at + run]
    if draw.random() < 0.5 and at >= HEADER + 4:
        data[HEADER : HEADER + 4] = struct.pack("<I", len(data) - HEADER - 4)
    return bytes(data)


def feed(seed: int, amount: int, folder: Path) -> None:
    """Open ``amount`` spoiled totals and sums with a spoiled update; whatever opens must be right within 1e-5."""
    draw, refused = random.Random(seed), 0
    for number in range(amount):
        try:
            if number % 2:
                opened = COHORT.open(spoiled(draw, TOTAL))
            else:
                opened = COHORT.open(COHORT.add([BLOBS[0], spoiled(draw, BLOBS[1]), BLOBS[2]], folder))
        except EncryptionError:
            refused += 1
        else:
            assert np.abs(opened - OPENED).max() < 1e-5
    assert refused > 0.9 * amount
    print("fed", amount)  # noqa: T201


@pytest.mark.parametrize("amount", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_spoiled_messages_end_in_typed_errors_and_never_in_a_crash(amount: int, tmp_path: Path) -> None:
    arguments = f"{amount}, {amount}, Path({str(tmp_path)!r})"
    code = f"from pathlib import Path\nfrom tests.trust.test_ckks_messages import feed\nfeed({arguments})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fed {amount}\n", "")


def keys_spoiled() -> Iterator[bytes]:
    draw = random.Random(3)
    for _ in range(100):
        data = bytearray(COHORT.secret_key)
        at = draw.randrange(150) if draw.random() < 0.5 else draw.randrange(len(data))
        data[at] ^= draw.randrange(1, 256)
        yield bytes(data)


def test_a_spoiled_key_is_refused_by_an_error_that_does_not_show_it() -> None:
    for key in (*keys_spoiled(), COHORT.secret_key[:-1], ckks.generate_key()):
        with pytest.raises(KeyMissing) as refused:
            ckks.open_sum(BytesIO(TOTAL), COHORT.order, key)
        told = repr(refused.value)
        shown = re.findall("[0-9a-f]{16}", told)
        assert set(shown) <= {COHORT.order.key[:16], key_name(key)[:16]} and len(told) < 200


def test_an_error_about_a_sum_does_not_show_values() -> None:
    with pytest.raises(ChecksumMismatch) as refused:
        COHORT.open(total_of(COHORT, weighted(3, 0, 0)))
    assert str(refused.value) == f"vector 0 is not the sum of the whole cohort for order {COHORT.order.digest()[:16]}…"
