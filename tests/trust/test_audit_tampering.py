"""Adversary: an owner who holds its own key, or whoever holds an export. An audit of all ledgers finds what was done and where.

Exports here are header, 0 opening, 1 decision, then reserve, commit, witness of order 0 as 2..4 and of order 1 as 5..7.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from fl_privacy.messages import sign
from fl_privacy.privacy.entries import Witness
from fl_privacy.privacy.export_file import Export
from fl_privacy.privacy.report import audit_exports
from tests.privacy.three_ledgers import (
    KEYS,
    OWNERS,
    PUBLIC,
    ROUND,
    STRANGER,
    digest,
    federation,
    order,
    rewritten,
    survivor_lists,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return federation(tmp_path_factory.mktemp("federation"))


def audit(world, history=True, keys=PUBLIC, **instead):
    return audit_exports(world.exports(**instead), keys, world.history if history else [])


def found(report):
    return {(finding.kind, finding.owner, finding.entry) for finding in report.findings}


def changed(event, **fields):
    return lambda entries: [
        entry.model_copy(update={"event": entry.event.model_copy(update=fields)}) if entry.seq == event else entry
        for entry in entries
    ]


def without(*numbers):
    return lambda entries: [entry for entry in entries if entry.seq not in numbers]


def unwitnessed(event, **fields):
    """The same change, and no witness of its own that would contradict it: entry 4 is the reserve of order 1."""
    return lambda entries: without(4, 7)(changed(event, **fields)(entries))


def test_honest_ledgers_have_no_findings_and_countersign_each_other(world):
    report = audit(world)
    assert report.findings == ()
    assert [owner.owner for owner in report.owners] == list(OWNERS)
    assert all(owner.countersigned == dict.fromkeys({*OWNERS, "history"} - {owner.owner}, 6) for owner in report.owners)
    assert audit(world, history=False, keys=None).findings == ()


# 1-5: by whoever holds an export


def test_an_edited_entry_is_located(world):
    lines = world.lines("clinic")
    lines[6] = lines[6].replace('\\"steps\\":20', '\\"steps\\":2')
    assert ("chain", "clinic", 5) in found(audit(world, clinic=lines))


def test_a_deleted_entry_is_located(world):
    lines = world.lines("clinic")
    assert ("chain", "clinic", 3) in found(audit(world, clinic=lines[:4] + lines[5:]))


def test_reordered_entries_are_located(world):
    lines = world.lines("clinic")
    lines[3], lines[6] = lines[6], lines[3]
    assert ("chain", "clinic", 2) in found(audit(world, clinic=lines))


@pytest.mark.parametrize("kept", range(3, 8))
def test_a_cut_export_is_located_by_its_header(world, kept):
    assert ("chain", "clinic", kept) in found(audit(world, clinic=world.lines("clinic")[: kept + 1]))


def test_an_entry_signed_by_another_key_is_located(world):
    lines = world.lines("clinic")
    entry = Export.read(lines).verify(PUBLIC["clinic"]).entries[4]
    lines[5] = sign(entry, STRANGER).canonical().decode()
    assert ("chain", "clinic", 4) in found(audit(world, clinic=lines))


def test_a_whole_ledger_by_another_key_is_refused(world):
    lines = [
        sign(entry, STRANGER).canonical().decode()
        for entry in Export.read(world.lines("clinic")).verify(PUBLIC["clinic"]).entries
    ]
    report = audit(world, clinic=lines)
    assert ("chain", "clinic", 0) in found(report)
    assert [owner.owner for owner in report.owners] == ["bank", "school"]


# 6-12: by the owner itself, who signs a new past


@pytest.mark.parametrize("evidence", ["witnesses", "history"])
@pytest.mark.parametrize(("kept", "located"), [(6, 4), (5, 4), (3, 0), (2, 0)])
def test_a_tail_that_its_owner_cut_is_found_by_what_others_kept(world, evidence, kept, located):
    shorter = rewritten(world.lines("clinic"), "clinic", lambda entries: entries[:kept])
    others = {} if evidence == "witnesses" else {owner: world.lines(owner)[:3] for owner in ("bank", "school")}
    report = audit(world, history=evidence == "history", clinic=shorter, **others)
    kind = "countersignature" if evidence == "witnesses" else "history"
    finding = next(finding for finding in report.findings if (finding.kind, finding.owner) == (kind, "clinic"))
    assert finding.entry == located
    assert "cut short, broken or rewritten from entry" in finding.what


def test_a_lowered_epsilon_is_located_by_both_accountants(world):
    cheaper = rewritten(world.lines("clinic"), "clinic", changed(5, epsilon=0.5))
    report = audit(world, clinic=cheaper)
    claims = [finding.what for finding in report.findings if (finding.kind, finding.entry) == ("epsilon", 5)]
    assert len(claims) == 2
    assert "Opacus" in claims[0] + claims[1]


def test_a_whole_new_past_is_located_where_the_others_stop_agreeing(world):
    smaller = rewritten(world.lines("clinic"), "clinic", changed(5, spend=ROUND.model_copy(update={"steps": 1})))
    # the new head also breaks what clinic itself had countersigned of order 1
    assert {("countersignature", "clinic", 4), ("history", "clinic", 4), ("chain", "clinic", 7)} <= found(
        audit(world, clinic=smaller)
    )


def test_two_histories_of_one_owner_are_a_fork_at_the_first_difference(world):
    older = Export.read(rewritten(world.lines("clinic"), "clinic", lambda entries: entries[:5]))
    assert audit_exports([*world.exports(), older], PUBLIC, world.history).findings == ()  # the same history
    fork = Export.read(rewritten(world.lines("clinic"), "clinic", lambda entries: _retimed(entries, 3)[:4]))
    report = audit_exports([fork, *world.exports()], PUBLIC, world.history)
    assert found(report) == {("fork", "clinic", 3)}


def _retimed(entries, number):
    return [entry.model_copy(update={"time": entry.time + 1}) if entry.seq == number else entry for entry in entries]


def with_witness(world, number, lists):
    """Clinic's ledger with other survivor lists at entry ``number``, its last."""

    def change(entries):
        event = Witness(order=entries[number].event.order, survivors=lists)
        return [*entries[:number], entries[number].model_copy(update={"event": event})]

    return rewritten(world.lines("clinic"), "clinic", change)


def heads_at(world, number):
    """The owners' heads that the witness of order ``number`` carries."""
    witness = world.ledgers["clinic"].entries()[4 + 3 * number].event
    return dict(zip(OWNERS, json.loads(witness.survivors[0].body)["heads"], strict=True))


def test_a_witness_forged_in_another_owners_name_is_located(world):
    forged = survivor_lists(
        1, heads_at(world, 1) | {"bank": digest("a head to frame bank")}, KEYS | {"bank": STRANGER, "school": STRANGER}
    )
    report = audit(world, history=False, clinic=with_witness(world, 7, forged))
    assert ("countersignature", "clinic", 7) in found(report)
    assert not any(finding.owner == "bank" for finding in report.findings)  # a forgery frames nobody


def test_a_replayed_witness_is_located(world):
    replayed = world.ledgers["clinic"].entries()[4].event.survivors
    assert ("chain", "clinic", 7) in found(audit(world, clinic=with_witness(world, 7, replayed)))


def test_a_removed_decision_is_located(world):
    lines = rewritten(world.lines("clinic"), "clinic", without(1))
    report = audit(world, clinic=lines)
    assert ("chain", "clinic", 1) in found(report)  # the first reserve now stands there
    assert "no approval of plan" in report.findings[[finding.kind for finding in report.findings].index("chain")].what


def test_a_decision_after_the_fact_is_located(world):
    late = rewritten(world.lines("clinic"), "clinic", lambda entries: [entries[0], entries[2], entries[1], *entries[3:]])
    assert ("chain", "clinic", 1) in found(audit(world, clinic=late))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rounds": 1}, "all 1 orders"),
        ({"verdict": "denied"}, "was denied"),
        ({"expires": 1_000_000}, "had expired"),
        ({"plan": digest("another")}, "no approval"),
    ],
)
def test_a_reserve_outside_its_approval_is_located(world, change, words):
    report = audit(world, history=False, clinic=rewritten(world.lines("clinic"), "clinic", unwitnessed(1, **change)))
    finding = next(finding for finding in report.findings if finding.kind == "chain")
    assert finding.entry == (4 if "rounds" in change else 2)
    assert words in finding.what


def test_a_spend_over_its_approval_is_located(world):
    lines = rewritten(world.lines("clinic"), "clinic", unwitnessed(1, epsilon=1.0))
    report = audit(world, history=False, clinic=lines)
    assert ("approval", "clinic", 4) in found(report)  # 1.07 after the second training


def test_a_spend_over_the_budget_of_its_time_is_located(world):
    lines = rewritten(world.lines("clinic"), "clinic", unwitnessed(0, epsilon=1.5))
    assert ("budget", "clinic", 4) in found(audit(world, history=False, clinic=lines))


def test_a_spend_over_the_budget_of_a_period_is_located(world):
    lines = rewritten(world.lines("clinic"), "clinic", unwitnessed(0, epsilon=1.0, period_days=7))
    report = audit(world, history=False, clinic=lines)
    assert ("budget", "clinic", 4) in found(report)
    assert any("any bound on the total" in words for words in report.not_verified)


def test_a_sum_that_nothing_pays_for_is_found(world):
    unpaid = rewritten(world.lines("clinic"), "clinic", lambda entries: [*entries[:2], *entries[5:7]])  # order 0 taken out
    report = audit(world, clinic=unpaid)
    assert any(finding.kind == "unpaid" and order(0)[:16] in finding.what for finding in report.findings)


@pytest.mark.parametrize(("field", "value"), [("epsilon", 0.1), ("budget", 9.0), ("delta", 1e-6)])
def test_a_history_that_tells_another_story_is_found(world, field, value):
    claims = [
        replace(claim, **{field: value}) if claim.owner == "bank" and claim.round == 1 else claim for claim in world.history
    ]
    assert found(audit_exports(world.exports(), PUBLIC, claims)) == {("history", "bank", 6)}


# what the evidence at hand cannot show is said


def test_without_others_a_rewritten_past_is_not_found_and_the_report_says_so(world):
    alone = rewritten(world.lines("clinic"), "clinic", lambda entries: entries[:5])
    report = audit_exports([Export.read(alone)], {"clinic": PUBLIC["clinic"]})
    assert report.findings == ()
    told = " ".join(report.not_verified)
    assert "entries 0 to 4, which nobody else has confirmed" in told
    assert "no signed header" in told
    assert "The scientist's history: none was given" in told


def test_without_a_registry_the_report_says_that_anybody_could_have_signed(world):
    assert any("anybody could have made an export" in words for words in audit(world, keys=None).not_verified)


def test_an_owner_outside_the_registry_is_found(world):
    keys = {owner: key for owner, key in PUBLIC.items() if owner != "school"}
    assert ("registry", "school", None) in found(audit(world, keys=keys))


def test_a_file_that_is_no_export_is_found(world):
    report = audit_exports([*world.exports(), Export.read(["nonsense"])], PUBLIC, world.history)
    assert [finding.kind for finding in report.findings] == ["chain"]
