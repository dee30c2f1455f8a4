"""Kill a guard, or fill its disk, at every durable step of its life, and check what is left: ``python -m tests.durability``.

One line a point: where, what, how it ended; epsilon before, when the guard was back, and at the end. Exit code 1 when an
invariant is broken.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.durability.runner import Point, Runner, Verdict

MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None  # a killed process loses nothing of it
PHASES = ("enrol", "train", "reuse", "next")


def main(arguments: list[str] | None = None) -> int:
    """Run the matrix, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="every 8th point")
    parser.add_argument("--only", default="", help="points whose line contains this text")
    parser.add_argument("--json", type=Path, help="write all verdicts here")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=MEMORY, help="where to work; default: in memory, where that is possible")
    told = parser.parse_args(arguments)
    clock = time.monotonic()
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        runner = Runner(Path(folder))
        runner.prepare()
        points = runner.points()
        _print(f"{sum(map(len, runner.events))} events, {len(points)} points")
        points = [point for point in points[:: 8 if told.quick else 1] if told.only in f"{line(point)} {point.mode}"]
        verdicts = []
        for verdict in run_all(runner, points, told.processes):
            verdicts.append(verdict)
            _print(table_row(verdict))
    _print(summary(verdicts, time.monotonic() - clock))
    if told.json:
        told.json.write_text(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts], indent=1))
    return int(any(verdict.problem for verdict in verdicts))


def run_all(runner: Runner, points: list[Point], processes: int) -> Iterator[Verdict]:
    """Each point in a process forked from this one, so that nothing is imported twice."""
    pool = concurrent.futures.ProcessPoolExecutor(processes, multiprocessing.get_context("fork"))
    with pool:
        yield from pool.map(runner.run, points)


def line(point: Point) -> str:
    """Where a point is."""
    return f"{PHASES[point.phase]:6} {point.at:3} {point.event}"


def table_row(verdict: Verdict) -> str:
    """One line of the table."""
    told = f"{line(verdict.point):58.58} {verdict.point.mode:6} "
    if verdict.problem:
        return f"{told} BROKEN: {verdict.problem}"
    epsilon = f"{verdict.epsilon_before:.3f} {verdict.epsilon_after:.3f} {verdict.epsilon_end:.3f}"
    return f"{told} {verdict.outcome:16} {epsilon}  {verdict.trainings} trainings"


def summary(verdicts: list[Verdict], seconds: float) -> str:
    """The last line."""
    outcomes = collections.Counter(verdict.outcome or "BROKEN" for verdict in verdicts)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
    return f"{len(verdicts)} points in {seconds:.0f} s: {counted}"


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
