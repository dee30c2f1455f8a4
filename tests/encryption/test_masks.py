"""Masks: pairwise ones cancel over a whole cohort, all are uniform otherwise, and they follow a public recipe."""

from __future__ import annotations

import hashlib
import hmac
import subprocess
import sys

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy.stats import chisquare

from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.masks import Mask, PairwiseMask, UniformStream, derive_seed, self_mask_seed, uniform
from fl_privacy.encryption.packing import DEGREE, Words
from fl_privacy.encryption.registry import OwnerCard, Registry
from fl_privacy.errors import CohortMismatch, EncryptionError
from tests.secure_cohort import SecureCohort, make_cohort

BITS = 51
T = 1 << BITS
# HKDF-SHA256 of X25519(0x01 * 32, 0x02 * 32) for "mask", R_t = ab * 32, alice and bob; also by a textbook ladder and openssl
PAIRWISE_SEED = "57dbd10b780f9642058ecadc9b3f0a52e36f1a800a0271ae3bb832dfb5208c46"
PAIRWISE_VALUES = [16994313097079500501, 3803844779655665872, 17798444257210933217, 1847092310524317526]  # its block 0
PAIRWISE_LATER = [14123147910909592346, 18108575584204563718, 10289856971186985088, 5977612941927341145]  # its block 5
# HKDF-SHA256 of b_k = 0x03 * 32 for "self-mask", R_t = ab * 32 and alice
SELF_MASK_SEED = "64401cbd2af184623fa9630bc4ea026c300f642b1d5012c33fd5d445e1244046"
SELF_MASK_VALUES = [7614396611431411056, 50865028921995595, 13557215751962978105, 17335454372005664369]


def mask_of(cohort: SecureCohort, owner: str) -> PairwiseMask:
    return PairwiseMask(cohort.order, owner, cohort.identities[owner].agreement_key, cohort.registry)


def plain_words(seed: bytes, block: int, count: int) -> list[int]:
    """The recipe again, one word at a time: AES-256-CTR from counter block * 2**64."""
    keystream = Cipher(algorithms.AES(seed), modes.CTR((block << 64).to_bytes(16, "big"))).encryptor()
    return [int.from_bytes(keystream.update(bytes(8)), "little") for _ in range(count)]


def plain_hkdf(secret: bytes, info: bytes) -> bytes:
    """RFC 5869 written out: extract with a zero salt, one block of expand."""
    return hmac.digest(hmac.digest(bytes(32), secret, hashlib.sha256), info + b"\1", hashlib.sha256)


@pytest.mark.parametrize("size", range(2, 13))
def test_masks_of_a_whole_cohort_cancel(size: int) -> None:
    cohort = make_cohort(size)
    total = sum(mask_of(cohort, owner).block(0).astype(object) for owner in cohort.owners)
    assert not (total % T).any()


def test_masks_cancel_in_any_order_of_the_cohort() -> None:
    cohort = make_cohort(5).ordering(cohort=tuple(f"owner-{index:02d}" for index in (3, 0, 4, 2, 1)))
    total = sum(mask_of(cohort, owner).block(7).astype(object) for owner in cohort.owners)
    assert not (total % T).any()


def test_masks_of_a_part_do_not_cancel() -> None:
    cohort = make_cohort(4)
    total = sum(mask_of(cohort, owner).block(0).astype(object) for owner in cohort.owners[:-1]) % T
    assert len(set(total)) > 4090


def test_known_answer_of_a_pairwise_mask() -> None:
    alice, bob = X25519PrivateKey.from_private_bytes(b"\1" * 32), X25519PrivateKey.from_private_bytes(b"\2" * 32)
    seed = plain_hkdf(alice.exchange(bob.public_key()), b"fl_privacy/v1\0mask\0" + b"ab" * 32 + b"\0alice\0bob")
    assert seed == derive_seed(bob.exchange(alice.public_key()), "mask", "ab" * 32, "alice", "bob")
    assert seed.hex() == PAIRWISE_SEED
    for block, known in ((0, PAIRWISE_VALUES), (5, PAIRWISE_LATER)):
        assert uniform(seed, block, 4).tolist() == known == plain_words(seed, block, 4)


def test_known_answer_of_a_self_mask() -> None:
    seed = plain_hkdf(b"\3" * 32, b"fl_privacy/v1\0self-mask\0" + b"ab" * 32 + b"\0alice")
    assert seed == self_mask_seed(b"\3" * 32, "ab" * 32, "alice") and seed.hex() == SELF_MASK_SEED
    assert uniform(seed, 0, 4).tolist() == SELF_MASK_VALUES == plain_words(seed, 0, 4)


def test_another_process_finds_the_same_values() -> None:
    code = (
        "from fl_privacy.encryption.masks import self_mask_seed, uniform\n"
        "print(uniform(self_mask_seed(b'\\3' * 32, 'ab' * 32, 'alice'), 0, 4).tolist(),"
        f" uniform(bytes.fromhex('{PAIRWISE_SEED}'), 5, 4).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{SELF_MASK_VALUES} {PAIRWISE_LATER}"


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_self_mask_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(EncryptionError, match="owner-01"):
        self_mask_seed(bytes(length), "ab" * 32, "owner-01")


def test_self_masks_differ_between_seeds_owners_and_orders() -> None:
    seeds = {self_mask_seed(bytes([b]) * 32, order * 64, owner) for b in (1, 2) for order in "ab" for owner in ("x", "y")}
    assert len(seeds) == 8


def test_a_whole_mask_follows_the_recipe() -> None:
    cohort = make_cohort(3)
    digest, identities, expected = cohort.order.digest(), cohort.identities, np.zeros(20, object)
    block = 3
    for peer, sign in (("owner-00", -1), ("owner-02", 1)):
        theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(cohort.registry.card(peer).agreement_key))
        low, high = sorted(("owner-01", peer))
        seed = derive_seed(identities["owner-01"].agreement_key.exchange(theirs), "mask", digest, low, high)
        expected += sign * np.array(plain_words(seed, block, 20), object)
    assert mask_of(cohort, "owner-01").block(block)[:20].tolist() == (expected % 2**64).tolist()


@pytest.mark.parametrize("bits", [1, 20, 47, 51])
def test_words_stay_uniform_modulo_every_t_and_sums_may_wrap_before(bits: int) -> None:
    """t = 2**bits divides 2**64: each residue has equally many words, and reducing commutes with adding."""
    t, words = 1 << bits, uniform(bytes(range(32)), 2, 40_000)
    parts = np.bincount(((words & np.uint64(t - 1)) >> np.uint64(max(bits - 8, 0))).astype(np.int64))
    assert chisquare(parts).pvalue > 1e-6
    summed = words[:100] + words[100:200]
    exact = [(int(first) + int(second)) % t for first, second in zip(words[:100], words[100:200], strict=True)]
    assert (summed & np.uint64(t - 1)).tolist() == exact


def test_blocks_can_be_read_in_any_order_and_share_no_keystream() -> None:
    stream = UniformStream(bytes(32))
    backwards = [stream.block(index, 100).tolist() for index in (2**40, 2, 1, 0)]
    assert backwards == [uniform(bytes(32), index, 100).tolist() for index in (2**40, 2, 1, 0)]
    assert len({value for block in backwards for value in block}) == 400


def test_a_mask_is_its_added_less_its_subtracted_streams() -> None:
    seeds = [bytes([number]) * 32 for number in range(5)]
    first, second, third, fourth, fifth = (uniform(seed, 9, DEGREE).astype(object) for seed in seeds)
    assert Mask(seeds[:2], seeds[2:]).block(9).tolist() == ((first + second - third - fourth - fifth) % 2**64).tolist()


def test_masks_are_uniform_and_differ_between_owners_and_orders() -> None:
    cohort = make_cohort(3)
    masks = [blocks(mask_of(cohort, owner)) for owner in cohort.owners]
    masks += [blocks(mask_of(cohort.ordering(**change), "owner-00")) for change in ({"attempt": 1}, {"model": "0" * 64})]
    for mask in masks:
        assert uniformity(mask) > 1e-6
    for index, mask in enumerate(masks):
        for other in masks[index + 1 :]:
            assert uniformity((mask + np.uint64(T) - other) % np.uint64(T)) > 1e-6
    assert np.array_equal(masks[0], blocks(mask_of(cohort, "owner-00")))


def test_a_colluding_pair_cancels_its_own_mask_only() -> None:
    """Owner 02, who knows its stream with owner 00, still sees a uniform rest while owner 01 is honest."""
    cohort = make_cohort(3)
    theirs = X25519PublicKey.from_public_bytes(bytes.fromhex(cohort.registry.card("owner-00").agreement_key))
    shared = cohort.identities["owner-02"].agreement_key.exchange(theirs)
    known = blocks(Mask([derive_seed(shared, "mask", cohort.order.digest(), "owner-00", "owner-02")]))
    rest = (blocks(mask_of(cohort, "owner-00")) + np.uint64(T) - known) % np.uint64(T)
    assert uniformity(rest) > 1e-6


def test_an_owner_outside_the_cohort_has_no_mask() -> None:
    cohort = make_cohort(4).ordering(cohort=("owner-00", "owner-01", "owner-02"), weights=(1, 1, 1))
    with pytest.raises(CohortMismatch):
        mask_of(cohort, "owner-03")


def test_an_agreement_key_of_low_order_is_refused() -> None:
    """With the point 0 every shared secret is zero, hence public; X25519 must not be used with it (RFC 7748, section 6.1)."""
    cohort = make_cohort(3)
    weak = cohort.registry.card("owner-02").model_copy(update={"agreement_key": "00" * 32})
    registry = Registry(serial=1, cards=(*cohort.registry.cards[:2], OwnerCard.model_validate(weak.model_dump())))
    with pytest.raises(EncryptionError, match="owner-02"):
        PairwiseMask(cohort.order, "owner-00", Identity.generate().agreement_key, registry)


def blocks(mask: Mask) -> Words:
    """The first ten blocks, modulo t."""
    return np.concatenate([mask.block(index) for index in range(10)]) % np.uint64(T)


def uniformity(values: Words) -> float:
    """p-value of a chi-square test over 256 equal parts of Z_t."""
    parts = np.bincount((values.astype(np.float64) * 256 / T).astype(np.int64), minlength=256)
    return float(chisquare(parts).pvalue)
