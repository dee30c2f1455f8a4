"""Syft's HTTP connection with a time limit on every exchange; the stock one waits for ever on a datasite that hangs."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

import syft
from syft.client.api import post_process_result
from syft.client.client import HTTPAdapter, HTTPConnection, Response, Session
from syft.types.server_url import ServerURL

from fl_privacy.errors import from_wire

TIMEOUT = (10.0, 120.0)  # seconds to connect, and to wait for the next bytes


class _TimedAdapter(HTTPAdapter):  # type: ignore[misc]  # untyped, as syft is
    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        options["timeout"] = TIMEOUT
        options["verify"] = os.environ.get("SSL_CERT_FILE") or True  # as the relay's library does; Syft could be told not to
        return super().send(request, *args, **options)


class _Address(ServerURL):  # type: ignore[misc]
    """An address that keeps its port; Syft takes 443 for every https address, also when it copies one."""

    def __copy__(self) -> _Address:
        return _Address(self.protocol, self.host_or_ip, self.port, self.path, self.query)


class TimedConnection(HTTPConnection):  # type: ignore[misc]
    """One scientist's connection to one datasite."""

    session_cache: Any = None

    def __init__(self, url: str) -> None:
        super().__init__(url=url)
        known = ServerURL.from_url(url).as_container_host()
        self.url = _Address(known.protocol, known.host_or_ip, urlsplit(url).port or known.port, known.path)

    @property
    def session(self) -> Any:
        """The session of all GET, PUT and login calls; it does not retry, so that a failure is told at once."""
        if self.session_cache is None:
            session = Session()
            session.mount("http://", _TimedAdapter())
            session.mount("https://", _TimedAdapter())
            self.session_cache = session
        return self.session_cache

    def make_call(self, signed_call: Any) -> Any:
        """Send one signed API call and return the server's object."""
        answer = self.session.post(str(self.api_url), data=syft.serialize(signed_call, to_bytes=True))
        return syft.deserialize(_content(answer), from_bytes=True)

    def login(self, email: str, password: str) -> Any:
        """The account's key. Raises: SyftException for a wrong password, TooManyRequests."""
        path = self.routes.ROUTE_LOGIN.value
        answer = self.session.post(str(self.url.with_path(path)), json={"email": email, "password": password})
        return post_process_result(syft.deserialize(_content(answer), from_bytes=True), unwrap_on_success=True)


def _content(answer: Response) -> bytes:
    """The body of a success. Raises: the typed refusal of a datasite of this package, or an error of the HTTP library."""
    if not answer.ok and answer.headers.get("content-type") == "application/json":
        wire = answer.json()
        if isinstance(wire, dict) and "error" in wire:
            raise from_wire(wire)
    answer.raise_for_status()
    content: bytes = answer.content
    return content
