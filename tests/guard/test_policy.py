"""Every line of [policy] refuses what it says, names itself, and costs nothing; what a review shows of it."""

from __future__ import annotations

import multiprocessing
import os
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fl_privacy import template
from fl_privacy.errors import CohortTooSmall, HomeError, NotApproved, PolicyRefused
from fl_privacy.guard import sandbox
from fl_privacy.guard import worker as worker_module
from fl_privacy.guard.admission import round_spend
from fl_privacy.guard.domain import Domain, Policy
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.policy import check_hours
from fl_privacy.guard.sandbox import Isolation
from fl_privacy.messages import sign
from fl_privacy.round_order import RoundOrder
from tests.builders import tiny_plan, write_domain
from tests.guard.conftest import ROWS, Strongrooms, finished, make_guard
from tests.guard.protocol import Worker, attempt
from tests.guard.test_review import TASK


def with_policy(guard: Guard, **lines: Any) -> Guard:
    """As if the owner had changed domain.toml and started again."""
    policy = Policy(**guard.home.domain.policy.model_dump() | lines)
    guard.home.domain = guard.home.domain.model_copy(update={"policy": policy})
    return guard


LINES = [
    ({"minimal_cohort": 4}, {}, "minimal_cohort = 4: the plan names 3 owners"),
    ({"max_epsilon_per_request": 3.5}, {}, r"max_epsilon_per_request = 3\.5: the plan asks for epsilon 4"),
    ({"max_epsilon_per_scientist": 0.5}, {}, r"max_epsilon_per_scientist = 0\.5: with this, plans of key [0-9a-f]{16}… would"),
    ({"custom_tasks": False}, {"task": "custom", "custom_task": TASK}, "custom_tasks = false: the plan brings its own"),
    ({"tasks": ()}, {}, r"tasks = \[\]: the plan's task is 'mlm'"),
    ({"model_types": ()}, {}, r"model_types = \[\]: the plan trains 'bert'"),
    ({"trainable": ("head",)}, {}, r"trainable = \['head'\]: the plan trains 'all'"),
    ({"trainable": ("all", "head")}, {"trainable": "layers:0-1"}, "the plan trains 'layers:0-1'"),
    ({}, {"encryption": "ckks"}, "allow_ckks = false: the plan sums in CKKS"),
]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Any:
    guard = make_guard(tmp_path_factory.mktemp("bank"), "bank")
    yield guard
    guard.close()


@pytest.mark.parametrize(("lines", "changes", "told"), LINES, ids=[told for *_, told in LINES])
def test_a_plan_that_a_line_refuses_is_reviewed_with_that_line_and_not_approvable(
    bank: Guard, untouched_rooms: Strongrooms, lines: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    former = bank.home.domain
    code = template.render(sign(tiny_plan(untouched_rooms.bundle, **changes), untouched_rooms.key))
    with_policy(bank, **lines)
    with pytest.raises(NotApproved, match=told):
        bank.approve(code)
    report = bank.review(code)
    assert report.refused_by_policy and report.refused_by_policy[0] in report.objection
    bank.home.domain = former
    if changes.get("encryption") != "ckks":
        assert bank.review(code).refused_by_policy == ()


@pytest.mark.parametrize(
    ("lines", "changes", "told"), [line for line in LINES if not line[1]], ids=lambda value: str(value)[:40]
)
def test_an_order_of_an_approved_plan_is_refused_once_a_line_forbids_it(
    untouched_rooms: Strongrooms, lines: dict[str, Any], changes: dict[str, Any], told: str
) -> None:
    guard = untouched_rooms.guards["bank"]
    former, before = guard.home.domain, guard.home.ledger.statement()
    with_policy(guard, **lines)
    with pytest.raises(PolicyRefused, match=f"bank's policy, {told}"):
        guard.rounds.place(untouched_rooms.order())
    guard.home.domain = former
    assert guard.home.ledger.statement() == before and guard.orders.all() == []


def test_a_smaller_cohort_than_the_policys_is_refused_although_the_plan_allows_it(rooms: Strongrooms) -> None:
    with pytest.raises(CohortTooSmall, match="less than 3, minimal_cohort of the policy"):
        rooms.guards["bank"].rounds.place(rooms.order(cohort=("bank", "clinic"), weights=(ROWS, ROWS)))


def test_a_scientists_cap_counts_all_plans_of_its_key_and_no_other(rooms: Strongrooms, worker: Worker, tmp_path: Path) -> None:
    guard, spend = rooms.guards["bank"], round_spend(rooms.plan, ROWS)
    guard.home.ledger.reserve("ab" * 32, rooms.plan.digest(), spend)
    once = guard.home.ledger.epsilon_of_scientist(sign(rooms.plan, rooms.key).signer, [])
    assert once == guard.home.ledger.spent > 0
    assert guard.home.ledger.epsilon_of_scientist("cd" * 32, []) == 0.0
    with_policy(guard, max_epsilon_per_scientist=once * 1.01)
    with pytest.raises(PolicyRefused, match="max_epsilon_per_scientist"):
        guard.rounds.place(rooms.order())
    assert len(guard.home.ledger.spends) == 1 and guard.orders.all() == []


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("08:00-18:00", ["08:00", "12:30", "17:59"], ["07:59", "18:00", "23:00"]),
        ("22:00-06:00", ["22:00", "23:59", "00:00", "05:59"], ["06:00", "12:00", "21:59"]),
    ],
)
def test_hours_admit_orders_within_the_window_only(bank: Guard, window: str, inside: list[str], outside: list[str]) -> None:
    former = bank.home.domain
    with_policy(bank, hours=window)
    for clock in inside:
        check_hours(bank.home, datetime.fromisoformat(f"2026-03-01T{clock}"))
    for clock in outside:
        with pytest.raises(PolicyRefused, match=f'policy, hours = "{window}": it is {clock} here'):
            check_hours(bank.home, datetime.fromisoformat(f"2026-03-01T{clock}"))
    bank.home.domain = former


def test_where_the_sandbox_lacks_something_a_strict_owner_trains_nothing(rooms: Strongrooms) -> None:
    guard = with_policy(rooms.guards["bank"], require_isolation=True)
    guard.rounds.isolation = guard.isolation = Isolation(network="isolated", files="not isolated")
    assert "a training worker's files would not be isolated" in guard.review(rooms.code).objection
    with pytest.raises(PolicyRefused, match="require_isolation = true"):
        guard.rounds.place(rooms.order())


def test_a_worker_that_finds_itself_not_isolated_refuses_by_itself(rooms: Strongrooms, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guard found when it started is one thing; what this worker finds is what counts."""
    monkeypatch.setattr(worker_module, "_workers", multiprocessing.get_context("fork"))  # so that it has what is set here
    monkeypatch.setattr(sandbox, "enter", lambda *_, **more: Isolation(network="not isolated", files="isolated"))
    order = rooms.order()
    guard = with_policy(rooms.guards["bank"], require_isolation=True)
    guard.rounds.isolation = Isolation(network="isolated", files="isolated")
    guard.rounds.place(order)
    state = finished(guard, RoundOrder.parse(order.body).digest())
    assert state["error"]["error"] == "PolicyRefused" and "this worker's network is not isolated" in state["error"]["message"]


def test_a_policy_approves_small_template_requests_only_when_it_says_so(rooms: Strongrooms) -> None:
    guard = rooms.guards["bank"]
    small, large = (tiny_plan(rooms.bundle, name=f"plan-{e:g}".replace(".", "-"), target_epsilon=e) for e in (1.0, 1.5))
    custom = tiny_plan(rooms.bundle, name="own", target_epsilon=0.5, task="custom", custom_task=TASK)
    codes = [template.render(sign(plan, rooms.key)) for plan in (small, large, custom)]
    with pytest.raises(NotApproved, match="auto_approve_epsilon is not set"):
        guard.approve_by_policy(codes[0])
    with_policy(guard, auto_approve_epsilon=1.0)
    for code, told in ((codes[1], r"auto_approve_epsilon = 1: the plan asks for epsilon 1\.5"), (codes[2], "custom task")):
        with pytest.raises(NotApproved, match=told):
            guard.approve_by_policy(code)
    with pytest.raises(NotApproved, match="no other code"):
        guard.approve_by_policy("print('hello')")
    with pytest.raises(NotApproved, match="max_epsilon_per_request"):
        with_policy(guard, max_epsilon_per_request=0.9).approve_by_policy(codes[0])
    decision = with_policy(guard, max_epsilon_per_request=None).approve_by_policy(codes[0])
    assert (decision.verdict, decision.reason) == ("approved", "approved by policy, auto_approve_epsilon")
    guard.revoke(codes[0], "not this one")
    with pytest.raises(NotApproved, match="the owner has decided about this plan before"):
        guard.approve_by_policy(codes[0])


@pytest.mark.parametrize(
    ("section", "line", "told"),
    [
        ("policy", "max_epsilon_per_request = 0", "policy.max_epsilon_per_request"),
        ("policy", 'hours = "8-18"', 'policy.hours: write a span of local time as "08:00-18:00"'),
        ("policy", 'hours = "25:00-26:00"', "policy.hours"),
        ("policy", 'hours = "08:00-08:00"', "policy.hours: the span is empty"),
        ("policy", 'tasks = ["translation"]', "policy.tasks"),
        ("policy", 'trainable = ["layers:0-1"]', "policy.trainable"),
        ("policy", "approval_days = 0", "policy.approval_days"),
        ("policy", "retention_days = -1", "policy.retention_days"),
        ("policy", "allow_everything = true", "policy.allow_everything"),
        ("budget", 'unit = "family"', "budget.unit"),
        ("budget", "period_days = 0", "budget.period_days"),
    ],
)
def test_a_mistake_in_domain_toml_is_named_by_its_field(tmp_path: Path, section: str, line: str, told: str) -> None:
    path = write_domain(tmp_path, "bank")
    path.write_text(path.read_text().replace(f"[{section}]\n", f"[{section}]\n{line}\n"))
    with pytest.raises(HomeError) as caught:
        Domain.read(path)
    assert told in str(caught.value)


def test_a_changed_budget_is_recorded_and_the_other_fields_of_it_never_change(tmp_path: Path) -> None:
    home = GuardHome.create(tmp_path / "home", Domain.read(write_domain(tmp_path, "bank", 8.0)))
    home.close()
    file = home.folder / "domain.toml"
    former = file.read_text()
    file.write_text(former.replace("epsilon = 8.0", "epsilon = 6.5"))
    with GuardHome(home.folder) as changed:
        assert changed.ledger.statement().epsilon_budget == 6.5 and len(changed.ledger.entries()) == 2
    for field, line in (("unit", 'unit = "subject"'), ("period_days", "period_days = 30"), ("delta", "delta = 1e-6")):
        fresh = former.replace("delta = 1e-05\n", "").replace('unit = "record"\n', "")
        others = {"unit": "delta = 1e-5\n", "period_days": "delta = 1e-5\n", "delta": ""}[field]
        file.write_text(fresh.replace("[budget]\n", f"[budget]\n{line}\n{others}"))
        with pytest.raises(HomeError, match=rf"budget\.{field} is .* never changes"):
            GuardHome(home.folder)
    file.write_text(former)
    GuardHome(home.folder).close()


def test_old_blobs_go_and_what_an_unopened_order_needs_stays(rooms: Strongrooms, worker: Worker, tmp_path: Path) -> None:
    made = attempt(rooms, tmp_path / "scientist")
    guard = rooms.guards["bank"]
    needed = {made.order.model, *(path.name for path in guard.blobs.outbox.iterdir())}
    stray = guard.blobs.outbox / ("ef" * 32)
    stray.write_bytes(b"old")
    for box in (guard.blobs.inbox, guard.blobs.outbox):
        for path in box.iterdir():
            os.utime(path, (0, time.time() - 31 * 86_400))
    guard.tidy()
    assert {path.name.split(".")[0] for box in (guard.blobs.inbox, guard.blobs.outbox) for path in box.iterdir()} == needed
    ledger, folder = guard.home.ledger.statement(), guard.orders.folder(made.order.digest())
    for owner in rooms.guards:
        if owner != "bank":
            rooms.guards[owner].tidy()
    (guard.blobs.inbox / made.closing.total).write_bytes(made.total.read_bytes())
    guard.closing.open(made.opening())
    for box in (guard.blobs.inbox, guard.blobs.outbox):
        for path in box.iterdir():
            os.utime(path, (0, time.time() - 31 * 86_400))
    guard.tidy()
    assert [path for box in (guard.blobs.inbox, guard.blobs.outbox) for path in box.iterdir()] == []
    assert folder.is_sealed and folder.is_opened and guard.home.ledger.statement().entries > ledger.entries, "records stay"
