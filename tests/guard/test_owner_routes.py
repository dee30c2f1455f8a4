"""The owner's socket: jobs, stop, revoke, pause, resume, ledger and status, as the console and the commands use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from fl_privacy.display import console, jobs, status
from fl_privacy.guard.package import installed_package
from fl_privacy.guard.service import front_app, owner_app
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.privacy.entries import LedgerEntry
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Worker, attempt


def shown(drawn: Any) -> str:
    with console.capture() as capture:
        console.print(drawn)
    return capture.get()


@pytest.fixture
def client(rooms: Strongrooms, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TestClient:
    monkeypatch.setattr("fl_privacy.guard.worker.run", Worker().run)
    attempt(rooms, tmp_path / "first")
    attempt(rooms, tmp_path / "second", attempt=1)
    return TestClient(owner_app(rooms.guards["bank"]))


def test_jobs_are_told_newest_first_with_plan_scientist_and_progress(client: TestClient, rooms: Strongrooms) -> None:
    told = client.get("/v1/jobs").json()
    assert [(job["attempt"], job["round"], job["plan"], job["state"]) for job in told] == [
        (1, 0, "tiny", "sealed"),
        (0, 0, "tiny", "sealed"),
    ]
    names = {"order", "plan", "scientist", "purpose", "round", "is_final", "attempt", "state", "step", "steps", "seconds"}
    assert set(told[0]) == names and (told[0]["step"], told[0]["steps"]) == (2, 2)
    assert told[0]["seconds"] >= 0 and "tiny" in shown(jobs(told))
    answer = client.post(f"/v1/jobs/{told[0]['order']}/stop", json={"reason": "x"})
    assert (answer.status_code, answer.json()["error"]) == (409, "OrderRefused")


def test_an_evaluation_is_told_from_a_training_and_the_last_one_from_the_others(tmp_path: Path, worker: Worker) -> None:
    rooms = make_strongrooms(tmp_path, holdout=0.25, evaluate_every=1, evaluation_noise=4.0)
    for number, (place, purpose) in enumerate([(0, "evaluate"), (0, "train"), (2, "evaluate")]):
        attempt(rooms, tmp_path / f"scientist{number}", round=place, purpose=purpose)
    told = TestClient(owner_app(rooms.guards["bank"])).get("/v1/jobs").json()
    assert sorted((job["round"], job["purpose"], job["is_final"]) for job in told) == [
        (0, "evaluate", False),
        (0, "train", False),
        (2, "evaluate", True),
    ]
    for told_as in ("evaluation before round 1", "round 1 ", "final evaluation"):
        assert told_as in shown(jobs(told))
    assert {(job["purpose"], job["step"], job["steps"]) for job in told} == {("evaluate", 10, 10), ("train", 2, 2)}
    for guard in rooms.guards.values():
        guard.close()


def test_pause_resume_and_revoke_are_told_by_status(client: TestClient, rooms: Strongrooms) -> None:
    told = client.get("/v1/status").json()
    assert (told["paused"], told["package"], told["unit"]) == (None, installed_package(), "record")
    assert set(told["sandbox"]) == {"network", "files"}
    client.post("/v1/pause", json={"reason": "audit week"}).raise_for_status()
    told = client.get("/v1/status").json()
    assert told["paused"] == "audit week" and "PAUSED: audit week" in shown(status(told))
    client.post("/v1/resume").raise_for_status()
    assert client.get("/v1/status").json()["paused"] is None
    client.post("/v1/revoke", json={"code": rooms.code, "reason": "over"}).raise_for_status()
    (decision,) = client.get("/v1/status").json()["decisions"]
    assert (decision["plan"], decision["verdict"], decision["reason"]) == ("tiny", "revoked", "over")
    assert "revoked over" in shown(status(client.get("/v1/status").json()))


def test_the_ledger_is_told_with_every_entry(client: TestClient, rooms: Strongrooms) -> None:
    told = client.get("/v1/ledger").json()
    statement = LedgerStatement.model_validate(told["statement"])
    assert statement == rooms.guards["bank"].home.ledger.statement()
    assert [LedgerEntry.model_validate(entry) for entry in told["entries"]] == rooms.guards["bank"].home.ledger.entries()


def test_a_bad_request_is_named_and_the_front_door_has_none_of_these_routes(client: TestClient, rooms: Strongrooms) -> None:
    answer = client.post("/v1/revoke", json={"code": rooms.code})
    assert (answer.status_code, answer.json()["error"]) == (422, "MessageError") and "reason" in answer.json()["message"]
    front = TestClient(front_app(rooms.guards["bank"]))
    for path in ("/v1/revoke", "/v1/pause", "/v1/resume", "/v1/approve", "/v1/approve-by-policy", "/v1/jobs/x/stop"):
        assert front.post(path, json={"code": rooms.code, "reason": "x"}).status_code in (404, 405), path
    assert front.get("/v1/jobs").status_code == 404
