"""An owner's enrolment: one registry that all sign, one key for exactly its members, changes that leave nothing old usable."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_privacy.encryption import secret_sum
from fl_privacy.encryption.keys import key_name
from fl_privacy.encryption.registry import verify_registry
from fl_privacy.errors import (
    ChecksumMismatch,
    DigestMismatch,
    FlPrivacyError,
    KeyMissing,
    MessageError,
    OrderRefused,
    OwnerFailed,
    SignatureInvalid,
)
from fl_privacy.guard import enrolment
from fl_privacy.guard.enrolment import EnrolRequest
from fl_privacy.guard.guard import Guard
from fl_privacy.round_order import RoundOrder
from fl_privacy.scientist.enrolment import common_key, common_registry, registry_states, relay_keys
from tests.builders import OWNERS, enrol_all
from tests.guard.conftest import Strongrooms, finished
from tests.guard.enrolled import (
    cards,
    channels,
    expected_mean,
    new_guard,
    new_guards,
    opened,
    order_of,
    protected,
    reopened,
    total_of,
)

ROTATE = EnrolRequest(rotate=True)
Guards = dict[str, Guard]


@pytest.fixture
def guards(tmp_path: Path) -> Iterator[Guards]:
    with new_guards(tmp_path) as made:
        yield made


@pytest.fixture
def enrolled(guards: Guards) -> Guards:
    enrol(guards)
    return guards


def enrol(guards: Guards) -> None:
    enrol_all({owner: guard.enrolment for owner, guard in guards.items()})


def ask(guards: Guards, request: EnrolRequest) -> None:
    for guard in guards.values():
        guard.enrolment.enrol(request)


def keys(guards: Guards) -> set[bytes]:
    return {guard.home.secret_key("bfv") for guard in guards.values()}


def serials(guards: Guards) -> list[int]:
    return [guard.home.require_complete_registry().serial for guard in guards.values()]


# enrolling


def test_after_the_relay_all_owners_share_one_registry_that_all_signed_and_one_key(guards: Guards) -> None:
    ask(guards, EnrolRequest(cards=cards(guards)))
    relays = channels(guards)
    assert relay_keys(relays) == (6, 2)
    assert serials(guards) == [1, 1, 1] and len(keys(guards)) == 1
    states = registry_states(relays)
    assert common_registry(states) == guards["bank"].home.registry
    assert common_key(states, OWNERS, "bfv") == key_name(keys(guards).pop())
    assert relay_keys(relays) == (0, 0), "what everybody holds is not carried again"


def test_any_members_record_convinces_an_auditor_who_knows_any_member(enrolled: Guards) -> None:
    registry = enrolled["bank"].home.registry
    for guard in enrolled.values():
        for card in registry.cards:
            assert verify_registry(guard.home.registry_record, card.fingerprint) == registry


def test_until_all_have_signed_the_missing_are_named_and_no_key_leaves_the_dealer(guards: Guards) -> None:
    bank, clinic, school = guards.values()
    with pytest.raises(KeyMissing, match="bank has not enrolled"):
        bank.enrolment.envelopes()
    ask(guards, EnrolRequest(cards=cards(guards)))
    bank.enrolment.take_signature(clinic.enrolment.state().registry)
    for refused in (bank.home.require_complete_registry, bank.enrolment.envelopes):
        with pytest.raises(KeyMissing, match="registry 1 is not signed by school;"):
            refused()
    bank.enrolment.take_signature(school.enrolment.state().registry)
    assert len(bank.enrolment.envelopes()) == 2
    with pytest.raises(KeyMissing, match="not signed by bank, school"):
        clinic.home.require_complete_registry()


def test_relaying_before_everybody_enrolled_names_the_owner(guards: Guards) -> None:
    for owner in ("bank", "clinic"):
        guards[owner].enrolment.enrol(EnrolRequest(cards=cards(guards)))
    with pytest.raises(KeyMissing, match="school has not enrolled"):
        relay_keys(channels(guards))


def test_an_owner_who_is_not_connected_is_named_and_keeps_the_others_from_the_key(guards: Guards) -> None:
    ask(guards, EnrolRequest(cards=cards(guards)))
    with pytest.raises(KeyMissing, match="not signed by school"):
        relay_keys(channels({owner: guards[owner] for owner in ("bank", "clinic")}))
    with pytest.raises(OwnerFailed, match="clinic: does not hold the bfv encryption key"):
        common_key(registry_states(channels(guards)), OWNERS, "bfv")


def test_enrolling_again_with_the_same_cards_changes_nothing(enrolled: Guards) -> None:
    before = {
        path: path.read_bytes() for guard in enrolled.values() for path in guard.home.folder.rglob("*.*") if path.is_file()
    }
    ask(enrolled, EnrolRequest(cards=tuple(reversed(cards(enrolled)))))
    ask(enrolled, EnrolRequest(cards=cards(enrolled), serial=1))
    assert all(path.read_bytes() == content for path, content in before.items())


def test_an_owner_refuses_a_registry_with_another_card_than_its_own_or_none(guards: Guards) -> None:
    signed = dict(zip(guards, cards(guards), strict=True))
    stranger = guards["school"].home.identity.card("bank")
    with pytest.raises(SignatureInvalid, match="the card of bank is not its own"):
        guards["bank"].enrolment.enrol(EnrolRequest(cards=(stranger, signed["clinic"], guards["bank"].home.identity.card("x"))))
    with pytest.raises(KeyMissing, match="no card of 'bank'"):
        cards_without_bank = (signed["clinic"], signed["school"], guards["bank"].home.identity.card("x"))
        guards["bank"].enrolment.enrol(EnrolRequest(cards=cards_without_bank))
    assert guards["bank"].enrolment.summary() is None
    with pytest.raises(MessageError, match="at least 3"):
        guards["bank"].enrolment.enrol(ROTATE)


def test_unequal_tenseal_versions_are_refused_and_named(guards: Guards, monkeypatch: pytest.MonkeyPatch) -> None:
    signed = cards(guards)
    monkeypatch.setattr("fl_privacy.encryption.keys.tenseal_version", lambda: "0.3.1")
    old = guards["clinic"].home.identity.card("clinic")
    with pytest.raises(MessageError, match=r"install one version \(bank 0\.3\.\d+, clinic 0\.3\.1, school"):
        guards["bank"].enrolment.enrol(EnrolRequest(cards=(signed[0], old, signed[2])))
    with pytest.raises(SignatureInvalid, match="another TenSEAL version"):
        guards["clinic"].enrolment.enrol(EnrolRequest(cards=signed))


# serials


def test_a_proposal_shows_what_would_be_signed_and_signs_nothing(enrolled: Guards) -> None:
    bank = enrolled["bank"]
    before = bank.home.registry_record, bank.home.secret_key("bfv")
    assert bank.enrolment.propose(ROTATE).serial == 2
    assert (bank.home.registry_record, bank.home.secret_key("bfv")) == before
    assert bank.enrolment.enrol(ROTATE) == bank.home.registry


def test_a_guard_signs_no_second_registry_of_one_serial_and_never_goes_back(enrolled: Guards, tmp_path: Path) -> None:
    museum, bank = new_guard(tmp_path, "museum"), enrolled["bank"]
    four = cards(enrolled | {"museum": museum})
    with pytest.raises(OrderRefused, match="bank has signed registry 1 before; another one needs a higher serial"):
        bank.enrolment.enrol(EnrolRequest(cards=four, serial=1))
    bank.enrolment.enrol(EnrolRequest(cards=four, serial=7))
    for serial in (1, 6, 7):
        with pytest.raises(OrderRefused, match="signed registry 7"):
            bank.enrolment.enrol(EnrolRequest(cards=cards(enrolled), serial=serial))
    with pytest.raises(MessageError):
        bank.enrolment.enrol(EnrolRequest(cards=four, serial=2**31))
    museum.close()


def test_rotating_once_more_before_all_have_signed_changes_nothing(enrolled: Guards) -> None:
    ask(enrolled, ROTATE)
    key = enrolled["bank"].home.secret_key("bfv")
    ask(enrolled, ROTATE)
    assert [guard.home.registry.serial for guard in enrolled.values()] == [2, 2, 2]
    assert enrolled["bank"].home.secret_key("bfv") == key


def test_owners_at_different_serials_are_told_who_and_by_how_much(enrolled: Guards) -> None:
    enrolled["clinic"].enrolment.enrol(ROTATE)
    with pytest.raises(OwnerFailed, match=r"clinic: signed another registry .* \(clinic: serial 2 instead of 1\)") as failed:
        relay_keys(channels(enrolled))
    assert failed.value.owner == "clinic"


# rotating, joining, leaving


def test_a_rotation_removes_every_trace_of_the_old_key_and_works_afterwards(enrolled: Guards, tmp_path: Path) -> None:
    old = keys(enrolled).pop()
    stray = enrolled["clinic"].home.folder / "keys" / "bfv.key.partial"  # what a crash in the middle of a write leaves
    stray.write_bytes(old)
    ask(enrolled, ROTATE)
    for guard in enrolled.values():
        for path in guard.home.folder.rglob("*"):
            assert not path.is_file() or old[100:132] not in path.read_bytes(), path
    with pytest.raises(KeyMissing):
        enrolled["clinic"].home.secret_key("bfv")
    assert relay_keys(channels(enrolled)) == (6, 2)
    assert serials(enrolled) == [2, 2, 2]
    assert len(keys(enrolled)) == 1 and keys(enrolled) != {old}
    assert_sums(enrolled, tmp_path)


def test_orders_and_ciphertexts_of_the_old_registry_are_dead_after_a_rotation(enrolled: Guards, tmp_path: Path) -> None:
    order = order_of(enrolled)
    updates = [protected(guard, order) for guard in enrolled.values()]
    total = total_of(updates, order, tmp_path)
    enrol_anew(enrolled)
    bank = enrolled["bank"]
    with pytest.raises(DigestMismatch, match="for registry"):
        protected(bank, order)
    with pytest.raises(KeyMissing):
        opened(bank, total, order)
    renamed = order_of(enrolled, registry=order.registry)  # the new key under the old registry
    with pytest.raises(FlPrivacyError):
        opened(bank, total, renamed)
    with pytest.raises(DigestMismatch):
        protected(bank, renamed)
    with pytest.raises(KeyMissing):  # the old key under the new registry
        protected(bank, order_of(enrolled, key=order.key))


def test_an_owner_that_joins_sums_with_the_others_and_cannot_open_what_came_before(enrolled: Guards, tmp_path: Path) -> None:
    order = order_of(enrolled)
    total = total_of([protected(guard, order) for guard in enrolled.values()], order, tmp_path)
    joined = enrolled | {"museum": new_guard(tmp_path, "museum")}
    ask(enrolled, EnrolRequest(cards=cards(joined)))
    joined["museum"].enrolment.enrol(EnrolRequest(cards=cards(joined), serial=2))
    assert relay_keys(channels(joined)) == (12, 3)
    assert serials(joined) == [2, 2, 2, 2]
    assert_sums(joined, tmp_path)
    with pytest.raises(KeyMissing):
        opened(joined["museum"], total, order)
    assert_key_does_not_open(joined["museum"], total, order)
    joined["museum"].close()


def test_a_joiner_who_forgets_the_serial_is_told_it(enrolled: Guards, tmp_path: Path) -> None:
    joined = enrolled | {"museum": new_guard(tmp_path, "museum")}
    ask(joined, EnrolRequest(cards=cards(joined)))
    with pytest.raises(OwnerFailed, match=r"museum: serial 1 instead of 2\); .* --serial N"):
        relay_keys(channels(joined))
    joined["museum"].enrolment.enrol(EnrolRequest(cards=cards(joined), serial=2))
    assert relay_keys(channels(joined)) == (12, 3)
    joined["museum"].close()


def test_a_joiner_who_comes_first_by_name_becomes_the_dealer(enrolled: Guards, tmp_path: Path) -> None:
    joined = {"alba": new_guard(tmp_path, "alba")} | enrolled
    enrol(joined)
    assert joined["bank"].home.registry.dealer == "alba"
    assert len(keys(joined)) == 1
    assert_sums(joined, tmp_path)
    joined["alba"].close()


@pytest.mark.parametrize("leaver", ["museum", "bank"])  # bank is the dealer
def test_an_owner_that_left_gets_no_new_key_and_opens_no_new_sum(guards: Guards, tmp_path: Path, leaver: str) -> None:
    four = guards | {"museum": new_guard(tmp_path, "museum")}
    enrol(four)
    gone, rest = four[leaver], {owner: guard for owner, guard in four.items() if owner != leaver}
    ask(rest, EnrolRequest(cards=cards(rest)))
    assert relay_keys(channels(rest)) == (6, 2)
    order = order_of(rest)
    total = assert_sums(rest, tmp_path)
    assert gone.home.secret_key("bfv") not in keys(rest)
    with pytest.raises(KeyMissing):
        opened(gone, total, order)
    assert_key_does_not_open(gone, total, order)
    dealer = rest[min(rest)]
    for envelope in dealer.enrolment.envelopes():
        with pytest.raises(FlPrivacyError):
            gone.enrolment.take_envelope(envelope)
    with pytest.raises(OwnerFailed, match=leaver):
        relay_keys(channels(four))
    four["museum"].close()


def test_a_key_of_the_old_registry_never_lands_in_the_new_one(enrolled: Guards) -> None:
    old = enrolled["bank"].enrolment.envelopes()
    ask(enrolled, ROTATE)
    for envelope in old:
        with pytest.raises(DigestMismatch):
            enrolled["clinic"].enrolment.take_envelope(envelope)
    with pytest.raises(KeyMissing):
        enrolled["clinic"].home.secret_key("bfv")


# crashes


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("owner", ["bank", "clinic"])  # the dealer, and an owner who is dealt to
@pytest.mark.parametrize("written", [False, True], ids=["before the file is there", "after"])
@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_crash_while_rotating_is_repaired_by_the_same_command(
    enrolled: Guards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: str, written: bool, step: int
) -> None:
    order = order_of(enrolled)
    with monkeypatch.context() as patched:
        crash_at(step, written, patched)
        with contextlib.suppress(Crash):
            enrolled[owner].enrolment.enrol(ROTATE)
    enrolled[owner] = reopened(enrolled[owner])
    if written or step > 0:  # from the first change on, nothing can be summed under the old registry
        with pytest.raises((KeyMissing, DigestMismatch)):
            protected(enrolled[owner], order)
    ask(enrolled, ROTATE)
    relay_keys(channels(enrolled))
    assert serials(enrolled) == [2, 2, 2] and len(keys(enrolled)) == 1
    assert_sums(enrolled, tmp_path)


def crash_at(step: int, written: bool, patched: pytest.MonkeyPatch) -> None:
    """Let the process end at the n-th change of a file: deleted keys, a new key, the new registry."""
    changes = 0

    def crashing(change: Callable[..., None]) -> Callable[..., None]:
        def perform(*arguments: object) -> None:
            nonlocal changes
            changes += 1
            if changes - 1 == step and not written:
                raise Crash
            change(*arguments)
            if changes - 1 == step:
                raise Crash

        return perform

    patched.setattr(enrolment, "write_atomically", crashing(enrolment.write_atomically))
    patched.setattr(Path, "unlink", crashing(Path.unlink))


# the weaker scheme


def test_a_ckks_key_is_dealt_only_by_a_dealer_and_to_owners_whose_policy_allows_it(tmp_path: Path) -> None:
    allowing = {"bank": True, "clinic": True, "school": False}
    guards = {owner: new_guard(tmp_path, owner, allow) for owner, allow in allowing.items()}
    ask(guards, EnrolRequest(cards=cards(guards)))
    relays = channels(guards)
    assert relay_keys(relays) == (6, 3)
    assert {owner for owner, guard in guards.items() if "ckks" in guard.enrolment.key_names()} == {"bank", "clinic"}
    assert len(keys(guards)) == 1
    with pytest.raises(OwnerFailed, match=r"school: .* must allow ckks"):
        common_key(registry_states(relays), OWNERS, "ckks")
    old = guards["bank"].home.secret_key("ckks")
    enrol_anew(guards)
    assert guards["bank"].home.secret_key("ckks") == guards["clinic"].home.secret_key("ckks") != old
    for guard in guards.values():
        guard.close()


def enrol_anew(guards: Guards) -> None:
    ask(guards, ROTATE)
    relay_keys(channels(guards))


def assert_sums(guards: Guards, folder: Path) -> bytes:
    """These guards can sum, and each opens the same mean; returns the total."""
    order = order_of(guards)
    total = total_of([protected(guard, order) for guard in guards.values()], order, folder)
    rounding = len(order.cohort) * order.encoding.value_range / (2**7 - 1)  # at most one step of 8 bits per owner
    for guard in guards.values():
        assert np.abs(opened(guard, total, order) - expected_mean(order)).max() <= rounding
    return total


def assert_key_does_not_open(guard: Guard, total: bytes, order: RoundOrder) -> None:
    """Even if the guard were changed to ignore the key's name, its key opens nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(secret_sum, "key_name", lambda _: order.key)
        with pytest.raises(ChecksumMismatch):
            opened(guard, total, order)


# orders


def test_no_order_is_admitted_until_all_have_signed_and_approved_plans_survive_a_rotation(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    old = rooms.order()
    bank.enrolment.enrol(ROTATE)
    entries = bank.home.ledger.statement().entries
    with pytest.raises(KeyMissing, match="registry 2 is not signed by clinic, school;"):
        bank.rounds.place(rooms.order())
    enrol_anew(rooms.guards)
    with pytest.raises(OrderRefused, match="another registry"):
        bank.rounds.place(old)
    assert bank.home.ledger.statement().entries == entries, "nothing was paid for"
    order = rooms.order()
    bank.rounds.place(order)
    assert finished(bank, RoundOrder.parse(order.body).digest())["state"] == "sealed"
