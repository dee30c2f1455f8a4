"""What privacy and distance cost in accuracy: public base, each owner alone, federated, all in one place; with and without DP.

    python benchmarks/accuracy.py --data FOLDER --json out.json --png out.png

Three tasks on public Chinese text with four owners that differ: language modelling (a domain each), ten classes of headlines
and ten kinds of entities (Dirichlet 0.5 splits). README.md beside this file says what the folder holds, and how to read the
result. Cells that are finished are kept in ``--out``, so the same command goes on where a stopped run left off.

README.md has what was tried before RECIPES, on dev rows with seed 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any, get_args

import accuracy_report
import torch
from accuracy_arms import Arm, Cell, Recipe, Setting, run_cell
from accuracy_data import DOMAINS, LABELLED, QUICK, Amounts, Task, make_base
from rich.console import Console
from rich.progress import Progress

EPSILONS = (None, 8.0, 3.0, 1.0)
RECIPES: dict[tuple[str, bool], Recipe] = {  # task, whether with DP
    ("mlm", False): Recipe(learning_rate=5e-4, batch_size=64, rounds=40, local_steps=8),
    ("mlm", True): Recipe(learning_rate=5e-3, batch_size=384, rounds=20, local_steps=1, trainable="lora"),
    ("cls", False): Recipe(learning_rate=1e-3, batch_size=64, rounds=60, local_steps=5),
    ("cls", True): Recipe(learning_rate=1e-2, batch_size=512, rounds=30, local_steps=1, trainable="lora"),
    ("ner", False): Recipe(learning_rate=2e-3, batch_size=32, rounds=40, local_steps=8),
    ("ner", True): Recipe(learning_rate=1e-2, batch_size=512, rounds=30, local_steps=1, trainable="lora"),
}
# With DP an owner of the federation takes one plain DP-SGD step a round, and Adam runs over the rounds at the server: at the
# owner it would start anew in each round, and take the noise of its first steps at full size. Without bias correction, and with
# a floor under its second moment, the server's Adam moves less far than torch's at the same rate.
SERVER_ADAM = {"optimizer": "sgd", "learning_rate": 1.0, "strategy": "fedadam", "update_range": 0.05}
SERVER_RATE = 4  # times the recipe's learning rate
VARIABLE = "FL_PRIVACY_DATA"


def cells_of(tasks: Sequence[Task], epsilons: Sequence[float | None], seeds: int) -> Iterator[Cell]:
    """Everything to run, seed by seed, so that a stopped run has whole seeds."""
    for seed in range(seeds):
        for task in tasks:
            yield Cell(task, "base", None, seed)
            for value in epsilons:
                yield from (Cell(task, arm, value, seed) for arm in ("federated", "centralised", "local"))


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


def run_all(
    cells: Sequence[Cell], settings: dict[Cell, Setting], kept: Kept, workers: int, console: Console
) -> list[dict[str, Any]]:
    """Results of all cells, those of an earlier run included, in the order of ``cells``."""
    keys = {cell: _key(settings[cell], cell) for cell in cells}
    found = {cell: told for cell in cells if (told := kept.get(keys[cell]))}
    missing = [cell for cell in cells if cell not in found]
    console.print(f"{len(found)} cells are there, {len(missing)} to run")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        running = {pool.submit(run_cell, settings[cell], cell): cell for cell in missing}
        for done in as_completed(running):
            cell, result = running[done], done.result()
            found[cell] = result
            kept.add(keys[cell], result)
            privacy = "no privacy" if cell.epsilon is None else f"epsilon {cell.epsilon:g}"
            console.print(
                f"{len(found)}/{len(cells)} {cell.task} {cell.arm}, {privacy}, seed {cell.seed}: {100 * result['headline']:.1f}"
                f" ({result['cpu_seconds']:.0f} CPU seconds)",
                highlight=False,
            )
    return [found[cell] for cell in cells]


def _key(setting: Setting, cell: Cell) -> str:
    """What a result depends on, besides the code and the data."""
    base = hashlib.sha256((setting.base / "model.safetensors").read_bytes()).hexdigest()
    told = repr((cell, setting.recipe, setting.amounts, setting.split, base))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _recipe(cell: Cell, quick: bool, changes: dict[str, Any]) -> Recipe:
    recipe = RECIPES[cell.task, cell.epsilon is not None]
    if cell.arm == "federated" and cell.epsilon is not None:
        recipe = recipe._replace(server_lr=SERVER_RATE * recipe.learning_rate, **SERVER_ADAM)
    if quick:
        recipe = recipe._replace(batch_size=32, rounds=2, local_steps=3, accountant="rdp")
    return recipe._replace(**changes)


def _pretrain(data: Path, folder: Path, amounts: Amounts, console: Console) -> Path:
    torch.set_num_threads(os.cpu_count() or 1)
    with Progress(console=console) as progress:
        bar = progress.add_task("public base")
        return make_base(data, folder, amounts, lambda done, steps: progress.update(bar, completed=done, total=steps))


def _missing(data: Path | None) -> str | None:
    """Why there is nothing to train on, if so."""
    if data is None:
        return f"no data folder: give --data FOLDER or set {VARIABLE}"
    names = [*(f"mlm-zh-{domain}" for domain in DOMAINS), *(name for name, _ in LABELLED.values())]
    lacking = [name for name in names if not (data / name / "train.jsonl").exists()]
    return f"{data} lacks {', '.join(lacking)}" if lacking else None


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given = os.environ.get(VARIABLE)
    parser.add_argument("--data", type=Path, default=given and Path(given), help=f"folder with the sets; default ${VARIABLE}")
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="keeps the base and finished cells")
    parser.add_argument("--task", choices=("all", *get_args(Task)), default="all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="try it out: a poor base, few steps, one seed, epsilon 3 only")
    parser.add_argument("--arm", nargs="*", choices=get_args(Arm), default=get_args(Arm))
    parser.add_argument("--epsilon", nargs="*", type=float, help="only these; 0 is no privacy")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="recipe fields, as TOML")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    tasks = get_args(Task) if asked.task == "all" else (asked.task,)
    if reason := _missing(asked.data):
        console.print(f"skipped: {reason}; benchmarks/README.md describes it")
        return
    amounts, folder = (QUICK, asked.out / "quick") if asked.quick else (Amounts(), asked.out)
    usual = (None, 3.0) if asked.quick else EPSILONS
    epsilons = usual if asked.epsilon is None else [value or None for value in asked.epsilon]
    base = _pretrain(asked.data, folder / "base", amounts, console)
    cells = [cell for cell in cells_of(tasks, epsilons, 1 if asked.quick else asked.seeds) if cell.arm in asked.arm]
    recipe = partial(_recipe, quick=asked.quick, changes=tomllib.loads("\n".join(asked.set)))
    settings = {cell: Setting(asked.data, base, amounts, asked.split, recipe(cell)) for cell in cells}
    results = run_all(cells, settings, Kept(folder / "cells.jsonl"), asked.workers, console)
    accuracy_report.show(results, console)
    if asked.quick:
        console.print("a quick run tries the code out; its base knows next to nothing, so its accuracies say nothing")
    else:
        accuracy_report.show_goals(results, console)
    if asked.json:
        told = {"cells": results, "goals": [goal._asdict() | {"met": goal.met} for goal in accuracy_report.goals(results)]}
        told["recipes"] = [[*key, recipe._asdict()] for key, recipe in RECIPES.items()]
        asked.json.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    if asked.png:
        accuracy_report.draw(results, asked.png)


if __name__ == "__main__":
    main()
