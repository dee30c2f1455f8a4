"""Runs points: a fresh copy of the homes, a child that meets trouble, and a child that comes back and goes on."""

from __future__ import annotations

import json
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_privacy.guard.admission import round_spend
from fl_privacy.guard.package import installed_package
from tests.durability.invariants import check_at_rest, check_finished, reserves, two_counts
from tests.durability.life import PAID, VICTIM, Life
from tests.durability.traps import Mode, Strike, Traps
from tests.guard.conftest import ROWS

PATIENCE = 120.0  # seconds; a child that takes longer hangs


@dataclass(frozen=True)
class Point:
    """One strike in one phase; ``event`` is the name of what it hits."""

    phase: int
    at: int
    event: str
    mode: Mode


@dataclass(frozen=True)
class Verdict:
    """What came of a point."""

    point: Point
    outcome: str  # recovered, reported failed, not started
    epsilon_before: float
    epsilon_after: float  # when the guard is back
    epsilon_end: float  # when both rounds are open
    trainings: int
    problem: str = ""  # the invariant that does not hold
    told: tuple[str, ...] = ()  # typed errors on the way


class Runner:
    """Snapshots of the homes at the beginning of each phase, in ``folder``; with ``small_disk``, whose mounting takes root, the
    victim's home is on a disk of its own of so many bytes, which is really filled."""

    def __init__(self, folder: Path, small_disk: int = 0) -> None:
        self.folder, self.small_disk = folder, small_disk
        self.events: list[list[str]] = []  # by phase

    def prepare(self) -> None:
        """Live the whole life once in a child, count its events, and keep a copy of the homes at each phase."""
        installed_package()  # what is edited meanwhile does not change it
        _start_fork_server()
        first = self.folder / "snapshots" / "0"
        first.mkdir(parents=True)
        _in_child(lambda: Life(first).make_homes(), self.folder / "made.json")
        for phase in range(len(Life.PHASES)):
            here, after = (self.folder / "snapshots" / str(number) for number in (phase, phase + 1))
            shutil.copytree(here, after)
            self.events.append(_in_child(lambda phase=phase, after=after: _count(after, phase), self.folder / "count.json"))
        life = Life(self.folder / "snapshots" / "0")
        spend = round_spend(life.plan, ROWS)
        for number in range(PAID + 1):  # the children are forked from here, with what was computed
            two_counts(((spend.noise_multiplier, spend.sample_rate, spend.steps),) * number, 1e-5)

    def points(self) -> list[Point]:
        """Every strike that makes sense at every event."""
        found = []
        for phase, events in enumerate(self.events):
            for at, event in enumerate(events):
                found += [Point(phase, at, event, mode) for mode in _modes(event)]
        return found

    def run(self, point: Point) -> Verdict:
        """Meet trouble, come back, go on, and check."""
        place = self.folder / f"point-{os.getpid()}"
        shutil.copytree(self.folder / "snapshots" / str(point.phase), place)
        if self.small_disk:
            _mount(place / "homes" / VICTIM, self.small_disk)
        before = _epsilon(place / "homes" / VICTIM)
        try:
            status = _child(lambda: _meet(place, point), place / "met.json")
            died = point.mode in ("before", "after", "torn")
            if died != (status == -signal.SIGKILL):
                return Verdict(point, "", before, 0, 0, 0, f"the child ended with {status}, not as planned")
            met = {} if died else json.loads((place / "met.json").read_text())
            if "problem" in met:
                return Verdict(point, "", before, 0, 0, 0, met["problem"])
            back = _in_child(lambda: _come_back(place, point.phase, before), place / "back.json")
        finally:
            if self.small_disk:
                subprocess.run(["umount", "--lazy", place / "homes" / VICTIM], check=True)
            shutil.rmtree(place)
        if "problem" in back:
            return Verdict(point, "", before, 0, 0, 0, back["problem"])
        told = (*met.get("told", ()), *back.pop("told"))
        known = back.pop("known") or not died
        outcome = "reported failed" if told else "recovered" if known else "not started"
        return Verdict(point, outcome, told=told, **back)


def _start_fork_server() -> None:
    """One for all: it takes seconds to start."""
    server = multiprocessing.forkserver._forkserver  # type: ignore[attr-defined]
    server.set_forkserver_preload(["tests.durability.fork_server", *server._preload_modules])
    server.ensure_running()


def _modes(event: str) -> list[Mode]:
    """After an event the disk is as before the next one, so that only what changes it for good is met from behind, too."""
    modes: list[Mode] = ["before"]
    if event.startswith(("replace", "rename", "unlink", "remove", "rmdir")) or event.endswith("COMMIT"):
        modes.append("after")
    if event.startswith("sync") and event.endswith(".partial"):
        modes.append("torn")
    if event.startswith(("create", "mkdir")) or event.endswith("COMMIT"):
        modes.append("full")
    if event.startswith(("worker started", "worker step")):
        modes.append("worker")
    return modes


def _mount(home: Path, size: int) -> None:
    """Move a home to a disk of its own. Raises: CalledProcessError for whoever may not."""
    aside = home.rename(home.with_name("aside"))
    home.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", home], check=True)
    shutil.copytree(aside, home, dirs_exist_ok=True)
    shutil.rmtree(aside)


def _count(folder: Path, phase: int) -> list[str]:
    traps = Traps(folder / "homes" / VICTIM)
    traps.set()
    life = Life(folder, traps)
    life.open()
    traps.events.clear()  # what a start writes is met by every child that comes back
    Life.PHASES[phase](life)
    events = list(traps.events)
    if life.troubles:
        raise RuntimeError(f"phase {phase} without any strike: {life.troubles}")
    life.close()
    return events


def _meet(folder: Path, point: Point) -> dict[str, Any]:
    """The phase, with trouble in it; if the process survives, everything else after it."""
    traps = Traps(folder / "homes" / VICTIM)
    traps.set()
    life = Life(folder, traps)
    life.open()
    traps.events.clear()
    traps.strike = Strike(point.at, point.mode)
    life.tried(lambda: Life.PHASES[point.phase](life))
    name = traps.events[point.at] if len(traps.events) > point.at else "nothing"
    if name != point.event:
        raise RuntimeError(f"event {point.at} was {name!r}, not {point.event!r}: the run is not repeatable")
    traps.free()
    life.go_on(point.phase)
    check_finished(life, 0.0)
    life.close()
    return {"told": life.troubles}


def _come_back(folder: Path, phase: int, before: float) -> dict[str, Any]:
    """The guard is started again; the owners and the scientist do again what they did, and then the rest."""
    traps = Traps(folder / "homes" / VICTIM)
    traps.set()
    life = Life(folder, traps)
    life.open()
    after = check_at_rest(life, before)
    known = phase == 0 or life.knows(phase)
    if not life.is_over():
        life.go_on(phase)
    end = check_finished(life, after)
    trainings = len(reserves(life.victim.home.folder))
    life.close()
    answer = {"epsilon_before": before, "epsilon_after": after, "epsilon_end": end, "trainings": trainings}
    return answer | {"told": life.troubles, "known": known}


def _epsilon(home: Path) -> float:
    spends = reserves(home).values()
    return two_counts(tuple((spend.noise_multiplier, spend.sample_rate, spend.steps) for spend in spends), 1e-5)[0]


def _in_child(work: Callable[[], Any], answer: Path) -> Any:
    """What ``work`` returns in a child. Raises: RuntimeError when it does not end well; but ``problem`` is an answer."""
    status = _child(work, answer)
    if status == 0:
        return json.loads(answer.read_text())
    return {"problem": f"the child ended with {status}"}


def _child(work: Callable[[], Any], answer: Path) -> int:
    """Fork, work, write down the answer or the problem; returns the exit code, negative for a signal, -SIGALRM for a hang."""
    pid = os.fork()
    if pid == 0:
        _in_the_child(work, answer)
    deadline = time.monotonic() + PATIENCE
    while (ended := os.waitpid(pid, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGALRM
        time.sleep(0.01)
    return os.waitstatus_to_exitcode(ended[1])


def _in_the_child(work: Callable[[], Any], answer: Path) -> None:
    temporary = answer.parent / "tmp"
    temporary.mkdir(exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]  # the parent's is used
    try:
        told = work()
    except BaseException as error:  # noqa: BLE001 - the child must not return into its parent's code
        told = {"problem": f"{type(error).__name__}: {error} ({traceback.extract_tb(error.__traceback__)[-1]})"}
    answer.write_text(json.dumps(told))
    os._exit(0)
