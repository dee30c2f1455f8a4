"""What privacy and distance cost in accuracy: public base, each owner alone, federated, all in one place; with and without DP.

    python benchmarks/accuracy.py --data FOLDER --json out.json --png out.png

Three tasks on public Chinese text with four owners that differ: language modelling (a domain each), ten classes of headlines
and ten kinds of entities (Dirichlet 0.5 splits). README.md beside this file says what the folder holds, and how to read the
result. Cells that are finished are kept in ``--out``, so the same command goes on where a stopped run left off.

README.md has what was tried before RECIPES, on dev rows with seed 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import accuracy_report
from accuracy_arms import Arm, Cell, Recipe
from accuracy_cells import Workplace, arguments
from accuracy_data import Task
from rich.console import Console

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
# a floor under its second moment, the server's Adam moves less far than torch's at the same rate. Without DP, too, it does
# better than FedAvg for the headlines, whose classes owners share least, at the price of 300 rounds; for entities it is worse.
SERVER_ADAM = {"optimizer": "sgd", "learning_rate": 1.0, "strategy": "fedadam", "update_range": 0.05}
SERVER_RATE = 4  # times the recipe's learning rate


def cells_of(tasks: Sequence[Task], epsilons: Sequence[float | None], seeds: int) -> Iterator[Cell]:
    """Everything to run, seed by seed, so that a stopped run has whole seeds."""
    for seed in range(seeds):
        for task in tasks:
            yield Cell(task, "base", None, seed)
            for value in epsilons:
                yield from (Cell(task, arm, value, seed) for arm in ("federated", "centralised", "local"))


def _recipe(cell: Cell) -> Recipe:
    recipe = RECIPES[cell.task, cell.epsilon is not None]
    if cell.arm == "federated" and (cell.epsilon is not None or cell.task == "cls"):
        rounds = recipe.rounds * recipe.local_steps
        recipe = recipe._replace(rounds=rounds, local_steps=1, server_lr=SERVER_RATE * recipe.learning_rate, **SERVER_ADAM)
    return recipe


def main() -> None:
    """Command line."""
    parser = arguments(__doc__.splitlines()[0], out=Path("runs/accuracy"), seeds=3, quick=", epsilon 3 only")
    parser.add_argument("--task", choices=("all", *get_args(Task)), default="all")
    parser.add_argument("--arm", nargs="*", choices=get_args(Arm), default=get_args(Arm))
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if (place := Workplace.of(asked, console)) is None:
        return
    tasks = get_args(Task) if asked.task == "all" else (asked.task,)
    cells = cells_of(tasks, place.epsilons((None, 3.0) if asked.quick else EPSILONS), place.seeds)
    results = place.run([place.job(cell, _recipe(cell)) for cell in cells if cell.arm in asked.arm], console)
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
