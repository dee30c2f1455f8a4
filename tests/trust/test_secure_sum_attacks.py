"""What an aggregator, a curious owner, or both together try on the secure sum."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import tenseal.sealapi as seal
from scipy.stats import chi2_contingency, chisquare

from fl_privacy.encryption import cipher, secret_sum
from fl_privacy.encryption.keys import generate_secret_key, key_name, load_secret_key
from fl_privacy.encryption.masks import Mask, PairwiseMask
from fl_privacy.encryption.packing import DATA, Words
from fl_privacy.encryption.secret_sum import open_sum
from fl_privacy.errors import ChecksumMismatch, CiphertextInvalid, CohortMismatch, EncryptionError, FlPrivacyError, KeyMissing
from tests.secure_cohort import SecureCohort, make_cohort

HEADER = 48  # kind 8, order 32, position 4, blocks 4
COHORT = make_cohort(3, 300)
BLOBS = COHORT.protect_all(COHORT.updates())
TOTAL = COHORT.add(BLOBS)
OPENED = COHORT.open(TOTAL)


def at_position(blob: bytes, position: int) -> bytes:
    return blob[:40] + position.to_bytes(4, "little") + blob[44:]


def relabelled(blob: bytes, cohort: SecureCohort) -> bytes:
    """The same ciphertexts under another order's digest, as a lying relay would send them."""
    return blob[:8] + bytes.fromhex(cohort.order.digest()) + blob[40:]


def parts(total: bytes = TOTAL) -> tuple[Words, list[bytes]]:
    """c0 and the owners' seeds of a total of one block."""
    return cipher.split_block(total[HEADER:])


def composed(c0: Words, seeds: list[bytes]) -> bytes:
    """A total on which the aggregator has calculated; it needs no key for that."""
    reduced = (c0.astype(object) % cipher.coeff_modulus()).astype(np.uint64)
    return TOTAL[:HEADER] + cipher.pack_coefficients(reduced) + b"".join(seeds)


def test_an_update_twice_or_not_at_all_is_refused() -> None:
    for blobs in ([], BLOBS[:2], [*BLOBS, BLOBS[0]], [BLOBS[0], BLOBS[0], BLOBS[1]], [*BLOBS[:2], at_position(BLOBS[2], 3)]):
        with pytest.raises(CohortMismatch):
            COHORT.add(blobs)


def test_a_partial_or_doubled_sum_does_not_open() -> None:
    """The aggregator forges positions: a missing owner's masks do not cancel, and the checks come out at random."""
    doubled = [BLOBS[0], BLOBS[1], at_position(BLOBS[1], 2)]
    thrice = [BLOBS[0], at_position(BLOBS[0], 1), at_position(BLOBS[0], 2)]
    for blobs in (doubled, thrice):
        with pytest.raises(ChecksumMismatch):
            COHORT.open(COHORT.add(blobs))


def test_a_single_update_presented_as_the_sum_does_not_open() -> None:
    c0, (seed,) = parts(BLOBS[0])
    with pytest.raises(CiphertextInvalid):
        COHORT.open(TOTAL[:HEADER] + BLOBS[0][HEADER:])
    for seeds in ([seed, bytes(64), bytes(64)], [seed, seed, seed]):
        with pytest.raises(ChecksumMismatch):
            COHORT.open(composed(c0, seeds))


def test_scaled_and_cancelled_sums_do_not_open() -> None:
    """c0 can be calculated with, but c1 is what the three seeds expand to, so nothing else fits it."""
    c0, seeds = parts()
    other_key, other_seeds = parts(make_cohort(3, 300).total(COHORT.updates()))
    one = cipher.coeff_modulus() // (1 << COHORT.order.encoding.modulus_bits)
    changed = c0.astype(object)
    for wrong in (-changed, 2 * changed, changed + other_key.astype(object), changed + np.eye(1, 4096, dtype=object)[0] * one):
        with pytest.raises(ChecksumMismatch):
            COHORT.open(composed(wrong, seeds))
    for wrong_seeds in (seeds[:2] * 2, [seeds[0], *other_seeds[:2]], other_seeds):
        with pytest.raises((ChecksumMismatch, CiphertextInvalid)):
            COHORT.open(composed(c0, wrong_seeds))


@pytest.mark.parametrize("place", [0, 1, 2048, 4095])
def test_noise_beyond_the_margin_is_found_wherever_it_is(place: int) -> None:
    """A wrong coefficient spoils all coefficients, so no noise overflow passes the checks."""
    bits = COHORT.order.encoding.modulus_bits
    c0, seeds = parts()
    edge = cipher.coeff_modulus() // (2 * (1 << bits))
    for excess in (edge + 70, -edge - 70, 3 * edge):
        noisy = c0.astype(object)
        noisy[place] += excess
        with pytest.raises(ChecksumMismatch):
            COHORT.open(composed(noisy, seeds))
    quiet = c0.astype(object)
    quiet[place] += edge - 70
    assert COHORT.open(composed(quiet, seeds)).tobytes() == OPENED.tobytes()


def test_the_noise_of_too_many_ciphertexts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encryptions of zero leave the sum what it is and add their noise. Squeezed into a modulus with little room they overflow.

    The encoding of 85 owners at 3 bits leaves 8.5 deviations; 85 * 20 further encryptions of zero leave less than two, which
    one of 4096 coefficients passes with certainty.
    """
    cohort = make_cohort(85, 10, 3)
    bits = cohort.order.encoding.modulus_bits
    chain = cipher.context(bits)
    total = cohort.total(cohort.updates())
    encryptor, zeros = seal.Encryptor(chain, load_secret_key(cohort.secret_key, bits)), seal.Ciphertext()
    evaluator, extra = seal.Evaluator(chain), seal.Ciphertext()
    encryptor.encrypt_zero_symmetric(zeros)
    for _ in range(85 * 20):
        encryptor.encrypt_zero_symmetric(extra)
        evaluator.add_inplace(zeros, extra)
    load, noisy = cipher.load_block, []

    def with_noise(block: bytes, modulus_bits: int, scratch: cipher.Scratch) -> seal.Ciphertext:
        loaded = load(block, modulus_bits, scratch)
        if noisy:
            evaluator.add_inplace(loaded, zeros)
        return loaded

    monkeypatch.setattr(cipher, "load_block", with_noise)
    cohort.open(total)
    noisy.append(True)
    with pytest.raises(ChecksumMismatch):
        cohort.open(total)


def test_the_noise_of_scaled_ciphertexts_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times 3, then times 1/3 modulo t: the coefficients would be the same, but the noise has been multiplied by t."""
    load, bits = cipher.load_block, COHORT.order.encoding.modulus_bits
    modulus = 1 << bits

    def scaled(block: bytes, modulus_bits: int, scratch: cipher.Scratch) -> seal.Ciphertext:
        loaded = load(block, modulus_bits, scratch)
        for factor in (3, pow(3, -1, modulus)):
            seal.Evaluator(cipher.context(bits)).multiply_plain_inplace(loaded, seal.Plaintext(f"{factor:x}"))
        return loaded

    monkeypatch.setattr(cipher, "load_block", scaled)
    with pytest.raises(ChecksumMismatch):
        COHORT.open(TOTAL)


@pytest.mark.parametrize("wrong", ["missing", "another", "swapped", "zero"])
def test_without_every_self_mask_even_the_whole_sum_stays_hidden(wrong: str) -> None:
    """What is left then is uniform, so the checks come out at random."""
    seeds = [COHORT.seeds[owner] for owner in COHORT.owners]
    for place in range(3):
        given = list(seeds)
        match wrong:
            case "missing":
                del given[place]
            case "another":
                given[place] = generate_secret_key()[-32:]
            case "swapped":
                given[place - 1], given[place] = given[place], given[place - 1]
            case "zero":
                given[place] = bytes(32)
        with pytest.raises(CohortMismatch if wrong == "missing" else ChecksumMismatch):
            open_sum(BytesIO(TOTAL), COHORT.order, COHORT.secret_key, given)


def test_blocks_out_of_place_do_not_open() -> None:
    cohort = make_cohort(3, 45_000)
    total = cohort.total(cohort.updates())
    size = cipher.Kind.TOTAL.block_bytes(cohort.order)
    first, second, third = (total[HEADER + at * size : HEADER + (at + 1) * size] for at in range(3))
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
    for replay in (lambda: later.add([BLOBS[0], *fresh[1:]]), lambda: later.open(TOTAL)):
        with pytest.raises(CiphertextInvalid):
            replay()
    with pytest.raises(ChecksumMismatch):
        later.open(later.add([relabelled(BLOBS[0], later), *fresh[1:]]))
    with pytest.raises(ChecksumMismatch):
        later.open(relabelled(TOTAL, later))


def test_owners_who_were_given_different_models_do_not_sum() -> None:
    """Pasquini et al. 2022: another model for the victim isolates its update; here masks are bound to the model."""
    victim = COHORT.ordering(model="0" * 64)
    blob = victim.protect("owner-02", victim.updates()[2])
    with pytest.raises(CiphertextInvalid):
        COHORT.add([*BLOBS[:2], blob])
    with pytest.raises(ChecksumMismatch):
        COHORT.open(COHORT.add([*BLOBS[:2], relabelled(blob, COHORT)]))


def test_a_key_holder_sees_noise_in_a_single_update() -> None:
    """Aggregator and owner together decrypt one masked update: uniform on Z_t, whether all fields are zero or at the top."""
    cohort = make_cohort(3, 10 * 20_470)
    modulus = 1 << cohort.order.encoding.modulus_bits
    histograms = []
    for value in (0.0, 1e9, -1e9):
        coefficients = cohort.coefficients_of(cohort.protect("owner-01", np.full(10 * 20_470, value, np.float32))).ravel()
        parts = np.bincount((coefficients.astype(np.float64) * 256 / modulus).astype(np.int64), minlength=256)
        low = np.bincount((coefficients % np.uint64(256)).astype(np.int64), minlength=256)
        assert chisquare(parts).pvalue > 1e-6 and chisquare(low).pvalue > 1e-6
        cohort = cohort.ordering(attempt=cohort.order.attempt + 1)
        histograms.append(parts)
    assert chi2_contingency(histograms).pvalue > 1e-6


def test_without_masks_a_key_holder_would_see_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: with the masks taken away the same histogram is far from uniform. Either mask alone hides it."""
    nothing = lambda self, index: np.zeros(4096, np.uint64)  # noqa: E731
    for removed, values in ((["pairwise"], 60), (["own"], 60), (["pairwise", "own"], 1)):
        with monkeypatch.context() as patch:
            if "pairwise" in removed:
                patch.setattr(secret_sum, "PairwiseMask", type("NoPairwise", (PairwiseMask,), {"block": nothing}))
            if "own" in removed:
                patch.setattr(secret_sum, "Mask", type("NoSelfMask", (Mask,), {"block": nothing}))
            blob = COHORT.protect("owner-01", np.zeros(300, np.float32))
            coefficients = COHORT.coefficients_of(blob)[:, :60]
        assert len(np.unique(coefficients)) == values


def test_the_checks_do_not_show_in_a_single_update() -> None:
    blobs = [COHORT.ordering(attempt=attempt) for attempt in range(2)]
    checks = [order.coefficients_of(order.protect("owner-00", order.updates()[0]))[:, DATA:].tolist() for order in blobs]
    assert checks[0] != checks[1]


def test_a_wrong_key_does_not_open() -> None:
    for key in (generate_secret_key(), make_cohort(3).secret_key, b""):
        with pytest.raises(KeyMissing):
            replace(COHORT, secret_key=key).open(TOTAL)


def test_a_total_made_with_another_key_does_not_open() -> None:
    """The order names the opener's key, but one owner, or all, encrypted with another."""
    other = replace(COHORT, secret_key=generate_secret_key()).ordering()
    other = other.ordering(key=key_name(other.secret_key))
    theirs = [relabelled(blob, COHORT) for blob in other.protect_all(other.updates())]
    for blobs in (theirs, [*BLOBS[:2], theirs[2]]):
        with pytest.raises(ChecksumMismatch):
            COHORT.open(COHORT.add(blobs))


def test_errors_do_not_show_keys() -> None:
    key = generate_secret_key()
    for secret in (key, key[:-5]):
        with pytest.raises(EncryptionError) as refused:
            replace(COHORT, secret_key=secret).open(TOTAL)
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
            opened = COHORT.open(COHORT.add([BLOBS[0], damaged, BLOBS[2]]))
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
            COHORT.add([hostile, *BLOBS[1:]])
        with pytest.raises(FlPrivacyError):
            COHORT.open(hostile if hostile != TOTAL else BLOBS[0])
