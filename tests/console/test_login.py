"""The console's password, its sessions, and the gate in front of every page, asset and web socket."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from fl_privacy.console.gate import POLICY, Gate
from fl_privacy.console.login import MOST_SESSIONS, SESSION_SECONDS, WINDOW_SECONDS, WRONG_TRIES, Doorkeeper, password_of
from fl_privacy.errors import CredentialsRefused, HomeError

PORT = 8085
ORIGIN = f"http://127.0.0.1:{PORT}"
PASSWORD = "right"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def doorkeeper(clock: Clock) -> Doorkeeper:
    return Doorkeeper(PASSWORD, clock)


async def inner(scope: Scope, receive: Receive, send: Send) -> None:
    """The pages: they tell that somebody got in."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await PlainTextResponse("inside")(scope, receive, send)


def ask(doorkeeper: Doorkeeper, method: str, path: str, **sent: Any) -> httpx.Response:
    """One request to the gate, from the console's own page unless ``headers`` say otherwise."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(Gate(inner, doorkeeper, "clinic", PORT))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            return await client.request(method, path, **sent)

    return asyncio.run(asked())


def cookie_of(doorkeeper: Doorkeeper) -> dict[str, str]:
    return {f"fl_privacy_console_{PORT}": doorkeeper.enter(PASSWORD)}


def test_the_password_is_random_kept_and_readable_by_the_owner_only(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    first = password_of(tmp_path / "a")
    assert len(first) >= 24 and password_of(tmp_path / "a") == first != password_of(tmp_path / "b")
    file = tmp_path / "a" / "console" / "password"
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.parametrize("mode", [0o640, 0o604])
def test_a_password_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    password_of(tmp_path)
    (tmp_path / "console" / "password").chmod(mode)
    with pytest.raises(HomeError, match="open to other users; delete it"):
        password_of(tmp_path)


def test_an_empty_password_is_not_used(tmp_path: Path) -> None:
    password_of(tmp_path)
    (tmp_path / "console" / "password").write_text("\n")
    with pytest.raises(HomeError, match="holds no password"):
        password_of(tmp_path)


def test_the_password_is_in_no_representation(doorkeeper: Doorkeeper) -> None:
    assert PASSWORD not in repr(Doorkeeper(PASSWORD)) and doorkeeper.enter(PASSWORD) not in repr(doorkeeper)


def test_after_too_many_wrong_tries_the_right_password_has_to_wait(doorkeeper: Doorkeeper, clock: Clock) -> None:
    for _ in range(WRONG_TRIES):
        with pytest.raises(CredentialsRefused, match="wrong password"):
            doorkeeper.enter("wrong")
    with pytest.raises(CredentialsRefused, match="too many wrong passwords"):
        doorkeeper.enter(PASSWORD)
    clock.now += WINDOW_SECONDS
    assert doorkeeper.session(doorkeeper.enter(PASSWORD)) is not None


def test_wrong_tries_that_are_long_ago_do_not_count(doorkeeper: Doorkeeper, clock: Clock) -> None:
    for _ in range(3 * WRONG_TRIES):
        clock.now += WINDOW_SECONDS / WRONG_TRIES + 1
        with pytest.raises(CredentialsRefused, match="wrong password"):
            doorkeeper.enter("wrong")


def test_a_session_ends_by_time_by_leaving_and_for_newer_ones(doorkeeper: Doorkeeper, clock: Clock) -> None:
    token = doorkeeper.enter(PASSWORD)
    session = doorkeeper.session(token)
    assert session is not None and doorkeeper.open(session)
    clock.now += SESSION_SECONDS
    assert doorkeeper.session(token) is None and not doorkeeper.open(session)
    left = doorkeeper.enter(PASSWORD)
    doorkeeper.leave(left)
    assert doorkeeper.session(left) is None
    oldest, *_ = [doorkeeper.enter(PASSWORD) for _ in range(MOST_SESSIONS + 1)]
    assert doorkeeper.session(oldest) is None


@pytest.mark.parametrize("token", ["", "x" * 43, "\ud800"])
def test_an_unknown_token_is_no_session(doorkeeper: Doorkeeper, token: str) -> None:
    doorkeeper.enter(PASSWORD)
    assert doorkeeper.session(token) is None


def test_the_right_password_sets_a_strict_cookie_that_scripts_cannot_read(doorkeeper: Doorkeeper) -> None:
    entered = ask(doorkeeper, "POST", "/login", data={"password": PASSWORD}, headers={"origin": ORIGIN})
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    cookie = entered.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "path=/" in cookie and "domain" not in cookie
    token = re.match(r"[^=]+=([^;]+)", entered.headers["set-cookie"])
    assert token is not None and doorkeeper.session(token[1]) is not None


@pytest.mark.parametrize("fields", [{"password": "wrong"}, {"password": ""}, {}, {"other": PASSWORD}])
def test_a_wrong_password_is_told_and_sets_no_cookie(doorkeeper: Doorkeeper, fields: dict[str, str]) -> None:
    refused = ask(doorkeeper, "POST", "/login", data=fields, headers={"origin": ORIGIN})
    assert refused.status_code == 401 and "wrong password" in refused.text and "set-cookie" not in refused.headers


def test_a_form_too_large_for_a_password_is_not_read(doorkeeper: Doorkeeper) -> None:
    large = ask(doorkeeper, "POST", "/login", content=b"password=" + b"x" * 10_000, headers={"origin": ORIGIN})
    assert large.status_code == 413


def test_without_a_session_there_is_only_the_login(doorkeeper: Doorkeeper) -> None:
    for path in ("/", "/requests/1", "/_nicegui/2.12.1/static/nicegui.js", "/_nicegui_ws/socket.io/", "/login/../jobs"):
        turned = ask(doorkeeper, "GET", path)
        assert (turned.status_code, turned.headers["location"]) == (303, "/login")
    form = ask(doorkeeper, "GET", "/login")
    assert "<script" not in form.text and "script-src" not in form.headers["content-security-policy"]


def test_with_a_session_the_pages_answer_under_a_policy_of_this_origin_only(doorkeeper: Doorkeeper) -> None:
    inside = ask(doorkeeper, "GET", "/jobs", cookies=cookie_of(doorkeeper))
    assert inside.text == "inside"
    assert inside.headers["content-security-policy"] == POLICY
    assert "http" not in POLICY and "*" not in POLICY and "frame-ancestors 'none'" in POLICY
    assert inside.headers["x-frame-options"] == "DENY" and inside.headers["x-content-type-options"] == "nosniff"


def test_logging_out_ends_the_session(doorkeeper: Doorkeeper) -> None:
    cookies = cookie_of(doorkeeper)
    assert ask(doorkeeper, "POST", "/logout", cookies=cookies, headers={"origin": ORIGIN}).headers["location"] == "/login"
    assert ask(doorkeeper, "GET", "/jobs", cookies=cookies).headers["location"] == "/login"


FOREIGN = [
    {"host": "evil.example.org"},  # a name that now resolves to 127.0.0.1
    {"host": f"evil.example.org:{PORT}"},
    {"host": f"127.0.0.1:{PORT + 1}"},
    {"host": "127.0.0.1"},
    {"host": ""},
    {"origin": "https://evil.example.org"},
    {"origin": f"http://127.0.0.1:{PORT + 1}"},  # the same site for cookies, another origin
    {"origin": f"http://localhost:{PORT}"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
@pytest.mark.parametrize(("method", "path"), [("GET", "/jobs"), ("POST", "/login"), ("POST", "/logout"), ("POST", "/jobs")])
def test_a_request_for_another_name_or_from_another_origin_is_refused(
    doorkeeper: Doorkeeper, headers: dict[str, str], method: str, path: str
) -> None:
    cookies = cookie_of(doorkeeper)
    refused = ask(doorkeeper, method, path, cookies=cookies, headers={"origin": ORIGIN} | headers, data={"password": PASSWORD})
    assert refused.status_code == 403 and "set-cookie" not in refused.headers
    assert doorkeeper.session(next(iter(cookies.values()))) is not None


def test_what_changes_anything_must_tell_its_origin(doorkeeper: Doorkeeper) -> None:
    assert ask(doorkeeper, "POST", "/login", data={"password": PASSWORD}).status_code == 403


def socket_answer(doorkeeper: Doorkeeper, headers: dict[str, str]) -> dict[str, Any]:
    """What the gate answers to a web socket."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def connect() -> None:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "websocket", "path": "/_nicegui_ws/socket.io/", "headers": raw, "query_string": b"", "scheme": "ws"}
        await Gate(inner, doorkeeper, "clinic", PORT)(scope, receive, send)

    asyncio.run(connect())
    answer: dict[str, Any] = sent[0]
    return answer


def own_headers(doorkeeper: Doorkeeper) -> dict[str, str]:
    name, token = next(iter(cookie_of(doorkeeper).items()))
    return {"host": f"127.0.0.1:{PORT}", "origin": ORIGIN, "cookie": f"{name}={token}"}


def test_a_web_socket_of_the_consoles_own_page_is_let_in(doorkeeper: Doorkeeper) -> None:
    assert socket_answer(doorkeeper, own_headers(doorkeeper))["type"] == "websocket.accept"


@pytest.mark.parametrize("changed", [*FOREIGN, {"cookie": ""}, {"cookie": f"fl_privacy_console_{PORT}=guess"}], ids=str)
def test_a_web_socket_from_elsewhere_or_without_session_is_closed(doorkeeper: Doorkeeper, changed: dict[str, str]) -> None:
    assert socket_answer(doorkeeper, own_headers(doorkeeper) | changed)["type"] == "websocket.close"


def test_a_web_socket_must_tell_its_origin(doorkeeper: Doorkeeper) -> None:
    headers = own_headers(doorkeeper)
    del headers["origin"]
    assert socket_answer(doorkeeper, headers)["type"] == "websocket.close"


def test_an_owners_name_is_text_at_the_login(doorkeeper: Doorkeeper) -> None:
    async def asked() -> str:
        transport = httpx.ASGITransport(Gate(inner, doorkeeper, "<b>clinic</b>", PORT))
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
            return (await client.get("/login")).text

    assert "<b>" not in asyncio.run(asked())
