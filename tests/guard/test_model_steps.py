"""A guard makes the next model of one that it has and a step: exactly the one that was named, for who brought both, or none."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response

from fl_privacy.compression.steps import apply_step, make_step
from fl_privacy.errors import BlobMissing, CompressionError, DigestMismatch, MessageError, ModelError, TooLarge
from fl_privacy.guard import blobs as blobs_module
from fl_privacy.guard import model_steps as module
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.model_steps import ModelSteps
from fl_privacy.guard.service import front_app
from fl_privacy.parameters import Parameters, from_bytes, to_bytes
from fl_privacy.round_order import RoundOrder
from tests.guard.conftest import Strongrooms, finished
from tests.guard.protocol import Worker

ADA, BOB = "a" * 64, "b" * 64
BEFORE: Parameters = {"adapter": np.ones((3, 2), np.float32), "base": np.arange(6, dtype=np.float32)}
AFTER: Parameters = BEFORE | {"adapter": np.full((3, 2), 1.25, np.float32)}
MODEL = to_bytes(AFTER)


def name_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    for name in ("inbox", "outbox"):
        (tmp_path / name).mkdir()
    return Blobs(tmp_path, lambda: nullcontext(frozenset()))


@pytest.fixture
def steps(blobs: Blobs) -> ModelSteps:
    return ModelSteps(blobs)


def bring(blobs: Blobs, content: bytes, uploader: str = ADA) -> str:
    blobs.store(name_of(content), content, uploader)
    return name_of(content)


def kept(blobs: Blobs) -> set[str]:
    return {path.name for path in blobs.inbox.iterdir()}


@pytest.mark.parametrize("bits", [8, 32])
def test_the_model_is_the_one_that_the_step_leads_to_and_the_step_is_not_kept(
    blobs: Blobs, steps: ModelSteps, bits: int
) -> None:
    change = make_step(BEFORE, AFTER, bits)  # type: ignore[arg-type]
    model = to_bytes(apply_step(BEFORE, change))
    base, step = bring(blobs, to_bytes(BEFORE)), bring(blobs, change)
    asyncio.run(steps.compose(name_of(model), base, step, ADA))
    assert (blobs.inbox / name_of(model)).read_bytes() == model
    assert blobs.holds(name_of(model), ADA) and blobs.holds(base, ADA) and not blobs.holds(step, ADA)
    assert not blobs.holds(name_of(model), BOB)


def test_another_model_than_was_named_is_not_kept(blobs: Blobs, steps: ModelSteps) -> None:
    base, step = bring(blobs, to_bytes(BEFORE)), bring(blobs, make_step(BEFORE, AFTER))
    before = kept(blobs)
    with pytest.raises(DigestMismatch, match="do not give model"):
        asyncio.run(steps.compose("0" * 64, base, step, ADA))
    assert kept(blobs) == before


@pytest.mark.parametrize("missing", ["base", "step"])
@pytest.mark.parametrize("whose", ["nobody's", "another's"])
def test_without_base_or_step_of_the_callers_own_the_refusal_is_the_same(
    blobs: Blobs, steps: ModelSteps, missing: str, whose: str
) -> None:
    contents = {"base": to_bytes(BEFORE), "step": make_step(BEFORE, AFTER)}
    for name, content in contents.items():
        if name != missing:
            bring(blobs, content)
        elif whose == "another's":
            bring(blobs, content, BOB)
    before = kept(blobs)
    with pytest.raises(BlobMissing, match=f"^blob {name_of(contents[missing])[:16]}… has not been uploaded$"):
        asyncio.run(steps.compose(name_of(MODEL), *map(name_of, contents.values()), ADA))
    assert kept(blobs) == before


def test_a_name_that_is_not_a_hash_reaches_no_file(blobs: Blobs, steps: ModelSteps) -> None:
    base = bring(blobs, to_bytes(BEFORE))
    for names in (("../x", base, base), (base[:-1] + "g", base, base), ("1" * 64, "../x", base), ("1" * 64, base, "..")):
        with pytest.raises(MessageError):
            asyncio.run(steps.compose(*names, ADA))
    with pytest.raises(MessageError):
        asyncio.run(steps.holds("..", ADA))


@pytest.mark.parametrize(
    "step",
    [
        b"",
        b"\xff" * 100,
        (2**62).to_bytes(8, "little") + b"{}",
        to_bytes({"base": np.zeros(7, np.float32)}),
        to_bytes({"base": np.full(6, np.nan, np.float32)}),
        to_bytes({"scale:base": np.zeros((), np.float32)}),
    ],
    ids=["nothing", "noise", "a header without end", "another shape", "no number", "a scale of nothing"],
)
def test_a_hostile_step_is_a_typed_refusal_and_leaves_nothing(blobs: Blobs, steps: ModelSteps, step: bytes) -> None:
    base, brought = bring(blobs, to_bytes(BEFORE)), bring(blobs, step)
    before = kept(blobs)
    with pytest.raises(CompressionError):
        asyncio.run(steps.compose(name_of(MODEL), base, brought, ADA))
    assert kept(blobs) == before


def test_a_base_that_is_no_model_is_a_typed_refusal(blobs: Blobs, steps: ModelSteps) -> None:
    base, step = bring(blobs, b"a vocabulary"), bring(blobs, make_step(BEFORE, AFTER))
    with pytest.raises(ModelError):
        asyncio.run(steps.compose(name_of(MODEL), base, step, ADA))


def test_the_callers_quota_holds_for_what_is_made_too(blobs: Blobs, steps: ModelSteps, monkeypatch: pytest.MonkeyPatch) -> None:
    base, step = bring(blobs, to_bytes(BEFORE)), bring(blobs, make_step(BEFORE, AFTER))
    before = kept(blobs)
    monkeypatch.setattr(blobs_module, "UPLOADER_QUOTA", len(MODEL) - 1)
    with pytest.raises(TooLarge, match="one scientist's uploads"):
        asyncio.run(steps.compose(name_of(MODEL), base, step, ADA))
    assert kept(blobs) == before


def test_a_model_too_large_for_this_guards_memory_is_to_be_sent_whole(
    blobs: Blobs, steps: ModelSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, step = bring(blobs, to_bytes(BEFORE)), bring(blobs, make_step(BEFORE, AFTER))
    monkeypatch.setattr(module, "LARGEST_COMPOSED", len(to_bytes(BEFORE)))
    with pytest.raises(TooLarge, match="send the whole model"):
        asyncio.run(steps.compose(name_of(MODEL), base, step, ADA))


def test_a_crash_in_the_middle_leaves_what_was_there(
    blobs: Blobs, steps: ModelSteps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seen by the next guard of this home: the model comes again, from the same base and step."""
    base, step = bring(blobs, to_bytes(BEFORE)), bring(blobs, make_step(BEFORE, AFTER))
    before = kept(blobs)

    class Death(BaseException):
        """The process ends: nothing is cleaned up."""

    def dies(_: Path, target: Path) -> None:
        raise Death

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", dies)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Death):
            asyncio.run(steps.compose(name_of(MODEL), base, step, ADA))
    assert kept(blobs) > before, "something half made lies there"
    reborn = Blobs(tmp_path, lambda: nullcontext(frozenset()))
    assert kept(reborn) == before and not reborn.holds(name_of(MODEL), ADA)
    asyncio.run(ModelSteps(reborn).compose(name_of(MODEL), base, step, ADA))
    assert reborn.holds(name_of(MODEL), ADA)


def test_the_same_request_again_is_answered_without_work_although_the_step_is_gone(blobs: Blobs, steps: ModelSteps) -> None:
    names = (name_of(MODEL), bring(blobs, to_bytes(BEFORE)), bring(blobs, make_step(BEFORE, AFTER)))
    for _ in range(2):
        asyncio.run(steps.compose(*names, ADA))
    assert blobs.holds(names[0], ADA)


def test_one_model_is_made_at_a_time_and_the_guard_answers_others_meanwhile(
    blobs: Blobs, steps: ModelSteps, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, go, begun = bring(blobs, to_bytes(BEFORE)), threading.Event(), []
    targets = [BEFORE | {"adapter": np.full((3, 2), value, np.float32)} for value in (2.0, 3.0)]

    def waits(model: Parameters, step: bytes) -> Parameters:
        begun.append(step)
        assert go.wait(60)
        return apply_step(model, step)

    monkeypatch.setattr(module, "apply_step", waits)

    async def both() -> None:
        changes = [make_step(BEFORE, target) for target in targets]
        names = [(name_of(to_bytes(target)), base, bring(blobs, step)) for target, step in zip(targets, changes, strict=True)]
        made = [asyncio.create_task(steps.compose(*each, ADA)) for each in names]
        while not begun:
            await asyncio.sleep(0.01)  # which would not end if the event loop stood still
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(begun) == 1
        go.set()
        await asyncio.gather(*made)
        assert len(begun) == 2

    asyncio.run(both())


class Front:
    """A guard's service as the datasite reaches it, in the name of one key."""

    def __init__(self, rooms: Strongrooms, owner: str, key: str) -> None:
        self._client, self._key = TestClient(front_app(rooms.guards[owner])), key

    def ask(self, method: str, path: str, content: bytes | None = None) -> Response:
        return self._client.request(method, path, content=content, headers={"X-FL-Key": self._key})

    def put(self, content: bytes) -> str:
        assert self.ask("PUT", f"/v1/blobs/{name_of(content)}", content).status_code == 200
        return name_of(content)

    def holds(self, name: str) -> bool:
        return bool(self.ask("GET", f"/v1/uploads/{name}").json()["held"])


@pytest.fixture
def ada(rooms: Strongrooms) -> Iterator[Front]:
    yield Front(rooms, "bank", ADA)


def test_an_order_is_admitted_for_a_model_that_the_guards_service_has_made(
    rooms: Strongrooms, worker: Worker, ada: Front
) -> None:
    bank, weights = rooms.guards["bank"], rooms.plan.model.weights
    bank.blobs.discard(weights)
    with pytest.raises(BlobMissing, match="has not been uploaded"):
        bank.rounds.place(rooms.order())
    meant = from_bytes(rooms.bundle.weights)
    first = sorted(meant)[0]
    start = meant | {first: meant[first] + np.float32(1)}
    base, step = ada.put(to_bytes(start)), ada.put(make_step(start, meant))
    assert (ada.holds(weights), ada.holds(base)) == (False, True)
    assert ada.ask("PUT", f"/v1/models/{weights}/{base}/{step}").json() == {"held": True}
    assert (ada.holds(weights), ada.holds(step)) == (True, False)
    signed = rooms.order()
    bank.rounds.place(signed)
    assert finished(bank, RoundOrder.parse(signed.body).digest())["state"] == "sealed"
    (job,) = worker.jobs
    assert Path(job.weights).read_bytes() == rooms.bundle.weights


def test_the_guards_service_tells_a_key_nothing_of_what_another_has_brought(rooms: Strongrooms, ada: Front) -> None:
    bob, never = Front(rooms, "bank", BOB), "0" * 64
    base, step = ada.put(to_bytes(BEFORE)), ada.put(make_step(BEFORE, AFTER))
    assert ada.holds(base) and not bob.holds(base)
    assert bob.ask("GET", f"/v1/uploads/{base}").content == bob.ask("GET", f"/v1/uploads/{never}").content
    refusals = [bob.ask("PUT", f"/v1/models/{name_of(MODEL)}/{name}/{step}") for name in (base, never)]
    assert [(refusal.status_code, refusal.json()["error"]) for refusal in refusals] == [(409, "BlobMissing")] * 2
    assert refusals[0].text.replace(base[:16], never[:16]) == refusals[1].text
    assert bob.put(to_bytes(BEFORE)) == base and bob.put(make_step(BEFORE, AFTER)) == step
    assert bob.ask("PUT", f"/v1/models/{name_of(MODEL)}/{base}/{step}").status_code == 200
    assert bob.holds(name_of(MODEL)) and not ada.holds(name_of(MODEL))
    assert ada.holds(step), "only its maker has no more use for it"


def test_the_guards_service_refuses_what_is_no_name_and_reads_no_body(ada: Front) -> None:
    for name in ("A" * 64, "0" * 63, "identity.key"):
        for method, path in (("GET", f"uploads/{name}"), ("PUT", f"models/{name}/{'1' * 64}/{'2' * 64}")):
            refusal = ada.ask(method, f"/v1/{path}", None if method == "GET" else b"{" * 100_000)
            assert (refusal.status_code, refusal.json()["error"]) == (409, "MessageError")
    assert ada.ask("GET", "/v1/uploads/..%2Fkeys%2Fidentity.key").status_code == 404
