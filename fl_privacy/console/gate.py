"""What stands before every page, asset and web socket of the console: address, origin, and session.

Any page that the owner's browser visits, and any program on this computer, can send requests to a port of 127.0.0.1. So a
request must name this address as its host (else a foreign name that resolves to 127.0.0.1 would do: DNS rebinding), must not
come from another origin, and must bring a session's cookie. Neither cookies nor ``SameSite`` tell the ports of one host apart;
therefore origins are compared in full. Without a session there is only the login, which is plain HTML without scripts.
"""

from __future__ import annotations

from html import escape
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl_privacy.console.login import SESSION_SECONDS, Doorkeeper
from fl_privacy.errors import CredentialsRefused

LARGEST_FORM = 4096  # bytes
# NiceGUI compiles templates and writes inline scripts in the browser, so those two permissions cannot be taken away.
# What remains: nothing is loaded from, sent to, or framed by any other origin.
POLICY = (
    "default-src 'none'; script-src 'self' blob: 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data:; font-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
LOGIN_POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
HEADERS = {
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # with no-referrer, browsers would not tell the origin of a form
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Gate:
    """An ASGI application in front of another, which sees only requests with a session, as ``scope["session"]``."""

    def __init__(self, inner: ASGIApp, doorkeeper: Doorkeeper, owner: str, port: int) -> None:
        """Args: ``owner`` is shown at the login; ``port`` of 127.0.0.1 on which the console answers."""
        self._inner, self._doorkeeper, self._owner = inner, doorkeeper, owner
        self._hosts = (f"127.0.0.1:{port}", f"localhost:{port}")
        self.cookie = f"fl_privacy_console_{port}"  # several owners' consoles on one computer share their cookies' host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, answer, or refuse one request."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._socket(scope, receive, send)
        else:
            await self._request(scope, receive, _with_headers(send))

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request({**scope, "type": "http", "method": "GET"})
        session = self._doorkeeper.session(request.cookies.get(self.cookie, ""))
        if session is None or not self._from_here(request.headers, must_tell=True):
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._inner({**scope, "session": session}, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if not self._from_here(request.headers, must_tell=request.method not in ("GET", "HEAD")):
            refusal = "refused: type the console's address into the browser, do not follow a link to it"
            await PlainTextResponse(refusal, 403)(scope, receive, send)
            return
        token = request.cookies.get(self.cookie, "")
        session = self._doorkeeper.session(token)
        if request.url.path == "/login":
            await (await self._login(request))(scope, receive, send)
        elif request.url.path == "/logout" and request.method == "POST":
            self._doorkeeper.leave(token)
            left = RedirectResponse("/login", 303)
            left.delete_cookie(self.cookie, httponly=True, samesite="strict")
            await left(scope, receive, send)
        elif session is None:
            await RedirectResponse("/login", 303)(scope, receive, send)
        else:
            await self._inner({**scope, "session": session}, receive, send)

    def _from_here(self, headers: Headers, must_tell: bool) -> bool:
        """Whether the request is for this address and no page of another origin caused it."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self._hosts or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return False
        return origin == f"http://{host}" if origin is not None or must_tell else True

    async def _login(self, request: Request) -> Response:
        if request.method == "GET":
            return self._form()
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_FORM:
                return PlainTextResponse("the form is too large", 413)
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=4)
        try:
            token = self._doorkeeper.enter(fields.get("password", [""])[0])
        except CredentialsRefused as refusal:
            return self._form(str(refusal), 401)
        entered = RedirectResponse("/", 303)
        entered.set_cookie(self.cookie, token, max_age=int(SESSION_SECONDS), httponly=True, samesite="strict")
        return entered

    def _form(self, notice: str = "", status: int = 200) -> Response:
        told = f'<p class="notice" role="alert">{escape(notice)}</p>' if notice else ""
        page = LOGIN_PAGE.replace("{owner}", escape(self._owner)).replace("{notice}", told)
        return HTMLResponse(page, status, {"content-security-policy": LOGIN_POLICY, "cache-control": "no-store"})


def _with_headers(send: Send) -> Send:
    async def adding(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.setdefault("content-security-policy", POLICY)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return adding


LOGIN_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{owner}</title><style>
* { box-sizing: border-box; }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 20px; background: #f4f6f9; color: #1f2933;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; }
form { width: 100%; max-width: 380px; padding: 32px; background: #fff; border: 1px solid #e1e6ec; border-radius: 12px;
  box-shadow: 0 1px 3px rgba(31, 41, 51, .06); }
h1 { margin: 0 0 2px; font-size: 22px; } .what { margin: 0 0 22px; color: #616e7c; }
label { display: block; margin: 0 0 6px; font-weight: 600; }
input { width: 100%; padding: 11px 12px; font: inherit; border: 1px solid #b8c2cc; border-radius: 8px; }
button { width: 100%; margin-top: 16px; padding: 11px; font: inherit; font-weight: 600; color: #fff;
  background: #2b4c7e; border: 0; border-radius: 8px; cursor: pointer; }
:focus-visible { outline: 3px solid #9db8dd; outline-offset: 1px; }
.notice { margin: 14px 0 0; padding: 9px 12px; color: #a61e1e; background: #fdecec; border-radius: 8px; }
.where { margin: 20px 0 0; color: #616e7c; font-size: 13px; }
</style></head><body><form method="post" action="/login">
<h1>{owner}</h1><p class="what">Owner console · 数据方控制台</p>
<label for="password">Password · 密码</label>
<input id="password" name="password" type="password" autocomplete="current-password" required autofocus>
<button>Log in · 登录</button>{notice}
<p class="where">The terminal in which the console was started shows the password. 密码显示在启动控制台的终端中。</p>
</form></body></html>
"""
