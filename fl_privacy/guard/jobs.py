"""What an owner sees of the orders that its guard has admitted."""

from __future__ import annotations

import time
from typing import Any

from fl_privacy.guard.approvals import Approvals, Decision
from fl_privacy.guard.orders import OrderFolder, Orders
from fl_privacy.guard.rounds import Rounds
from fl_privacy.learning.local_evaluation import STEPS
from fl_privacy.round_order import RoundOrder

MOST = 200  # orders that are told; every one costs a read of its files
ENDS = ("opened.json", "closing.json", "receipt.json", "error.json", "revoked.json")


def jobs(orders: Orders, rounds: Rounds, approvals: Approvals) -> list[dict[str, Any]]:
    """The latest orders, newest first: ``order``, ``plan``, ``scientist``, ``purpose``, ``round``, ``attempt``, ``state``, ...

    An evaluation is of the model before ``round``, or of the finished one if it ``is_final``. ``state`` is training (or
    counting, for an evaluation), sealed (or opened since), failed or stopped (by the owner); ``seconds`` run from admission to
    the last thing that happened, or until now while it is in work.
    """
    newest = sorted(orders.all(), key=_admitted, reverse=True)
    return [_job(folder, rounds, approvals) for folder in newest[:MOST]]


def _job(folder: OrderFolder, rounds: Rounds, approvals: Approvals) -> dict[str, Any]:
    order, state = folder.order, rounds.state(folder.digest)
    decision = approvals.of_plan(order.plan)
    is_training = state["state"] == "training"
    ended = [path.stat().st_mtime for path in map(folder.path.joinpath, ENDS) if path.exists()]
    until = time.time() if is_training else max(ended, default=_admitted(folder))
    steps = state["steps"] or _planned_steps(order, decision)
    return {
        "order": folder.digest,
        "plan": decision.training_plan.name if decision else order.plan[:16],
        "scientist": decision.scientist if decision else "",
        "purpose": order.purpose,
        "round": order.round,
        "is_final": order.purpose == "evaluate" and decision is not None and order.round == decision.training_plan.rounds,
        "attempt": order.attempt,
        "state": "stopped" if folder.is_revoked or folder.is_stopped else state["state"],
        "step": steps if state["state"] == "sealed" else state["step"],
        "steps": steps,
        "seconds": max(0.0, until - _admitted(folder)),
    }


def _planned_steps(order: RoundOrder, decision: Decision | None) -> int:
    """The steps of an order that is not in work; 0 where the plan was decided on before decisions were kept."""
    if order.purpose == "evaluate":
        return STEPS
    return decision.training_plan.local_steps if decision else 0


def _admitted(folder: OrderFolder) -> float:
    return (folder.path / "order.json").stat().st_mtime
