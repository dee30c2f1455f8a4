"""What an owner sees of the orders that its guard has admitted."""

from __future__ import annotations

import time
from typing import Any

from fl_privacy.guard.approvals import Approvals
from fl_privacy.guard.orders import OrderFolder, Orders
from fl_privacy.guard.rounds import Rounds

MOST = 200  # orders that are told; every one costs a read of its files
ENDS = ("opened.json", "closing.json", "receipt.json", "error.json", "revoked.json")


def jobs(orders: Orders, rounds: Rounds, approvals: Approvals) -> list[dict[str, Any]]:
    """The latest orders, newest first: ``order``, ``plan``, ``scientist``, ``round``, ``attempt``, ``state``, ``step``, ...

    ``state`` is training, sealed (or opened since), failed or stopped (by the owner); ``seconds`` run from admission to the
    last thing that happened, or until now while it trains.
    """
    newest = sorted(orders.all(), key=_admitted, reverse=True)
    return [_job(folder, rounds, approvals) for folder in newest[:MOST]]


def _job(folder: OrderFolder, rounds: Rounds, approvals: Approvals) -> dict[str, Any]:
    order, state = folder.order, rounds.state(folder.digest)
    decision = approvals.of_plan(order.plan)
    is_training = state["state"] == "training"
    ended = [path.stat().st_mtime for path in map(folder.path.joinpath, ENDS) if path.exists()]
    until = time.time() if is_training else max(ended, default=_admitted(folder))
    return {
        "order": folder.digest,
        "plan": decision.training_plan.name if decision else order.plan[:16],
        "scientist": decision.scientist if decision else "",
        "round": order.round,
        "attempt": order.attempt,
        "state": "stopped" if folder.is_revoked or folder.is_stopped else state["state"],
        "step": state["step"],
        "steps": state["steps"] or (decision.training_plan.local_steps if decision else 0),
        "seconds": max(0.0, until - _admitted(folder)),
    }


def _admitted(folder: OrderFolder) -> float:
    return (folder.path / "order.json").stat().st_mtime
