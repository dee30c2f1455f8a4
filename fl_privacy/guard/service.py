"""The guard as a process: two HTTP services on Unix sockets in the guard's home.

``front.sock`` is for the datasite and trusts nothing it is told: what counts there are the scientist's and owners' signatures.
``owner.sock`` carries the owner's authority; only the owner's own OS user can open it.
"""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse

from fl_privacy.errors import FlPrivacyError, MessageError, to_wire
from fl_privacy.guard.client import FRONT_SOCKET, OWNER_SOCKET
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import OpenRequest, Signed


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

    @app.post("/v1/openings")
    def open_sum(request: OpenRequest) -> Signed:
        return guard.rounds.open(request)

    @app.put("/v1/blobs/{sha256}")
    async def put_blob(sha256: str, request: Request) -> dict[str, Any]:
        return {"bytes": await guard.blobs.receive(sha256, request.stream())}

    @app.get("/v1/blobs/{sha256}")
    def get_blob(sha256: str) -> FileResponse:
        return FileResponse(guard.blobs.published(sha256), media_type="application/octet-stream")

    @app.get("/v1/ledger")
    def ledger() -> Signed:
        return guard.statement()

    @app.get("/v1/registry")
    def registry() -> dict[str, Any]:
        return guard.home.registry.model_dump(mode="json")

    @app.get("/v1/envelopes")
    def envelopes() -> list[dict[str, Any]]:
        return [envelope.model_dump(mode="json") for envelope in guard.envelopes()]

    @app.put("/v1/envelopes")
    def take_envelope(envelope: Signed) -> dict[str, Any]:
        guard.take_envelope(envelope)
        return {"accepted": True}

    return app


def owner_app(guard: Guard) -> FastAPI:
    """What only the owner may do."""
    app = _app()

    @app.get("/v1/status")
    def status() -> dict[str, Any]:
        return guard.status()

    @app.post("/v1/enrol")
    def enrol(cards: list[Signed]) -> dict[str, Any]:
        return {"registry": guard.enrol(cards).digest()}

    @app.post("/v1/review")
    def review(request: dict[str, str]) -> dict[str, Any]:
        report = guard.review(request["code"])
        return report.model_dump(mode="json") | {"objection": report.objection}

    @app.post("/v1/approve")
    def approve(request: dict[str, str]) -> dict[str, Any]:
        return guard.approve(request["code"]).model_dump(mode="json")

    @app.post("/v1/deny")
    def deny(request: dict[str, str]) -> dict[str, Any]:
        return guard.deny(request["code"], request["reason"]).model_dump(mode="json")

    return app


async def serve(home: GuardHome) -> None:
    """Serve both sockets until SIGTERM or SIGINT."""
    guard = Guard(home)
    servers = [
        _server(front_app(guard), home.folder / FRONT_SOCKET),
        _server(owner_app(guard), home.folder / OWNER_SOCKET),
    ]
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _leave, servers)
    try:
        await asyncio.gather(*(server._serve() for server in servers))
    finally:
        guard.close()


def _leave(servers: list[uvicorn.Server]) -> None:
    for server in servers:
        server.should_exit = True


def _app() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(FlPrivacyError)
    def refuse(_: Request, error: FlPrivacyError) -> JSONResponse:
        return JSONResponse(to_wire(error), status_code=409)

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


def _server(app: FastAPI, socket: Path) -> uvicorn.Server:
    socket.unlink(missing_ok=True)
    return uvicorn.Server(uvicorn.Config(app, uds=str(socket), log_level="warning", access_log=False, lifespan="off"))
