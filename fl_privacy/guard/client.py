"""The front door of a guard, seen from the datasite: HTTP over a Unix socket, no authority of its own.

Everything sent here is untrusted by the guard; what needs the owner's authority has another socket (``guard.owner_client``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx

from fl_privacy.errors import ConnectionFailed, FlPrivacyError, MessageError, from_wire
from fl_privacy.messages import Signed

OPENING_SECONDS = 1800.0  # for the guard to open one sum: minutes for a large model on a slow machine
FRONT_SOCKET, OWNER_SOCKET = "front.sock", "owner.sock"  # in the guard's home


class GuardClient:
    """Calls one of a guard's sockets; a refusal comes back as the typed error that the guard raised."""

    def __init__(self, socket: Path, timeout: float = 60.0) -> None:
        self.socket = socket
        self._http = httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://guard", timeout=timeout)

    def call(self, method: str, path: str, body: bytes | None = None, timeout: float | None = None) -> Any:
        """One JSON exchange, by default within the client's timeout. Raises: ConnectionFailed, or the guard's own error."""
        try:
            answer = self._http.request(method, path, content=body, timeout=timeout or self._http.timeout)
        except httpx.HTTPError as problem:
            raise ConnectionFailed(f"the guard at {self.socket} does not answer ({type(problem).__name__})") from None
        if answer.is_success:
            return answer.json() if answer.headers.get("content-type", "").startswith("application/json") else answer.content
        raise _refusal(answer)

    def code_is_approved(self, sha256: str) -> None:
        """Return if the owner approved code with this hash; raise NotApproved if not."""
        self.call("GET", f"/v1/code/{sha256}")

    def place_order(self, order: Signed) -> dict[str, Any]:
        """Hand over a signed RoundOrder; the same order again only reports its state."""
        answer: dict[str, Any] = self.call("POST", "/v1/orders", order.canonical())
        return answer

    def order_state(self, digest: str) -> dict[str, Any]:
        """``{"state": "training" | "sealed" | "failed", "step", "steps", "receipt", "error"}``."""
        answer: dict[str, Any] = self.call("GET", f"/v1/orders/{digest}")
        return answer

    def open_sum(self, request: str) -> Signed:
        """Ask the guard to open a cohort's sum, by the sha256 of an uploaded OpenRequest; returns a signed OpenedSum."""
        if not re.fullmatch(r"[0-9a-f]{64}", request):
            raise MessageError("an opening is named by the sha256 of an uploaded OpenRequest")
        return Signed.model_validate(self.call("POST", f"/v1/openings/{request}", None, OPENING_SECONDS))


def _refusal(answer: httpx.Response) -> FlPrivacyError:
    try:
        wire = answer.json()
    except ValueError:
        return ConnectionFailed(f"the guard answered {answer.status_code} without a reason")
    return from_wire(wire if isinstance(wire, dict) else {})
