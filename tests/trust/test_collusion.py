"""The aggregator together with owners, who bring the HE key, their agreement keys, all ciphertexts and all revealed self-masks.

What colluders can compute about an honest owner k is written here from the papers, not taken from the package:
    w_k = Dec(ct_k) - PRG(b_k) - (masks that k shares with colluders)   mod t.
With two honest owners left, w_k is still hidden by the mask that only these two share; what the colluders do learn is their
sum, by taking their own updates off the opened one, and no protocol for sums can prevent that.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from scipy.stats import chi2_contingency, chisquare

from fl_privacy.encryption import agreement, cipher, packing, secret_sum
from fl_privacy.encryption.masks import derive_seed, uniform
from fl_privacy.encryption.packing import DATA, DEGREE, Words, coordinates_per_block, unpack
from fl_privacy.encryption.quantise import dequantise_sum
from fl_privacy.errors import ChecksumMismatch, CiphertextInvalid, CohortMismatch
from fl_privacy.parameters import Vector
from tests.secure_cohort import SecureCohort, make_cohort

BLOCKS = 10  # enough coefficients for a histogram of 256 bins
IMPLAUSIBLE = 1e-6  # a p-value below this is not chance
HEADER = 48  # kind 8, order 32, position 4, blocks 4


def unmasked(cohort: SecureCohort, blob: bytes, owner: str, colluders: Collection[str], revealed: bool) -> Words:
    """w_k, shape (blocks, 4096): an owner's plaintext after colluders have taken off every mask that they know."""
    digest, words = cohort.order.digest(), np.asarray(cohort.coefficients_of(blob), np.uint64)
    for block in range(len(words)):  # modulo 2**64, of which t is a divisor
        if revealed:
            words[block] -= uniform(derive_seed(cohort.seeds[owner], "self-mask", digest, owner), block, DEGREE)
        for colluder in colluders:
            mask = uniform(shared_seed(cohort, colluder, owner), block, DEGREE)
            words[block] += mask if colluder < owner else -mask
    return reduced(words, cohort)


def reduced(words: Words, cohort: SecureCohort) -> Words:
    """Modulo t = 2**b."""
    return words & cipher.modulo(cohort.order.encoding.modulus_bits)


def shared_seed(cohort: SecureCohort, colluder: str, owner: str) -> bytes:
    """The seed of the mask between two owners, from the first one's private and the other's public key."""
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(cohort.registry.card(owner).agreement_key))
    shared = cohort.identities[colluder].agreement_key.exchange(public)
    return derive_seed(shared, "mask", cohort.order.digest(), *sorted((owner, colluder)))


def histograms(words: Words, cohort: SecureCohort) -> list[np.ndarray]:
    """Counts over 256 parts of Z_t, by the highest and by the lowest bits."""
    flat, high = words.ravel(), np.uint64(cohort.order.encoding.modulus_bits - 8)
    return [np.bincount(part.astype(np.int64), minlength=256) for part in (flat >> high, flat & np.uint64(255))]


def is_uniform(words: Words, cohort: SecureCohort) -> bool:
    return all(chisquare(counts).pvalue > IMPLAUSIBLE for counts in histograms(words, cohort))


def big_cohort(size: int) -> SecureCohort:
    """An order whose updates fill BLOCKS ciphertexts."""
    return make_cohort(size, BLOCKS * coordinates_per_block(make_cohort(size).order.encoding))


def extremes(cohort: SecureCohort) -> list[list[Vector]]:
    """Two sets of updates as different as can be: all coordinates at the bottom of the range, and all at its top."""
    size = cohort.order.tensors[0].shape[0]
    return [[np.full(size, value, np.float32)] * len(cohort.owners) for value in (-1e9, 1e9)]


def as_sum(coefficients: Words, cohort: SecureCohort, owners: int) -> Vector:
    """Coefficients without any mask as the sum of so many weighted updates."""
    fields = np.concatenate([unpack(block[:DATA], cohort.order.encoding) for block in coefficients])
    return dequantise_sum(fields[: cohort.order.tensors[0].shape[0]], cohort.order.encoding, owners)


def step_of(cohort: SecureCohort) -> float:
    """What one unit of a field stands for; a quantised coordinate is off by less than that."""
    return float(cohort.order.encoding.value_range / (2 ** (cohort.order.encoding.value_bits - 1) - 1))


@pytest.mark.parametrize(("size", "colluding"), [(3, 1), (5, 1), (5, 3)], ids=["1 of 3", "1 of 5", "K-2 of 5"])
def test_colluders_see_uniform_noise_in_every_single_update_whatever_it_is(size: int, colluding: int) -> None:
    cohort = big_cohort(size)
    colluders, honest = cohort.owners[:colluding], cohort.owners[colluding:]
    for victim in honest:
        seen = []
        for attempt, updates in enumerate(extremes(cohort)):
            order = cohort.ordering(attempt=attempt)
            blob = order.protect(victim, updates[0])
            coefficients = unmasked(order, blob, victim, colluders, revealed=True)
            assert is_uniform(coefficients, cohort)
            seen.append(histograms(coefficients, cohort))
        for first, second in zip(*seen, strict=True):
            assert chi2_contingency([first, second]).pvalue > IMPLAUSIBLE


def test_what_two_honest_owners_cannot_hide_is_their_sum() -> None:
    """Unavoidable in any protocol that gives out sums: K - 2 colluders take their own updates off the opened one."""
    cohort = make_cohort(5, 300)
    updates, colluders, honest = cohort.updates(), cohort.owners[:3], cohort.owners[3:]
    blobs = dict(zip(cohort.owners, cohort.protect_all(updates), strict=True))
    coefficients = [unmasked(cohort, blobs[owner], owner, colluders, revealed=True) for owner in honest]
    found = as_sum(reduced(sum(coefficients), cohort), cohort, 2)
    np.testing.assert_allclose(found, (updates[3] + updates[4]) / 5, atol=2 * step_of(cohort))

    opened = cohort.open(cohort.add(list(blobs.values())))
    coefficients = [unmasked(cohort, blobs[owner], owner, set(cohort.owners) - {owner}, revealed=True) for owner in colluders]
    own = as_sum(reduced(sum(coefficients), cohort), cohort, 3)
    np.testing.assert_allclose(opened - own, found, atol=1e-6)


def test_k_minus_1_colluders_read_the_last_owners_update() -> None:
    """The limit of the protocol, stated: with one honest owner only the noise of DP-SGD in its update is left."""
    cohort = make_cohort(4, 300)
    update, victim = cohort.updates()[3], cohort.owners[3]
    coefficients = unmasked(cohort, cohort.protect(victim, update), victim, cohort.owners[:3], revealed=True)
    assert not is_uniform(coefficients, cohort)
    np.testing.assert_allclose(as_sum(coefficients, cohort, 1), update / 4, atol=step_of(cohort))


def test_before_the_reveal_even_k_minus_1_colluders_see_uniform_noise() -> None:
    """Option R: of an attempt that was never closed nobody learns anything, since its self-masks are never revealed."""
    cohort = big_cohort(3)
    for attempt, updates in enumerate(extremes(cohort)):
        order = cohort.ordering(attempt=attempt)
        blob = order.protect(cohort.owners[2], updates[2])
        assert is_uniform(unmasked(order, blob, cohort.owners[2], cohort.owners[:2], revealed=False), cohort)


def test_an_agreement_key_that_leaks_later_opens_past_updates_but_no_attempt_that_was_never_closed() -> None:
    """No forward secrecy, stated: a recorded round, the HE key and one owner's X25519 key of that time give its update."""
    cohort = big_cohort(3)
    update, victim, peers = cohort.updates()[1], cohort.owners[1], (cohort.owners[0], cohort.owners[2])
    blob = cohort.protect(victim, update)

    def with_the_victims_key(revealed: bool) -> Words:
        words = unmasked(cohort, blob, victim, (), revealed)
        for block, peer in itertools.product(range(len(words)), peers):
            mask = uniform(shared_seed(cohort, victim, peer), block, DEGREE)
            words[block] += mask if peer < victim else -mask
        return reduced(words, cohort)

    np.testing.assert_allclose(as_sum(with_the_victims_key(revealed=True), cohort, 1), update / 3, atol=step_of(cohort))
    assert is_uniform(with_the_victims_key(revealed=False), cohort)


def test_an_owner_that_changes_its_code_moves_the_sum_by_up_to_its_whole_range_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of the checks, stated: they prove who took part, not that an update is one. K times an honest owner's
    range is the most; what goes beyond it is found."""
    cohort = make_cohort(3, 300)
    nothing, top = np.zeros(300, np.float32), 2 ** (cohort.order.encoding.value_bits - 1) - 1
    honest = [cohort.protect(owner, nothing) for owner in cohort.owners[:2]]
    for extra, passes in ((4 * top, True), (5 * top, False)):
        monkeypatch.setattr(secret_sum, "quantise", lambda values, *_, extra=extra: np.full(values.size, extra, np.uint16))
        forged_sum = cohort.add([*honest, cohort.protect(cohort.owners[2], nothing)])
        if passes:
            np.testing.assert_allclose(cohort.open(forged_sum), 3 * cohort.order.encoding.value_range, atol=2 * step_of(cohort))
        else:
            with pytest.raises(ChecksumMismatch):
                cohort.open(forged_sum)


def test_a_faked_dropout_gives_no_second_sum_to_take_a_difference_from() -> None:
    """All delivered, but the aggregator and one owner say that one did not; a second attempt with the same updates is opened.

    Of the first attempt they have every ciphertext and the HE key. Pairwise masks cancel in the sum of all; it is uniform all
    the same, and so is every other sum, because no self-mask of that attempt was revealed."""
    cohort = big_cohort(4)
    updates = extremes(cohort)[1]
    coefficients = [cohort.coefficients_of(blob) for blob in cohort.protect_all(updates)]
    for included in (coefficients, coefficients[:3], coefficients[1:]):
        assert is_uniform(reduced(sum(included), cohort), cohort)
    fresh = {owner: secrets.token_bytes(32) for owner in cohort.owners}
    second = replace(cohort.ordering(attempt=1), seeds=fresh)
    second.open(second.total(updates))


COHORT = make_cohort(3, 45_000)
UPDATES = COHORT.protect_all(COHORT.updates())
TOTAL = COHORT.add(UPDATES)
C0, SEED = packing.POLYNOMIAL_BYTES, packing.SEED_BYTES


def forged(combine: Callable[[list[bytes]], bytes]) -> bytes:
    """A total made of what ``combine`` makes of each block of the three updates, under the header of the true one."""
    size = C0 + SEED
    bodies = [blob[HEADER:] for blob in UPDATES]
    blocks = [[body[at : at + size] for body in bodies] for at in range(0, len(bodies[0]), size)]
    return TOTAL[:HEADER] + b"".join(combine(block) for block in blocks)


def times(factor: int, c0: bytes) -> bytes:
    coefficients = cipher.unpack_coefficients(c0)
    total = np.zeros_like(coefficients)
    for _ in range(factor):
        cipher.add_coefficients(total, coefficients)
    return cipher.pack_coefficients(total)


def swapped(total: bytes) -> bytes:
    """The first two ciphertexts of a total in each other's place."""
    size = C0 + 3 * SEED
    first, second, rest = total[HEADER : HEADER + size], total[HEADER + size : HEADER + 2 * size], total[HEADER + 2 * size :]
    return total[:HEADER] + second + first + rest


SINGLE: Mapping[str, bytes] = {
    "one update, its seed three times": forged(lambda blocks: blocks[0] + 2 * blocks[0][C0:]),
    "one update, with the seeds of all": forged(lambda blocks: blocks[0] + blocks[1][C0:] + blocks[2][C0:]),
    "three copies of one update": forged(lambda blocks: times(3, blocks[0][:C0]) + 3 * blocks[0][C0:]),
    "two copies and another": forged(lambda blocks: times(2, blocks[0][:C0]) + 2 * blocks[0][C0:] + blocks[1][C0:]),
    "the whole sum, scaled by four": forged(lambda _: b"")
    + b"".join(
        times(4, TOTAL[at : at + C0]) + TOTAL[at + C0 : at + C0 + 3 * SEED] for at in range(HEADER, len(TOTAL), C0 + 3 * SEED)
    ),
    "blocks of the sum swapped": swapped(TOTAL),
    "zeros": forged(lambda blocks: bytes(C0) + b"".join(block[C0:] for block in blocks)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_owner_opens_nothing_but_the_sum_of_all(name: str) -> None:
    """A malicious aggregator shows owners something else than the sum; even if all signed it, the checks do not fit."""
    COHORT.open(TOTAL)
    with pytest.raises(ChecksumMismatch):
        COHORT.open(SINGLE[name])


def test_a_container_of_an_update_or_of_another_order_is_not_a_total() -> None:
    for container in (UPDATES[0], TOTAL[:8] + bytes(32) + TOTAL[40:], COHORT.ordering(attempt=1).total(COHORT.updates())):
        with pytest.raises(CiphertextInvalid):
            COHORT.open(container)


def test_blocks_of_one_update_in_another_order_do_not_open() -> None:
    """Inside one owner's ciphertext: its masks belong to their places."""
    size = C0 + SEED
    body = UPDATES[1][HEADER:]
    moved = UPDATES[1][:HEADER] + body[size : 2 * size] + body[:size] + body[2 * size :]
    with pytest.raises(ChecksumMismatch):
        COHORT.open(COHORT.add([UPDATES[0], moved, UPDATES[2]]))


def test_an_owner_that_sends_anothers_ciphertext_as_its_own_is_found() -> None:
    """A copy under another name: refused by what was signed, and if that were not checked, by the checks."""
    copied = [UPDATES[0], UPDATES[0][:40] + (1).to_bytes(4, "little") + UPDATES[0][44:], UPDATES[2]]
    with pytest.raises(ChecksumMismatch):
        COHORT.open(COHORT.add(copied))
    with pytest.raises(CohortMismatch, match="the same ciphertext"):
        agreement.verify_receipts(COHORT.order, COHORT.receipts([UPDATES[0], UPDATES[0], UPDATES[2]]), COHORT.registry)


def test_an_update_of_another_order_does_not_open_under_this_ones_name() -> None:
    earlier = COHORT.ordering(attempt=1)
    replayed = earlier.protect(COHORT.owners[0], COHORT.updates()[0])
    relabelled = replayed[:8] + bytes.fromhex(COHORT.order.digest()) + replayed[40:]
    with pytest.raises(CiphertextInvalid):
        COHORT.add([replayed, *UPDATES[1:]])
    with pytest.raises(ChecksumMismatch):
        COHORT.open(COHORT.add([relabelled, *UPDATES[1:]]))
