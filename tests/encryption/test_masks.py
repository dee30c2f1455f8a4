"""Pairwise masks: they cancel over a whole cohort, are uniform otherwise, and follow a public recipe."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chisquare

from fl_privacy.encryption.cipher import plain_modulus
from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.masks import PairwiseMask, UniformStream, derive_seed
from fl_privacy.encryption.packing import Slots
from fl_privacy.encryption.registry import OwnerCard, Registry
from fl_privacy.errors import CohortMismatch, EncryptionError
from tests.secure_cohort import SecureCohort, make_cohort

T = plain_modulus(51)
KNOWN_SEED = "57dbd10b780f9642058ecadc9b3f0a52e36f1a800a0271ae3bb832dfb5208c46"  # also by a textbook ladder, HKDF and openssl
KNOWN_VALUES = [2231703010619093, 554894341282000, 218529842733025, 616463302414166]


def mask_of(cohort: SecureCohort, owner: str, modulus: int = T) -> PairwiseMask:
    return PairwiseMask(cohort.order, owner, cohort.identities[owner].agreement_key, cohort.registry, modulus)


def plain_keystream_values(seed: bytes, modulus: int, count: int) -> list[int]:
    """The recipe again, one word at a time."""
    keystream = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    values: list[int] = []
    while len(values) < count:
        word = int.from_bytes(keystream.update(bytes(8)), "little") % (1 << modulus.bit_length())
        if word < modulus:
            values.append(word)
    return values


@pytest.mark.parametrize("size", range(2, 13))
def test_masks_of_a_whole_cohort_cancel(size: int) -> None:
    cohort = make_cohort(size)
    total = sum(mask_of(cohort, owner).take(500).astype(object) for owner in cohort.owners)
    assert not (total % T).any()


def test_masks_cancel_in_any_order_of_the_cohort() -> None:
    cohort = make_cohort(5).ordering(cohort=tuple(f"owner-{index:02d}" for index in (3, 0, 4, 2, 1)))
    total = sum(mask_of(cohort, owner).take(50).astype(object) for owner in cohort.owners)
    assert not (total % T).any()


def test_masks_of_a_part_do_not_cancel() -> None:
    cohort = make_cohort(4)
    total = sum(mask_of(cohort, owner).take(500).astype(object) for owner in cohort.owners[:-1]) % T
    assert len(set(total)) > 490


def test_known_answer_from_public_primitives() -> None:
    """HKDF written out as in RFC 5869 (extract with a zero salt, one block of expand) over fixed X25519 keys."""
    alice, bob = X25519PrivateKey.from_private_bytes(b"\1" * 32), X25519PrivateKey.from_private_bytes(b"\2" * 32)
    shared = alice.exchange(bob.public_key())
    info = b"fl_privacy/v1\0mask\0" + b"ab" * 32 + b"\0alice\0bob"
    extracted = hmac.digest(bytes(32), shared, hashlib.sha256)
    seed = hmac.digest(extracted, info + b"\1", hashlib.sha256)
    assert derive_seed(bob.exchange(alice.public_key()), "mask", "ab" * 32, "alice", "bob") == seed
    values = UniformStream(seed, 2251799813554177).take(4)
    assert values.tolist() == plain_keystream_values(seed, 2251799813554177, 4)
    assert seed.hex() == KNOWN_SEED and values.tolist() == KNOWN_VALUES


def test_a_whole_mask_follows_the_recipe() -> None:
    cohort = make_cohort(3)
    digest, identities, expected = cohort.order.digest(), cohort.identities, np.zeros(20, object)
    for peer, sign in (("owner-00", -1), ("owner-02", 1)):
        theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(cohort.registry.card(peer).agreement_key))
        low, high = sorted(("owner-01", peer))
        seed = derive_seed(identities["owner-01"].agreement_key.exchange(theirs), "mask", digest, low, high)
        expected += sign * np.array(plain_keystream_values(seed, T, 20), object)
    assert mask_of(cohort, "owner-01").take(20).tolist() == (expected % T).tolist()


@pytest.mark.parametrize("modulus", [(1 << 20) + 7, (1 << 20) - 3, 3, T])
def test_words_above_the_modulus_are_rejected_not_reduced(modulus: int) -> None:
    """Just above a power of two nearly half of the words are rejected; in pieces or at once the values are the same."""
    stream, seed = UniformStream(bytes(32), modulus), bytes(32)
    pieces = np.concatenate([stream.take(count) for count in (1, 0, 699, 300)])
    assert pieces.tolist() == plain_keystream_values(seed, modulus, 1000)
    assert np.array_equal(UniformStream(seed, modulus).take(1000), pieces)


def test_masks_are_uniform_and_differ_between_owners_and_orders() -> None:
    cohort = make_cohort(3)
    masks = [mask_of(cohort, owner).take(40_960) for owner in cohort.owners]
    masks += [mask_of(cohort.ordering(**change), "owner-00").take(40_960) for change in ({"attempt": 1}, {"model": "0" * 64})]
    for mask in masks:
        assert uniformity(mask) > 1e-6
    for index, mask in enumerate(masks):
        for other in masks[index + 1 :]:
            assert uniformity((mask + np.uint64(T) - other) % np.uint64(T)) > 1e-6
    assert np.array_equal(masks[0], mask_of(cohort, "owner-00").take(40_960))


def test_a_colluding_pair_cancels_its_own_mask_only() -> None:
    """Owner 02, who knows its stream with owner 00, still sees a uniform rest while owner 01 is honest."""
    cohort = make_cohort(3)
    theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(cohort.registry.card("owner-00").agreement_key))
    shared = cohort.identities["owner-02"].agreement_key.exchange(theirs)
    known = UniformStream(derive_seed(shared, "mask", cohort.order.digest(), "owner-00", "owner-02"), T).take(40_960)
    rest = (mask_of(cohort, "owner-00").take(40_960) + np.uint64(T) - known) % np.uint64(T)
    assert uniformity(rest) > 1e-6


def test_an_owner_outside_the_cohort_has_no_mask() -> None:
    cohort = make_cohort(4).ordering(cohort=("owner-00", "owner-01", "owner-02"), weights=(1, 1, 1))
    with pytest.raises(CohortMismatch):
        mask_of(cohort, "owner-03")


def test_an_agreement_key_of_low_order_is_refused() -> None:
    """With the point 0 every shared secret is zero, hence public; X25519 must not be used with it (RFC 7748, section 6.1)."""
    cohort = make_cohort(3)
    weak = cohort.registry.card("owner-02").model_copy(update={"agreement_key": "00" * 32})
    registry = Registry(cards=(*cohort.registry.cards[:2], OwnerCard.model_validate(weak.model_dump())))
    with pytest.raises(EncryptionError, match="owner-02"):
        PairwiseMask(cohort.order, "owner-00", Identity.generate().agreement_key, registry, T)


def uniformity(values: Slots) -> float:
    """p-value of a chi-square test over 256 equal parts of Z_t."""
    parts = np.bincount((values.astype(np.float64) * 256 / T).astype(np.int64), minlength=256)
    return float(chisquare(parts).pvalue)
