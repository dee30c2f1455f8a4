"""Cards and the registry: who counts as an owner, what all of them must sign, and what an auditor can verify."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.registry import (
    OwnerCard,
    Registry,
    RegistryRecord,
    build_registry,
    complete_registry,
    difference,
    registry_of,
    signatory,
    verify_registry,
)
from fl_privacy.errors import DigestMismatch, KeyMissing, MessageError, SignatureInvalid
from fl_privacy.messages import Message, Signed, open_signed, public_hex, sign

IDENTITIES = {f"owner-{index:02d}": Identity.generate() for index in range(4)}
REGISTRY = build_registry(identity.card(owner) for owner, identity in IDENTITIES.items())
FIRST, *OTHERS = REGISTRY.owners


def cards(*names: str) -> list[Signed]:
    return [Identity.generate().card(name) for name in names]


def opened(card: Signed) -> OwnerCard:
    return open_signed(card, OwnerCard, card.signer)


def resigned(identity: Identity, owner: str, **changes: str) -> Signed:
    return sign(OwnerCard.model_validate(opened(identity.card(owner)).model_dump() | changes), identity.signing_key)


def test_a_registry_is_the_same_in_whatever_order_the_cards_arrive() -> None:
    signed = cards("b", "c", "a")
    registry = build_registry(signed)
    assert [card.owner for card in registry.cards] == ["a", "b", "c"] and registry.dealer == "a"
    assert registry.digest() == build_registry(reversed(signed)).digest()
    assert registry == Registry.parse(registry.canonical())
    assert registry.card("b") == opened(signed[0])
    with pytest.raises(KeyMissing):
        registry.card("d")


def test_fingerprints_are_short_and_change_with_every_field() -> None:
    identity = Identity.generate()
    card = opened(identity.card("a"))
    assert [len(group) for group in card.fingerprint.split()] == [4] * 8
    for changes in ({"owner": "b"}, {"signing_key": "0" * 64}, {"agreement_key": "0" * 64}, {"tenseal": "0"}):
        assert card.model_copy(update=changes).fingerprint != card.fingerprint


def test_two_owners_or_a_name_twice_are_refused() -> None:
    for names in (("a", "b"), ("a", "b", "b", "c"), ()):
        with pytest.raises(MessageError):
            build_registry(cards(*names))


def test_one_key_for_two_owners_is_refused() -> None:
    """A copied agreement key would let its owner compute another's masks."""
    copied, others = Identity.generate(), cards("a", "b")
    stolen = resigned(Identity.generate(), "d", agreement_key=opened(copied.card("c")).agreement_key)
    for pair in ((copied.card("c"), copied.card("d")), (copied.card("c"), stolen)):
        with pytest.raises(MessageError, match="same"):
            build_registry([*others, *pair])


def test_unequal_tenseal_versions_are_refused() -> None:
    with pytest.raises(MessageError, match=r"install one version \(a 0\.3\.\d+, b 0\.3\.\d+, c 0\.3\.1\)"):
        build_registry([*cards("a", "b"), resigned(Identity.generate(), "c", tenseal="0.3.1")])


def test_a_substituted_card_is_detected() -> None:
    owner, scientist = Identity.generate(), Identity.generate()
    honest, others = owner.card("c"), cards("a", "b")
    theirs = opened(scientist.card("c"))
    swapped = honest.model_copy(update={"body": honest.body.replace(opened(honest).agreement_key, theirs.agreement_key)})
    foreign = resigned(scientist, "c", signing_key=public_hex(owner.signing_key))
    renamed = honest.model_copy(update={"body": honest.body.replace('"owner":"c"', '"owner":"d"')})
    for card in (swapped, foreign, renamed):
        with pytest.raises(SignatureInvalid):
            build_registry([*others, card])
    replaced = build_registry([*others, scientist.card("c")])  # consistent in itself: only the fingerprint gives it away
    assert replaced.card("c").fingerprint != opened(honest).fingerprint
    assert replaced.digest() != build_registry([*others, honest]).digest()


def signed_by(owner: str, registry: Message = REGISTRY) -> Signed:
    return sign(registry, IDENTITIES[owner].signing_key)


def record(registry: Registry = REGISTRY) -> RegistryRecord:
    return RegistryRecord(registry=signed_by(FIRST, registry), signatures=tuple(signed_by(owner, registry) for owner in OTHERS))


def test_serials_start_at_one_and_make_different_registries() -> None:
    signed = cards("a", "b", "c")
    with pytest.raises(MessageError, match="serial"):
        build_registry(signed, 0)
    registries = [build_registry(signed, serial) for serial in (1, 2, 3)]
    assert len({registry.digest() for registry in registries}) == len({registry.fingerprint for registry in registries}) == 3


def test_the_fingerprint_of_a_registry_is_192_bits_of_the_digest_that_orders_carry() -> None:
    assert [len(group) for group in REGISTRY.fingerprint.split()] == [4] * 12
    assert REGISTRY.digest().startswith(REGISTRY.fingerprint.replace(" ", ""))


@given(st.sets(st.integers(0, 11), min_size=3), st.sets(st.integers(0, 11), min_size=3), st.sets(st.integers(0, 11)))
def test_changes_say_exactly_who_joined_left_or_has_a_new_card(before: set[int], after: set[int], renewed: set[int]) -> None:
    old, new = (registry_of([made_up(index) for index in members], serial=1) for members in (before, after))
    renewed &= after
    new = registry_of([made_up(index, "1" * 32 if index in renewed else "0" * 32) for index in after], serial=2)
    expected = {made_up(index).owner: "joined" for index in after - before}
    expected |= {made_up(index).owner: "left" for index in before - after}
    expected |= {made_up(index).owner: "new card" for index in after & before & renewed}
    assert new.changes_since(old) == expected
    assert new.changes_since(new) == {}
    assert difference(new, new) == ""
    assert all(owner in difference(new, old) for owner in expected)


def made_up(index: int, padding: str = "0" * 32) -> OwnerCard:
    key = f"{index:032x}{padding}"
    return OwnerCard(owner=f"owner-{index:02d}", signing_key=key, agreement_key=key, tenseal="1")


def test_every_member_is_the_signatory_of_its_own_signature() -> None:
    for owner in REGISTRY.owners:
        assert signatory(signed_by(owner), REGISTRY) == owner


def test_a_signature_of_another_registry_is_refused_and_the_difference_is_named() -> None:
    changed = {
        "another card of owner-02": [*REGISTRY.cards[:2], opened(Identity.generate().card("owner-02")), REGISTRY.cards[3]],
        "no card of owner-03": REGISTRY.cards[:3],
        "an additional card of owner-09": [*REGISTRY.cards, opened(Identity.generate().card("owner-09"))],
    }
    for told, found in changed.items():
        with pytest.raises(DigestMismatch, match=f"owner-01 signed another registry: {told}$"):
            signatory(signed_by("owner-01", registry_of(found, REGISTRY.serial)), REGISTRY)
    with pytest.raises(DigestMismatch, match="serial 1 instead of 2"):
        signatory(signed_by("owner-01"), registry_of(REGISTRY.cards, 2))


def test_a_signature_by_no_member_or_of_something_else_is_refused() -> None:
    with pytest.raises(SignatureInvalid, match="which no member has"):
        signatory(sign(REGISTRY, Identity.generate().signing_key), REGISTRY)
    altered = signed_by(FIRST).model_copy(update={"body": signed_by(FIRST).body.replace('"serial":1', '"serial":2')})
    for bad in (altered, IDENTITIES[FIRST].card(FIRST), signed_by(FIRST, REGISTRY.cards[0])):
        with pytest.raises(SignatureInvalid):
            signatory(bad, REGISTRY)


def test_a_registry_is_complete_when_all_members_have_signed_it() -> None:
    assert record().signed_by() == REGISTRY.owners
    assert complete_registry(record()) == REGISTRY
    half = RegistryRecord(registry=signed_by(FIRST), signatures=(signed_by("owner-02"), signed_by("owner-02")))
    assert half.signed_by() == (FIRST, "owner-02")
    with pytest.raises(KeyMissing, match="not signed by owner-01, owner-03;"):
        complete_registry(half)
    mixed = RegistryRecord(registry=signed_by(FIRST), signatures=(signed_by("owner-01", registry_of(REGISTRY.cards, 2)),))
    with pytest.raises(DigestMismatch):
        complete_registry(mixed)


def test_an_auditor_who_knows_one_key_or_fingerprint_verifies_the_whole_registry() -> None:
    for card in REGISTRY.cards:
        for known in (card.signing_key, card.fingerprint, card.fingerprint.upper()):
            assert verify_registry(RegistryRecord.parse(record().canonical()), known) == REGISTRY
    stranger = opened(Identity.generate().card("owner-00"))
    for known in (stranger.signing_key, stranger.fingerprint, ""):
        with pytest.raises(SignatureInvalid, match="no member"):
            verify_registry(record(), known)
    with pytest.raises(KeyMissing):
        verify_registry(RegistryRecord(registry=signed_by(FIRST)), REGISTRY.cards[0].signing_key)
