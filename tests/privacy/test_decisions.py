"""A ledger that keeps decisions pays for nothing that its owner has not approved, and keeps what owners sign of each other."""

import time

import pytest

from fl_privacy.errors import BudgetExceeded, LedgerError
from fl_privacy.privacy.accounting import calibrate
from fl_privacy.privacy.entries import Spend
from fl_privacy.privacy.ledger import Ledger
from tests.privacy.crashes import dies_at
from tests.privacy.three_ledgers import DELTA, KEYS, PLAN, ROUND, decision, digest, order, survivor_lists

KEY = KEYS["clinic"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def new_ledger(path, **options):
    return Ledger.create(path, "clinic", KEY, 10.0, DELTA, "rdp", **{"decisions_kept": True} | options)


def heads_with(ledger):
    return {"bank": digest("bank head"), "clinic": ledger.statement().head, "school": digest("school head")}


def refused(ledger, words, number=0, plan=PLAN, spend=ROUND, error=LedgerError):
    before = ledger.statement()
    with pytest.raises(error, match=words):
        ledger.reserve(order(number), plan, spend)
    assert ledger.statement() == before


def test_without_an_approval_nothing_is_paid(path):
    ledger = new_ledger(path)
    refused(ledger, "no approval of plan")
    ledger.decide(**decision(plan=digest("another plan")))
    refused(ledger, "no approval of plan")
    ledger.decide(**decision())
    ledger.reserve(order(0), PLAN, ROUND)


@pytest.mark.parametrize("verdict", ["denied", "revoked"])
def test_the_last_decision_counts(path, verdict):
    ledger = new_ledger(path)
    ledger.decide(**decision())
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.decide(**decision(verdict=verdict, reason="the board met"))
    refused(ledger, verdict, number=1)
    ledger.decide(**decision())
    ledger.reserve(order(1), PLAN, ROUND)


def test_an_approval_expires_also_when_the_clock_goes_back(path, monkeypatch):
    ledger = new_ledger(path)
    expires = int(time.time()) + 1000
    ledger.decide(**decision(expires=expires))
    ledger.reserve(order(0), PLAN, ROUND)
    monkeypatch.setattr("fl_privacy.privacy.ledger.time.time", lambda: expires)
    refused(ledger, "had expired", number=1)
    ledger.void(order(0), "tells the ledger how late it is")
    monkeypatch.undo()
    refused(ledger, "had expired", number=1)


def test_an_approval_covers_so_many_trainings(path):
    ledger = new_ledger(path)
    ledger.decide(**decision(rounds=2, epsilon=9.0))
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.void(order(0), "failed, and counts")
    ledger.reserve(order(1), PLAN, ROUND)
    refused(ledger, "all 2 orders", number=2)


def test_a_plan_never_costs_more_than_was_approved(path):
    ledger = new_ledger(path)
    ledger.decide(**decision())  # three trainings of ROUND
    refused(ledger, "that was approved", spend=ROUND.model_copy(update={"steps": 61}), error=BudgetExceeded)
    ledger.reserve(order(0), PLAN, ROUND)
    refused(ledger, "that was approved", 1, spend=ROUND.model_copy(update={"noise_multiplier": 0.5}), error=BudgetExceeded)


@pytest.mark.parametrize(
    ("accountant", "target", "rounds", "delta"), [("rdp", 8.0, 5, 1e-6), ("rdp", 50.0, 1, 1e-5), ("prv", 1.0, 3, 1e-5)]
)
def test_a_plan_calibrated_to_its_target_fits_its_approval_to_the_last_training(path, accountant, target, rounds, delta):
    ledger = new_ledger(path)
    ledger.change_budget(1000.0, "for this test")
    ledger.decide(**decision(epsilon=target, delta=delta, accountant=accountant, rounds=rounds))
    noise = calibrate(target, delta, 0.05, rounds * 10, accountant)
    for number in range(rounds):
        ledger.reserve(order(number), PLAN, Spend(noise_multiplier=noise, sample_rate=0.05, steps=10))


def test_a_ledger_from_before_decisions_keeps_them_from_the_first_on(path):
    ledger = new_ledger(path, decisions_kept=False)
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.decide(**decision(plan=digest("another plan")))
    refused(ledger, "no approval of plan", number=1)


@pytest.mark.parametrize(
    ("changes", "words"), [({"verdict": "perhaps"}, "verdict"), ({"plan": "P"}, "plan"), ({"epsilon": 0}, "epsilon")]
)
def test_a_decision_that_means_nothing_is_refused(path, changes, words):
    ledger = new_ledger(path)
    with pytest.raises(LedgerError, match=words):
        ledger.decide(**decision(**changes))
    assert len(ledger.entries()) == 1


def test_what_the_owners_signed_of_each_other_is_kept_once(path):
    ledger = new_ledger(path, decisions_kept=False)
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.commit(order(0))
    lists = survivor_lists(0, heads_with(ledger))
    kept = ledger.witness(order(0), lists)
    assert ledger.witness(order(0), tuple(reversed(lists))) == kept  # after a crash the guard asks again
    assert len(ledger.entries()) == 4
    with pytest.raises(LedgerError, match="witnessed before"):
        ledger.witness(order(0), survivor_lists(0, heads_with(ledger)))
    assert Ledger.open(path, KEY).entries() == ledger.entries()


def test_an_order_that_took_over_an_update_is_witnessed_without_a_reserve(path):
    ledger = new_ledger(path, decisions_kept=False)
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.commit(order(0))
    ledger.witness(order(1), survivor_lists(1, heads_with(ledger)))


def bad_witnesses(ledger):
    heads = heads_with(ledger)
    good = survivor_lists(0, heads)
    first_head = ledger._verified.entries[1].previous  # of the opening entry
    return {
        "is for order": survivor_lists(1, heads),
        "signed different survivor lists": (*good[:2], survivor_lists(0, heads | {"bank": digest("x")})[2]),
        "3 owners are in the cohort, 2 signed": good[:2],
        "one from each": (good[0], good[1], good[1]),
        "never had": survivor_lists(0, heads | {"clinic": digest("no head of mine")}),
        "before the order was committed": survivor_lists(0, heads | {"clinic": first_head}),
        "has not signed its own": survivor_lists(0, heads, KEYS | {"clinic": KEYS["bank"]}),
        "does not verify": (good[0].model_copy(update={"signature": good[1].signature}), *good[1:]),
    }


def test_a_witness_that_proves_nothing_is_refused(path):
    ledger = new_ledger(path, decisions_kept=False)
    ledger.reserve(order(0), PLAN, ROUND)
    early = survivor_lists(0, heads_with(ledger))
    with pytest.raises(LedgerError, match="before the order was committed"):
        ledger.witness(order(0), early)
    ledger.commit(order(0))
    for words, lists in bad_witnesses(ledger).items():
        with pytest.raises(LedgerError, match=words):
            ledger.witness(order(0), lists)
    assert len(ledger.entries()) == 3


def test_killed_at_any_statement_of_a_decision_or_a_witness_it_is_written_whole_or_not_at_all(path):
    ledger = new_ledger(path, decisions_kept=False)
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.commit(order(0))
    lists = survivor_lists(0, heads_with(ledger))
    ledger.close()
    before = path.read_bytes()
    for statement in range(1, 60):
        path.write_bytes(before)

        def work():
            ledger = Ledger.open(path, KEY)
            ledger.witness(order(0), lists)
            ledger.decide(**decision())

        killed = dies_at(statement, work)
        ledger = Ledger.open(path, KEY)  # verifies every entry
        kinds = [entry.event.kind for entry in ledger.entries()]
        assert kinds == ["open", "reserve", "commit", "witness", "decision"][: max(3, len(kinds))]
        ledger.decide(**decision(verdict="revoked"))  # and it still works
        ledger.close()
        if not killed:
            assert len(kinds) == 5
            break
    assert statement > 12, "the child was to die at every statement, then to finish"
