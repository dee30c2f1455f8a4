"""kill -9 of one owner's datasite, and of nothing else, at several moments of a round; it is started again at once.

The plans have no ``retries``: a training more than the rounds need, and the guard would refuse it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fl_privacy.datasite import requests
from fl_privacy.datasite.launch import Datasite
from fl_privacy.errors import ConnectionFailed
from fl_privacy.owner import Owner
from fl_privacy.owner_files import export_ledger, read_ledger
from fl_privacy.privacy.audit import audit_export
from fl_privacy.scientist.desk import Desk
from tests.builders import text_rows, tiny_plan
from tests.datasite.test_served_datasite import processes_of
from tests.end_to_end.test_federation import EMAIL, World, trainings_paid

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.timeout(600)]


class Kill:
    """SIGKILL for the datasite's own process, once; what it had started is left to itself. Another is started at once."""

    def __init__(self, owner: Owner, pool: ThreadPoolExecutor) -> None:
        self.owner, self._pool = owner, pool
        self.restarted: Future[Datasite] | None = None

    def __call__(self) -> None:
        if self.restarted is None:
            os.kill(processes_of(self.owner.datasite)[0].pid, signal.SIGKILL)
            self.owner.datasite.wait()
            self.restarted = self._pool.submit(self.owner.datasite.start)


Moment = Callable[[Desk, Kill, pytest.MonkeyPatch], None]


def at(where: str, method: str, *, late: bool = False, action: str = "") -> Moment:
    """When ``method`` of the desk or its relay is called, or has returned; if an action is named, for jobs of that only."""

    def arrange(desk: Desk, kill: Kill, patch: pytest.MonkeyPatch) -> None:
        target = desk.relay if where == "relay" else desk
        real = getattr(target, method)

        def call(*told: Any, **named: Any) -> Any:
            wanted = not action or told[1]["action"] == action
            if wanted and not late:
                kill()
            answer = real(*told, **named)
            if wanted and late:
                kill()
            return answer

        patch.setattr(target, method, call)

    return arrange


def in_training(desk: Desk, kill: Kill, patch: pytest.MonkeyPatch) -> None:
    """At the first step that the job reports."""
    run = desk.run

    def watched(name: str, task: dict[str, Any], timeout: float, on_progress: Any = None) -> dict[str, Any]:
        return run(name, task, timeout, lambda step, steps: kill() if step else None)

    patch.setattr(desk, "run", watched)


def in_the_middle_of_a_blob(desk: Desk, kill: Kill, patch: pytest.MonkeyPatch) -> None:
    """Between the head of the answer that carries the encrypted update, and its body."""
    answer = desk.relay._answer

    @contextmanager
    def cut(method: str, path: str, body: Any = None) -> Iterator[httpx.Response]:
        with answer(method, path, body) as got:
            if method == "GET" and path.startswith("/v1/blobs/"):
                kill()
            yield got

    patch.setattr(desk.relay, "_answer", cut)


MOMENTS: dict[str, Moment] = {
    "a blob is brought": at("relay", "put_blob"),
    "the order is asked for": at("desk", "_start", action="train"),
    "the order is a job": at("desk", "_start", late=True, action="train"),
    "the job trains": in_training,
    "the update is fetched": in_the_middle_of_a_blob,
    "the order is closed": at("relay", "close_order"),
    "the survivors are signed": at("relay", "close_order", late=True),
    "the self-mask is revealed": at("relay", "reveal_self_mask"),
    "the sum is brought": at("relay", "put_file", late=True),
    "the opening is a job": at("desk", "_start", late=True, action="open"),
}


@pytest.fixture
def bank(world: World) -> Iterator[Owner]:
    """The owner whose datasite is killed; its guard must not notice, and nothing of the datasite may be lost."""
    owner = world.owners["bank"]
    guard, requests_before = owner.guard_process, {request.id: request.status for request in owner.all_requests()}
    entries, _ = read_ledger(owner.home)
    yield owner
    assert guard is not None and owner.guard_process is guard and guard.poll() is None
    assert read_ledger(owner.home)[0][: len(entries)] == entries
    after = {request.id: request.status for request in owner.all_requests()}
    assert {number: after.get(number) for number in requests_before} == requests_before
    Desk.login("bank", owner.datasite.url, EMAIL, world.passwords["bank"]).close()


@pytest.fixture
def kill(bank: Owner) -> Iterator[Kill]:
    with ThreadPoolExecutor() as pool:
        made = Kill(bank, pool)
        yield made
        assert made.restarted is not None, "the moment never came"
        made.restarted.result()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_round_goes_on_and_is_paid_for_once_when_the_datasite_dies_as(
    world: World, bank: Owner, kill: Kill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    plan = tiny_plan(world.bundle, name=moment.replace(" ", "-"), rounds=1, target_epsilon=1.5, local_steps=3)
    world.federation.submit(plan)
    world.approve(plan)
    MOMENTS[moment](world.federation.desks["bank"], kill, monkeypatch)

    history = world.federation.run(plan, world.bundle, text_rows(10), tmp_path, timeout=120)

    assert kill.restarted is not None
    kill.restarted.result()
    assert [record.round for record in history.rounds] == [0]
    assert {name: trainings_paid(owner, plan) for name, owner in world.owners.items()} == dict.fromkeys(world.owners, 1)
    for name, statement in world.federation.statements().items():
        file = tmp_path / f"{name}.jsonl"
        assert audit_export(file, export_ledger(world.owners[name].home, file), statement).findings == ()
        assert history.rounds[0].spends[name].epsilon == statement.epsilon_spent


def test_nothing_is_lost_when_an_idle_datasite_dies(world: World, bank: Owner, kill: Kill) -> None:
    plan = tiny_plan(world.bundle, name="waits-for-its-owner", target_epsilon=1.5)
    world.federation.submit(plan)
    before = world.federation.statements()["bank"]
    kill()
    assert kill.restarted is not None
    kill.restarted.result()
    assert world.federation.status(plan)["bank"].status == "pending"
    assert world.federation.statements()["bank"] == before
    assert world.federation.desks["bank"].corpora()[0].owner == "bank"


def test_an_approval_that_reached_the_guard_only_is_finished_by_the_same_command(
    world: World, bank: Owner, kill: Kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny_plan(world.bundle, name="approved-by-half", target_epsilon=1.5)
    world.federation.submit(plan)
    (number,) = [request.number for request in bank.all_requests() if bank.review(request.number)["plan"]["name"] == plan.name]
    approve = requests.approve

    def dies(*told: Any) -> None:
        kill()
        approve(*told)

    monkeypatch.setattr(requests, "approve", dies)
    with pytest.raises((ConnectionFailed, OSError)):
        bank.approve(number)
    assert kill.restarted is not None
    kill.restarted.result()
    assert world.federation.status(plan)["bank"].status == "pending"
    bank.approve(number)
    assert world.federation.status(plan)["bank"].status == "approved"
    entries, _ = read_ledger(bank.home)
    assert [entry.event.plan for entry in entries if entry.event.kind == "decision"][-1] == plan.digest()
