"""A budget for a period bounds what is reserved within any such period; the total is told, and nothing bounds it."""

import time
from multiprocessing import get_context

import pytest

import fl_privacy.privacy.ledger
from fl_privacy.errors import BudgetExceeded
from fl_privacy.privacy.accounting import epsilon
from fl_privacy.privacy.entries import DAY
from fl_privacy.privacy.ledger import Ledger
from tests.privacy.three_ledgers import DELTA, KEYS, PLAN, ROUND, order

KEY = KEYS["clinic"]
START = 1_700_000_000
DAYS = 30


def cost(rounds):
    return epsilon([ROUND] * rounds, DELTA, "rdp")


class Clock:
    now = START

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fl_privacy.privacy.ledger.time", clock)
    return clock


@pytest.fixture
def ledger(tmp_path, clock):
    return Ledger.create(tmp_path / "ledger.sqlite", "clinic", KEY, cost(2), DELTA, "rdp", period_days=DAYS)


def full(ledger, number):
    with pytest.raises(BudgetExceeded, match=f"within {DAYS} days"):
        ledger.reserve(order(number), PLAN, ROUND)


def test_what_is_older_than_the_period_makes_room_and_stays_in_the_total(ledger, clock):
    ledger.reserve(order(0), PLAN, ROUND)
    clock.now += 10 * DAY
    ledger.reserve(order(1), PLAN, ROUND)
    full(ledger, 2)
    clock.now = START + DAYS * DAY - 1
    full(ledger, 2)
    clock.now = START + DAYS * DAY
    ledger.reserve(order(2), PLAN, ROUND)
    full(ledger, 3)
    told = ledger.statement()
    assert (told.period_days, told.epsilon_in_period, told.epsilon_spent) == (DAYS, cost(2), cost(3))
    assert (ledger.spent, ledger.spent_in_period) == (cost(3), cost(2))
    assert (ledger.forecast([ROUND]), ledger.forecast_in_period([ROUND])) == (cost(4), cost(3))


def test_a_total_over_the_budget_is_signed_as_it_is(ledger, clock):
    for number in range(6):
        ledger.reserve(order(number), PLAN, ROUND)
        clock.now += DAYS * DAY
    assert [entry.event.epsilon for entry in ledger.entries()[1:]] == [cost(number + 1) for number in range(6)]
    assert ledger.spent > ledger.statement().epsilon_budget


def test_a_clock_that_goes_back_frees_nothing(ledger, clock):
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.reserve(order(1), PLAN, ROUND)
    clock.now -= 365 * DAY
    full(ledger, 2)
    ledger.void(order(0), "told at the old time")
    assert [entry.time for entry in ledger.entries()] == [START] * 4
    clock.now = START + DAYS * DAY - 1
    full(ledger, 2)


def test_a_backdated_entry_counts_as_made_after_the_one_before_it(ledger, clock, monkeypatch):
    monkeypatch.setattr(Ledger, "_now", lambda self: clock.now)  # a guard that writes down whatever its clock says
    clock.now = START + 60 * DAY
    ledger.reserve(order(0), PLAN, ROUND)
    clock.now = START
    ledger.reserve(order(1), PLAN, ROUND)
    assert ledger.entries()[2].time < ledger.entries()[1].time
    monkeypatch.undo()
    reopened = Ledger.open(ledger.path, KEY)
    assert reopened._verified.times[-1] == START + 60 * DAY
    assert reopened._verified.spends_in_period(START + 89 * DAY) == [ROUND] * 2


def test_without_a_period_the_statement_names_none(tmp_path):
    told = Ledger.create(tmp_path / "ledger.sqlite", "clinic", KEY, 1.0, DELTA, "rdp").statement()
    assert (told.period_days, told.epsilon_in_period) == (None, None)


def _race(path, barrier, first, results):
    def slow_epsilon(*args):
        time.sleep(0.005)  # a wide gap between the look at the budget and the write
        return epsilon(*args)

    fl_privacy.privacy.ledger.epsilon = slow_epsilon  # in this forked process only
    ledger = Ledger.open(path, KEY)
    barrier.wait()
    accepted = 0
    for number in range(first, first + 6):
        try:
            ledger.reserve(order(number), PLAN, ROUND)
        except BudgetExceeded:
            continue
        accepted += 1
    results.put(accepted)


def test_two_processes_cannot_overspend_a_period(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, "clinic", KEY, cost(5), DELTA, "rdp", period_days=DAYS).close()
    context = get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(path, barrier, first, results)) for first in (0, 100)]
    for racer in racers:
        racer.start()
    assert results.get(timeout=60) + results.get(timeout=60) == 5
    for racer in racers:
        racer.join()
    assert Ledger.open(path, KEY).spent_in_period == cost(5)
