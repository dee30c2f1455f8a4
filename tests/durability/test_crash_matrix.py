"""A sample of the crash matrix; ``make crash-matrix`` runs all of it."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from tests.durability.crash_matrix import PHASES, main
from tests.durability.runner import Point, Runner
from tests.durability.traps import Mode

ORDER = "rounds/<digest>/"


def point(runner: Runner, phase: str, event: str, mode: Mode) -> Point:
    """The first event of this name."""
    number = PHASES.index(phase)
    return Point(number, runner.events[number].index(event), event, mode)


def test_a_life_has_far_more_than_fifty_points(runner: Runner) -> None:
    events = [event for phase in runner.events for event in phase]
    assert len(events) >= 150 and len(runner.points()) >= 300
    for kind in ("sql", "create", "sync", "replace", "rename", "unlink", "mkdir", "worker", "answer"):
        assert any(event.startswith(kind) for event in events), kind


def test_what_is_moved_into_place_is_flushed_before_and_named_for_good_before_anything_relies_on_it(runner: Runner) -> None:
    """Killing a process takes nothing from a disk; a power cut would, and only the order of events tells about that."""
    for events in runner.events:
        flushed: Counter[str] = Counter()  # files, by folder
        unnamed: set[str] = set()  # folders
        for event in events:
            kind, _, path = event.partition(" ")
            folder = path.rpartition("/")[0] or "(home)"
            if kind == "sync":
                flushed[folder] += path.endswith(".partial")
                unnamed.discard(path)
            elif kind == "replace":
                flushed[folder] -= 1
                assert flushed[folder] >= 0, event
                unnamed |= {folder} - {"inbox"}  # an upload can come again
            elif kind in ("sql", "answer"):
                assert not unnamed, event


@pytest.mark.parametrize(
    ("phase", "event", "mode", "outcome", "trainings"),
    [
        ("train", "sql ledger.sqlite: COMMIT", "before", "reported failed", 2),  # admitted, not paid
        ("train", "sql ledger.sqlite: COMMIT", "after", "reported failed", 3),  # paid, not trained
        ("train", "worker step 1", "before", "reported failed", 3),
        ("train", "worker step 1", "worker", "reported failed", 3),
        ("train", f"create {ORDER}receipt.json.partial", "full", "reported failed", 3),
        ("reuse", f"mkdir {ORDER}".rstrip("/"), "after", "not started", 2),
        ("reuse", f"replace {ORDER}closing.json", "after", "recovered", 2),
        ("reuse", f"replace {ORDER}opening.json", "after", "reported failed", 3),
        ("next", "answer reveal", "before", "recovered", 2),
    ],
)
def test_trouble_costs_at_most_one_training_that_the_plan_pays_for(
    runner: Runner, phase: str, event: str, mode: Mode, outcome: str, trainings: int
) -> None:
    verdict = runner.run(point(runner, phase, event, mode))
    assert not verdict.problem
    assert (verdict.outcome, verdict.trainings) == (outcome, trainings)
    assert verdict.epsilon_before <= verdict.epsilon_after <= verdict.epsilon_end


@pytest.mark.slow
def test_every_eighth_point_of_the_matrix_holds() -> None:
    assert main(["--quick"]) == 0


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_is_really_full_is_reported_and_costs_at_most_one_training(tmp_path: Path) -> None:
    runner = Runner(tmp_path, small_disk=24 << 20)
    runner.prepare()
    full = [found for found in runner.points() if found.mode == "full"][::4]
    assert not [verdict for verdict in map(runner.run, full) if verdict.problem]
