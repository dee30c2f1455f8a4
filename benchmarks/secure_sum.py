"""The secure sum against CKKS as it is commonly used: bytes, CPU time, memory, and whether sums are exact.

    python benchmarks/secure_sum.py [--quick] [--full] [--json out.json] [--png out.png]

Both are timed in turns within one run, in CPU time of one process, so that a busy machine disturbs both alike. ``encrypt`` is
encryption and serialisation in both; ``protect`` is all that an owner really runs: weighting, rounding, packing, pairwise and
self-masks, check coefficients, encryption, serialisation and the file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import secure_sum_report as report
from benchmark_cohort import VALUE_BITS, bert_base, make_cohort, one_tensor, whole_blocks
from ckks_baseline import CHUNK, DEGREE, PRIME_BITS, SCALE, CkksBaseline
from full_model import STEPS, measure_full
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

HEADLINE = 16  # the cohort whose ratios stand at the top of the results
COHORTS = (3, HEADLINE, 100)
SIZES_COHORT = 3  # the cohort of the model sizes
GOALS = {"bytes_per_parameter": report.GOAL_BYTES, "encrypt_ratio_to_ckks": 1 / 20, "add_ratio_to_ckks": 1 / 10}
BASELINE_OWNERS = 8  # the baseline adds at most so many: each costs the same
PACKAGES = ("fl_privacy", "tenseal", "numpy", "cryptography")
Found = TypeVar("Found")
Done = Callable[[str], None]
Samples = dict[str, list[float]]  # step -> CPU milliseconds of every repetition


def measure(size: int, coordinates: int, repetitions: int, done: Done) -> dict[str, Any]:
    """Bytes, time and exactness of one cohort and model size, the baseline in turns with ours.

    Times are CPU milliseconds per million parameters. Adding is per owner; ours includes reading the updates and writing the
    sum, the baseline's is loading and adding alone.
    """
    ours: Samples = {"protect": [], "encrypt": [], "add": [], "open": []}
    ckks: Samples = {"encrypt": [], "encrypt_symmetric": [], "add": [], "open": []}
    what, exact = f"{size} owners, {coordinates:,} parameters", True
    with TemporaryDirectory(prefix="secure-sum-") as folder:
        cohort = make_cohort(size, one_tensor(coordinates), Path(folder))
        for index in range(size):
            cohort.protect(index, cohort.update(index))
        done(what)
        public, symmetric, adding = CkksBaseline(), CkksBaseline(symmetric=True), min(size, BASELINE_OWNERS)
        for repetition in range(repetitions):
            index = repetition % size
            update = cohort.update(index)
            timed(ours["protect"], cohort.protect, index, update)
            timed(ours["encrypt"], cohort.encrypt)
            blobs = timed(ckks["encrypt"], public.encrypt, update)
            timed(ckks["encrypt_symmetric"], symmetric.encrypt, update)
            timed(ours["add"], cohort.add)
            sums = timed(ckks["add"], public.add, [blobs] * adding)
            exact &= cohort.is_exact(timed(ours["open"], cohort.open))
            timed(ckks["open"], public.open, [vector.serialize() for vector in sums])
            done(what)
        sizes = {"up": cohort.update_files[0].stat().st_size, "sum": cohort.total_file.stat().st_size}
    ours["add"] = [value / size for value in ours["add"]]
    ckks["add"] = [value / adding for value in ckks["add"]]
    return {
        "owners": size,
        "parameters": coordinates,
        "encoding": cohort.order.encoding.model_dump(),
        "exact": exact,
        "bytes_per_parameter": {name: bytes_ / coordinates for name, bytes_ in sizes.items()},
        "ckks_bytes_per_parameter": sum(map(len, blobs)) / coordinates,
        "milliseconds": {step: spread(values, coordinates) for step, values in ours.items()},
        "ckks_milliseconds": {step: spread(values, coordinates) for step, values in ckks.items()},
    }


def timed(samples: list[float], call: Callable[..., Found], *arguments: Any) -> Found:
    """Call, and note the CPU milliseconds of this process."""
    started = time.process_time()
    found = call(*arguments)
    samples.append(1000 * (time.process_time() - started))
    return found


def spread(milliseconds: list[float], coordinates: int) -> dict[str, Any]:
    """Median, extremes and all values, per million parameters."""
    values = [1e6 * value / coordinates for value in milliseconds]
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def ratios(cohort: dict[str, Any]) -> dict[str, float]:
    """Bytes per parameter, and CPU time of ours over the baseline's, of the medians."""
    ours = {step: found["median"] for step, found in cohort["milliseconds"].items()}
    ckks = {step: found["median"] for step, found in cohort["ckks_milliseconds"].items()}
    return {
        "bytes_per_parameter": cohort["bytes_per_parameter"]["up"],
        "encrypt_ratio_to_ckks": ours["encrypt"] / ckks["encrypt"],
        "encrypt_ratio_to_symmetric_ckks": ours["encrypt"] / ckks["encrypt_symmetric"],
        "protect_ratio_to_ckks": ours["protect"] / ckks["encrypt"],
        "add_ratio_to_ckks": ours["add"] / ckks["add"],
        "open_ratio_to_ckks": ours["open"] / ckks["open"],
    }


def goals(cohort: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every goal beside what one cohort gave."""
    found = ratios(cohort)
    return {name: {"goal": goal, "result": found[name], "met": found[name] <= goal} for name, goal in GOALS.items()}


def summary(cohorts: list[dict[str, Any]], sizes: list[dict[str, Any]], full: dict[str, Any] | None) -> dict[str, Any]:
    """All results, the headline cohort's first; ``exact`` is of every sum that was opened."""
    headline = next(cohort for cohort in cohorts if cohort["owners"] == HEADLINE)
    opened = [*cohorts, *sizes, *([full] if full else [])]
    return {
        **ratios(headline),
        "headline_owners": HEADLINE,
        "exact": all(each["exact"] for each in opened),
        "goals": {str(cohort["owners"]): goals(cohort) for cohort in cohorts},
        "value_bits": VALUE_BITS,
        "baseline": {"degree": DEGREE, "prime_bits": PRIME_BITS, "scale": SCALE, "coordinates_per_ciphertext": CHUNK},
        "cohorts": cohorts,
        "sizes": sizes,
        "full": full,
        "machine": machine(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
    }


def machine() -> dict[str, Any]:
    """What the figures depend on besides the software."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "load_average": os.getloadavg(),
        "system": platform.platform(),
    }


def run(quick: bool, full: bool, progress: Progress) -> dict[str, Any]:
    """Every measurement that was asked for."""
    repetitions = 3 if quick else 7
    coordinates = {3: 250_000, HEADLINE: 500_000, 100: 125_000} if quick else dict.fromkeys(COHORTS, 1_000_000)
    sizes = (1_000, 10_000, 100_000, *((500_000,) if quick else (1_000_000, 10_000_000)))
    steps = len(COHORTS) * (1 + repetitions) + 2 * len(sizes) + full * STEPS
    task = progress.add_task("", total=steps)

    def done(what: str) -> None:
        progress.update(task, advance=1, description=what)

    cohorts = [measure(size, whole_blocks(size, coordinates[size]), repetitions, done) for size in COHORTS]
    by_size = [measure(SIZES_COHORT, parameters, 1, done) for parameters in sizes]
    whole = None
    if full:
        with TemporaryDirectory(prefix="secure-sum-") as folder:
            whole = measure_full(bert_base(), Path(folder), done)
    return summary(cohorts, by_size, whole)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smaller updates and fewer repetitions, under a minute")
    parser.add_argument("--full", action="store_true", help="also a whole BERT-base update of three owners, several minutes")
    parser.add_argument("--json", type=Path, help="write all results here")
    parser.add_argument("--png", type=Path, help="draw the results here")
    asked = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else report.WIDTH)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        results = run(asked.quick, asked.full, progress)
    report.show(results, console)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1), encoding="utf-8")
    if asked.png:
        report.draw(results, asked.png)
    sys.exit(0 if results["exact"] else "a sum was not exact")


if __name__ == "__main__":
    main()
