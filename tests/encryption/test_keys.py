"""Identities at rest, and the shared HE key on its way through the scientist's hands."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nacl.public import PublicKey, SealedBox

from fl_privacy.encryption.keys import Identity, generate_secret_key, key_name, load_secret_key, seal_key, unseal_key
from fl_privacy.encryption.registry import Registry, SealedKey, build_registry, registry_of
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

IDENTITIES = {f"owner-{index:02d}": Identity.generate() for index in range(4)}
REGISTRY = build_registry(identity.card(owner) for owner, identity in IDENTITIES.items())
DEALER, OTHER, THIRD = REGISTRY.owners[:3]
SECRET_KEY = generate_secret_key()


def envelope_for(owner: str, secret_key: bytes = SECRET_KEY, registry: Registry = REGISTRY) -> Signed:
    return seal_key(secret_key, DEALER, owner, IDENTITIES[DEALER], registry)


def unseal(envelope: Signed, owner: str = OTHER) -> bytes:
    scheme, key = unseal_key(envelope, owner, IDENTITIES[owner], REGISTRY)
    assert scheme == "bfv"
    return key


def altered(envelope: Signed, **changes: str) -> Signed:
    """What a hostile dealer could sign."""
    sealed = open_signed(envelope, SealedKey, envelope.signer)
    return sign(sealed.model_copy(update=changes), IDENTITIES[DEALER].signing_key)


def boxed(content: bytes, recipient: str = OTHER) -> str:
    return SealedBox(PublicKey(bytes.fromhex(REGISTRY.card(recipient).agreement_key))).encrypt(content).hex()


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
    assert generate_secret_key() != SECRET_KEY
    for bits in (20, 37, 51, 53):
        load_secret_key(SECRET_KEY, bits)


@pytest.mark.parametrize("damage", [lambda key: b"", lambda key: key[:-1], lambda key: key + b"\0", lambda key: b"X" + key[1:],
                                    lambda key: key[:8] + b"\xff" * (len(key) - 8)])  # fmt: skip
def test_bytes_that_are_no_key_are_refused_without_being_shown(damage: object) -> None:
    with pytest.raises(KeyMissing) as refused:
        load_secret_key(damage(SECRET_KEY), 51)  # type: ignore[operator]
    assert SECRET_KEY[8:16].hex() not in str(refused.value)


def test_each_owner_opens_its_own_envelope() -> None:
    for owner in REGISTRY.owners:
        assert unseal(envelope_for(owner), owner) == SECRET_KEY


def test_the_relay_cannot_read_an_envelope() -> None:
    envelope = envelope_for(OTHER)
    for start in range(0, len(SECRET_KEY) - 16, 1000):
        assert SECRET_KEY[start : start + 16].hex() not in envelope.body
    with pytest.raises(CiphertextInvalid, match="does not open"):
        unseal(altered(envelope, recipient=THIRD), THIRD)


def test_the_relay_cannot_replace_an_envelope() -> None:
    """It knows every public key, so it can seal a key of its own for the owner, but not sign it as the dealer."""
    envelope, relay = envelope_for(OTHER), Identity.generate()
    forged = SealedKey.parse(envelope.body).model_copy(update={"ciphertext": boxed(generate_secret_key())})
    signed = sign(forged, relay.signing_key)
    substitutes = [
        signed,
        sign(forged, IDENTITIES[THIRD].signing_key),  # an owner, but not the dealer
        signed.model_copy(update={"signer": envelope.signer}),
        envelope.model_copy(update={"body": signed.body}),
        IDENTITIES[DEALER].card(DEALER),
    ]
    for substitute in substitutes:
        with pytest.raises(SignatureInvalid):
            unseal(substitute)


def test_an_envelope_for_another_owner_or_registry_is_refused() -> None:
    with pytest.raises(CiphertextInvalid, match=THIRD):
        unseal(envelope_for(THIRD), OTHER)
    with pytest.raises(DigestMismatch):
        unseal(envelope_for(OTHER, registry=registry_of(REGISTRY.cards, serial=2)))


def test_a_dealer_who_sends_something_else_than_a_key_is_refused() -> None:
    with pytest.raises(KeyMissing):
        unseal(altered(envelope_for(OTHER), ciphertext=boxed(b"no key")))
    with pytest.raises(MessageError):
        unseal(altered(envelope_for(OTHER), ciphertext="xyz"))


def test_a_dealer_who_deals_another_key_than_it_names_is_found_out() -> None:
    """All owners see the same name; so no owner can be given a key of its own without noticing."""
    with pytest.raises(CiphertextInvalid, match="deals different keys"):
        unseal(altered(envelope_for(OTHER), ciphertext=boxed(generate_secret_key())))


def test_a_key_of_one_scheme_is_not_taken_for_another() -> None:
    with pytest.raises(KeyMissing):
        unseal_key(altered(envelope_for(OTHER), scheme="ckks"), OTHER, IDENTITIES[OTHER], REGISTRY)
    with pytest.raises(KeyMissing):
        seal_key(SECRET_KEY, DEALER, OTHER, IDENTITIES[DEALER], REGISTRY, "ckks")


def test_a_ckks_key_is_dealt_like_a_bfv_key() -> None:
    key = generate_secret_key("ckks")
    envelope = seal_key(key, DEALER, OTHER, IDENTITIES[DEALER], REGISTRY, "ckks")
    assert unseal_key(Signed.parse(envelope.canonical()), OTHER, IDENTITIES[OTHER], REGISTRY) == ("ckks", key)


def test_the_name_of_a_key_is_its_own_and_public() -> None:
    names = {key_name(key) for key in (SECRET_KEY, generate_secret_key(), SECRET_KEY[:-1])}
    assert len(names) == 3 and all(len(name) == 64 for name in names)
    assert (
        SealedKey.parse(envelope_for(OTHER).body).name == SealedKey.parse(envelope_for(THIRD).body).name == key_name(SECRET_KEY)
    )


def test_only_the_dealer_deals() -> None:
    for sender, identity in ((OTHER, OTHER), (DEALER, OTHER), (OTHER, DEALER)):
        with pytest.raises(KeyMissing):
            seal_key(SECRET_KEY, sender, THIRD, IDENTITIES[identity], REGISTRY)
    with pytest.raises(KeyMissing):
        envelope_for("stranger")
    with pytest.raises(KeyMissing):
        envelope_for(OTHER, b"no key")


def test_an_identity_is_neither_pickled_nor_copied() -> None:
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="private keys"):
            duplicate(IDENTITIES[OTHER])


def test_secrets_are_not_shown() -> None:
    identity = IDENTITIES[OTHER]
    secrets = [identity.signing_key.private_bytes_raw(), identity.agreement_key.private_bytes_raw(), SECRET_KEY[8:40]]
    shown = [repr(identity), str(identity), f"{identity}", repr(vars(identity)), identity.card(OTHER).canonical().decode()]
    shown += [key_name(SECRET_KEY), envelope_for(THIRD).canonical().decode()]
    misuses: tuple[Callable[[], object], ...] = (
        lambda: unseal(envelope_for(THIRD)),
        lambda: unseal(altered(envelope_for(OTHER), ciphertext=boxed(generate_secret_key()))),
        lambda: seal_key(SECRET_KEY, OTHER, THIRD, identity, REGISTRY),
        lambda: seal_key(SECRET_KEY[:-1], DEALER, THIRD, IDENTITIES[DEALER], REGISTRY),
    )
    for misuse in misuses:
        with pytest.raises(FlPrivacyError) as refused:
            misuse()
        shown += [str(refused.value), repr(refused.value), "".join(traceback.format_exception(refused.value))]
    for text in shown:
        for secret in secrets:
            assert secret.hex() not in text and repr(secret)[2:-1] not in text
