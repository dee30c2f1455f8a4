"""What an approved function does inside a Syft job: pass one signed message to the guard and wait for its answer.

The job holds no corpus, key or budget; everything here may be read by the scientist, so only hashes and public costs pass.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Protocol

from fl_privacy.errors import ConnectionFailed, FlPrivacyError, MessageError, from_wire, to_wire
from fl_privacy.guard.client import GuardClient
from fl_privacy.messages import Signed
from fl_privacy.template import code_digest, render

GUARD_SOCKET = "FL_PRIVACY_GUARD_SOCKET"  # environment variable that names the guard's front socket
POLL_SECONDS = 0.25
STALL_SECONDS = 1800.0  # a guard that reports no new step for so long is given up on; the order itself stays with the guard


class Progress(Protocol):
    """The progress bar of a Syft job (Syft's ``datasite`` argument)."""

    def init_progress(self, n_iters: int) -> None:
        """Set the number of steps."""

    def set_progress(self, to: int) -> None:
        """Set the step reached."""


def hand_over(task: dict[str, Any], plan: str, progress: Progress) -> dict[str, Any]:
    """Give one message to this owner's guard and wait until it is done.

    Args: task is ``{"action": "train", "message": JSON of a signed RoundOrder}`` or ``{"action": "open", "message": sha256 of
        an OpenRequest in the inbox}``, which for a large cohort is more than Syft carries; plan is the signed plan of
        the approved function; progress shows training steps to the scientist.
    Returns: ``{"ok": True, "result": Signed}``, an UpdateReceipt or an OpenedSum, or ``{"ok": False, "error": {...}}``.
    Privacy: returns nothing but what the guard released; no text of an unforeseen error, no traceback.
    """
    try:
        guard = GuardClient(Path(os.environ[GUARD_SOCKET]))
        guard.code_is_approved(code_digest(render(Signed.parse(plan))))
        return {"ok": True, "result": _ACTIONS[task["action"]](guard, task["message"], progress)}
    except FlPrivacyError as problem:
        return {"ok": False, "error": to_wire(problem)}
    except Exception as problem:  # noqa: BLE001 - the last door to the scientist: a name may pass, a text or traceback not
        told = f"the front desk could not pass the message on ({type(problem).__name__}); tell its owner"
        return {"ok": False, "error": to_wire(FlPrivacyError(told))}


def _train(guard: GuardClient, message: str, progress: Progress) -> dict[str, Any]:
    state = guard.place_order(Signed.parse(message))
    progress.init_progress(int(state["steps"]))
    seen, moved_at = -1, time.monotonic()
    while state["state"] not in ("sealed", "failed"):
        if state["step"] != seen:
            seen, moved_at = state["step"], time.monotonic()
            progress.set_progress(int(seen))
        elif time.monotonic() - moved_at > STALL_SECONDS:
            raise ConnectionFailed(f"the guard reports no new step for {STALL_SECONDS:.0f} s; ask for the order again later")
        time.sleep(POLL_SECONDS)
        state = guard.order_state(state["digest"])
    if state["state"] == "failed":
        raise from_wire(state["error"])
    progress.set_progress(int(state["steps"]))
    receipt: dict[str, Any] = state["receipt"]
    return receipt


def _open(guard: GuardClient, message: str, progress: Progress) -> dict[str, Any]:
    return guard.open_sum(message).model_dump(mode="json")


class _Actions(dict[str, Any]):
    def __missing__(self, action: object) -> Any:
        raise MessageError("task.action: must be 'train' or 'open'")


_ACTIONS = _Actions(train=_train, open=_open)
