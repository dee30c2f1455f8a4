"""Identities at rest, and the shared HE key on its way through the scientist's hands."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.public import PublicKey, SealedBox

from fl_privacy.encryption.keys import Identity, generate_secret_key, load_secret_key, seal_key, unseal_key
from fl_privacy.encryption.registry import SealedKey
from fl_privacy.errors import (
    CiphertextInvalid,
    DigestMismatch,
    FlPrivacyError,
    HomeError,
    KeyMissing,
    MessageError,
    SignatureInvalid,
)
from fl_privacy.messages import Signed, open_signed, public_hex, sign
from tests.secure_cohort import make_cohort

COHORT = make_cohort(4)
DEALER, OTHER, THIRD = COHORT.owners[:3]


def envelope_for(owner: str, secret_key: bytes = COHORT.secret_key) -> Signed:
    return seal_key(secret_key, DEALER, owner, COHORT.identities[DEALER], COHORT.registry)


def unseal(envelope: Signed, owner: str = OTHER) -> bytes:
    return unseal_key(envelope, owner, COHORT.identities[owner], COHORT.registry)


def test_an_identity_is_saved_for_this_user_only_and_comes_back(tmp_path: Path) -> None:
    identity, folder = Identity.generate(), tmp_path / "keys"
    identity.save(folder)
    files = list(folder.iterdir())
    assert files and all(file.stat().st_mode & 0o777 == 0o600 for file in files)
    assert folder.stat().st_mode & 0o077 == 0
    assert Identity.load(folder).card("a") == identity.card("a")


def test_an_identity_is_never_overwritten(tmp_path: Path) -> None:
    identity = Identity.generate()
    identity.save(tmp_path)
    with pytest.raises(HomeError):
        Identity.generate().save(tmp_path)
    assert Identity.load(tmp_path).card("a") == identity.card("a")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
def test_an_identity_that_others_may_open_is_refused(tmp_path: Path, mode: int) -> None:
    Identity.generate().save(tmp_path)
    (tmp_path / "identity.key").chmod(mode)
    with pytest.raises(HomeError, match="0600"):
        Identity.load(tmp_path)


def test_a_missing_damaged_or_linked_identity_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HomeError):
        Identity.load(tmp_path)
    Identity.generate().save(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "identity.key").symlink_to(tmp_path / "identity.key")
    with pytest.raises(HomeError):
        Identity.load(elsewhere)
    (tmp_path / "identity.key").write_bytes(b"short")
    with pytest.raises(HomeError, match="damaged"):
        Identity.load(tmp_path)


def test_a_card_names_the_public_halves() -> None:
    identity = Identity.generate()
    card = identity.card("a")
    raw = identity.agreement_key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()
    assert card.signer == public_hex(identity.signing_key) and raw in card.body


def test_a_secret_key_serves_every_plain_modulus_and_is_fresh() -> None:
    assert generate_secret_key() != COHORT.secret_key
    for bits in (20, 37, 51, 53):
        load_secret_key(COHORT.secret_key, bits)


@pytest.mark.parametrize("damage", [lambda key: b"", lambda key: key[:-1], lambda key: key + b"\0", lambda key: b"X" + key[1:],
                                    lambda key: key[:8] + b"\xff" * (len(key) - 8)])  # fmt: skip
def test_bytes_that_are_no_key_are_refused_without_being_shown(damage: object) -> None:
    with pytest.raises(KeyMissing) as refused:
        load_secret_key(damage(COHORT.secret_key), 51)  # type: ignore[operator]
    assert COHORT.secret_key[8:16].hex() not in str(refused.value)


def test_each_owner_opens_its_own_envelope() -> None:
    for owner in COHORT.owners:
        assert unseal(envelope_for(owner), owner) == COHORT.secret_key


def test_the_relay_cannot_read_an_envelope() -> None:
    envelope = envelope_for(OTHER)
    for start in range(0, len(COHORT.secret_key) - 16, 1000):
        assert COHORT.secret_key[start : start + 16].hex() not in envelope.body
    sealed = open_signed(envelope, SealedKey, envelope.signer)
    stolen = sign(sealed.model_copy(update={"recipient": THIRD}), COHORT.identities[DEALER].signing_key)
    with pytest.raises(CiphertextInvalid, match="does not open"):
        unseal(stolen, THIRD)


def test_the_relay_cannot_replace_an_envelope() -> None:
    """It knows every public key, so it can seal a key of its own for the owner, but not sign it as the dealer."""
    envelope, relay = envelope_for(OTHER), Identity.generate()
    box = SealedBox(PublicKey(bytes.fromhex(COHORT.registry.card(OTHER).agreement_key)))
    honest = open_signed(envelope, SealedKey, envelope.signer)
    forged = honest.model_copy(update={"ciphertext": box.encrypt(generate_secret_key()).hex()})
    signed = sign(forged, relay.signing_key)
    substitutes = [
        signed,
        sign(forged, COHORT.identities[THIRD].signing_key),  # an owner, but not the dealer
        signed.model_copy(update={"signer": envelope.signer}),
        envelope.model_copy(update={"body": signed.body}),
        COHORT.identities[DEALER].card(DEALER),
    ]
    for substitute in substitutes:
        with pytest.raises(SignatureInvalid):
            unseal(substitute)


def test_an_envelope_for_another_owner_or_registry_is_refused() -> None:
    with pytest.raises(CiphertextInvalid, match=THIRD):
        unseal(envelope_for(THIRD), OTHER)
    sealed = open_signed(envelope_for(OTHER), SealedKey, envelope_for(OTHER).signer)
    elsewhere = sign(sealed.model_copy(update={"registry": "0" * 64}), COHORT.identities[DEALER].signing_key)
    with pytest.raises(DigestMismatch):
        unseal(elsewhere)


def test_a_dealer_who_sends_something_else_than_a_key_is_refused() -> None:
    box = SealedBox(PublicKey(bytes.fromhex(COHORT.registry.card(OTHER).agreement_key)))
    ciphertext = box.encrypt(b"no key").hex()
    sealed = SealedKey(sender=DEALER, recipient=OTHER, registry=COHORT.registry.digest(), ciphertext=ciphertext)
    with pytest.raises(KeyMissing):
        unseal(sign(sealed, COHORT.identities[DEALER].signing_key))
    with pytest.raises(MessageError):
        SealedKey.parse(sealed.canonical().replace(b'"ciphertext":"', b'"ciphertext":"xyz'))


def test_only_the_dealer_deals() -> None:
    for sender, identity in ((OTHER, OTHER), (DEALER, OTHER), (OTHER, DEALER)):
        with pytest.raises(KeyMissing):
            seal_key(COHORT.secret_key, sender, THIRD, COHORT.identities[identity], COHORT.registry)
    with pytest.raises(KeyMissing):
        envelope_for("stranger")
    with pytest.raises(KeyMissing):
        envelope_for(OTHER, b"no key")


def test_secrets_are_not_shown() -> None:
    identity = COHORT.identities[OTHER]
    secrets = [identity.signing_key.private_bytes_raw(), identity.agreement_key.private_bytes_raw(), COHORT.secret_key[8:40]]
    shown = [repr(identity), str(identity), f"{identity}", identity.card(OTHER).canonical().decode()]
    misuses = (
        lambda: unseal(envelope_for(THIRD)),
        lambda: seal_key(COHORT.secret_key, OTHER, THIRD, identity, COHORT.registry),
    )
    for misuse in misuses:
        with pytest.raises(FlPrivacyError) as refused:
            misuse()
        shown += [str(refused.value), repr(refused.value)]
    for text in shown:
        for secret in secrets:
            assert secret.hex() not in text and repr(secret)[2:-1] not in text
