"""An export over HTTP: one route for what its head can do, health, metrics, and errors that never repeat a text."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field
from starlette.types import ASGIApp, Receive, Scope, Send

from fl_privacy.errors import FlPrivacyError, InputRefused, TooManyRequests, to_wire
from fl_privacy.messages import Message
from fl_privacy.serving.answers import Classified, Entities, Filled
from fl_privacy.serving.batching import Batcher
from fl_privacy.serving.engine import Engine, Scores
from fl_privacy.serving.export_format import Task
from fl_privacy.serving.metrics import Measured, Metrics
from fl_privacy.serving.texts import Tokens

BODY_BYTES = 256 << 10
Text = Annotated[str, Field(max_length=20_000, description="UTF-8 text.")]
_ANSWERS: dict[Task, type[Message]] = {"fill-mask": Filled, "classify": Classified, "ner": Entities}
_SUMMARIES: dict[Task, str] = {
    "fill-mask": "Guess the masked tokens of a text.",
    "classify": "Give a text its likeliest labels.",
    "ner": "Find the entities of a text.",
}


@dataclass(frozen=True)
class Limits:
    """Texts in one pass at most, milliseconds that the first of them waits for others, and texts that may wait."""

    batch: int = 16
    wait_ms: float = 5.0
    queue: int = 128


class TextRequest(Message):
    """A text to find entities in."""

    text: Text


class RankedRequest(TextRequest):
    """A text, and how many guesses or labels to give."""

    top_k: Annotated[int, Field(ge=1, le=100)] = 5


class Problem(Message):
    """Why there is no answer; ``error`` is a name to act on, ``message`` is for people."""

    error: str
    message: str


class Health(Message):
    """What is served."""

    status: str = "ok"
    task: Task
    model: str


def make_app(engine: Engine, limits: Limits | None = None) -> ASGIApp:
    """The application; it works within its lifespan.

    Privacy: texts are neither logged nor counted by anything but their number, and errors do not repeat them.
    """
    limits, metrics = limits or Limits(), Metrics()
    batcher: Batcher[Tokens, Scores] = Batcher(
        engine.score, largest=limits.batch, wait=limits.wait_ms / 1000, queue=limits.queue, on_batch=metrics.batches.observe
    )
    metrics.watch_queue(lambda: batcher.waiting)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher:
            yield

    task = engine.export.task
    app = FastAPI(title=f"{engine.export.source}: {task}", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_task(app, task, engine, batcher)

    @app.get("/healthz", response_model=Health, summary="Whether the server answers, and what it serves.")
    async def healthz() -> Health:
        return Health(task=task, model=engine.export.source)

    @app.get("/metrics", response_class=PlainTextResponse, summary="Counters for Prometheus.")
    async def metrics_text() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(FlPrivacyError, _refused)
    return Measured(_BodyLimit(app), metrics, frozenset(app.openapi()["paths"]))


def _add_task(app: FastAPI, task: Task, engine: Engine, batcher: Batcher[Tokens, Scores]) -> None:
    async def answered(text: str, top_k: int) -> Message:
        tokens = await asyncio.to_thread(engine.read, text)
        scores = await batcher.submit(tokens)
        return await asyncio.to_thread(engine.told, text, tokens, scores, top_k)

    async def ranked(request: RankedRequest) -> Message:
        return await answered(request.text, request.top_k)

    async def plain(request: TextRequest) -> Message:
        return await answered(request.text, 1)

    told = {code: {"model": Problem} for code in (411, 413, 422, 503)}
    app.post(f"/v1/{task}", response_model=_ANSWERS[task], responses=told, summary=_SUMMARIES[task])(  # type: ignore[arg-type]
        plain if task == "ner" else ranked
    )


async def _invalid(_: Request, problem: Exception) -> JSONResponse:
    """What a body lacks or has too much of, without what it holds."""
    errors: Sequence[Any] = problem.errors() if isinstance(problem, RequestValidationError) else []
    told = "; ".join(f"{_field(error['loc'])}: {error['msg']}" for error in errors[:3])
    return _problem(422, {"error": "InputRefused", "message": told})


def _field(place: Sequence[Any]) -> str:
    """A field's name; one that no request has is the sender's text, and is not repeated."""
    known = [str(part) for part in place if part in ("text", "top_k")]
    return known[0] if known else "body"


async def _refused(_: Request, problem: Exception) -> JSONResponse:
    if isinstance(problem, TooManyRequests):
        return _problem(503, to_wire(problem), {"Retry-After": str(max(1, math.ceil(problem.wait)))})
    if isinstance(problem, InputRefused):
        return _problem(422, to_wire(problem))
    raise problem


def _problem(status: int, told: dict[str, str], headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(told, status, headers)


class _BodyLimit:
    """Refuses what is too large before any of it is read; a sender has to say how long its body is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app: ASGIApp = self._app
        if scope["type"] == "http" and scope["method"] == "POST":
            length = dict(scope["headers"]).get(b"content-length", b"").decode("ascii", "replace")
            if not length.isdecimal():
                app = _problem(411, {"error": "InputRefused", "message": "send the body's Content-Length"})
            elif int(length) > BODY_BYTES:
                app = _problem(413, {"error": "TooLarge", "message": f"a body has at most {BODY_BYTES} bytes"})
        await app(scope, receive, send)
