"""The console's only way to the owner: calls of ``owner`` and ``owner_files``, off the event loop. Nothing is decided here."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fl_privacy import owner_files
from fl_privacy.errors import FlPrivacyError, KeyMissing, NotApproved


class GuardCalls(Protocol):
    """What the console needs of ``Owner.guard``."""

    def call(self, method: str, path: str) -> Any:
        """See ``guard.client``."""


class RequestLike(Protocol):
    """What the console shows of ``datasite.requests.CodeRequest``."""

    @property
    def number(self) -> int: ...
    @property
    def email(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def digest(self) -> str: ...


class OwnerLike(Protocol):
    """What the console needs of ``fl_privacy.owner.Owner``; see there for what each call does."""

    name: str
    home: Path

    @property
    def guard(self) -> GuardCalls: ...
    def all_requests(self) -> Sequence[RequestLike]: ...
    def request(self, number: int) -> RequestLike: ...
    def review(self, number: int) -> dict[str, Any]: ...
    def approve(self, number: int, days: int | None = None) -> None: ...
    def deny(self, number: int, reason: str) -> None: ...
    def revoke(self, number: int, reason: str) -> None: ...
    def jobs(self) -> list[dict[str, Any]]: ...
    def stop_job(self, order: str, reason: str) -> None: ...
    def pause(self, reason: str) -> None: ...
    def resume(self) -> None: ...
    def ledger(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class RequestRow:
    """One request in the list; ``report`` is the guard's review, None where there is ``problem``."""

    request: RequestLike
    report: Mapping[str, Any] | None
    problem: str = ""


class Desk:
    """Asks one owner. Every call may raise what the owner raises: a FlPrivacyError."""

    def __init__(self, owner: OwnerLike) -> None:
        self.owner = owner
        self._syft = asyncio.Lock()  # one Syft session, one call at a time; the guard takes many
        self._reviews: dict[str, RequestRow] = {}

    async def requests(self) -> list[RequestRow]:
        """Every request, newest first, with its review. Of a decided request a review from earlier will do."""
        async with self._syft:
            return await asyncio.to_thread(self._rows)

    def _rows(self) -> list[RequestRow]:
        return [self._row(request) for request in reversed(self.owner.all_requests())]

    def _row(self, request: RequestLike) -> RequestRow:
        known = self._reviews.get(request.digest)
        if request.status != "pending" and known is not None:
            return RequestRow(request, known.report, known.problem)
        try:
            row = RequestRow(request, self.owner.review(request.number))
        except FlPrivacyError as problem:
            row = RequestRow(request, None, str(problem))
        self._reviews[request.digest] = row
        return row

    async def request(self, number: int) -> tuple[RequestLike, dict[str, Any]]:
        """One request and what the guard says about it now."""
        async with self._syft:
            request = await asyncio.to_thread(self.owner.request, number)
            return request, await asyncio.to_thread(self.owner.review, number)

    async def approve(self, number: int, digest: str, days: int) -> None:
        """Approve the code that was shown, the one with this digest, for so many days."""
        async with self._syft:
            await asyncio.to_thread(self._same, number, digest)
            await asyncio.to_thread(self.owner.approve, number, days)

    async def deny(self, number: int, digest: str, reason: str) -> None:
        """Deny the code that was shown."""
        async with self._syft:
            await asyncio.to_thread(self._same, number, digest)
            await asyncio.to_thread(self.owner.deny, number, reason)

    async def revoke(self, number: int, digest: str, reason: str) -> None:
        """Take back the approval of the code that was shown."""
        async with self._syft:
            await asyncio.to_thread(self._same, number, digest)
            await asyncio.to_thread(self.owner.revoke, number, reason)

    def _same(self, number: int, digest: str) -> None:
        if self.owner.request(number).digest != digest:
            raise NotApproved(f"request {number} is not the one that was shown; open it again")

    async def jobs(self) -> list[dict[str, Any]]:
        """The guard's orders, newest first."""
        return await asyncio.to_thread(self.owner.jobs)

    async def stop_job(self, order: str, reason: str) -> None:
        """Stop one order's worker."""
        await asyncio.to_thread(self.owner.stop_job, order, reason)

    async def pause(self, reason: str) -> None:
        """Let the guard take no more orders."""
        await asyncio.to_thread(self.owner.pause, reason)

    async def resume(self) -> None:
        """Let the guard take orders again."""
        await asyncio.to_thread(self.owner.resume)

    async def status(self) -> dict[str, Any]:
        """The guard at a glance."""
        told: dict[str, Any] = await asyncio.to_thread(self.owner.guard.call, "GET", "/v1/status")
        return told

    async def ledger(self) -> Mapping[str, Any]:
        """``statement`` and ``entries`` as the guard tells them."""
        return await asyncio.to_thread(self.owner.ledger)

    async def verify_ledger(self) -> int:
        """Read the ledger's file again, check every link and signature; returns the number of entries. Raises: LedgerError."""
        entries, _ = await asyncio.to_thread(owner_files.read_ledger, self.owner.home)
        return len(entries)

    async def export_ledger(self) -> bytes:
        """The signed entries, for an auditor."""
        return await asyncio.to_thread(self._export)

    def _export(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "ledger.jsonl"
            owner_files.export_ledger(self.owner.home, file)
            return file.read_bytes()

    async def registry(self) -> Any | None:
        """The ``Registry`` that this owner signed; None before enrolment."""
        try:
            return await asyncio.to_thread(owner_files.read_registry, self.owner.home)
        except KeyMissing:
            return None
