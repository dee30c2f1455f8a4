"""The console as a process: pages behind the gate, on 127.0.0.1 only."""

from __future__ import annotations

from collections.abc import Callable

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse
from nicegui import ui

from fl_privacy.console import budget_page, jobs_page, ledger_page, owners_page, requests_page, review_page
from fl_privacy.console.desk import Desk, OwnerLike
from fl_privacy.console.gate import Gate
from fl_privacy.console.login import Doorkeeper, password_of
from fl_privacy.console.nicegui_mends import mend
from fl_privacy.console.visit import Draw, Visit
from fl_privacy.errors import ConnectionFailed

HOST = "127.0.0.1"
COLOURS = {"primary": "#2b4c7e", "positive": "#2f7d5b", "negative": "#b42525", "warning": "#a86400", "info": "#2b4c7e"}
DRAWS: dict[str, Draw] = {
    "requests": requests_page.draw,
    "budget": budget_page.draw,
    "ledger": ledger_page.draw,
    "jobs": jobs_page.draw,
    "owners": owners_page.draw,
}


def build(owner: OwnerLike, doorkeeper: Doorkeeper, port: int) -> Gate:
    """The console of one owner as an ASGI application; NiceGUI keeps its pages in the process, so build one at a time."""
    mend()
    _register(Desk(owner), doorkeeper)
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(outer, title=owner.name, tailwind=False, show_welcome_message=False, storage_secret=None)
    return Gate(outer, doorkeeper, owner.name, port)


def serve(owner: OwnerLike, port: int, ready: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args: ``port`` 0 takes a free one; ``ready`` is told address and password. Raises: HomeError, ConnectionFailed.
    """
    password = password_of(owner.home)
    config = uvicorn.Config(
        FastAPI(), HOST, port, log_level="warning", access_log=False, server_header=False, ws_max_size=2**20
    )
    try:
        socket = config.bind_socket()
    except SystemExit:  # how uvicorn says that it cannot
        raise ConnectionFailed(f"port {port} of {HOST} is in use; choose another with --port") from None
    port = socket.getsockname()[1]
    socket.listen()  # from now on browsers may come; they wait until the server runs
    config.app = build(owner, Doorkeeper(password), port)
    ready(f"http://{HOST}:{port}", password)
    uvicorn.Server(config).run(sockets=[socket])


def _register(desk: Desk, doorkeeper: Doorkeeper) -> None:
    @ui.page("/")
    def front() -> RedirectResponse:
        return RedirectResponse("/requests")

    @ui.page("/requests/{number}")
    async def review(number: int, request: Request) -> None:
        await _visit(desk, doorkeeper, request).show("requests", review_page.page(number))

    for name, draw in DRAWS.items():
        _tab(desk, doorkeeper, name, draw)


def _tab(desk: Desk, doorkeeper: Doorkeeper, name: str, draw: Draw) -> None:
    @ui.page(f"/{name}")
    async def tab(request: Request) -> None:
        await _visit(desk, doorkeeper, request).show(name, draw)


def _visit(desk: Desk, doorkeeper: Doorkeeper, request: Request) -> Visit:
    ui.colors(**COLOURS)
    return Visit(desk, doorkeeper, request.scope["session"], request.url.path)
