"""The guard as a process: two HTTP services on Unix sockets in the guard's home.

``front.sock`` is for the datasite and trusts nothing it is told: what counts there are the scientist's and owners' signatures.
``owner.sock`` carries the owner's authority; only the owner's own OS user can open it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from pydantic import StringConstraints

from fl_privacy.encryption.registry import Registry, RegistryState
from fl_privacy.errors import FlPrivacyError, HomeError, MessageError, TooLarge, to_wire
from fl_privacy.guard.approvals import Decision
from fl_privacy.guard.blobs import NOBODY
from fl_privacy.guard.client import FRONT_SOCKET, OWNER_SOCKET
from fl_privacy.guard.domain import Days
from fl_privacy.guard.enrolment import EnrolRequest
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.pause import pause, resume
from fl_privacy.messages import CloseRequest, Message, OpenRequest, RevealRequest, Signed

DAILY = 24 * 3600.0  # seconds


class Submitted(Message):
    """Code as a scientist submitted it."""

    code: str


class Approval(Submitted):
    """For how many days, if not the policy's."""

    days: Days | None = None


class Reasoned(Message):
    """What the owner wants to be known, also to the scientist."""

    reason: Annotated[str, StringConstraints(max_length=500)]


class Refusal(Submitted, Reasoned):
    """Which request, and why not."""


LARGEST_REQUEST = 16 << 20  # bytes; an opening of a hundred owners takes about 2 MB


def front_app(guard: Guard) -> FastAPI:
    """What the datasite may ask; see the module's docstring for who is trusted."""
    app = _app()

    @app.get("/v1/info")
    def info() -> dict[str, Any]:
        return guard.info()

    @app.get("/v1/corpora")
    def corpora() -> list[dict[str, Any]]:
        return [card.model_dump(mode="json") for card in guard.corpora()]

    @app.get("/v1/code/{sha256}")
    def code(sha256: str) -> dict[str, Any]:
        return {"approved": True, "plan": guard.approvals.code_approved(sha256).training_plan.digest()}

    @app.post("/v1/orders")
    def place(order: Signed) -> dict[str, Any]:
        return guard.rounds.place(order)

    @app.get("/v1/orders/{digest}")
    def state(digest: str) -> dict[str, Any]:
        return guard.rounds.state(digest)

    @app.post("/v1/closings")
    def close(request: CloseRequest) -> Signed:
        return guard.closing.close(request)

    @app.post("/v1/reveals")
    def reveal(request: RevealRequest) -> Signed:
        return guard.closing.reveal(request)

    @app.post("/v1/openings/{sha256}")
    def open_sum(sha256: str) -> Signed:
        with guard.blobs.open(sha256) as request:
            return guard.closing.open(OpenRequest.parse(request.read(LARGEST_REQUEST)))

    @app.put("/v1/blobs/{sha256}")
    async def put_blob(sha256: str, request: Request) -> dict[str, Any]:
        return {"bytes": await guard.blobs.receive(sha256, request.stream(), _caller(request))}

    @app.get("/v1/uploads/{sha256}")
    async def holds(sha256: str, request: Request) -> dict[str, Any]:
        return {"held": await guard.model_steps.holds(sha256, _caller(request))}

    @app.put("/v1/models/{sha256}/{base}/{step}")
    async def compose(sha256: str, base: str, step: str, request: Request) -> dict[str, Any]:
        await guard.model_steps.compose(sha256, base, step, _caller(request))
        return {"held": True}

    @app.get("/v1/blobs/{sha256}")
    def get_blob(sha256: str) -> FileResponse:
        return FileResponse(guard.blobs.published(sha256), media_type="application/octet-stream")

    @app.get("/v1/ledger")
    def ledger() -> Signed:
        return guard.statement()

    @app.get("/v1/registry")
    def registry() -> RegistryState:
        return guard.enrolment.state()

    @app.put("/v1/registry")
    def take_signature(signed: Signed) -> dict[str, Any]:
        return {"signed_by": guard.enrolment.take_signature(signed)}

    @app.get("/v1/envelopes")
    def envelopes() -> list[Signed]:
        return guard.enrolment.envelopes()

    @app.put("/v1/envelopes")
    def take_envelope(envelope: Signed) -> dict[str, Any]:
        return {"accepted": guard.enrolment.take_envelope(envelope)}

    return app


def owner_app(guard: Guard) -> FastAPI:
    """What only the owner may do."""
    app = _app()

    @app.get("/v1/status")
    def status() -> dict[str, Any]:
        return guard.status()

    @app.post("/v1/proposal")
    def propose(request: EnrolRequest) -> Registry:
        return guard.enrolment.propose(request)

    @app.post("/v1/enrol")
    def enrol(request: EnrolRequest) -> Registry:
        return guard.enrolment.enrol(request)

    @app.post("/v1/review")
    def review(request: Submitted) -> dict[str, Any]:
        report = guard.review(request.code)
        return report.model_dump(mode="json") | {"objection": report.objection}

    @app.post("/v1/approve")
    def approve(request: Approval) -> Decision:
        return guard.approve(request.code, request.days)

    @app.post("/v1/approve-by-policy")
    def approve_by_policy(request: Submitted) -> Decision:
        return guard.approve_by_policy(request.code)

    @app.post("/v1/deny")
    def deny(request: Refusal) -> Decision:
        return guard.deny(request.code, request.reason)

    @app.post("/v1/revoke")
    def revoke(request: Refusal) -> Decision:
        return guard.revoke(request.code, request.reason)

    @app.get("/v1/jobs")
    def jobs() -> list[dict[str, Any]]:
        return guard.jobs()

    @app.post("/v1/jobs/{digest}/stop")
    def stop_job(digest: str, request: Reasoned) -> dict[str, Any]:
        guard.rounds.stop_order(digest, request.reason)
        return {"stopped": digest}

    @app.post("/v1/pause")
    def pause_all(request: Reasoned) -> dict[str, Any]:
        pause(guard.home, request.reason)
        return {"paused": request.reason}

    @app.post("/v1/resume")
    def resume_all() -> dict[str, Any]:
        resume(guard.home)
        return {"paused": None}

    @app.get("/v1/ledger")
    def ledger() -> dict[str, Any]:
        return guard.ledger()

    return app


async def serve(home: GuardHome, front: Path | None = None) -> None:
    """Serve both sockets until SIGTERM or SIGINT.

    Args: front is where the front socket lies, by default in the home, out of other OS users' reach; anywhere else, the group
        that owns its folder may connect, and the folder decides who can get there.
    """
    guard = Guard(home)
    doors = [(front_app(guard), _bound(front, 0o660) if front else _bound(home.folder / FRONT_SOCKET))]
    doors.append((owner_app(guard), _bound(home.folder / OWNER_SOCKET)))
    servers = [uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off")) for app, _ in doors]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _leave, servers)
    tidying = asyncio.create_task(_tidy_daily(guard))
    try:
        await asyncio.gather(*(server._serve([door]) for server, (_, door) in zip(servers, doors, strict=True)))
    finally:
        tidying.cancel()
        guard.close()


async def _tidy_daily(guard: Guard) -> None:
    while True:
        await asyncio.sleep(DAILY)
        await asyncio.to_thread(guard.tidy)


def _leave(servers: list[uvicorn.Server]) -> None:
    for server in servers:
        server.should_exit = True


def _app() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(FlPrivacyError)
    def refuse(_: Request, error: FlPrivacyError) -> JSONResponse:
        return JSONResponse(to_wire(error), status_code=413 if isinstance(error, TooLarge) else 409)

    @app.exception_handler(RequestValidationError)
    def misread(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]  # says where and why; the framework's own answer would echo the input
        where = ".".join(map(str, first["loc"]))
        return JSONResponse(to_wire(MessageError(f"{where}: {first['msg']}")), status_code=422)

    @app.exception_handler(Exception)
    def fail(_: Request, __: Exception) -> JSONResponse:
        # the text of an unforeseen error could quote private data; it stays here
        return JSONResponse({"error": "FlPrivacyError", "message": "the guard failed; its owner can look"}, status_code=500)

    return app


def _caller(request: Request) -> str:
    """The key that the datasite names."""
    return request.headers.get("x-fl-key", NOBODY)


def _bound(path: Path, mode: int = 0o600) -> socket.socket:
    """A Unix socket with this mode from its first moment on; uvicorn would open its own to everybody. Raises: HomeError."""
    bound, former = socket.socket(socket.AF_UNIX), os.umask(0o777 & ~mode)
    try:
        path.unlink(missing_ok=True)
        bound.bind(str(path))
        if mode & 0o070:
            os.chown(path, -1, path.parent.stat().st_gid)
    except OSError as problem:
        bound.close()
        raise HomeError(f"the guard cannot listen at {path}: {problem.strerror or problem}") from None
    finally:
        os.umask(former)
    return bound
