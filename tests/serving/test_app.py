"""The routes: what they answer, what they refuse, and that nothing repeats a text."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from click.testing import CliRunner

from fl_privacy.cli import app as command_line
from fl_privacy.serving.export_format import read_export
from tests.serving.conftest import Exported
from tests.serving.extra import need_extra
from tests.tiny_model import SENTENCES

need_extra()

from fl_privacy.serving.app import BODY_BYTES, Limits, make_app  # noqa: E402
from fl_privacy.serving.engine import Engine  # noqa: E402

Told = TypeVar("Told")
SECRET = "病人今天"
MASKED = "病人[MASK]天上午头痛"


@asynccontextmanager
async def client_of(engine: Engine, limits: Limits | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that has started, and ends afterwards."""
    app, said = make_app(engine, limits), asyncio.Queue[dict[str, Any]]()
    heard: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    lifespan = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, heard.get, said.put))  # type: ignore[arg-type]
    await heard.put({"type": "lifespan.startup"})
    assert (await said.get())["type"] == "lifespan.startup.complete"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model") as client:
        yield client
    await heard.put({"type": "lifespan.shutdown"})
    await lifespan


def asked(engine: Engine, ask: Callable[[httpx.AsyncClient], Awaitable[Told]], limits: Limits | None = None) -> Told:
    async def run() -> Told:
        async with client_of(engine, limits) as client:
            return await ask(client)

    return asyncio.run(run())


@pytest.fixture(scope="module")
def engine(exported: Exported) -> Engine:
    return Engine(exported("bert", "mlm"))


def post(engine: Engine, body: Any, route: str = "/v1/fill-mask") -> httpx.Response:
    return asked(engine, lambda client: client.post(route, json=body))


def test_a_mask_is_filled(engine: Engine) -> None:
    told = post(engine, {"text": MASKED, "top_k": 2})
    assert told.status_code == 200
    assert told.json() == engine.answer(MASKED, 2).model_dump(mode="json")
    (mask,) = told.json()["masks"]
    assert (mask["start"], mask["end"], len(mask["guesses"])) == (2, 8, 2)


@pytest.mark.parametrize(("head", "route"), [("classification", "/v1/classify"), ("ner", "/v1/ner")])
def test_a_model_with_another_head_has_its_own_route_and_no_other(exported: Exported, head: Any, route: str) -> None:
    other = Engine(exported("bert", head))
    assert post(other, {"text": SENTENCES[0]}, route).json() == other.answer(SENTENCES[0]).model_dump(mode="json")
    assert post(other, {"text": MASKED}).status_code == 404


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"text": SECRET}, "no [MASK]"),
        ({"text": ""}, "empty"),
        ({"text": SECRET * 30 + "[MASK]"}, "too long"),
        ({"text": SECRET * 9000}, "text: "),
        ({"text": MASKED, "top_k": 0}, "top_k: "),
        ({"text": MASKED, SECRET: 1}, "body: "),
        ({"top_k": 1}, "text: "),
        ([SECRET], "body: "),
        ({"text": 3}, "text: "),
    ],
)
def test_what_has_no_answer_is_refused_with_its_reason_and_not_repeated(engine: Engine, body: Any, why: str) -> None:
    told = post(engine, body)
    assert told.status_code == 422
    assert told.json()["error"] == "InputRefused" and why in told.json()["message"]
    assert SECRET not in told.text


def test_a_lone_surrogate_is_refused(engine: Engine) -> None:
    body, kind = b'{"text": "\\ud800[MASK]"}', {"content-type": "application/json"}
    told = asked(engine, lambda client: client.post("/v1/fill-mask", content=body, headers=kind))
    assert told.status_code == 422


def test_a_body_that_is_too_large_or_of_unknown_length_is_not_read(engine: Engine) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        raise AssertionError("read")
        yield b""

    large = asked(engine, lambda client: client.post("/v1/fill-mask", content=b" " * (BODY_BYTES + 1)))
    unknown = asked(engine, lambda client: client.post("/v1/fill-mask", content=chunks()))
    assert (large.status_code, unknown.status_code) == (413, 411)


def test_many_at_once_get_the_answers_that_they_get_alone(engine: Engine) -> None:
    texts = [sentence[:2] + "[MASK]" + sentence[3:] for sentence in SENTENCES]

    async def ask(client: httpx.AsyncClient) -> list[Any]:
        told = await asyncio.gather(*(client.post("/v1/fill-mask", json={"text": text}) for text in texts))
        return [one.json() for one in told]

    for text, told in zip(texts, asked(engine, ask), strict=True):
        alone = engine.answer(text).model_dump(mode="json")
        for ours, theirs in zip(told["masks"][0]["guesses"], alone["masks"][0]["guesses"], strict=True):
            assert ours["token_id"] == theirs["token_id"]
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)


def test_a_full_queue_answers_503_and_when_to_try_again(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return await asyncio.gather(*(client.post("/v1/fill-mask", json={"text": MASKED}) for _ in range(40)))

    told = asked(engine, ask, Limits(batch=1, wait_ms=0, queue=1))
    refused = [one for one in told if one.status_code == 503]
    assert refused and len(refused) < len(told)
    assert all(int(one.headers["Retry-After"]) >= 1 and one.json()["error"] == "TooManyRequests" for one in refused)
    assert {one.status_code for one in told} == {200, 503}


def test_metrics_count_requests_and_batches_and_hold_no_text(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    async def ask(client: httpx.AsyncClient) -> str:
        await client.post("/v1/fill-mask", json={"text": MASKED})
        await client.post("/v1/fill-mask", json={"text": SECRET})
        await client.get(f"/v1/{SECRET}", params={"text": SECRET})
        return (await client.get("/metrics")).text

    with caplog.at_level(logging.INFO, logger="fl_privacy"):
        told = asked(engine, ask)
    assert 'fl_privacy_requests_total{route="/v1/fill-mask",status="200"} 1.0' in told
    assert 'fl_privacy_requests_total{route="/v1/fill-mask",status="422"} 1.0' in told
    assert 'fl_privacy_requests_total{route="other",status="404"} 1.0' in told
    assert "fl_privacy_batch_size_count 1.0" in told and "fl_privacy_queue_length 0.0" in told
    assert 'fl_privacy_request_seconds_bucket{le="0.25",route="/v1/fill-mask"}' in told
    assert SECRET not in told
    assert not [record for record in caplog.records if record.name.startswith("fl_privacy")]


def test_health_and_openapi_say_what_is_served(engine: Engine) -> None:
    health = asked(engine, lambda client: client.get("/healthz"))
    assert health.json() == {"status": "ok", "task": "fill-mask", "model": "run"}
    paths = asked(engine, lambda client: client.get("/openapi.json")).json()["paths"]
    assert set(paths) == {"/v1/fill-mask", "/healthz", "/metrics"}
    assert {"200", "422", "503"} <= set(paths["/v1/fill-mask"]["post"]["responses"])


def test_the_command_line_exports_and_serves_on_this_machine_only(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, Any] = {}
    monkeypatch.setattr("uvicorn.run", lambda app, **options: served.update(options))
    told = CliRunner().invoke(command_line, ["serve", str(exported("bert", "mlm")), "--int8"])
    assert told.exit_code == 0, told.output
    assert served["host"] == "127.0.0.1" and served["access_log"] is False
    assert "http://127.0.0.1:8080/v1/fill-mask" in told.output


def test_the_command_line_says_what_it_exported(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = read_export(exported("bert", "mlm"))
    monkeypatch.setattr("fl_privacy.serving.onnx_export.export_model", lambda run, out, *, int8: made)
    told = CliRunner().invoke(command_line, ["export", "run", str(tmp_path / "out"), "--int8"])
    assert told.exit_code == 0, told.output
    assert "fill-mask, texts of up to 60 tokens" in told.output and "share of equal best guesses" in told.output


def test_the_command_line_tells_what_is_no_export(tmp_path: Path) -> None:
    told = CliRunner().invoke(command_line, ["serve", str(tmp_path)])
    assert told.exit_code == 1 and "ExportError" in told.output and "fl-privacy export" in told.output
