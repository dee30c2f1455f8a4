"""The channel beside Syft: blobs, public keys, statements, survivor lists and self-masks, streamed to and from the guard.

Syft carries requests, approvals and jobs; blobs of hundreds of megabytes do not fit through it. Every request here is signed
with the caller's Syft key. Only the routes listed below pass; round orders and openings go through approved Syft jobs alone.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse

from fl_privacy.datasite.limits import PER_KEY, Buckets, refuse
from fl_privacy.errors import ConnectionFailed, CredentialsRefused, FlPrivacyError, MessageError, SignatureInvalid, to_wire
from fl_privacy.messages import channel_payload

PREFIX = "/fl"
ROUTES = tuple(
    (method, re.compile(path))
    for method, path in (
        ("GET", r"/v1/(info|corpora|registry|ledger|envelopes)"),
        ("PUT", r"/v1/(envelopes|registry)"),
        ("GET", r"/v1/blobs/[0-9a-f]{64}"),
        ("PUT", r"/v1/blobs/[0-9a-f]{64}"),
        ("GET", r"/v1/uploads/[0-9a-f]{64}"),
        ("PUT", r"/v1/models/[0-9a-f]{64}/[0-9a-f]{64}/[0-9a-f]{64}"),
        ("POST", r"/v1/(closings|reveals)"),
    )
)
UPLOADER = "x-fl-key"  # tells the guard whose upload it is: nobody fills the inbox for all, or asks what others uploaded
FRESH_SECONDS = 60  # how far a caller's clock may be off, either way
STATUS: dict[type[FlPrivacyError], int] = {
    SignatureInvalid: 401,
    CredentialsRefused: 403,
    MessageError: 400,
    ConnectionFailed: 502,
}


class Gate:
    """Decides whether a request was signed just now, once, by an account of this datasite."""

    def __init__(self, is_scientist: Callable[[str], bool], clock: Callable[[], float] = time.time) -> None:
        self._is_scientist = is_scientist
        self._clock = clock
        self._opened_at = clock()
        self._seen: dict[tuple[str, str], float] = {}
        self._lock = threading.Lock()

    def check(self, method: str, path: str, headers: dict[str, str]) -> str:
        """Return the caller's public key (hex). Raises: SignatureInvalid, CredentialsRefused."""
        key, nonce = headers.get("x-fl-key", ""), headers.get("x-fl-nonce", "")
        signature, told = headers.get("x-fl-signature", ""), headers.get("x-fl-time", "")
        shapes = ((key, 64, 64), (nonce, 32, 64), (signature, 128, 128))
        if not all(re.fullmatch(rf"[0-9a-f]{{{low},{high}}}", value) for value, low, high in shapes):
            raise SignatureInvalid("the request carries no signature; log in and use the relay client")
        if not re.fullmatch(r"[0-9]{1,12}", told) or abs(self._clock() - int(told)) > FRESH_SECONDS:
            raise SignatureInvalid(f"the request was not signed within the last {FRESH_SECONDS} s; check the clock")
        if int(told) < int(self._opened_at):
            raise SignatureInvalid("the request was signed before this datasite started; send it again")
        try:
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))
            public.verify(bytes.fromhex(signature), channel_payload(method, path, int(told), nonce))
        except (InvalidSignature, ValueError):
            raise SignatureInvalid("the request's signature does not verify") from None
        if not self._is_scientist(key):
            raise CredentialsRefused("this key belongs to no account of this datasite; ask its owner for an invitation")
        self._once(key, nonce)
        return key

    def _once(self, key: str, nonce: str) -> None:
        now = self._clock()
        with self._lock:
            self._seen = {entry: until for entry, until in self._seen.items() if until > now}
            if (key, nonce) in self._seen:
                raise SignatureInvalid("the request was answered before; sign a new one")
            self._seen[key, nonce] = now + 2 * FRESH_SECONDS  # longer than any request stays fresh


def router(guard_socket: Path, gate: Gate, keys: Buckets | None = None) -> APIRouter:
    """The channel's routes, to be mounted on an application with the middleware ``limits.Limits``, which bounds their bodies.

    Args: guard_socket is the guard's front socket; gate checks each caller; keys counts requests by key.
    """
    counted = keys or Buckets("key", PER_KEY)
    transport = httpx.AsyncHTTPTransport(uds=str(guard_socket), limits=httpx.Limits(max_connections=32))
    guard = httpx.AsyncClient(transport=transport, base_url="http://guard", timeout=httpx.Timeout(60.0, read=600.0))
    routes = APIRouter()

    @routes.api_route(PREFIX + "/{path:path}", methods=["GET", "PUT", "POST"], include_in_schema=False)
    async def relay(request: Request) -> Response:
        try:
            path = request.url.path.removeprefix(PREFIX)
            if request.url.query or not any(request.method == method and known.fullmatch(path) for method, known in ROUTES):
                return JSONResponse(to_wire(MessageError("no such route on this channel")), 404)
            key = await run_in_threadpool(gate.check, request.method, request.url.path, dict(request.headers))
            counted.take(key)
            return await _forward(guard, request, path, key)
        except FlPrivacyError as problem:
            return refuse(problem, STATUS.get(type(problem), 400))

    return routes


async def _forward(guard: httpx.AsyncClient, request: Request, path: str, key: str) -> Response:
    body = request.stream() if request.method != "GET" else None
    try:
        asked = guard.build_request(request.method, path, content=body, headers={UPLOADER: key})
        answer = await guard.send(asked, stream=True)
    except httpx.HTTPError as problem:
        raise ConnectionFailed(f"this datasite's guard does not answer ({type(problem).__name__}); tell its owner") from None
    kept = {name: answer.headers[name] for name in ("content-type", "content-length") if name in answer.headers}
    return StreamingResponse(_drain(answer), answer.status_code, kept)


async def _drain(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()
