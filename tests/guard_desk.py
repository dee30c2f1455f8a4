"""A desk at a guard in this process, without Syft and HTTP between: what ``scientist.rounds`` needs of a desk and its relay."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_privacy.errors import ConnectionFailed, OwnerFailed, from_wire
from fl_privacy.guard.guard import Guard
from fl_privacy.messages import CloseRequest, OpenRequest, RevealRequest, Signed
from tests.guard.conftest import finished, upload

SCIENTIST = "5c" * 32  # the key that the datasite names for what is uploaded by a desk


class GuardDesk:
    """``before`` is called with the name of each step (train, close, reveal, open, fetch) and may raise or tamper.

    Bytes are counted as ``scientist.relay`` does, but for answers of a dozen bytes.
    """

    def __init__(self, guard: Guard, before: Callable[[str], None] = lambda step: None) -> None:
        self.guard, self.owner, self.before = guard, guard.home.owner, before
        self.relay = self
        self.bytes_sent = self.bytes_received = 0

    def run(self, name: str, task: dict[str, Any], timeout: float, on_progress: Any = None) -> dict[str, Any]:
        self.before(task["action"])
        if task["action"] == "open":
            with self.guard.blobs.open(task["message"]) as request:
                return self.guard.closing.open(OpenRequest.parse(request.read())).model_dump(mode="json")
        digest = self.guard.rounds.place(Signed.parse(task["message"]))["digest"]
        try:
            state = finished(self.guard, digest, timeout)
        except TimeoutError:
            raise OwnerFailed(self.owner, "no answer") from None
        if state["state"] == "failed":
            raise from_wire(state["error"])
        receipt: dict[str, Any] = state["receipt"]
        return receipt

    def close_order(self, request: CloseRequest) -> Signed:
        self.before("close")
        return self._told(request, self.guard.closing.close(request))

    def reveal_self_mask(self, request: RevealRequest) -> Signed:
        self.before("reveal")
        return self._told(request, self.guard.closing.reveal(request))

    def _told(self, request: CloseRequest, answer: Signed) -> Signed:
        self.bytes_sent += len(request.canonical())
        self.bytes_received += len(answer.canonical())
        return answer

    def holds(self, digest: str) -> bool:
        return asyncio.run(self.guard.model_steps.holds(digest, SCIENTIST))

    def put_model(self, digest: str, base: str, step: str) -> None:
        asyncio.run(self.guard.model_steps.compose(digest, base, step, SCIENTIST))

    def put_blob(self, data: bytes) -> str:
        upload(self.guard, data, uploader=SCIENTIST)
        self.bytes_sent += len(data)
        return hashlib.sha256(data).hexdigest()

    def put_file(self, digest: str, path: Path) -> None:
        upload(self.guard, path.read_bytes(), digest, SCIENTIST)
        self.bytes_sent += path.stat().st_size

    def fetch_blob(self, digest: str, path: Path) -> None:
        self.before("fetch")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.guard.blobs.published(digest).read_bytes())
        self.bytes_received += path.stat().st_size


def unreachable(lost: str, times: int = 10**6) -> Callable[[str], None]:
    """A ``before`` that loses the connection at a step, a number of times."""
    left = [times]

    def before(step: str) -> None:
        if step == lost and left[0]:
            left[0] -= 1
            raise ConnectionFailed("the datasite does not answer")

    return before
