"""Clocks that go back, a second guard, a guard process that dies while it trains, and a scientist who never comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fl_privacy.errors import HomeError, NotApproved
from fl_privacy.guard.approvals import check_not_expired
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.round_order import RoundOrder
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Worker, attempt
from tests.guard.test_closing import rebirth, serving
from tests.guard_desk import GuardDesk
from tests.scientist.test_rounds import carry


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Strongrooms]:
    """Fresh strong rooms for one test."""
    made = make_strongrooms(tmp_path)
    yield made
    for guard in made.guards.values():
        guard.close()


def test_a_clock_that_goes_back_stops_no_ledger_and_takes_no_time_back(
    rooms: Strongrooms, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(rooms, tmp_path / "first")
    now, spent = int(time.time()), rooms.guards["bank"].home.ledger.spent
    monkeypatch.setattr("time.time", lambda: now - 365 * 86400.0)
    bank = rebirth(rooms, "bank")
    assert bank.home.ledger.spent == spent > 0
    attempt(rooms, tmp_path / "second", attempt=1).opening()
    times = [entry.time for entry in bank.home.ledger.entries()]
    assert times == sorted(times) and times[-1] >= now - 60


def test_a_clock_that_goes_back_revives_no_expired_approval(
    rooms: Strongrooms, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(rooms, tmp_path / "first")
    bank, now = rooms.guards["bank"], int(time.time())
    decision = bank.approvals.approved(rooms.plan.digest()).model_copy(update={"expires": bank.home.ledger.time})
    monkeypatch.setattr("time.time", lambda: now - 86400.0)
    with pytest.raises(NotApproved, match="expired"):
        check_not_expired(decision, bank.home)


def test_what_the_ledger_has_written_is_on_the_disk_before_anybody_hears_of_it(rooms: Strongrooms) -> None:
    """A killed process does not show it: SQLite flushes file and folder at each COMMIT, as long as nobody makes it faster."""
    database = rooms.guards["bank"].home.ledger._file._db
    assert database.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
    assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)


def test_a_home_takes_one_guard_only(rooms: Strongrooms) -> None:
    with pytest.raises(HomeError, match="in use by a running guard"):
        Guard(GuardHome(rooms.guards["bank"].home.folder))


@pytest.mark.slow
def test_no_worker_outlives_a_guard_process_that_is_killed(tmp_path: Path) -> None:
    rooms = make_strongrooms(tmp_path, retries=1, local_steps=500)
    bank, signed = rooms.guards["bank"], rooms.order()
    for guard in rooms.guards.values():
        guard.close()
    with serving(bank.home.folder) as (process, client):
        client.call("POST", "/v1/orders", signed.canonical())
        digest = RoundOrder.parse(signed.body).digest()
        while client.call("GET", f"/v1/orders/{digest}")["step"] == 0:
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
    assert family and not alive
    reborn = Guard(GuardHome(bank.home.folder))
    assert reborn.rounds.state(digest)["error"]["error"] == "OrderFailed"
    assert reborn.home.ledger.orders == {digest: "reserved"}
    reborn.close()


class Death(BaseException):
    """The scientist's process ends here: nothing more is sent."""


@pytest.mark.parametrize("step", ["train", "fetch", "close", "reveal", "open"])
def test_owners_whose_scientist_died_at_a_step_go_on_with_a_new_attempt(tmp_path: Path, worker: Worker, step: str) -> None:
    rooms = make_strongrooms(tmp_path, retries=1)

    def dies(at: str) -> None:
        if at == step:
            raise Death

    desks = {name: GuardDesk(guard, dies if name == "bank" else lambda _: None) for name, guard in rooms.guards.items()}
    with pytest.raises(Death):
        carry(rooms, desks, tmp_path / "dies")
    again = {name: GuardDesk(guard) for name, guard in rooms.guards.items()}
    carry(rooms, again, tmp_path / "again", attempt=1)
    for name, guard in rooms.guards.items():
        assert 1 <= worker.trained_by(name) <= 2
        assert len(guard.home.ledger.spends) == worker.trained_by(name)
        guard.close()
