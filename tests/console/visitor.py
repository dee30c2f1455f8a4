"""A browser without a browser: NiceGUI's simulated user behind the real gate, logged in at one owner's console."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx
from nicegui import Client, core
from nicegui.testing import User

from fl_privacy.console.desk import OwnerLike
from fl_privacy.console.login import Doorkeeper
from fl_privacy.console.server import build

PORT = 8085
ORIGIN = f"http://127.0.0.1:{PORT}"
PASSWORD = "the-password-in-the-terminal"


def visit(owner: OwnerLike, story: Callable[[User], Awaitable[None]]) -> None:
    """Tell one story of a logged-in user."""

    async def told() -> None:
        async with logged_in(owner) as user:
            await story(user)

    asyncio.run(told())


@asynccontextmanager
async def logged_in(owner: OwnerLike) -> AsyncIterator[User]:
    core.app.middleware_stack = None  # NiceGUI has one application in a process; each console is built anew
    core.app.user_middleware.clear()
    Client.instances.clear()
    gate = build(owner, Doorkeeper(PASSWORD), PORT)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(gate), base_url=ORIGIN)
    async with core.app.router.lifespan_context(core.app), client:
        entered = await client.post("/login", data={"password": PASSWORD}, headers={"origin": ORIGIN})
        assert entered.status_code == 303
        yield User(client)
