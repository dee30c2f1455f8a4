"""The ledger pays before training, never past the budget, and never forgets: not in threads, processes or crashes."""

import hashlib
import os
import random
import signal
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import fl_privacy.privacy.ledger
from fl_privacy.errors import BudgetExceeded, LedgerError, LedgerTampered, PrivacyError
from fl_privacy.privacy.accounting import Spend, epsilon
from fl_privacy.privacy.ledger import Ledger

DELTA = 1e-5
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PLAN = hashlib.sha256(b"plan").hexdigest()
ROUND = Spend(noise_multiplier=1.0, sample_rate=0.02, steps=20)


def order(number: int) -> str:
    return hashlib.sha256(f"order {number}".encode()).hexdigest()


def budget_for(rounds: int, accountant: str = "rdp") -> float:
    """A budget that fits this many rounds and not one more."""
    return epsilon([ROUND] * rounds, DELTA, accountant)


def new_ledger(path, rounds=5, accountant="rdp"):
    return Ledger.create(path, "clinic", KEY, budget_for(rounds, accountant), DELTA, accountant)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def test_a_new_ledger_has_spent_nothing_and_is_for_its_owner_only(path):
    ledger = new_ledger(path)
    statement = ledger.statement()
    assert (ledger.spent, ledger.spends, statement.epsilon_spent, statement.entries) == (0.0, [], 0.0, 1)
    assert (statement.owner, statement.delta, statement.unit, statement.accountant) == ("clinic", DELTA, "record", "rdp")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("accountant", ["rdp", "prv"])
def test_rounds_persisted_one_by_one_cost_as_much_as_one_run(path, accountant):
    ledger = new_ledger(path, 5, accountant)
    for number in range(4):
        assert ledger.forecast([ROUND]) == epsilon([ROUND] * (number + 1), DELTA, accountant)
        ledger.reserve(order(number), PLAN, ROUND)
        ledger.commit(order(number))
        ledger.close()
        ledger = Ledger.open(path, KEY)  # a restart between rounds changes nothing
    one_run = ROUND.model_copy(update={"steps": 4 * ROUND.steps})
    assert ledger.spent == ledger.statement().epsilon_spent == epsilon([one_run], DELTA, accountant)
    assert ledger.spends == [ROUND] * 4


def test_over_budget_is_refused_before_anything_is_written(path):
    ledger = new_ledger(path, rounds=2)
    ledger.reserve(order(0), PLAN, ROUND)
    ledger.reserve(order(1), PLAN, ROUND)  # exactly the budget is allowed
    before, content = ledger.statement(), path.read_bytes()
    with pytest.raises(BudgetExceeded) as refusal:
        ledger.reserve(order(2), PLAN, ROUND)
    for figure in (ledger.spent, budget_for(3), budget_for(2)):
        assert f"{figure:.4f}" in str(refusal.value)
    assert "more noise" in str(refusal.value)
    assert (ledger.statement(), path.read_bytes()) == (before, content)
    smaller = ROUND.model_copy(update={"steps": 1})
    with pytest.raises(BudgetExceeded):
        ledger.reserve(order(2), PLAN, smaller)


def test_a_spend_that_the_accountant_cannot_certify_is_not_written(path):
    ledger = Ledger.create(path, "clinic", KEY, 1e6, DELTA, "prv")
    with pytest.raises(PrivacyError):
        ledger.reserve(order(0), PLAN, Spend(noise_multiplier=0.3, sample_rate=1.0, steps=10**7))
    assert (len(ledger.entries()), ledger.spent) == (1, 0.0)


def test_an_order_is_paid_once(path):
    ledger = new_ledger(path)
    ledger.reserve(order(0), PLAN, ROUND)
    for again in (ROUND, ROUND.model_copy(update={"steps": 1})):
        with pytest.raises(LedgerError, match="reserved before"):
            ledger.reserve(order(0), PLAN, again)
    ledger.commit(order(0))
    with pytest.raises(LedgerError, match="now committed"):
        ledger.reserve(order(0), PLAN, ROUND)
    assert ledger.spends == [ROUND]


def test_void_and_failure_never_lower_the_bound(path):
    ledger = new_ledger(path)
    ledger.reserve(order(0), PLAN, ROUND)
    spent = ledger.spent
    ledger.void(order(0), "the worker died")
    assert ledger.spent == spent == budget_for(1)
    assert ledger.orders == {order(0): "void"}


@pytest.mark.parametrize("first", ["commit", "void", None])
def test_commit_and_void_need_a_waiting_reserve(path, first):
    ledger = new_ledger(path)
    if first:
        ledger.reserve(order(0), PLAN, ROUND)
        ledger.commit(order(0)) if first == "commit" else ledger.void(order(0), "failed")
    count = len(ledger.entries())
    with pytest.raises(LedgerError):
        ledger.commit(order(0))
    with pytest.raises(LedgerError):
        ledger.void(order(0), "failed")
    assert len(ledger.entries()) == count


def test_the_owner_may_change_the_budget_and_the_past_stays_spent(path):
    ledger = new_ledger(path, rounds=1)
    ledger.reserve(order(0), PLAN, ROUND)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(order(1), PLAN, ROUND)
    ledger.change_budget(budget_for(2), "second study approved by the board")
    ledger.reserve(order(1), PLAN, ROUND)
    ledger.change_budget(0.01, "closed")
    with pytest.raises(BudgetExceeded):
        ledger.reserve(order(2), PLAN, ROUND)
    assert (ledger.spent, ledger.statement().epsilon_budget) == (budget_for(2), 0.01)


def test_a_clock_that_goes_back_changes_nothing(path, monkeypatch):
    ledger = new_ledger(path)
    for number, now in enumerate([2e9, 1e9, 0.0]):
        monkeypatch.setattr("fl_privacy.privacy.ledger.time.time", lambda now=now: now)
        ledger.reserve(order(number), PLAN, ROUND)
    assert [entry.seq for entry in Ledger.open(path, KEY).entries()] == [0, 1, 2, 3]
    assert ledger.spent == budget_for(3)


def test_create_never_replaces_a_ledger_and_open_never_makes_one(path):
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.open(path, KEY)
    assert not path.exists()
    ledger = new_ledger(path)
    ledger.reserve(order(0), PLAN, ROUND)
    with pytest.raises(LedgerError, match="already holds"):
        new_ledger(path)
    assert Ledger.open(path, KEY).spent == budget_for(1)


@pytest.mark.parametrize(("budget", "delta"), [(0.0, DELTA), (-1.0, DELTA), (float("inf"), DELTA), (1.0, 0.0), (1.0, 1.0)])
def test_a_budget_that_means_nothing_is_refused(path, budget, delta):
    with pytest.raises(LedgerError):
        Ledger.create(path, "clinic", KEY, budget, delta, "rdp")
    assert not path.exists()


def test_what_is_not_a_digest_is_refused(path):
    ledger = new_ledger(path)
    with pytest.raises(LedgerError, match="order"):
        ledger.reserve("order 1", PLAN, ROUND)


def test_a_file_that_is_no_ledger_is_an_error(path):
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError):
        Ledger.open(path, KEY)
    path.write_bytes(b"")
    with pytest.raises(LedgerError):
        Ledger.open(path, KEY)


def test_a_closed_ledger_reserves_nothing(path):
    ledger = new_ledger(path)
    ledger.close()
    with pytest.raises(LedgerError):
        ledger.reserve(order(0), PLAN, ROUND)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET signed = '' WHERE seq = 1",
        "DELETE FROM entries WHERE seq = 1",
        "INSERT OR REPLACE INTO entries VALUES (1, '')",
        "INSERT INTO entries VALUES (7, '')",
    ],
)
def test_the_file_itself_is_append_only(path, statement):
    new_ledger(path).reserve(order(0), PLAN, ROUND)
    with pytest.raises(sqlite3.IntegrityError, match="ledger entries"):
        sqlite3.connect(path).execute(statement)


def test_an_older_file_put_back_under_an_open_ledger_is_noticed(path):
    ledger = new_ledger(path)
    old = path.read_bytes()
    ledger.reserve(order(0), PLAN, ROUND)
    path.write_bytes(old)
    with pytest.raises(LedgerTampered, match="entry 1"):
        ledger.reserve(order(1), PLAN, ROUND)


def test_a_forked_file_put_under_an_open_ledger_is_noticed(path):
    ledger = new_ledger(path)
    old = path.read_bytes()
    ledger.reserve(order(0), PLAN, ROUND)
    path.write_bytes(old)
    other = Ledger.open(path, KEY)
    other.reserve(order(1), PLAN, ROUND)  # another entry 1, and as many entries as before
    sqlite3.connect(path).execute("PRAGMA application_id = 1")  # one more write, or SQLite would trust its cached page
    with pytest.raises(LedgerTampered, match="entry 1 was changed or removed"):
        ledger.reserve(order(2), PLAN, ROUND)


def test_threads_cannot_overspend(path):
    ledger = new_ledger(path, rounds=5)

    def attempt(number):
        try:
            ledger.reserve(order(number), PLAN, ROUND)
        except BudgetExceeded:
            return 0
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 5
    assert Ledger.open(path, KEY).spent == ledger.spent == budget_for(5)


def _race(path, barrier, first, results):
    def slow_epsilon(*args):
        time.sleep(0.01)  # a wide gap between the look at the budget and the write
        return epsilon(*args)

    fl_privacy.privacy.ledger.epsilon = slow_epsilon  # in this forked process only
    ledger = Ledger.open(path, KEY)
    barrier.wait()
    accepted = []
    for number in range(first, first + 6):
        try:
            ledger.reserve(order(number), PLAN, ROUND)
        except BudgetExceeded:
            continue
        accepted.append(number)
    results.put(accepted)


def test_two_processes_cannot_overspend(path):
    new_ledger(path, rounds=7).close()
    context = get_context("fork")
    barrier, results = context.Barrier(2), context.Queue()
    racers = [context.Process(target=_race, args=(path, barrier, first, results)) for first in (0, 100)]
    for racer in racers:
        racer.start()
    accepted = results.get(timeout=60) + results.get(timeout=60)
    for racer in racers:
        racer.join()
    ledger = Ledger.open(path, KEY)  # verifies the chain that both wrote
    assert len(accepted) == 7
    assert set(ledger.orders) == {order(number) for number in accepted}
    assert ledger.spent == budget_for(7)


def in_a_child(work):
    """Run ``work(report)`` in a forked child; returns its pid and the pipe on which it reports numbers."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(lambda number: os.write(write, bytes([number])))
        finally:
            os._exit(3)
    os.close(write)
    return pid, read


def drain(read):
    with os.fdopen(read, "rb") as pipe:
        return list(pipe.read())


def die_at(ledger, statement):
    """Kill this process when SQLite begins its ``statement``-th statement from now on."""
    left = [statement]

    def count(_sql):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger._file._db.set_trace_callback(count)


def assert_nothing_is_forgotten(path, returned):
    ledger = Ledger.open(path, KEY)
    assert {order(number) for number in returned} <= set(ledger.orders)
    assert ledger.spent >= epsilon([ROUND] * len(returned), DELTA, "rdp")
    assert ledger.spent == budget_for(len(ledger.orders))
    ledger.reserve(order(200), PLAN, ROUND)  # and it still works
    ledger.close()


def test_killed_at_any_statement_nothing_paid_is_forgotten(path):
    completed = 0
    for statement in range(1, 60):
        path.unlink(missing_ok=True)
        new_ledger(path).close()

        def work(report, statement=statement):
            ledger = Ledger.open(path, KEY)
            die_at(ledger, statement)
            for number in range(2):
                ledger.reserve(order(number), PLAN, ROUND)
                report(number)
                ledger.commit(order(number))

        pid, read = in_a_child(work)
        returned = drain(read)
        _, status = os.waitpid(pid, 0)
        assert_nothing_is_forgotten(path, returned)
        if not os.WIFSIGNALED(status):
            completed = statement
            break
    assert completed > 15, "the child was to die at every statement of two reserves and commits, then to finish"


def test_killed_at_any_moment_nothing_paid_is_forgotten(path):
    chance = random.Random(5)
    for _ in range(8):
        path.unlink(missing_ok=True)
        new_ledger(path, rounds=200).close()

        def work(report):
            ledger = Ledger.open(path, KEY)
            for number in range(150):
                ledger.reserve(order(number), PLAN, ROUND)
                report(number)

        pid, read = in_a_child(work)
        returned = []
        for _ in range(chance.randrange(1, 12)):
            returned += os.read(read, 1)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert_nothing_is_forgotten(path, returned + drain(read))


def test_killed_while_it_is_created_a_ledger_is_whole_or_absent(path):
    for statement in range(1, 12):
        path.unlink(missing_ok=True)
        connect = sqlite3.connect

        def work(_report, statement=statement, connect=connect):
            def traced(*args, **kwargs):
                connection = connect(*args, **kwargs)
                left = [statement]

                def count(_sql):
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

                connection.set_trace_callback(count)
                return connection

            sqlite3.connect = traced
            new_ledger(path)

        pid, read = in_a_child(work)
        drain(read)
        os.waitpid(pid, 0)
        try:
            ledger = Ledger.open(path, KEY)
        except LedgerTampered:
            raise
        except LedgerError:
            ledger = new_ledger(path)
        assert ledger.spent == 0.0
        ledger.close()
