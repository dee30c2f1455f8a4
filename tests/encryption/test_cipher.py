"""The wire form of ciphertexts: exact sums, strict reading, and SEAL's own bytes around checked coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.encryption import cipher
from fl_privacy.encryption.keys import generate_secret_key, load_secret_key
from fl_privacy.encryption.packing import DEGREE, Slots, choose_encoding
from fl_privacy.errors import CiphertextInvalid, EncodingOverflow, EncryptionError
from tests.secure_cohort import make_cohort

BITS = 51
SECRET = generate_secret_key()


def encrypt(slots: Slots, bits: int = BITS) -> bytes:
    chain, plain = cipher.context(bits), seal.Plaintext()
    seal.BatchEncoder(chain).encode(slots.tolist(), plain)
    encrypted = seal.Encryptor(chain, load_secret_key(SECRET, bits)).encrypt_symmetric(plain)
    return cipher.save_update(encrypted, bits)


def decrypt(block: bytes, kind: cipher.Kind, bits: int = BITS) -> tuple[Slots, int]:
    """The slots and the noise budget left, in bits."""
    chain, plain = cipher.context(bits), seal.Plaintext()
    decryptor, ciphertext = seal.Decryptor(chain, load_secret_key(SECRET, bits)), cipher.load_block(block, kind, bits)
    decryptor.decrypt(ciphertext, plain)
    return np.array(seal.BatchEncoder(chain).decode_uint64(plain), np.uint64), decryptor.invariant_noise_budget(ciphertext)


def random_slots(seed: int, bits: int = BITS) -> Slots:
    return np.random.default_rng(seed).integers(0, cipher.plain_modulus(bits), DEGREE, np.uint64)


def test_parameters_are_the_ones_that_security_was_claimed_for() -> None:
    """N = 4096 with a 60-bit q is within the 75 bits that the HE standard (2018) allows for 192-bit security."""
    data = cipher.context(BITS).first_context_data()
    assert data.parms().poly_modulus_degree() == 4096
    assert 2**59 < cipher.coeff_modulus() < 2**60
    assert [modulus.value() for modulus in data.parms().coeff_modulus()] == [cipher.coeff_modulus()]
    assert data.qualifiers().sec_level == seal.SEC_LEVEL_TYPE.TC192
    for bits in (20, 35, 49, 51, 53):
        assert 2 ** (bits - 1) < cipher.plain_modulus(bits) < 2**bits and cipher.plain_modulus(bits) % (2 * DEGREE) == 1


def test_a_modulus_without_batching_prime_is_refused() -> None:
    with pytest.raises(EncodingOverflow):
        cipher.context(12)


@pytest.mark.parametrize("size", [3, 16, 100])
def test_sums_of_the_largest_cohorts_decrypt_exactly(size: int) -> None:
    """Uniform slots, as masks make them; at least one bit of noise budget is left, so no coefficient was near the edge."""
    bits = choose_encoding(size, 8, 1.0).modulus_bits
    modulus, total, expected = cipher.plain_modulus(bits), None, np.zeros(DEGREE, object)
    evaluator = seal.Evaluator(cipher.context(bits))
    for seed in range(size):
        slots = random_slots(seed, bits)
        expected += slots.astype(object)
        loaded = cipher.load_block(encrypt(slots, bits), cipher.UPDATE, bits)
        if total is None:
            total = loaded
        else:
            evaluator.add_inplace(total, loaded)
    opened, budget = decrypt(cipher.save_total(total, bits), cipher.TOTAL, bits)
    assert opened.tolist() == (expected % modulus).tolist()
    assert budget >= 1


def test_encryption_is_randomised_and_hides_the_slots() -> None:
    slots = np.zeros(DEGREE, np.uint64)
    first, second = encrypt(slots), encrypt(slots)
    assert first != second and first[-64:] != second[-64:]
    assert np.array_equal(decrypt(first, cipher.UPDATE)[0], slots)


@given(st.lists(st.integers(0, cipher.coeff_modulus() - 1), min_size=2, max_size=40).filter(lambda drawn: len(drawn) % 2 == 0))
def test_coefficients_come_back(drawn: list[int]) -> None:
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
        cipher.load_block(cipher.pack_coefficients(coefficients) + bytes(64), cipher.UPDATE, BITS)


@pytest.mark.parametrize("kind", [cipher.UPDATE, cipher.TOTAL])
@pytest.mark.parametrize("change", [-1, 1, -64, 64])
def test_a_block_of_another_length_is_refused(kind: cipher.Kind, change: int) -> None:
    with pytest.raises(CiphertextInvalid, match="bytes"):
        cipher.load_block(bytes(kind.block_bytes + change), kind, BITS)


def test_a_ciphertext_that_hides_nothing_is_refused() -> None:
    """With c1 = 0 anyone reads, or forges, the plaintext in c0."""
    c0 = cipher.pack_coefficients(np.arange(DEGREE, dtype=np.uint64))
    with pytest.raises(CiphertextInvalid, match="hides nothing"):
        cipher.load_block(c0 + bytes(cipher.POLYNOMIAL_BYTES), cipher.TOTAL, BITS)


def test_bytes_that_seal_would_not_write_are_not_taken_from_it() -> None:
    """A SEAL of another version or compression must stop the program, not change what is sent."""

    def other_compression(path: str) -> None:
        with open(path, "wb") as file:
            file.write(bytes.fromhex("5ea1100403010000") + (1016).to_bytes(8, "little") + bytes(1000))

    with pytest.raises(EncryptionError, match="pinned TenSEAL"):
        cipher.saved(other_compression)
    chain, full = cipher.context(BITS), seal.Ciphertext()
    seal.Encryptor(chain, load_secret_key(SECRET, BITS)).encrypt_zero_symmetric(full)
    with pytest.raises(EncryptionError, match="pinned TenSEAL"):  # not in seeded form
        cipher.save_update(full, BITS)


def test_a_container_is_read_only_for_its_order_and_in_full() -> None:
    cohort = make_cohort(3, 25_000)
    order, other = cohort.order, cohort.ordering(attempt=1).order
    blocks = [bytes([index]) * cipher.UPDATE.block_bytes for index in (1, 2)]
    blob = cipher.write_container(cipher.UPDATE, order, 2, blocks)
    position, read = cipher.read_container(blob, cipher.UPDATE, order)
    assert position == 2 and [bytes(block) for block in read] == blocks
    bad = [b"", blob[:47], blob[:48], blob[:-1], blob + b"\0", blob[:44] + b"\1" + blob[45:], b"X" + blob[1:]]
    for damaged in bad:
        with pytest.raises(CiphertextInvalid):
            cipher.read_container(damaged, cipher.UPDATE, order)
    for kind, wanted in ((cipher.TOTAL, order), (cipher.UPDATE, other)):
        with pytest.raises(CiphertextInvalid):
            cipher.read_container(blob, kind, wanted)
