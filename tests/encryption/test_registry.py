"""Cards, the registry, and receipts: who counts as an owner, and who has answered an order."""

from __future__ import annotations

from typing import Any

import pytest

from fl_privacy.encryption.keys import Identity
from fl_privacy.encryption.registry import OwnerCard, Registry, build_registry, verify_receipts
from fl_privacy.errors import CohortMismatch, CohortTooSmall, DigestMismatch, KeyMissing, MessageError, SignatureInvalid
from fl_privacy.messages import Signed, UpdateReceipt, open_signed, public_hex, sign
from tests.secure_cohort import SOME_DIGEST, SecureCohort, make_cohort


def cards(*names: str) -> list[Signed]:
    return [Identity.generate().card(name) for name in names]


def opened(card: Signed) -> OwnerCard:
    return open_signed(card, OwnerCard, card.signer)


def resigned(identity: Identity, owner: str, **changes: str) -> Signed:
    return sign(OwnerCard.model_validate(opened(identity.card(owner)).model_dump() | changes), identity.signing_key)


def receipt(cohort: SecureCohort, owner: str, signer: str | None = None, **changes: Any) -> Signed:
    fields = {
        "order": cohort.order.digest(), "owner": owner, "ciphertext": SOME_DIGEST, "ciphertext_bytes": 1,
        "training_seconds": 1.0, "encryption_seconds": 1.0, "epsilon_spent": 1.0, "epsilon_budget": 8.0, "delta": 1e-5,
        "ledger_head": SOME_DIGEST,
    }  # fmt: skip
    return sign(UpdateReceipt.model_validate(fields | changes), cohort.identities[signer or owner].signing_key)


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
    with pytest.raises(MessageError, match="TenSEAL"):
        build_registry([*cards("a", "b"), resigned(Identity.generate(), "c", tenseal="0.3.16")])


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


def test_receipts_of_exactly_the_cohort_are_accepted() -> None:
    cohort = make_cohort(4).ordering(cohort=("owner-03", "owner-00", "owner-01"), weights=(1, 2, 3))
    receipts = [receipt(cohort, owner) for owner in ("owner-00", "owner-01", "owner-03")]
    verified = verify_receipts(cohort.order, receipts, cohort.registry)
    assert [found.owner for found in verified] == ["owner-03", "owner-00", "owner-01"]
    with pytest.raises(SignatureInvalid):  # an owner of the registry, not of the cohort
        verify_receipts(cohort.order, [*receipts, receipt(cohort, "owner-02")], cohort.registry)


def test_missing_repeated_and_foreign_receipts_are_refused() -> None:
    cohort = make_cohort(3)
    first, second, third = (receipt(cohort, owner) for owner in cohort.owners)
    again = receipt(cohort, "owner-00", ciphertext="0" * 64)
    old = receipt(cohort.ordering(attempt=7), "owner-02")
    for receipts in ([], [first, second], [first, second, again], [first, second, third, third], [first, second, old]):
        with pytest.raises(CohortMismatch):
            verify_receipts(cohort.order, receipts, cohort.registry)
    in_anothers_name = receipt(cohort, "owner-02", signer="owner-01")
    stranger = sign(UpdateReceipt.parse(third.body), Identity.generate().signing_key)
    altered = third.model_copy(update={"body": third.body.replace(SOME_DIGEST, "0" * 64)})
    for bad in (in_anothers_name, stranger, altered, cohort.identities["owner-02"].card("owner-02")):
        with pytest.raises(SignatureInvalid):
            verify_receipts(cohort.order, [first, second, bad], cohort.registry)


def test_receipts_need_a_proper_cohort_and_its_registry() -> None:
    cohort = make_cohort(3)
    receipts = [receipt(cohort, owner) for owner in cohort.owners]
    with pytest.raises(DigestMismatch):
        verify_receipts(cohort.order, receipts, make_cohort(3).registry)
    two = cohort.ordering(cohort=cohort.owners[:2], weights=(1, 1))
    with pytest.raises(CohortTooSmall):
        verify_receipts(two.order, receipts[:2], cohort.registry)
    twice = cohort.ordering(cohort=("owner-00", "owner-01", "owner-01"))
    with pytest.raises(CohortMismatch):
        verify_receipts(twice.order, receipts, cohort.registry)
    stranger = cohort.ordering(cohort=("owner-00", "owner-01", "owner-09"))
    with pytest.raises(KeyMissing):
        verify_receipts(stranger.order, receipts, cohort.registry)
