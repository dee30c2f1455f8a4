"""What the approved function says to the scientist: the guard's answer, a typed refusal, or a name without a text."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.datasite import front_desk
from fl_privacy.datasite.front_desk import GUARD_SOCKET, hand_over
from fl_privacy.errors import BudgetExceeded, ConnectionFailed, MessageError, NotApproved, OrderRefused, from_wire
from fl_privacy.messages import Signed, open_signed, public_hex, sign
from fl_privacy.round_order import RoundOrder
from fl_privacy.template import signed_plan_of
from tests.datasite.guard_double import STEPS, GuardDouble, an_order

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class Bar:
    def __init__(self) -> None:
        self.steps, self.shown = 0, []

    def init_progress(self, n_iters: int) -> None:
        self.steps = n_iters

    def set_progress(self, to: int) -> None:
        self.shown.append(to)


@pytest.fixture(autouse=True)
def _environment(guard_socket, monkeypatch):
    monkeypatch.setenv(GUARD_SOCKET, str(guard_socket))
    monkeypatch.setattr(front_desk, "POLL_SECONDS", 0.0)


@pytest.fixture
def plan(approved_code) -> str:
    return signed_plan_of(approved_code("front-desk")[0]).canonical().decode()


def train(order: RoundOrder) -> dict[str, str]:
    return {"action": "train", "message": sign(order, KEY).canonical().decode()}


def refusal(answer: dict) -> Exception:
    assert answer["ok"] is False
    return from_wire(answer["error"])


def test_an_order_is_placed_watched_and_answered_with_the_receipt(plan, guard: GuardDouble):
    bar = Bar()
    answer = hand_over(train(an_order(1)), plan, bar)
    assert answer["ok"] is True
    assert open_signed(Signed.model_validate(answer["result"]), RoundOrder, public_hex(guard.key)) == an_order()
    assert bar.steps == STEPS
    assert bar.shown == [0, 1, 2, 3, 4]


def test_a_failed_order_comes_back_typed(plan, guard: GuardDouble):
    guard.broke.add(an_order(2).digest())
    error = refusal(hand_over(train(an_order(2)), plan, Bar()))
    assert isinstance(error, BudgetExceeded)
    assert "8.1" in str(error)


def test_a_refused_opening_comes_back_typed(plan):
    assert isinstance(refusal(hand_over({"action": "open", "message": "f" * 64}, plan, Bar())), OrderRefused)


@pytest.mark.parametrize("message", ["", "F" * 64, "../orders", "{}"])
def test_an_opening_that_is_not_named_by_a_digest_reaches_no_route_of_the_guard(plan, message):
    assert isinstance(refusal(hand_over({"action": "open", "message": message}, plan, Bar())), MessageError)


def test_a_plan_that_the_guard_did_not_approve_goes_no_further(approved_code, guard: GuardDouble):
    plan = signed_plan_of(approved_code("unapproved", approve=False)[0]).canonical().decode()
    assert isinstance(refusal(hand_over(train(an_order(3)), plan, Bar())), NotApproved)
    assert an_order(3).digest() not in guard.orders


@pytest.mark.parametrize("task", [{"action": "sell", "message": ""}, {"action": "train", "message": "{}"}])
def test_a_malformed_task_is_a_message_error(plan, task):
    assert isinstance(refusal(hand_over(task, plan, Bar())), MessageError)


def test_a_dead_guard_is_a_connection_failure(plan, monkeypatch, tmp_path):
    monkeypatch.setenv(GUARD_SOCKET, str(tmp_path / "nobody.sock"))
    assert isinstance(refusal(hand_over(train(an_order()), plan, Bar())), ConnectionFailed)


def test_a_stalled_order_is_given_up(plan, guard: GuardDouble, monkeypatch):
    guard.stuck.add(an_order(4).digest())
    monkeypatch.setattr(front_desk, "STALL_SECONDS", 0.05)
    error = refusal(hand_over(train(an_order(4)), plan, Bar()))
    assert isinstance(error, ConnectionFailed)
    assert "no new step" in str(error)


def test_the_text_of_an_unforeseen_error_stays_inside(plan):
    class Leaky(Bar):
        def init_progress(self, n_iters: int) -> None:
            raise RuntimeError("row 17: the patient said")

    answer = hand_over(train(an_order(5)), plan, Leaky())
    assert answer["ok"] is False
    assert "RuntimeError" in answer["error"]["message"]
    assert "patient" not in str(answer)


def test_an_empty_task_is_answered_too(plan):
    assert hand_over({}, plan, Bar())["ok"] is False
