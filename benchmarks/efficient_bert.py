"""What efficient training saves and what it costs in accuracy: LoRA, FedBT, ProgFed, FedSplitBERT, compression.

    python benchmarks/efficient_bert.py --data FOLDER --json out.json --png out.png

The cost part needs no data: a BERT-base-chinese with fresh weights (``--part cost``). The accuracy part trains a small model on
the headlines and domains of ``accuracy.py``. What is finished is kept in ``--out``, so the same command goes on where a stopped
run left off. README.md beside this file says what the folder holds and how to read the result.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import efficient_cost
import efficient_report as report
import torch
from accuracy_arms import Cell, Setting
from accuracy_cells import Kept, arguments, missing_data, run_all
from accuracy_data import QUICK
from efficient_arms import ARMS, EfficientJob, cells_of, recipe_of
from efficient_cost import BERT_BASE, SMALL, Shape
from efficient_data import AMOUNTS, make_deep_base
from efficient_methods import METHODS
from rich.console import Console
from rich.progress import Progress

EPSILONS = (None, 3.0)


def measure_costs(methods: Sequence[str], shape: Shape, kept: Kept, console: Console) -> dict[str, dict[str, float]]:
    """Costs by method, the mean over the rounds of its schedule; kinds of rounds that are there are not measured again."""
    found, measured = {}, dict[str, dict[str, float]]()
    for task in dict.fromkeys(METHODS[name].task for name in methods):
        bundle = efficient_cost.bundle_of(shape, task)
        for name in (name for name in methods if METHODS[name].task == task):
            plan, parts = efficient_cost.plan_of(METHODS[name], shape, bundle.spec), []
            for index, count in efficient_cost.kinds_of(plan).items():
                key = efficient_cost.kind_of(shape, plan, index)
                if told := kept.get(key):
                    measured[key] = {name: value for name, value in told.items() if name != "key"}
                if key not in measured:
                    measured[key] = efficient_cost.compute_cost(bundle, plan, index)
                    kept.add(key, measured[key])
                    flops = measured[key]["flops"] / 1e9
                    console.print(f"{METHODS[name].title}, round {index}: {flops:.2f} GFLOP", highlight=False)
                parts.append((measured[key] | efficient_cost.wire_cost(bundle, plan, index), count))
            found[name] = efficient_cost.mean_of(parts)
    return {name: found[name] for name in methods}


def run_accuracy(asked: argparse.Namespace, folder: Path, console: Console) -> list[dict[str, Any]]:
    """The cells that were asked for; none when there is nothing to train on."""
    if reason := missing_data(asked.data):
        console.print(f"skipped: {reason}; benchmarks/README.md describes it")
        return []
    amounts = QUICK if asked.quick else AMOUNTS
    with Progress(console=console) as progress:
        bar = progress.add_task("public base")
        torch.set_num_threads(asked.workers)
        base = make_deep_base(
            asked.data, folder / "base", amounts, lambda done, steps: progress.update(bar, completed=done, total=steps)
        )
    epsilons = EPSILONS if asked.epsilon is None else [value or None for value in asked.epsilon]

    def job(cell: Cell) -> EfficientJob:
        recipe = recipe_of(cell)
        if asked.quick:
            recipe = recipe._replace(batch_size=32, rounds=8 if cell.task == "cls" else 3, local_steps=1, accountant="rdp")
        recipe = recipe._replace(**tomllib.loads("\n".join(asked.set)))
        return EfficientJob(cell, Setting(asked.data, base, amounts, asked.split, recipe))

    jobs = [job(cell) for cell in cells_of(asked.arm, epsilons, 1 if asked.quick else asked.seeds)]
    return run_all(jobs, Kept(folder / "cells.jsonl"), asked.workers, console)


def main() -> None:
    """Command line."""
    parser = arguments(__doc__.splitlines()[0], out=Path("runs/efficient"), seeds=1, quick="; a small model for the costs")
    parser.add_argument("--part", choices=("all", "cost", "accuracy"), default="all")
    parser.add_argument("--method", nargs="*", choices=METHODS, default=list(METHODS), help="of the cost part")
    parser.add_argument("--arm", nargs="*", choices=ARMS, default=list(ARMS), help="of the accuracy part")
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    folder = asked.out / "quick" if asked.quick else asked.out
    costs: dict[str, dict[str, float]] = {}
    if asked.part != "accuracy":
        folder.mkdir(parents=True, exist_ok=True)
        costs = measure_costs(asked.method, SMALL if asked.quick else BERT_BASE, Kept(folder / "costs.jsonl"), console)
        report.show_costs(costs, console)
    cells = [] if asked.part == "cost" else run_accuracy(asked, folder, console)
    if cells:
        report.show_accuracy(cells, console)
    if asked.quick:
        console.print("a quick run tries the code out; its shares and accuracies say nothing")
    else:
        report.show_shares(report.shares(costs), console)
        report.show_headline(report.headline(costs, cells), console)
    if asked.json:
        asked.json.write_text(json.dumps(report.as_json(costs, cells), indent=1, ensure_ascii=False), encoding="utf-8")
    if asked.png and costs and cells:
        report.draw(costs, cells, asked.png)


if __name__ == "__main__":
    main()
