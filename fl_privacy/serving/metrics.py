"""What a server counts for Prometheus: routes, outcomes, times and sizes; no text, and nothing made from one."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "fl_privacy_requests", "Requests by route and status.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "fl_privacy_request_seconds", "From a request's head to the end of its answer.", ("route",), registry=self.registry
        )
        self.batches = Histogram(
            "fl_privacy_batch_size", "Texts that one pass has scored.", buckets=_SIZES, registry=self.registry
        )
        self._queue = Gauge("fl_privacy_queue_length", "Texts that wait for a pass.", registry=self.registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Ask for the queue's length whenever the metrics are read."""
        self._queue.set_function(length)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        told: bytes = generate_latest(self.registry)
        return told


class Measured:
    """Counts each request under its route's path; one that has no route is "other", whatever path it asked for."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app, self._metrics, self._routes = app, metrics, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._routes else "other"
        status, began = 500, time.perf_counter()

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, tell)
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - began)
