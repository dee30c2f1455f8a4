"""kill -9 of one owner's guard or datasite, as the watcher tells of each phase of a round; it is started again at once.

A run either waits for the owner, or its own process is gone, too, and it is resumed. What died in training stays paid, and is
what the plan's one retry is for; from its receipt on an update is never paid for again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy import parameters
from fl_privacy.encryption.evidence import verify_round
from fl_privacy.errors import RoundFailed
from fl_privacy.owner import Owner
from fl_privacy.owner_files import export_ledger
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.audit import audit_export
from fl_privacy.scientist.history import History, Watcher
from fl_privacy.scientist.run_folder import RunFolder
from tests.builders import OWNERS, text_rows, tiny_plan
from tests.end_to_end.test_federation import World, trainings_paid

pytestmark = [pytest.mark.slow, pytest.mark.end_to_end, pytest.mark.timeout(600)]
KILLED = "clinic"
BEFORE_THE_RECEIPT = ("training", "encrypting")
PHASES = ("sending", *BEFORE_THE_RECEIPT, "fetching", "adding", "agreeing", "opening")
AND_THE_SCIENTIST = [
    *(("datasite", phase) for phase in ("sending", "training", "agreeing", "opening")),
    *(("guard", phase) for phase in ("training", "opening")),
]


class Stopped(Exception):
    """The scientist's run ends at once, as if its process had."""


class Killer(Watcher):
    """Ends a process of one owner by SIGKILL in a phase, once, and starts it again; ``stops`` the run with it, too."""

    def __init__(self, owner: Owner, part: str, phase: str, stops: bool, pool: ThreadPoolExecutor) -> None:
        self._owner, self._part, self._phase, self._stops, self._pool = owner, part, phase, stops, pool
        self._masks_before = self._self_masks()
        self.restarted: Future[Any] | None = None
        self.failed: list[RoundFailed] = []

    def step(self, owner: str, step: int, steps: int) -> None:
        if step < steps:
            self.phase(owner, "training")
        if self._phase == "encrypting" and owner == self._owner.name:  # which a tiny model's is too short to be told of
            while self.restarted is None and self._self_masks() <= self._masks_before:
                time.sleep(0.001)
            self.phase(owner, "encrypting")

    def phase(self, owner: str, phase: str) -> None:
        if (owner, phase) != (self._owner.name, self._phase) or self.restarted is not None:
            return
        process, start = {
            "guard": (self._owner.guard_process, self._owner.start_guard),
            "datasite": (self._owner.datasite._process, self._owner.datasite.start),
        }[self._part]
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        self.restarted = self._pool.submit(start)
        if self._stops:
            raise Stopped

    def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
        self.failed.append(error)

    def _self_masks(self) -> set[Path]:
        """A new one is drawn as the guard begins to encrypt."""
        return set((self._owner.guard_home / "rounds").glob("*/self-mask.key"))


@pytest.fixture
def pool(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """Starts what was killed, however long that takes; all runs again when a test ends."""
    monkeypatch.setattr("fl_privacy.scientist.rounds.PATIENCE_SECONDS", 300.0)
    with ThreadPoolExecutor() as made:
        yield made
    assert world.owners[KILLED].datasite.exit_status is None
    guard = world.owners[KILLED].guard_process
    assert guard is not None and guard.poll() is None


def approved(world: World, name: str) -> TrainingPlan:
    """A plan of one round that all owners have approved."""
    plan = tiny_plan(world.bundle, name=name, rounds=1, retries=1, target_epsilon=1.0, local_steps=3)
    world.federation.submit(plan)
    world.approve(plan)
    return plan


def check(world: World, plan: TrainingPlan, history: History, killer: Killer, out: Path) -> None:
    """One round, opened once, that made the model; every ledger paid for what was trained, and for nothing twice."""
    assert killer.restarted is not None, "the phase never came"
    killer.restarted.result()
    lost = [list(error.failures) for error in killer.failed]
    assert lost in ([], [[KILLED]] if may_lose_the_update(killer) else []), [error.failures for error in killer.failed]
    (record,) = history.rounds
    assert (record.round, record.attempt, record.cohort) == (0, len(lost), OWNERS)
    paid = {name: trainings_paid(owner, plan) for name, owner in world.owners.items()}
    assert paid == dict.fromkeys(OWNERS, 1) | {KILLED: 1 + len(lost)}
    registry = world.federation.registry()
    assert verify_round(out / "rounds" / "000", registry).order == record.order
    for name, statement in world.federation.statements().items():
        file = out / f"{name}.jsonl"
        assert audit_export(file, export_ledger(world.owners[name].home, file), statement).findings == ()
        assert record.spends[name].epsilon == statement.epsilon_spent
    first, run = parameters.from_bytes(world.bundle.weights), RunFolder(out)
    mean = parameters.unflatten(np.fromfile(out / "rounds" / "000" / "values.bin", "<f4"), parameters.specs_of(first))
    assert parameters.to_bytes(run.model(run.position)) == parameters.to_bytes(parameters.add(first, mean))


def may_lose_the_update(killer: Killer) -> bool:
    """A guard that dies before its receipt is written has nothing to send."""
    return killer._part == "guard" and killer._phase in BEFORE_THE_RECEIPT


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_waits_for_a_guard_that_dies_in(world: World, pool: ThreadPoolExecutor, tmp_path: Path, phase: str) -> None:
    plan = approved(world, f"guard-dies-{phase}")
    killer = Killer(world.owners[KILLED], "guard", phase, stops=False, pool=pool)
    history = world.federation.run(plan, world.bundle, text_rows(10), tmp_path, watcher=killer, timeout=120)
    check(world, plan, history, killer, tmp_path)


@pytest.mark.parametrize(("part", "phase"), AND_THE_SCIENTIST)
def test_a_run_that_ends_together_with_an_owners_process_is_resumed(
    world: World, pool: ThreadPoolExecutor, tmp_path: Path, part: str, phase: str
) -> None:
    plan = approved(world, f"{part}-and-scientist-{phase}")
    killer = Killer(world.owners[KILLED], part, phase, stops=True, pool=pool)
    with pytest.raises(Stopped):
        world.federation.run(plan, world.bundle, text_rows(10), tmp_path, watcher=killer, timeout=120)
    assert killer.restarted is not None
    killer.restarted.result()
    history = world.federation.resume(tmp_path, watcher=killer)
    check(world, plan, history, killer, tmp_path)
