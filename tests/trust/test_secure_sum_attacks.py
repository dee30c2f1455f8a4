"""What an aggregator, a curious owner, or both together try on the secure sum."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import tenseal.sealapi as seal
from scipy.stats import chi2_contingency, chisquare

from fl_privacy.encryption import cipher
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.keys import generate_secret_key
from fl_privacy.encryption.packing import DATA_SLOTS
from fl_privacy.encryption.secret_sum import open_sum
from fl_privacy.errors import ChecksumMismatch, CiphertextInvalid, CohortMismatch, EncryptionError, FlPrivacyError, KeyMissing
from tests.secure_cohort import SecureCohort, make_cohort

HEADER = 48  # kind 8, order 32, position 4, blocks 4
COHORT = make_cohort(3, 300)
BLOBS = COHORT.protect_all(COHORT.updates())
TOTAL = add_updates(BLOBS, COHORT.order)
OPENED = COHORT.open(TOTAL)


def at_position(blob: bytes, position: int) -> bytes:
    return blob[:40] + position.to_bytes(4, "little") + blob[44:]


def relabelled(blob: bytes, cohort: SecureCohort) -> bytes:
    """The same ciphertexts under another order's digest, as a lying relay would send them."""
    return blob[:8] + bytes.fromhex(cohort.order.digest()) + blob[40:]


def calculated(first: bytes, change: Callable[[seal.Evaluator, seal.Ciphertext], None]) -> bytes:
    """A total on which the aggregator has calculated; BFV needs no key for that."""
    bits = COHORT.order.encoding.modulus_bits
    ciphertext = cipher.load_block(first[HEADER:], cipher.TOTAL, bits)
    change(seal.Evaluator(cipher.context(bits)), ciphertext)
    return first[:HEADER] + cipher.save_total(ciphertext, bits)


def test_an_update_twice_or_not_at_all_is_refused() -> None:
    for blobs in ([], BLOBS[:2], [*BLOBS, BLOBS[0]], [BLOBS[0], BLOBS[0], BLOBS[1]], [*BLOBS[:2], at_position(BLOBS[2], 3)]):
        with pytest.raises(CohortMismatch):
            add_updates(blobs, COHORT.order)


def test_a_partial_or_doubled_sum_does_not_open() -> None:
    """The aggregator forges positions: a missing owner's masks do not cancel, and the check slots come out at random."""
    doubled = [BLOBS[0], BLOBS[1], at_position(BLOBS[1], 2)]
    thrice = [BLOBS[0], at_position(BLOBS[0], 1), at_position(BLOBS[0], 2)]
    for blobs in (doubled, thrice):
        with pytest.raises(ChecksumMismatch):
            COHORT.open(add_updates(blobs, COHORT.order))


def test_a_single_update_presented_as_the_sum_does_not_open() -> None:
    block = BLOBS[0][HEADER:]
    bits = COHORT.order.encoding.modulus_bits
    full = cipher.save_total(cipher.load_block(block, cipher.UPDATE, bits), bits)
    with pytest.raises(ChecksumMismatch):
        COHORT.open(TOTAL[:HEADER] + full)


def test_scaled_and_cancelled_sums_do_not_open() -> None:
    other_key = cipher.load_block(make_cohort(3, 300).total(COHORT.updates())[HEADER:], cipher.TOTAL, 51)
    changes: list[Callable[[seal.Evaluator, seal.Ciphertext], None]] = [
        lambda evaluator, total: evaluator.negate_inplace(total),
        lambda evaluator, total: evaluator.add_inplace(total, cipher.load_block(TOTAL[HEADER:], cipher.TOTAL, 51)),
        lambda evaluator, total: evaluator.add_plain_inplace(total, seal.Plaintext("1")),
        lambda evaluator, total: evaluator.multiply_plain_inplace(total, seal.Plaintext("2")),
        lambda evaluator, total: evaluator.add_inplace(total, other_key),
    ]
    for change in changes:
        with pytest.raises(ChecksumMismatch):
            COHORT.open(calculated(TOTAL, change))


def test_blocks_out_of_place_do_not_open() -> None:
    cohort = make_cohort(3, 45_000)
    total = cohort.total(cohort.updates())
    first, second, third = (total[HEADER + at * 61_440 : HEADER + (at + 1) * 61_440] for at in range(3))
    cohort.open(total)
    for blocks in ((second, first, third), (first, first, third)):
        with pytest.raises(ChecksumMismatch):
            cohort.open(total[:HEADER] + b"".join(blocks))


@pytest.mark.parametrize(
    "change", [{"attempt": 1}, {"round": 1}, {"model": "0" * 64}, {"code": "1" * 64}, {"weights": (1, 2, 3)}]
)
def test_ciphertexts_of_another_order_are_of_no_use(change: dict[str, object]) -> None:
    """An old total, or an old update among new ones: refused by its label; when relabelled, it does not open."""
    later = COHORT.ordering(**change)
    fresh = later.protect_all(later.updates())
    for replay in (lambda: add_updates([BLOBS[0], *fresh[1:]], later.order), lambda: later.open(TOTAL)):
        with pytest.raises(CiphertextInvalid):
            replay()
    with pytest.raises(ChecksumMismatch):
        later.open(add_updates([relabelled(BLOBS[0], later), *fresh[1:]], later.order))
    with pytest.raises(ChecksumMismatch):
        later.open(relabelled(TOTAL, later))


def test_owners_who_were_given_different_models_do_not_sum() -> None:
    """Pasquini et al. 2022: another model for the victim isolates its update; here masks are bound to the model."""
    victim = COHORT.ordering(model="0" * 64)
    blob = victim.protect("owner-02", victim.updates()[2])
    with pytest.raises(CiphertextInvalid):
        add_updates([*BLOBS[:2], blob], COHORT.order)
    with pytest.raises(ChecksumMismatch):
        COHORT.open(add_updates([*BLOBS[:2], relabelled(blob, COHORT)], COHORT.order))


def test_a_key_holder_sees_noise_in_a_single_update() -> None:
    """Aggregator and owner together decrypt one masked update: uniform on Z_t, whether all fields are zero or at the top."""
    cohort = make_cohort(3, 10 * 20_470)
    modulus = cipher.plain_modulus(cohort.order.encoding.modulus_bits)
    histograms = []
    for value in (0.0, 1e9, -1e9):
        slots = cohort.slots_of(cohort.protect("owner-01", np.full(10 * 20_470, value, np.float32))).ravel()
        parts = np.bincount((slots.astype(np.float64) * 256 / modulus).astype(np.int64), minlength=256)
        low = np.bincount((slots % np.uint64(256)).astype(np.int64), minlength=256)
        assert chisquare(parts).pvalue > 1e-6 and chisquare(low).pvalue > 1e-6
        cohort = cohort.ordering(attempt=cohort.order.attempt + 1)
        histograms.append(parts)
    assert chi2_contingency(histograms).pvalue > 1e-6


def test_without_masks_a_key_holder_would_see_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with the masks taken away the same histogram is far from uniform."""
    monkeypatch.setattr("fl_privacy.encryption.masks.PairwiseMask.take", lambda self, count: np.zeros(count, np.uint64))
    slots = COHORT.slots_of(COHORT.protect("owner-01", np.zeros(300, np.float32)))[:, :60]
    assert len(np.unique(slots)) == 1


def test_the_check_slots_do_not_show_in_a_single_update() -> None:
    blobs = [COHORT.ordering(attempt=attempt) for attempt in range(2)]
    checks = [order.slots_of(order.protect("owner-00", order.updates()[0]))[:, DATA_SLOTS:].tolist() for order in blobs]
    assert checks[0] != checks[1]


def test_a_wrong_key_does_not_open() -> None:
    for key in (generate_secret_key(), make_cohort(3).secret_key):
        with pytest.raises(ChecksumMismatch):
            open_sum(TOTAL, COHORT.order, key)
    with pytest.raises(KeyMissing):
        open_sum(TOTAL, COHORT.order, b"")


def test_errors_do_not_show_keys() -> None:
    key = generate_secret_key()
    for secret in (key, key[:-5]):
        with pytest.raises(EncryptionError) as refused:
            open_sum(TOTAL, COHORT.order, secret)
        for text in (str(refused.value), repr(refused.value)):
            assert key[8:16].hex() not in text and str(list(key[8:16])) not in text and len(text) < 300


def test_the_scientists_half_loads_no_key_code() -> None:
    """In a fresh interpreter: adding must not even import what makes, opens or uses secret keys."""
    code = (
        "import sys, fl_privacy.encryption.blind_sum\n"
        "loaded = {'keys', 'secret_sum', 'masks', 'quantise'} & {name.rsplit('.')[-1] for name in sys.modules"
        " if name.startswith('fl_privacy.')}\n"
        "print(sorted(loaded))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def mutations(blob: bytes, amount: int) -> Iterator[bytes]:
    """Bytes flipped, runs overwritten, pieces cut out or repeated; half of them near the header."""
    draw = np.random.default_rng(len(blob))
    for number in range(amount):
        damaged = bytearray(blob)
        at = int(draw.integers(HEADER + 16 if number % 2 else len(blob)))
        length = int(draw.integers(1, 40))
        match number % 5:
            case 0 | 1:
                damaged[at] ^= int(draw.integers(1, 256))
            case 2:
                damaged[at : at + length] = draw.bytes(min(length, len(blob) - at))
            case 3:
                del damaged[at : at + length]
            case 4:
                damaged[at:at] = damaged[at : at + length]
        yield bytes(damaged)


def test_mutated_updates_end_in_typed_errors_or_in_the_right_sum() -> None:
    """A flip in the lowest bits of a coefficient is swallowed by the noise margin; nothing else may pass."""
    refused = 0
    for damaged in mutations(BLOBS[1], 300):
        try:
            opened = COHORT.open(add_updates([BLOBS[0], damaged, BLOBS[2]], COHORT.order))
        except EncryptionError:
            refused += 1
        else:
            assert opened.tobytes() == OPENED.tobytes()
    assert refused > 270


def test_mutated_totals_end_in_typed_errors_or_in_the_right_sum() -> None:
    refused = 0
    for damaged in mutations(TOTAL, 300):
        try:
            opened = COHORT.open(damaged)
        except EncryptionError:
            refused += 1
        else:
            assert opened.tobytes() == OPENED.tobytes()
    assert refused > 270


def test_hostile_bytes_are_refused_before_seal_loads_them() -> None:
    draw = np.random.default_rng(4)
    claims = [b"", b"\0" * 48, BLOBS[0][:HEADER] + b"\xff" * (len(BLOBS[0]) - HEADER), TOTAL, draw.bytes(len(BLOBS[0]))]
    huge = BLOBS[0][:44] + b"\xff\xff\xff\xff" + BLOBS[0][48:]
    for hostile in (*claims, huge):
        with pytest.raises(CiphertextInvalid):
            add_updates([hostile, *BLOBS[1:]], COHORT.order)
        with pytest.raises(FlPrivacyError):
            COHORT.open(hostile if hostile != TOTAL else BLOBS[0])
