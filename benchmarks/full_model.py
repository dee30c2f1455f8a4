"""A whole model through the secure sum, each step in a process of its own, so that time and peak memory are one party's.

Linux only: peaks are read from /proc.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_cohort import BenchmarkCohort, make_cohort

from fl_privacy.messages import TensorSpec

OWNERS = 3
STEPS = OWNERS + 2  # every owner protects, the scientist adds, one owner opens


@dataclass(frozen=True)
class StepCost:
    """What one step of one party took; memory is resident bytes."""

    wall_seconds: float
    cpu_seconds: float
    idle_bytes: int  # the interpreter with everything imported, before the step
    peak_bytes: int


def measure_full(tensors: Sequence[TensorSpec], folder: Path, done: Callable[[str], None]) -> dict[str, Any]:
    """Protect, add and open one update of three owners; check the sum against the plain one.

    ``memory_ratio_to_fp32`` is a step's peak beyond the idle interpreter, over the update's size as float32; the update counts.
    """
    cohort = make_cohort(OWNERS, tensors, folder)
    opened, plain, costs = folder / "opened.bin", 4 * cohort.coordinates, {}
    for index, owner in enumerate(cohort.order.cohort):
        costs[f"{owner} protects"] = in_own_process(_protect, cohort, index)
        done(f"{owner} protects {cohort.coordinates:,} parameters")
    costs["scientist adds"] = in_own_process(BenchmarkCohort.add, cohort)
    done("scientist adds")
    costs["owner opens"] = in_own_process(_open, cohort, opened)
    done("owner opens")
    return {
        "owners": OWNERS,
        "parameters": cohort.coordinates,
        "encoding": cohort.order.encoding.model_dump(),
        "exact": cohort.is_exact(np.fromfile(opened, "<f4")),
        "bytes": {"up": cohort.update_files[0].stat().st_size, "sum": cohort.total_file.stat().st_size, "fp32": plain},
        "peak_bytes": max(cost.peak_bytes for cost in costs.values()),
        "steps": {
            name: asdict(cost) | {"memory_ratio_to_fp32": (cost.peak_bytes - cost.idle_bytes) / plain}
            for name, cost in costs.items()
        },
    }


def in_own_process(step: Callable[..., None], *arguments: object, method: str = "spawn") -> StepCost:
    """Run ``step(*arguments)`` in a fresh process; what it raises is raised here. ``forkserver`` imports once for many."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        return pool.submit(_measured, step, *arguments).result()


def _measured(step: Callable[..., None], *arguments: object) -> StepCost:
    idle, cpu, wall = _status("VmRSS"), time.process_time(), time.perf_counter()
    step(*arguments)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return StepCost(wall, cpu, idle, _status("VmHWM"))


def _protect(cohort: BenchmarkCohort, index: int) -> None:
    cohort.protect(index, cohort.update(index))


def _open(cohort: BenchmarkCohort, opened: Path) -> None:
    cohort.open().astype("<f4", copy=False).tofile(opened)


def _status(field: str) -> int:
    """A field of this process's status, in bytes. Unlike ru_maxrss, VmHWM says nothing of the process that started this one."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
