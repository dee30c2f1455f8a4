"""The main job against three real owners: guards and Syft datasites as processes, HTTP between them and the scientist."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from transformers import AutoModelForMaskedLM

from fl_privacy import parameters
from fl_privacy.encryption.evidence import verify_round
from fl_privacy.errors import ConnectionFailed, CredentialsRefused, NotApproved, RequestDenied, RoundFailed
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.home import GuardHome
from fl_privacy.learning.models import ModelBundle, save_pretrained
from fl_privacy.messages import RevealRequest, Signed
from fl_privacy.owner import Owner
from fl_privacy.owner_files import export_ledger, read_ledger
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.audit import audit_export
from fl_privacy.scientist.desk import Desk
from fl_privacy.scientist.federation import Federation, Login
from fl_privacy.scientist.files import read_plan
from fl_privacy.scientist.history import Watcher
from fl_privacy.scientist.run_folder import RunFolder
from tests.builders import OWNERS, text_rows, texts, tiny_bundle, tiny_plan, write_domain

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]
EMAIL = "scientist@university.example.org"


@dataclass
class World:
    """Everything that runs."""

    owners: dict[str, Owner]
    federation: Federation
    bundle: ModelBundle
    passwords: dict[str, str]

    def approve(self, plan: TrainingPlan) -> None:
        for owner in self.owners.values():
            for request in owner.all_requests():
                if request.status == "pending" and owner.review(request.number)["plan"]["name"] == plan.name:
                    owner.approve(request.number)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("e2e")
    os.environ["OMP_NUM_THREADS"] = "1"
    owners = {}
    for name in OWNERS:
        owners[name] = Owner.init(folder / name, write_domain(folder, name, epsilon=12.0))
        file = folder / f"{name}.txt"
        file.write_text("\n".join(texts(200, seed=len(name))), encoding="utf-8")
        with GuardHome(folder / name / "guard") as home:
            add_corpus(home, file, text_rows(20, seed=1))
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Owner.start, owners.values()))
        cards = [owner.card() for owner in owners.values()]
        for owner in owners.values():
            owner.enrol(cards)
        passwords = {name: owner.invite("scientist", EMAIL) for name, owner in owners.items()}
        logins = [Login(name, owner.datasite.url, EMAIL, passwords[name]) for name, owner in owners.items()]
        with Federation.login(folder / "scientist", logins) as federation:
            assert federation.relay_keys() == (6, 2)
            yield World(owners, federation, tiny_bundle(), passwords)
    finally:
        for owner in owners.values():
            owner.stop()


def test_the_main_job(world: World, tmp_path: Path) -> None:
    plan = tiny_plan(world.bundle, name="main-job", holdout=0.2)
    with pytest.raises(NotApproved, match="never submitted"):
        world.federation.run(plan, world.bundle, text_rows(10), tmp_path)
    world.federation.submit(plan)
    with pytest.raises(NotApproved, match="has not decided"):
        world.federation.run(plan, world.bundle, text_rows(10), tmp_path)
    world.approve(plan)
    assert {state.status for state in world.federation.status(plan).values()} == {"approved"}

    history = world.federation.run(plan, world.bundle, world.federation.mock_rows(plan), tmp_path)

    assert [record.round for record in history.rounds] == [0, 1]
    assert (tmp_path / "rounds.png").stat().st_size > 10_000
    registry = world.federation.registry()
    for number, record in enumerate(history.rounds):
        found = verify_round(tmp_path / "rounds" / f"{number:03d}", registry)
        assert (found.order, found.cohort, len(found.openers)) == (record.order, OWNERS, 2)
        assert found.openers == tuple(sorted(record.openers)) and record.failure_log2 < -40
    assert history.rounds[0].openers != history.rounds[1].openers
    (evaluation,) = history.evaluations
    assert (evaluation.round, evaluation.cohort, evaluation.counts.keys()) == (2, OWNERS, evaluation.deviations.keys())
    assert verify_round(tmp_path / "evaluations" / "002", registry).order == evaluation.order
    assert [json.loads(line)["round"] for line in (tmp_path / "history.jsonl").read_text().splitlines()] == [0, 1, 2]
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    base = parameters.from_bytes(world.bundle.weights)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    moved = np.abs(loaded.state_dict()[name].numpy() - base[name]).max()
    assert 0 < moved <= plan.rounds * plan.update_range
    for owner, statement in world.federation.statements().items():
        file = tmp_path / f"{owner}.jsonl"
        result = audit_export(file, export_ledger(world.owners[owner].home, file), statement)
        assert result.findings == ()
        assert 0 < result.epsilon_recomputed <= plan.target_epsilon * 1.01
        assert evaluation.spends[owner].epsilon == statement.epsilon_spent


def test_a_denial_reaches_the_scientist_with_its_reason(world: World, tmp_path: Path) -> None:
    plan = tiny_plan(world.bundle, name="greedy", target_epsilon=40.0)
    world.federation.submit(plan)
    bank = world.owners["bank"]
    request = next(request for request in bank.all_requests() if request.status == "pending")
    report = bank.review(request.number)
    assert "of a budget of 12.00" in report["objection"]
    with pytest.raises(NotApproved, match="budget"):
        bank.approve(request.number)
    bank.deny(request.number, "that is more than we give anyone")
    assert world.federation.status(plan)["bank"].reason == "that is more than we give anyone"
    with pytest.raises(RequestDenied, match="bank denied plan 'greedy': that is more than we give anyone"):
        world.federation.run(plan, world.bundle, text_rows(10), tmp_path)


@pytest.mark.slow
def test_a_guard_killed_in_training_is_named_and_the_others_resend_for_free(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fl_privacy.scientist.rounds.PATIENCE_SECONDS", 0.0)  # else the guard is waited for
    plan = tiny_plan(world.bundle, name="killed", rounds=1, retries=1, target_epsilon=2.0, local_steps=3)
    world.federation.submit(plan)
    world.approve(plan)
    clinic = world.owners["clinic"]

    class Killer(Watcher):
        failures: dict[str, str] = {}
        killed = False

        def step(self, owner: str, step: int, steps: int) -> None:
            if owner == "clinic" and not self.killed:
                self.killed = True
                os.kill(clinic.guard_process.pid, signal.SIGKILL)  # type: ignore[union-attr]

        def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
            self.failures = error.failures
            clinic.guard_process.wait()  # type: ignore[union-attr]
            clinic.start_guard()

    watcher = Killer()
    history = world.federation.run(plan, world.bundle, text_rows(10), tmp_path, watcher=watcher, timeout=120)

    assert list(watcher.failures) == ["clinic"], watcher.failures
    assert [(record.round, record.attempt) for record in history.rounds] == [(0, 1)]
    paid = {name: trainings_paid(owner, plan) for name, owner in world.owners.items()}
    assert paid == {"bank": 1, "clinic": 2, "school": 1}, "who had trained paid once; what died in training stays paid"
    for owner, statement in world.federation.statements().items():
        assert history.rounds[0].spends[owner].epsilon == statement.epsilon_spent


def trainings_paid(owner: Owner, plan: TrainingPlan) -> int:
    """How often an owner's ledger has paid for a training of a plan."""
    entries, _ = read_ledger(owner.home)
    return sum(entry.event.kind == "reserve" and entry.event.plan == plan.digest() for entry in entries)


@pytest.mark.slow
def test_a_guard_killed_after_it_closed_is_waited_for(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a survivor list is signed only this attempt can use the update: the scientist asks until the guard is back."""
    plan = tiny_plan(world.bundle, name="killed-late", rounds=1, target_epsilon=2.0)
    world.federation.submit(plan)
    world.approve(plan)
    school = world.owners["school"]
    relay = world.federation.desks["school"].relay
    reveal = relay.reveal_self_mask

    def kill_first(request: RevealRequest) -> Signed:
        monkeypatch.undo()
        os.kill(school.guard_process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        school.guard_process.wait()  # type: ignore[union-attr]
        with pytest.raises(ConnectionFailed):
            reveal(request)
        school.start_guard()
        return reveal(request)

    monkeypatch.setattr(relay, "reveal_self_mask", kill_first)
    history = world.federation.run(plan, world.bundle, text_rows(10), tmp_path, timeout=120)
    assert [(record.round, record.attempt) for record in history.rounds] == [(0, 0)]
    assert trainings_paid(school, plan) == 1


@pytest.mark.slow
@pytest.mark.timeout(2000)  # five interpreters that load Syft
def test_a_scientist_killed_in_each_round_resumes_and_nobody_pays_twice(world: World, tmp_path: Path) -> None:
    """The command line against real datasites, killed where owners train, where they have trained, and where they open."""
    save_pretrained(tmp_path / "base", world.bundle.spec, world.bundle.vocabulary, parameters.from_bytes(world.bundle.weights))
    fields = tiny_plan(world.bundle, name="laptop", target_epsilon=2.0, rounds=3).model_dump(mode="json")
    (tmp_path / "PLAN.toml").write_text(tomli_w.dumps(fields | {"model": "base"}))
    (tmp_path / "federation.toml").write_text(federation_file(world))
    plan, _ = read_plan(tmp_path / "PLAN.toml")
    world.federation.submit(plan)
    world.approve(plan)
    out = tmp_path / "out"
    moments = (
        lambda: (out / "checkpoint" / "position.json").exists() and RunFolder(out).position.order is not None,
        lambda: any((out / "rounds" / "001" / "updates").glob("*.bin")),
        lambda: (out / "rounds" / "002" / "total.bin").exists(),
    )
    arguments = ["train", "PLAN.toml", "--out", "out"]
    for moment in moments:
        kill_when(moment, start(world, tmp_path, *arguments))
        assert RunFolder(out).position.purpose == "train"
        arguments = ["resume", "out"]
    assert start(world, tmp_path, "resume", "out").wait(300) == 0
    history = RunFolder(out).read_history()
    assert [(record.round, record.attempt, record.cohort) for record in history.rounds] == [(n, 0, OWNERS) for n in range(3)]
    assert {name: trainings_paid(owner, plan) for name, owner in world.owners.items()} == dict.fromkeys(OWNERS, 3)
    for number in range(3):
        verify_round(out / "rounds" / f"{number:03d}", world.federation.registry())


def federation_file(world: World) -> str:
    """A federation.toml for the scientist of the world, without passwords."""
    owners = [{"name": name, "url": owner.datasite.url, "email": EMAIL} for name, owner in world.owners.items()]
    return tomli_w.dumps({"home": str(world.federation.home), "owner": owners})


def start(world: World, folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """The command line, in a process of its own; its passwords are in its environment."""
    passwords = {f"FL_PRIVACY_PASSWORD_{name.upper()}": password for name, password in world.passwords.items()}
    command = [sys.executable, "-m", "fl_privacy", *arguments]
    return subprocess.Popen(command, cwd=folder, env=os.environ | passwords)


def kill_when(moment: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """End a process by SIGKILL at a moment."""
    try:
        while not moment():
            assert process.poll() is None, "it ended before"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()


def test_a_restarted_datasite_goes_on(world: World) -> None:
    school = world.owners["school"]
    school.datasite.stop()
    with pytest.raises(ConnectionFailed, match="school"):
        world.federation.desks["school"].corpora()
    school.datasite.start()
    assert world.federation.desks["school"].corpora()[0].owner == "school"


def test_wrong_credentials_are_refused(world: World) -> None:
    url = world.owners["bank"].datasite.url
    with pytest.raises(CredentialsRefused, match="bank"):
        Desk.login("bank", url, EMAIL, "wrong")
    with pytest.raises(CredentialsRefused, match="bank"):
        Desk.login("bank", url, "stranger@example.org", world.passwords["bank"])


def test_no_secret_is_in_any_log_or_in_the_datasites_state(world: World) -> None:
    for name, owner in world.owners.items():
        guard = owner.guard_home
        secrets = [(guard / "keys" / "identity.key").read_bytes()[:32], (guard / "keys" / "bfv.key").read_bytes()[40:72]]
        rows = [json.loads(line)["text"] for line in (guard / "corpus" / "rows.jsonl").read_text().splitlines()]
        long_row = max(rows, key=len).encode()
        files = [path for path in (owner.home / "datasite").rglob("*") if path.is_file()] + [guard / "guard.log"]
        for path in files:
            content = path.read_bytes()
            for secret in secrets:
                assert secret not in content and secret.hex().encode() not in content, path
            assert long_row not in content, path
            if path.name.endswith(".log"):
                assert world.passwords[name].encode() not in content, path
                assert owner.datasite.identity.password.encode() not in content, path
