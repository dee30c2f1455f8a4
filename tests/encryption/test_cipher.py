"""The wire form of ciphertexts: exact sums, strict reading, and SEAL's own bytes around checked coefficients."""

from __future__ import annotations

import math
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.encryption import cipher
from fl_privacy.encryption.cipher import Kind
from fl_privacy.encryption.keys import generate_secret_key, load_secret_key
from fl_privacy.encryption.packing import DEGREE, NOISE_DEVIATION, Words, choose_encoding, guards_are_zero
from fl_privacy.errors import CiphertextInvalid, EncodingOverflow, EncryptionError
from tests.secure_cohort import make_cohort

BITS = 49
SECRET = generate_secret_key()


def encrypt(coefficients: Words, bits: int = BITS) -> bytes:
    plain, encryptor = seal.Plaintext(), seal.Encryptor(cipher.context(bits), load_secret_key(SECRET, bits))
    with cipher.Scratch() as scratch:
        cipher.load_plaintext(plain, coefficients, bits, scratch)
        return cipher.save_update(encryptor.encrypt_symmetric(plain), bits, scratch)


def load(block: bytes, bits: int = BITS) -> Any:
    with cipher.Scratch() as scratch:
        return cipher.load_block(block, bits, scratch)


def decrypt(block: bytes, bits: int = BITS) -> tuple[Words, int]:
    """The coefficients and the noise budget left, in bits."""
    decryptor, ciphertext = seal.Decryptor(cipher.context(bits), load_secret_key(SECRET, bits)), load(block, bits)
    plain = seal.Plaintext()
    decryptor.decrypt(ciphertext, plain)
    return cipher.plaintext_coefficients(plain), decryptor.invariant_noise_budget(ciphertext)


def added(blocks: list[bytes]) -> bytes:
    """The block of their sum: c0 added, seeds one after the other."""
    total, seeds = np.zeros(DEGREE, np.uint64), b""
    for block in blocks:
        c0, own = cipher.split_block(block)
        cipher.add_coefficients(total, c0)
        seeds += b"".join(own)
    return cipher.pack_coefficients(total) + seeds


def random_coefficients(seed: int, bits: int = BITS) -> Words:
    return np.random.default_rng(seed).integers(0, 1 << bits, DEGREE, np.uint64)


def test_parameters_are_the_ones_that_security_was_claimed_for() -> None:
    """N = 4096 with a 60-bit q is within the 75 bits that the HE standard (2018) allows for 192-bit security."""
    data = cipher.context(BITS).first_context_data()
    assert data.parms().poly_modulus_degree() == 4096
    assert 2**59 < cipher.coeff_modulus() < 2**60
    assert [modulus.value() for modulus in data.parms().coeff_modulus()] == [cipher.coeff_modulus()]
    assert data.qualifiers().sec_level == seal.SEC_LEVEL_TYPE.TC192
    for bits in (20, 35, 49, 51, 53):
        assert cipher.context(bits).first_context_data().parms().plain_modulus().value() == 2**bits


@pytest.mark.parametrize("bits", [-1, 0, 60, 61])
def test_a_plain_modulus_that_leaves_no_room_is_refused(bits: int) -> None:
    with pytest.raises(EncodingOverflow):
        cipher.context(bits)


@pytest.mark.parametrize("filled", ["random", "highest", "zero", "half"])
@pytest.mark.parametrize("size", [3, 16, 100])
def test_sums_of_the_largest_cohorts_decrypt_exactly(size: int, filled: str) -> None:
    """Uniform coefficients, as masks make them, and the extremes of Z_t, where rounding q/t * m is the most off.

    At least one bit of noise budget is left, so no coefficient was near the edge."""
    bits = choose_encoding(size, 8, 1.0).modulus_bits
    constant = {"highest": (1 << bits) - 1, "zero": 0, "half": 1 << (bits - 1)}
    drawn = [
        random_coefficients(seed, bits) if filled == "random" else np.full(DEGREE, constant[filled], np.uint64)
        for seed in range(size)
    ]
    opened, budget = decrypt(added([encrypt(coefficients, bits) for coefficients in drawn]), bits)
    assert np.array_equal(opened, np.sum(drawn, axis=0) & cipher.modulo(bits))  # t divides 2**64, where the sum wraps
    assert budget >= 1


@pytest.mark.parametrize("size", [1, 3, 16])
def test_the_noise_of_a_sum_is_what_the_formula_says(size: int) -> None:
    """SEAL adds round(q/t * m), not m * floor(q/t), whose error m * (q mod t) / t would be of thousands.

    The noise is read off by shifting c0 until it decrypts to the next number: here its largest absolute value, by the budget,
    which SEAL gives as floor(log2(q / 2t / noise)) for the largest of 4096 coefficients.
    """
    bits = choose_encoding(size + 2, 8, 1.0).modulus_bits
    blocks = [encrypt(np.full(DEGREE, (1 << bits) - 1 - seed, np.uint64), bits) for seed in range(size)]
    _, budget = decrypt(added(blocks), bits)
    largest = cipher.coeff_modulus() / 2 ** (bits + 1) / 2.0**budget  # at most this much, at least half of it
    deviation = NOISE_DEVIATION * math.sqrt(size)
    assert largest > 2.5 * deviation and largest / 2 < min(6.5 * deviation, 21.5 * size)


def test_adding_c0_and_keeping_seeds_is_what_seal_adds() -> None:
    blocks = [encrypt(random_coefficients(seed)) for seed in range(4)]
    chain, first, ours = cipher.context(BITS), load(blocks[0]), load(added(blocks))
    for block in blocks[1:]:
        seal.Evaluator(chain).add_inplace(first, load(block))
    assert [first[at] for at in range(2 * DEGREE)] == [ours[at] for at in range(2 * DEGREE)]


@given(st.integers(0, 2**64), st.integers(0, 2**64))
def test_coefficients_are_added_modulo_q(first: int, second: int) -> None:
    q = cipher.coeff_modulus()
    for left, right in ((first % q, second % q), (q - 1, q - 1), (0, 0), (1, q - 1)):
        total = np.array([left], np.uint64)
        cipher.add_coefficients(total, np.array([right], np.uint64))
        assert total.tolist() == [(left + right) % q]


@pytest.mark.parametrize("place", [0, 1, 2047, 4095])
@pytest.mark.parametrize("sign", [-1, 1])
def test_noise_beyond_the_margin_moves_its_coefficient_by_one_and_shows_in_the_guard_bit(place: int, sign: int) -> None:
    """And by two only beyond three margins. Within the margin it changes nothing."""
    q, coefficients = cipher.coeff_modulus(), random_coefficients(1) & ~np.uint64(1)
    c0, (seed,) = cipher.split_block(encrypt(coefficients))
    edge = q // (2 << BITS)
    for excess, moved in ((edge - 30, 0), (edge + 30, 1), (3 * edge - 30, 1), (3 * edge + 30, 2)):
        spoilt = c0.astype(object)
        spoilt[place] = (spoilt[place] + sign * excess) % q
        opened, _ = decrypt(cipher.pack_coefficients(spoilt.astype(np.uint64)) + seed)
        expected = coefficients.copy()
        expected[place] = (int(expected[place]) + sign * moved) % (1 << BITS)
        assert np.array_equal(opened, expected)
        assert guards_are_zero(opened) == (moved != 1)


def test_encryption_is_randomised_and_hides_the_coefficients() -> None:
    coefficients = np.zeros(DEGREE, np.uint64)
    first, second = encrypt(coefficients), encrypt(coefficients)
    assert first != second and first[-64:] != second[-64:]
    assert np.array_equal(decrypt(first)[0], coefficients)


@given(st.integers(1, 4), st.data())
def test_coefficients_come_back(groups: int, data: st.DataObject) -> None:
    size = 2 * groups
    drawn = data.draw(st.lists(st.integers(0, cipher.coeff_modulus() - 1), min_size=size, max_size=size))
    packed = cipher.pack_coefficients(np.array(drawn, np.uint64))
    assert len(packed) == len(drawn) * 15 // 2
    assert int.from_bytes(packed, "little") == sum(value << (60 * place) for place, value in enumerate(drawn))
    assert cipher.unpack_coefficients(packed).tolist() == drawn


@pytest.mark.parametrize("place", [0, 1, 4095])
@pytest.mark.parametrize("excess", [0, 1, 2**60 - 1 - cipher.coeff_modulus()])
def test_a_coefficient_that_is_not_reduced_is_refused(place: int, excess: int) -> None:
    coefficients = np.zeros(DEGREE, np.uint64)
    coefficients[place] = cipher.coeff_modulus() + excess
    with pytest.raises(CiphertextInvalid, match="modulo q"):
        load(cipher.pack_coefficients(coefficients) + bytes(64))


@pytest.mark.parametrize("length", [0, 1, 64, 30_719, 30_720, 30_783, 30_785, 30_720 + 127])
def test_a_block_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(CiphertextInvalid, match="bytes"):
        load(bytes(length))


def test_bytes_that_seal_would_not_write_are_not_taken_from_it() -> None:
    """A SEAL of another version or compression must stop the program, not change what is sent."""

    def other_compression(path: str) -> None:
        with open(path, "wb") as file:
            file.write(bytes.fromhex("5ea1100403010000") + (1016).to_bytes(8, "little") + bytes(1000))

    scratch = cipher.Scratch()
    with scratch, pytest.raises(EncryptionError, match="pinned TenSEAL"):
        scratch.saved(other_compression)
    chain, full = cipher.context(BITS), seal.Ciphertext()
    seal.Encryptor(chain, load_secret_key(SECRET, BITS)).encrypt_zero_symmetric(full)
    scratch = cipher.Scratch()
    with scratch, pytest.raises(EncryptionError, match="pinned TenSEAL"):  # not in seeded form
        cipher.save_update(full, BITS, scratch)


def test_a_coefficient_that_is_not_below_t_is_not_encrypted() -> None:
    for place in (0, DEGREE - 1):
        coefficients = np.zeros(DEGREE, np.uint64)
        coefficients[place] = 1 << BITS
        with pytest.raises((RuntimeError, ValueError)):
            encrypt(coefficients)


def test_a_shorter_text_after_a_longer_one_in_the_same_scratch_file_leaves_nothing_behind() -> None:
    with cipher.Scratch() as scratch:
        plain = seal.Plaintext()
        for size in (DEGREE, 3, 0):
            coefficients = np.zeros(DEGREE, np.uint64)
            coefficients[:size] = 7
            cipher.load_plaintext(plain, coefficients, BITS, scratch)
            assert np.array_equal(cipher.plaintext_coefficients(plain), coefficients)


def test_a_container_is_read_only_for_its_order_and_in_full() -> None:
    cohort = make_cohort(3, 25_000)
    order, other = cohort.order, cohort.ordering(attempt=1).order
    file = BytesIO()
    cipher.write_header(file, Kind.UPDATE, order, 2)
    blocks = [bytes([index]) * Kind.UPDATE.block_bytes(order) for index in (1, 2)]
    file.writelines(blocks)
    assert cipher.read_header(file, Kind.UPDATE, order) == 2
    assert [bytes(block) for block in cipher.read_blocks(file, Kind.UPDATE, order, range(2))] == blocks
    assert [bytes(block) for block in cipher.read_blocks(file, Kind.UPDATE, order, range(1, 2))] == blocks[1:]
    blob = file.getvalue()
    bad = [b"", blob[:47], blob[:48], blob[:-1], blob + b"\0", blob[:44] + b"\1" + blob[45:], b"X" + blob[1:]]
    for damaged in bad:
        with pytest.raises(CiphertextInvalid):
            cipher.read_header(BytesIO(damaged), Kind.UPDATE, order)
    for kind, wanted in ((Kind.TOTAL, order), (Kind.UPDATE, other)):
        with pytest.raises(CiphertextInvalid):
            cipher.read_header(file, kind, wanted)
    file.truncate(len(blob) - 1)
    with pytest.raises(CiphertextInvalid, match="ends within blocks 0 to 1"):
        list(cipher.read_blocks(file, Kind.UPDATE, order, range(2)))


def test_a_sum_has_a_seed_for_every_owner_and_an_update_one() -> None:
    order = make_cohort(5).order
    assert Kind.UPDATE.block_bytes(order) == 30_720 + 64 and Kind.TOTAL.block_bytes(order) == 30_720 + 5 * 64
