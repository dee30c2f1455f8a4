"""The scientist relays cards, signatures and sealed keys. Changing, mixing or replaying them gains it nothing, or is noticed.

Each test plays a scientist who controls every message between three honest guards, over their real front routes. It may hold
keys of its own ("forged" cards are signed by such keys) and puts whatever it likes into any guard.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.public import PublicKey, SealedBox

from fl_privacy.encryption.keys import Identity, generate_secret_key, key_name, seal_key
from fl_privacy.encryption.registry import OwnerCard, Registry, SealedKey, build_registry
from fl_privacy.errors import (
    CiphertextInvalid,
    DigestMismatch,
    FlPrivacyError,
    KeyMissing,
    MessageError,
    OrderRefused,
    OwnerFailed,
    SignatureInvalid,
)
from fl_privacy.guard.enrolment import EnrolRequest
from fl_privacy.guard.guard import Guard
from fl_privacy.messages import Signed, open_signed, sign
from fl_privacy.scientist.enrolment import common_key, registry_states, relay_keys
from tests.builders import OWNERS, enrol_all
from tests.guard.enrolled import cards, channel, channels, new_guard, new_guards

Guards = dict[str, Guard]


@pytest.fixture
def guards(tmp_path: Path) -> Iterator[Guards]:
    with new_guards(tmp_path) as made:
        yield made


@pytest.fixture
def scientist() -> Identity:
    """Keys that the scientist passes off as an owner's."""
    return Identity.generate()


def enrol(guard: Guard, *shown: Signed) -> Registry:
    return guard.enrolment.enrol(EnrolRequest(cards=shown))


def signature(guard: Guard) -> Signed:
    return guard.enrolment.state().registry


def opened(card: Signed) -> OwnerCard:
    return open_signed(card, OwnerCard, card.signer)


def assert_stuck(guard: Guard, *waiting_for: str) -> None:
    """The guard has not the signatures that it needs to deal a key, take an order, or train."""
    with pytest.raises(KeyMissing, match=f"not signed by {', '.join(waiting_for)};"):
        guard.home.require_complete_registry()


def test_a_card_faked_for_one_owner_leaves_that_owner_without_the_others_signatures(
    guards: Guards, scientist: Identity
) -> None:
    """The bank is shown a forged card of the clinic. The scientist can sign as its own forgery, but not as the school."""
    bank, clinic, school = guards.values()
    honest, forged = cards(guards), scientist.card("clinic")
    enrol(bank, honest[0], forged, honest[2])
    enrol(clinic, *honest)
    enrol(school, *honest)
    with pytest.raises(OwnerFailed, match=r"bank: signed another registry .* \(bank: another card of clinic\)"):
        relay_keys(channels(guards))

    relay = channel("bank", bank)
    relay.put_registry(sign(bank.home.registry, scientist.signing_key))  # in the name of the forged clinic
    with pytest.raises(DigestMismatch, match="school signed another registry: another card of clinic"):
        relay.put_registry(signature(school))
    with pytest.raises(SignatureInvalid, match="no member of this registry, signed another registry: another card of clinic"):
        relay.put_registry(signature(clinic))
    assert_stuck(bank, "school")
    for guard in (clinic, school):
        with pytest.raises(DigestMismatch, match="bank signed another registry: another card of clinic"):
            channel("", guard).put_registry(signature(bank))
        assert "bank" in guard.enrolment.summary()["waiting_for"]  # type: ignore[index]
    with pytest.raises(KeyMissing):
        relay.envelopes()


def test_a_card_faked_for_all_others_is_refused_by_its_owner_and_shows_in_every_fingerprint(
    guards: Guards, scientist: Identity
) -> None:
    """Bank and school agree on the forgery, so only what owners tell each other outside of this channel gives it away."""
    bank, clinic, school = guards.values()
    honest = cards(guards)
    faked = (honest[0], scientist.card("clinic"), honest[2])
    for guard in (bank, school):
        enrol(guard, *faked)
    with pytest.raises(SignatureInvalid, match="the card of clinic is not its own"):
        enrol(clinic, *faked)
    enrol(clinic, *honest)
    with pytest.raises(OwnerFailed, match=r"clinic: .*another card of clinic"):
        relay_keys(channels(guards))
    for guard in (bank, school):
        with pytest.raises(SignatureInvalid):
            channel("", guard).put_registry(signature(clinic))
        assert guard.home.registry.card("clinic").fingerprint != opened(honest[1]).fingerprint, "what the clinic reads out"
        assert guard.home.registry.fingerprint != clinic.home.registry.fingerprint


def test_an_owner_who_sees_only_forgeries_reads_another_fingerprint_than_everybody_else(guards: Guards) -> None:
    """Every companion of the bank is the scientist, who can sign all of it: the registry's fingerprint is what tells."""
    bank, *others = guards.values()
    forgers = {owner: Identity.generate() for owner in ("clinic", "school")}
    honest = cards(guards)
    enrol(bank, honest[0], *(forger.card(owner) for owner, forger in forgers.items()))
    for forger in forgers.values():
        bank.enrolment.take_signature(sign(bank.home.registry, forger.signing_key))
    assert bank.home.require_complete_registry()
    for guard in others:
        enrol(guard, *honest)
        assert guard.home.registry.fingerprint != bank.home.registry.fingerprint
        with pytest.raises(SignatureInvalid):
            bank.enrolment.take_signature(signature(guard))


def test_a_card_under_another_name_or_with_another_key_is_refused(guards: Guards, scientist: Identity) -> None:
    bank, clinic, _ = guards.values()
    honest = cards(guards)
    renamed = honest[1].model_copy(update={"body": honest[1].body.replace('"owner":"clinic"', '"owner":"school"')})
    rekeyed = honest[1].model_copy(
        update={"body": honest[1].body.replace(opened(honest[1]).agreement_key, opened(scientist.card("x")).agreement_key)}
    )
    for shown in ((honest[0], honest[1], renamed), (honest[0], rekeyed, honest[2])):
        with pytest.raises(SignatureInvalid):
            enrol(bank, *shown)
    resigned = sign(opened(honest[1]).model_copy(update={"owner": "school"}), scientist.signing_key)
    twice = clinic.home.identity.card("school")  # a hostile owner, who counts twice
    for shown, told in (((honest[0], honest[1], resigned), SignatureInvalid), ((honest[0], honest[1], twice), MessageError)):
        with pytest.raises(told):
            enrol(bank, *shown)
    assert bank.enrolment.summary() is None


def test_a_signature_of_an_older_registry_replayed_counts_for_nothing(guards: Guards) -> None:
    enrol_all({owner: guard.enrolment for owner, guard in guards.items()})
    bank = guards["bank"]
    old = {owner: signature(guard) for owner, guard in guards.items()}
    envelopes = bank.enrolment.envelopes()
    bank.enrolment.enrol(EnrolRequest(rotate=True))
    relay = channel("bank", bank)
    for owner in ("clinic", "school"):
        with pytest.raises(DigestMismatch, match=f"{owner} signed another registry: serial 1 instead of 2"):
            relay.put_registry(old[owner])
    assert_stuck(bank, "clinic", "school")
    clinic = guards["clinic"]
    clinic.enrolment.enrol(EnrolRequest(rotate=True))
    with pytest.raises(DigestMismatch, match="the key was sealed for registry"):
        channel("clinic", clinic).put_envelope(envelopes[0])
    with pytest.raises(KeyMissing):
        clinic.home.secret_key("bfv")


def test_a_registry_is_never_signed_twice_under_one_serial_whatever_cards_arrive_later(
    guards: Guards, scientist: Identity
) -> None:
    honest = cards(guards)
    enrol(guards["bank"], *honest)
    with pytest.raises(OrderRefused, match="signed registry 1 before"):
        guards["bank"].enrolment.enrol(EnrolRequest(cards=(honest[0], scientist.card("clinic"), honest[2]), serial=1))
    assert guards["bank"].home.registry == build_registry(honest)


def test_an_altered_or_forged_signature_is_refused(guards: Guards, scientist: Identity) -> None:
    honest = cards(guards)
    bank, clinic, _ = guards.values()
    for guard in guards.values():
        enrol(guard, *honest)
    true, relay = signature(clinic), channel("bank", bank)
    forgeries = [
        sign(bank.home.registry, scientist.signing_key),
        sign(bank.home.registry, scientist.signing_key).model_copy(update={"signer": true.signer}),
        true.model_copy(update={"signature": "0" * 128}),
        true.model_copy(update={"kind": "OwnerCard"}),
        honest[1],
        clinic.statement(),
    ]
    for forged in forgeries:
        with pytest.raises(SignatureInvalid):
            relay.put_registry(forged)
    relay.put_registry(true)
    relay.put_registry(true)
    relay.put_registry(signature(bank))
    assert_stuck(bank, "school")


def test_a_sealed_key_can_be_neither_read_replaced_nor_given_to_another(guards: Guards, scientist: Identity) -> None:
    for guard in guards.values():
        enrol(guard, *cards(guards))
    for guard in guards.values():
        for other in guards.values():
            guard.enrolment.take_signature(signature(other))
    bank, clinic, school = guards.values()
    for_clinic, for_school = bank.enrolment.envelopes()
    secret = bank.home.secret_key("bfv")
    assert all(secret[start : start + 16].hex() not in for_clinic.body for start in range(0, len(secret) - 16, 16))
    box = SealedBox(PublicKey(bytes.fromhex(clinic.home.registry.card("clinic").agreement_key)))
    own = generate_secret_key()
    replaced = SealedKey.parse(for_clinic.body).model_copy(update={"ciphertext": box.encrypt(own).hex(), "name": key_name(own)})
    relay = channel("clinic", clinic)
    for wrong, told in (
        (for_school, CiphertextInvalid),
        (sign(replaced, scientist.signing_key), SignatureInvalid),
        (sign(replaced, scientist.signing_key).model_copy(update={"signer": for_clinic.signer}), SignatureInvalid),
        (for_clinic.model_copy(update={"body": replaced.canonical().decode()}), SignatureInvalid),
        (sign(replaced, school.home.identity.signing_key), SignatureInvalid),  # an owner, who helps; but not the dealer
    ):
        with pytest.raises(told):
            relay.put_envelope(wrong)
    with pytest.raises(KeyMissing):
        clinic.home.secret_key("bfv")
    assert relay.put_envelope(for_clinic) and relay.put_envelope(for_clinic)
    assert clinic.home.secret_key("bfv") == secret


def test_a_dealer_who_gives_owners_different_keys_is_found_out_before_the_first_order(guards: Guards) -> None:
    enrol_all({owner: guard.enrolment for owner, guard in guards.items()})
    for guard in guards.values():
        guard.enrolment.enrol(EnrolRequest(rotate=True))
    for guard in guards.values():
        for other in guards.values():
            guard.enrolment.take_signature(signature(other))
    bank, clinic, school = guards.values()
    registry = bank.home.registry
    dealt = [seal_key(generate_secret_key(), "bank", owner, bank.home.identity, registry) for owner in ("clinic", "school")]
    clinic.enrolment.take_envelope(dealt[0])
    school.enrolment.take_envelope(dealt[1])
    with pytest.raises(OwnerFailed, match="holds another bfv encryption key than the others"):
        common_key(registry_states(channels(guards)), OWNERS, "bfv")
    for envelope in bank.enrolment.envelopes():  # the key first dealt stays, whatever comes after
        with pytest.raises(OrderRefused, match="already holds another bfv key"):
            guards[SealedKey.parse(envelope.body).recipient].enrolment.take_envelope(envelope)


def test_a_leaver_or_stranger_signs_nothing(guards: Guards, tmp_path: Path) -> None:
    museum = new_guard(tmp_path, "museum")
    four = guards | {"museum": museum}
    enrol_all({owner: guard.enrolment for owner, guard in four.items()})
    for guard in guards.values():
        enrol(guard, *cards(guards))
    bank = guards["bank"]
    with pytest.raises(SignatureInvalid, match="additional card of museum"):
        channel("bank", bank).put_registry(signature(museum))
    with pytest.raises(SignatureInvalid, match="which no member has"):
        channel("bank", bank).put_registry(sign(bank.home.registry, museum.home.identity.signing_key))
    museum.close()


def test_no_answer_or_refusal_shows_a_secret(guards: Guards) -> None:
    """Whatever a scientist gets from the front routes of enrolment, the key and the identities are not in it."""
    enrol_all({owner: guard.enrolment for owner, guard in guards.items()})
    secrets = [guards["bank"].home.secret_key("bfv")[start : start + 16] for start in range(8, 2000, 64)]
    for guard in guards.values():
        identity = (guard.home.folder / "keys" / "identity.key").read_bytes()
        secrets += [identity[:32], identity[32:]]
    heard: list[bytes] = []
    for owner, guard in guards.items():
        relay = channel(owner, guard)
        heard += [relay.registry(), repr(relay.info()).encode(), *(item.canonical() for item in relay.envelopes())]
        for put in (relay.put_registry, relay.put_envelope):
            for hostile in (*cards(guards), *guards["bank"].enrolment.envelopes()):
                try:
                    put(hostile)
                except FlPrivacyError as error:
                    heard.append(str(error).encode())
    for told in heard:
        for secret in secrets:
            assert secret not in told and secret.hex().encode() not in told
