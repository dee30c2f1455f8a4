"""What an approval is bound to, how it ends, and what a pause stops: each refusal says which, and costs nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from fl_privacy.errors import (
    DatasitePaused,
    NotApproved,
    OrderFailed,
    OrderRefused,
    PolicyRefused,
    RequestDenied,
    from_wire,
    to_wire,
)
from fl_privacy.guard import package
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.pause import pause, paused, resume
from fl_privacy.guard.worker import Job
from fl_privacy.messages import OpenRequest
from fl_privacy.round_order import RoundOrder
from tests.guard.conftest import Strongrooms, finished, make_strongrooms
from tests.guard.protocol import Attempt, Worker

DAY = 86_400


def other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for where in ("approvals", "guard"):
        monkeypatch.setattr(f"fl_privacy.guard.{where}.installed_package", lambda: "cd" * 32)


def test_an_approval_is_recorded_with_all_that_it_covers(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    (decision,) = bank.approvals.all()
    recorded = bank.home.ledger.decisions[rooms.plan.digest()]
    assert recorded.model_dump(exclude={"kind"}) == decision.for_ledger()
    assert (recorded.package, recorded.rounds, recorded.verdict) == (package.installed_package(), rooms.plan.rounds, "approved")
    assert recorded.corpus == bank.corpora()[0].corpus and recorded.scientist == decision.plan.signer
    assert abs((recorded.expires or 0) - time.time() - 90 * DAY) < 600, "by default approval_days"


def test_another_installed_package_is_refused_and_both_digests_are_named(
    rooms: Strongrooms, sealed: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for what was admitted before: the code that would close and open it is not the one that was vetted."""
    bank, before = rooms.guards["bank"], package.installed_package()
    other_package(monkeypatch)
    for refused in (lambda: bank.rounds.place(rooms.order(attempt=1)), lambda: bank.closing.close(sealed.closing)):
        with pytest.raises(NotApproved, match=f"fl_privacy changed .*: approved {before[:16]}…, installed cdcdcdcdcdcdcdcd…"):
            refused()
    bank.approve(rooms.code)
    bank.closing.close(sealed.closing)


def test_the_package_digest_tells_every_edit_name_and_place(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, text in (("a.py", "1"), ("inner/b.py", "2"), ("c.html", "3")):
        (tmp_path / name).write_text(text)
    seen = {package.package_digest(tmp_path)}
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert package.package_digest(tmp_path) in seen, "compiled files are no part of it"
    for change in (
        lambda: (tmp_path / "a.py").write_text("11"),
        lambda: (tmp_path / "c.html").write_text("4"),
        lambda: (tmp_path / "a.py").rename(tmp_path / "d.py"),
        lambda: (tmp_path / "inner" / "b.py").rename(tmp_path / "b.py"),
        lambda: (tmp_path / "b.py").unlink(),
    ):
        change()
        seen.add(package.package_digest(tmp_path))
    assert len(seen) == 6


@pytest.mark.parametrize("clock", ["forward", "back again"])
def test_an_expired_approval_admits_nothing_also_when_the_clock_goes_back(
    rooms: Strongrooms, monkeypatch: pytest.MonkeyPatch, clock: str
) -> None:
    bank, now = rooms.guards["bank"], time.time()
    bank.approve(rooms.code, days=2)
    monkeypatch.setattr("time.time", lambda: now + 3 * DAY)
    if clock == "back again":
        bank.home.ledger.change_budget(9.0, "any entry")  # so that the ledger has seen the later time
        monkeypatch.setattr("time.time", lambda: now)
    before = bank.home.ledger.statement()
    with pytest.raises(NotApproved, match=r"the approval of plan 'tiny' expired at \d{4}-\d{2}-\d{2} "):
        bank.rounds.place(rooms.order())
    assert bank.home.ledger.statement() == before


def test_an_order_within_its_days_is_admitted(rooms: Strongrooms, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    bank, now, order = rooms.guards["bank"], time.time(), rooms.order()
    bank.approve(rooms.code, days=2)
    monkeypatch.setattr("time.time", lambda: now + 2 * DAY - 60)
    bank.rounds.place(order)
    assert finished(bank, RoundOrder.parse(order.body).digest())["state"] == "sealed"


def test_a_revoked_plan_is_refused_at_every_step_even_when_all_owners_have_closed(rooms: Strongrooms, sealed: Attempt) -> None:
    bank, survivors = rooms.guards["bank"], sealed.close()
    revealing = sealed.revealing(survivors)
    reveals = tuple(rooms.guards[owner].closing.reveal(revealing) for owner in sealed.order.cohort)
    opening = OpenRequest(**dict(revealing), reveals=reveals)
    bank.revoke(rooms.code, "the ethics board said no")
    for refused in (
        lambda: bank.rounds.place(rooms.order(attempt=1)),
        lambda: bank.closing.close(sealed.closing),
        lambda: bank.closing.reveal(revealing),
        lambda: bank.closing.open(opening),
    ):
        with pytest.raises(RequestDenied, match="revoked its approval of plan 'tiny': the ethics board said no"):
            refused()
    with pytest.raises(NotApproved):
        bank.approvals.code_approved(RoundOrder.parse(sealed.signed.body).code)
    assert bank.home.ledger.decisions[rooms.plan.digest()].verdict == "revoked"


def test_approving_again_revives_no_order_of_before(rooms: Strongrooms, sealed: Attempt) -> None:
    bank = rooms.guards["bank"]
    folder = bank.orders.folder(sealed.order.digest())
    bank.revoke(rooms.code, "not yet")
    assert not folder.update.exists() and not folder.self_mask.exists()
    bank.approve(rooms.code)
    with pytest.raises(OrderRefused, match="is dead: bank had revoked its approval"):
        bank.closing.close(sealed.closing)
    assert bank.rounds.state(sealed.order.digest())["state"] == "failed"
    trained = rooms.order(attempt=1)
    bank.rounds.place(trained)
    assert finished(bank, RoundOrder.parse(trained.body).digest())["state"] == "sealed"
    assert len(bank.home.ledger.spends) == 2, "the update of before is gone, so the new order trains and pays"


def test_an_opened_sum_stays_opened_and_is_told_to_nobody_after_a_revocation(rooms: Strongrooms, sealed: Attempt) -> None:
    bank, request = rooms.guards["bank"], sealed.opening()
    bank.closing.open(request)
    bank.revoke(rooms.code, "enough")
    assert bank.orders.folder(sealed.order.digest()).is_opened
    with pytest.raises(RequestDenied, match="enough"):
        bank.closing.open(request)


def test_what_was_never_approved_cannot_be_revoked(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    bank.revoke(rooms.code, "once")
    with pytest.raises(NotApproved, match="no approval of this request"):
        bank.revoke(rooms.code, "twice")


def wait_for_worker(guard: Guard, digest: str) -> None:
    deadline = time.monotonic() + 60
    while digest not in guard.rounds._pids and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["revoke", "stop"])
def test_a_running_worker_is_ended_at_once_and_its_spend_stays(tmp_path: Path, how: str) -> None:
    rooms = make_strongrooms(tmp_path, local_steps=5000)
    bank, signed = rooms.guards["bank"], rooms.order()
    digest = RoundOrder.parse(signed.body).digest()
    bank.rounds.place(signed)
    wait_for_worker(bank, digest)
    spent = bank.home.ledger.spent
    if how == "revoke":
        bank.revoke(rooms.code, "at once")
    else:
        bank.rounds.stop_order(digest, "too slow")
    state = finished(bank, digest, 30)
    deadline = time.monotonic() + 30
    while bank.home.ledger.orders[digest] != "void" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (state["state"], state["error"]["error"]) == ("failed", "OrderFailed")
    assert bank.home.ledger.orders[digest] == "void" and bank.home.ledger.spent == spent > 0
    assert [job["state"] for job in bank.jobs()] == ["stopped"]
    for guard in rooms.guards.values():
        guard.close()


def test_an_order_that_waits_for_its_turn_fails_as_soon_as_it_is_stopped(rooms: Strongrooms, worker: Worker) -> None:
    bank, signed = rooms.guards["bank"], rooms.order()
    digest = RoundOrder.parse(signed.body).digest()
    with bank.rounds._training:  # as if another plan trained for hours
        bank.rounds.place(signed)
        bank.rounds.stop_order(digest, "not needed")
        state = finished(bank, digest, 30)
    assert state["error"]["message"] == "stopped by the owner: not needed; its spend stays"
    assert worker.jobs == []


def test_only_what_trains_can_be_stopped(rooms: Strongrooms, sealed: Attempt) -> None:
    with pytest.raises(OrderRefused, match="is not in training here"):
        rooms.guards["bank"].rounds.stop_order(sealed.order.digest(), "late")


def reopened(guard: Guard) -> Guard:
    guard.close()
    return Guard(GuardHome(guard.home.folder))


def test_while_paused_nothing_is_admitted_closed_revealed_or_opened_and_a_restart_changes_nothing(
    rooms: Strongrooms, sealed: Attempt
) -> None:
    bank, others = rooms.guards["bank"], {owner: guard for owner, guard in rooms.guards.items() if owner != "bank"}
    pause(bank.home, "audit week")
    rooms.guards["bank"] = bank = reopened(bank)
    assert paused(bank.home) == "audit week" == bank.status()["paused"]
    with pytest.raises(DatasitePaused, match="bank has paused its datasite: audit week"):
        bank.rounds.place(rooms.order(attempt=1))
    with pytest.raises(DatasitePaused):
        bank.closing.close(sealed.closing)
    assert bank.rounds.state(sealed.order.digest())["state"] == "sealed", "reads still answer"
    assert bank.ledger()["entries"] and bank.corpora() and bank.review(rooms.code).plan
    resume(bank.home)
    survivors = (bank.closing.close(sealed.closing), *(guard.closing.close(sealed.closing) for guard in others.values()))
    revealing = sealed.revealing(survivors)
    pause(bank.home, "again")
    with pytest.raises(DatasitePaused, match="again"):
        bank.closing.reveal(revealing)
    resume(bank.home)
    reveals = tuple(rooms.guards[owner].closing.reveal(revealing) for owner in sealed.order.cohort)
    request = OpenRequest(**dict(revealing), reveals=reveals)
    pause(bank.home, "once more")
    with pytest.raises(DatasitePaused):
        bank.closing.open(request)
    resume(bank.home)
    bank.closing.open(request)


def test_a_refusal_that_a_crash_cut_short_is_finished_at_the_next_start(rooms: Strongrooms, sealed: Attempt) -> None:
    """The ledger has it, the file has not: it counts, and the orders are dead."""
    bank = rooms.guards["bank"]
    fields = bank.approvals.all()[0].for_ledger() | {"verdict": "revoked", "reason": "the power went"}
    bank.home.ledger.decide(**fields)
    rooms.guards["bank"] = bank = reopened(bank)
    with pytest.raises(RequestDenied, match="the power went"):
        bank.rounds.place(rooms.order(attempt=1))
    assert bank.orders.folder(sealed.order.digest()).is_revoked


def test_an_approval_that_a_crash_cut_short_does_not_count(rooms: Strongrooms) -> None:
    """In the ledger but not in its file: the owner was never told that it holds, and after the start it does not."""
    bank = rooms.guards["bank"]
    bank.deny(rooms.code, "first no")
    approval = bank.approvals.all()[0].for_ledger() | {"verdict": "approved", "reason": ""}
    bank.home.ledger.decide(**approval)
    rooms.guards["bank"] = bank = reopened(bank)
    with pytest.raises(RequestDenied, match="first no"):
        bank.rounds.place(rooms.order())
    assert bank.home.ledger.decisions[rooms.plan.digest()].verdict == "denied"


def test_an_approval_that_the_ledger_lacks_is_recorded_at_the_next_start(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    (decision,) = bank.approvals.all()
    renewed = decision.model_copy(update={"expires": (decision.expires or 0) + DAY})
    bank.approvals._write(renewed)
    rooms.guards["bank"] = bank = reopened(bank)
    assert bank.home.ledger.decisions[rooms.plan.digest()].expires == renewed.expires
    entries = len(bank.home.ledger.entries())
    rooms.guards["bank"] = bank = reopened(bank)
    assert len(bank.home.ledger.entries()) == entries, "and only once"


def test_a_worker_that_fails_by_itself_says_its_own_reason(rooms: Strongrooms, worker: Worker) -> None:
    def fail(job: Job) -> None:
        raise OrderFailed("the training worker ended with code 3")

    worker.fail = fail
    bank, signed = rooms.guards["bank"], rooms.order()
    bank.rounds.place(signed)
    assert "code 3" in finished(bank, RoundOrder.parse(signed.body).digest())["error"]["message"]
    (job,) = bank.jobs()
    assert (job["state"], job["plan"], job["round"], job["attempt"], job["steps"]) == ("failed", "tiny", 0, 0, 2)


def test_a_pause_and_a_policy_cross_process_boundaries_as_what_they_are() -> None:
    for error in (DatasitePaused("audit week"), PolicyRefused("policy, hours")):
        assert type(from_wire(to_wire(error))) is type(error)
