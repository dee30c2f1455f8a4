"""What the accuracy benchmarks share: cells that are kept between runs, the public base, the command line."""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import tomllib
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accuracy_arms import Cell, Recipe, Setting, run_cell
from accuracy_data import DOMAINS, LABELLED, QUICK, Amounts, make_base
from rich.console import Console
from rich.progress import Progress

VARIABLE = "FL_PRIVACY_DATA"


class Job(NamedTuple):
    """A cell, and all that its result depends on besides the code and the data."""

    cell: Cell
    setting: Setting

    @property
    def key(self) -> str:
        """What a kept result is found by."""
        base = hashlib.sha256((self.setting.base / "model.safetensors").read_bytes()).hexdigest()
        told = repr((self.cell, self.setting.recipe, self.setting.amounts, self.setting.split, base))
        return hashlib.sha256(told.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        privacy = "no privacy" if self.cell.epsilon is None else f"epsilon {self.cell.epsilon:g}"
        by = f" by {self.setting.recipe.strategy}" if self.cell.arm == "federated" else ""
        return f"{self.cell.task} {self.cell.arm}{by}, {privacy}, seed {self.cell.seed}"

    def run(self) -> dict[str, Any]:
        """As ``run_cell``."""
        return run_cell(self.setting, self.cell)


class Kept:
    """Finished cells in a JSONL file; one counts only for the settings that it was run with."""

    def __init__(self, path: Path) -> None:
        self._path, self._found = path, dict[str, dict[str, Any]]()
        if path.exists():
            whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")  # a run may have been killed in a line
            path.write_text(whole + "\n" if whole else "", encoding="utf-8")
            for line in whole.splitlines():
                cell = json.loads(line)
                self._found[cell["key"]] = cell

    def get(self, key: str) -> dict[str, Any] | None:
        return self._found.get(key)

    def add(self, key: str, cell: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(cell | {"key": key}, ensure_ascii=False) + "\n")


def run_all(jobs: Sequence[Job], kept: Kept, workers: int, console: Console) -> list[dict[str, Any]]:
    """Results of all jobs, those of an earlier run included, in their order."""
    keys = [job.key for job in jobs]
    found = {key: told for key in keys if (told := kept.get(key))}
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
    console.print(f"{len(found)} cells are there, {len(missing)} to run")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(job.run): key for key, job in missing.items()}
        for done in as_completed(running):
            key, result = running[done], done.result()
            found[key] = result
            kept.add(key, result)
            told = f"{100 * result['headline']:.1f} ({result['cpu_seconds']:.0f} CPU seconds)"
            console.print(f"{len(found)}/{len(jobs)} {missing[key]}: {told}", highlight=False)
    return [found[key] for key in keys]


def arguments(description: str, out: Path, seeds: int, quick: str) -> argparse.ArgumentParser:
    """The options that every accuracy benchmark has; ``quick`` says what the quick run is."""
    parser = argparse.ArgumentParser(description=description)
    given = os.environ.get(VARIABLE)
    parser.add_argument("--data", type=Path, default=given and Path(given), help=f"folder with the sets; default ${VARIABLE}")
    parser.add_argument("--out", type=Path, default=out, help="keeps the base and finished cells")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help=f"try it out: a poor base, few steps, one seed{quick}")
    parser.add_argument("--epsilon", nargs="*", type=float, help="only these; 0 is no privacy")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="recipe fields, as TOML")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    return parser


class Workplace(NamedTuple):
    """Where a run's cells are, and what they all start from."""

    asked: argparse.Namespace
    folder: Path
    amounts: Amounts
    base: Path

    @classmethod
    def of(cls, asked: argparse.Namespace, console: Console) -> Workplace | None:
        """Make the base unless it is there; None, and a word about it, when there is nothing to train on."""
        if reason := missing_data(asked.data):
            console.print(f"skipped: {reason}; benchmarks/README.md describes it")
            return None
        amounts, folder = (QUICK, asked.out / "quick") if asked.quick else (Amounts(), asked.out)
        return cls(asked, folder, amounts, _pretrain(asked.data, folder / "base", amounts, console))

    @property
    def seeds(self) -> int:
        return 1 if self.asked.quick else int(self.asked.seeds)

    def epsilons(self, usual: Sequence[float | None]) -> Sequence[float | None]:
        """Those that were asked for, else the usual ones."""
        return usual if self.asked.epsilon is None else [value or None for value in self.asked.epsilon]

    def job(self, cell: Cell, recipe: Recipe) -> Job:
        """A cell by a recipe, which ``--quick`` and ``--set`` change."""
        if self.asked.quick:
            recipe = recipe._replace(batch_size=32, rounds=2, local_steps=3, accountant="rdp")
        recipe = recipe._replace(**tomllib.loads("\n".join(self.asked.set)))
        return Job(cell, Setting(self.asked.data, self.base, self.amounts, self.asked.split, recipe))

    def run(self, jobs: Sequence[Job], console: Console) -> list[dict[str, Any]]:
        """Results of all jobs, in their order."""
        return run_all(jobs, Kept(self.folder / "cells.jsonl"), self.asked.workers, console)


def _pretrain(data: Path, folder: Path, amounts: Amounts, console: Console) -> Path:
    torch.set_num_threads(os.cpu_count() or 1)
    with Progress(console=console) as progress:
        bar = progress.add_task("public base")
        return make_base(data, folder, amounts, lambda done, steps: progress.update(bar, completed=done, total=steps))


def missing_data(data: Path | None) -> str | None:
    """Why there is nothing to train on, if so."""
    if data is None:
        return f"no data folder: give --data FOLDER or set {VARIABLE}"
    names = [*(f"mlm-zh-{domain}" for domain in DOMAINS), *(name for name, _ in LABELLED.values())]
    lacking = [name for name in names if not (data / name / "train.jsonl").exists()]
    return f"{data} lacks {', '.join(lacking)}" if lacking else None
