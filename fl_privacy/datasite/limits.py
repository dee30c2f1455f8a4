"""How large, how often, and how many wrong log-ins: what one datasite answers before anything is decoded.

One scientist's session needs about ten calls a second while it waits for a job, and some hundreds at once when it relays the
cards and keys of a hundred owners; an owner's console needs fewer. The limits leave room above that for several scientists
behind one address. They are kept in memory: a restart forgets them, and each datasite counts for itself.

No library: those for Python's web servers count by wall clock, keep a thread for it, and never drop an address.
"""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fl_privacy.errors import FlPrivacyError, TooLarge, TooManyRequests, to_wire

JSON_BYTES = 4 << 20  # the words of a hundred owners about each other's ciphertexts are 2 MB
BLOB_BYTES = 2 << 30  # as much as a guard takes; BERT-base in float32 is 0.4 GB
CALL_BYTES = 16 << 20  # through Syft pass code, small values, and the owner's mock rows
LOGIN_BYTES = 4 << 10  # an e-mail address and a password
KEPT = 10_000  # addresses, keys or accounts that are remembered at a time; some 2 MB

Clock = Callable[[], float]


@dataclass(frozen=True)
class Rate:
    """So many requests a second in the long run, and so many at once."""

    per_second: float
    at_once: int


PER_KEY = Rate(per_second=50, at_once=1000)
PER_ADDRESS = Rate(per_second=100, at_once=2000)

FREE_TRIES = {"address and e-mail": 5, "address": 20, "e-mail": 100}  # wrong log-ins before anybody has to wait
LONGEST_WAIT = 900.0  # seconds; doubling from one second reaches it at the tenth try too many
FORGOTTEN_AFTER = 24 * 3600.0  # seconds without a wrong try


class Buckets:
    """A bucket of tokens per name, filled at a steady rate; each request takes one."""

    def __init__(self, what: str, rate: Rate, clock: Clock = time.monotonic) -> None:
        """Args: ``what`` a name is, for the refusal ("key", "address")."""
        self._what, self._rate, self._clock = what, rate, clock
        self._left: dict[str, tuple[float, float]] = {}  # name -> (tokens, when they were counted), oldest first
        self._lock = threading.Lock()

    def take(self, name: str) -> None:
        """Let one request pass. Raises: TooManyRequests with the seconds until the next one would."""
        now = self._clock()
        with self._lock:
            tokens = self._tokens(name, now)
            _remember(self._left, name, (tokens - 1 if tokens >= 1 else tokens, now))
        if tokens < 1:
            wait = (1 - tokens) / self._rate.per_second
            raise TooManyRequests(f"too many requests from this {self._what}; try again in {math.ceil(wait)} s", wait)

    def _tokens(self, name: str, now: float) -> float:
        tokens, counted = self._left.get(name, (float(self._rate.at_once), now))
        return min(self._rate.at_once, tokens + (now - counted) * self._rate.per_second)


class LoginThrottle:
    """Makes wrong log-ins wait, longer each time: by address and e-mail together, by address, and by e-mail.

    Only log-ins wait; an open session goes on, so nobody can end a scientist's run by guessing its password.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._wrong: dict[tuple[str, ...], tuple[int, float]] = {}  # name -> (wrong tries, time of the last one), oldest first
        self._lock = threading.Lock()

    def check(self, address: str, email: str) -> None:
        """Return if a try may be made now. Raises: TooManyRequests."""
        now = self._clock()
        with self._lock:
            wait = max(self._wait(name, now) for name in _names(address, email))
        if wait > 0:
            raise TooManyRequests(f"too many wrong log-ins; try again in {math.ceil(wait)} s", wait)

    def wrong(self, address: str, email: str) -> int:
        """Note a wrong try; returns how many there were from this address."""
        now = self._clock()
        with self._lock:
            for name in _names(address, email):
                _remember(self._wrong, name, (self._count(name, now) + 1, now))
            return self._count(("address", address), now)

    def right(self, address: str, email: str) -> None:
        """Forget the wrong tries of this address for this e-mail; not all of the address's: an account must not buy guesses."""
        with self._lock:
            self._wrong.pop(("address and e-mail", address, email), None)

    def _count(self, name: tuple[str, ...], now: float) -> int:
        count, last = self._wrong.get(name, (0, now))
        return count if now - last < FORGOTTEN_AFTER else 0

    def _wait(self, name: tuple[str, ...], now: float) -> float:
        too_many = self._count(name, now) - FREE_TRIES[name[0]]
        if too_many < 0:
            return 0.0
        pause: float = min(LONGEST_WAIT, 2.0 ** min(too_many, 30))
        return self._wrong[name][1] + pause - now


class Limits:
    """ASGI middleware: refuses a request by its address or size, with status 429 or 413, before its body is in memory."""

    def __init__(self, app: ASGIApp, addresses: Buckets | None = None) -> None:
        self._app = app
        self._addresses = addresses or Buckets("address", PER_ADDRESS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._addresses.take(address_of(scope))
            limit = largest_body(scope["path"])
            _check_announced(scope, limit)
            await self._app(scope, _counted(receive, limit), send)
        except (TooManyRequests, TooLarge) as refusal:
            await refuse(refusal)(scope, receive, send)


def refuse(error: FlPrivacyError, status: int = 400) -> JSONResponse:
    """A typed error as an HTTP answer; status is for errors that are not about limits."""
    if isinstance(error, TooManyRequests):
        return JSONResponse(to_wire(error), 429, {"Retry-After": str(math.ceil(error.wait))})
    return JSONResponse(to_wire(error), 413 if isinstance(error, TooLarge) else status)


def largest_body(path: str) -> int:
    """Bytes that a request to this path may have."""
    if path.startswith("/fl/v1/blobs/"):
        return BLOB_BYTES
    if path == "/api/v2/api_call":
        return CALL_BYTES
    return LOGIN_BYTES if path == "/api/v2/login" else JSON_BYTES


def address_of(scope: Scope) -> str:
    """Whom a request counts for: an IPv4 address, or the /64 network of an IPv6 address, the least that one has."""
    host = (scope.get("client") or ("unknown", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return str(host)
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((host, 64), strict=False))
    return str(address)


def _remember(known: dict[Any, Any], name: Any, value: Any) -> None:
    """Put a value last, and drop the oldest of too many."""
    known.pop(name, None)
    known[name] = value
    if len(known) > KEPT:
        del known[next(iter(known))]


def _names(address: str, email: str) -> tuple[tuple[str, ...], ...]:
    return ("address and e-mail", address, email), ("address", address), ("e-mail", email)


def _check_announced(scope: Scope, limit: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise TooLarge(f"the body has {int(value)} bytes, and {limit} are taken here")


def _counted(receive: Receive, limit: int) -> Receive:
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise TooLarge(f"the body is larger than {limit} bytes")
        return message

    return counted
