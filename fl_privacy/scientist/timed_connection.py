"""Syft's HTTP connection with a time limit on every exchange; the stock one waits for ever on a datasite that hangs."""

from __future__ import annotations

from typing import Any

import syft
from syft.client.client import HTTPAdapter, HTTPConnection, Session

TIMEOUT = (10.0, 120.0)  # seconds to connect, and to wait for the next bytes


class _TimedAdapter(HTTPAdapter):  # type: ignore[misc]  # untyped, as syft is
    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        options["timeout"] = TIMEOUT
        return super().send(request, *args, **options)


class TimedConnection(HTTPConnection):  # type: ignore[misc]
    """One scientist's connection to one datasite."""

    session_cache: Any = None

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
        answer.raise_for_status()
        return syft.deserialize(answer.content, from_bytes=True)
