"""Code requests as the owner sees them in Syft: list, approve, deny.

Syft's approval only opens the front desk. What trains is decided by the guard's own record of the plan, code and key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import syft
from syft.service.request.request import RequestStatus, UserCodeStatusChange
from syft.types.uid import UID

from fl_privacy.datasite.execution import compiled_from_text
from fl_privacy.errors import NotApproved
from fl_privacy.template import code_digest

Status = Literal["pending", "approved", "denied"]
STATUS: dict[RequestStatus, Status] = {
    RequestStatus.PENDING: "pending",
    RequestStatus.APPROVED: "approved",
    RequestStatus.REJECTED: "denied",
}


@dataclass(frozen=True)
class CodeRequest:
    """One code request; ``number`` counts a datasite's requests by time of arrival and never changes."""

    number: int
    id: str
    email: str
    code: str = field(repr=False)
    status: Status
    reason: str

    @property
    def digest(self) -> str:
        """sha256 of the code, as the guard names it."""
        return code_digest(self.code)


def all_requests(client: Any) -> list[CodeRequest]:
    """Every code request of this datasite, oldest first."""
    found = sorted(client.api.services.request.get_all(), key=lambda request: request.request_time.utc_timestamp)
    return [_view(number, request) for number, request in enumerate(found, start=1) if _is_code(request)]


def pending(client: Any) -> list[CodeRequest]:
    """The requests that wait for the owner."""
    return [request for request in all_requests(client) if request.status == "pending"]


def approve(client: Any, request: CodeRequest) -> None:
    """Let Syft run the code of a request.

    Args: request is what the owner read. Raises: NotApproved when the request would do anything but approve that code.
    """
    current = _current(client, request)
    if len(current.changes) != 1 or not _is_code(current):
        raise NotApproved(f"request {request.number} asks for more than one code's approval; deny it")
    code = current.code
    if current.changes[0].linked_obj.object_uid != code.status_link.object_uid:
        raise NotApproved(f"request {request.number} shows one code and would approve another; deny it")
    runs = compiled_from_text(code.raw_code, code.service_func_name, code.unique_func_name)
    if code_digest(code.raw_code) != request.digest or runs != code.parsed_code:
        raise NotApproved(f"the code of request {request.number} is not the code that was reviewed; deny it")
    client.api.services.request.apply(current.id)


def deny(client: Any, request: CodeRequest, reason: str) -> None:
    """Refuse a request, or take an approval back; the scientist reads the reason."""
    client.api.services.request.undo(uid=_current(client, request).id, reason=reason)


def _current(client: Any, request: CodeRequest) -> Any:
    try:
        return client.api.services.request.get_by_uid(UID.from_string(request.id))
    except syft.SyftException:
        raise NotApproved(f"request {request.number} is not at this datasite") from None


def _is_code(request: Any) -> bool:
    return any(isinstance(change, UserCodeStatusChange) for change in request.changes)


def _view(number: int, request: Any) -> CodeRequest:
    status = STATUS[request.status]
    reason = (request.deny_reason or "") if status == "denied" else ""
    email = request.requesting_user_email or ""
    return CodeRequest(number, str(request.id), email, request.code.raw_code, status, str(reason))
