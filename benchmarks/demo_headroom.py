"""What the demo can show: public base < local-only DP < federated DP < centralised without privacy, on the mock rows.

    python benchmarks/demo_headroom.py --json out.json

Runs the training of the demo in one process, without servers and encryption: real DP-SGD at the plan's epsilon for each owner,
FedAvg of three owners with equal declared sizes, the same number of steps for every row of the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import tomllib
from functools import partial, reduce
from operator import add
from pathlib import Path

import numpy as np
import torch
from accuracy_federation import in_fixed_point, mean_update
from rich.console import Console
from rich.table import Table

from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, build_model, load_bundle, with_adapters
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters, flatten, from_bytes, unflatten
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.accounting import calibrate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "domains"))
from generate import FOLDER, MOCK_ROWS, MOCK_SEED, OWNERS, sentences

EVALUATION_SEED = 5


class Headroom:
    """The demo's training, one row of the table after the other."""

    def __init__(self, plan: TrainingPlan, bundle: ModelBundle, rows: int, seed: int) -> None:
        self.plan = plan
        self.vocabulary, self.base = bundle.vocabulary, with_adapters(plan, from_bytes(bundle.weights))
        self.rows = rows
        self.private = {owner: _rows(owner, rows, seed) for owner in OWNERS}
        self.mock = {owner: _rows(owner, MOCK_ROWS, MOCK_SEED) for owner in OWNERS}
        rate = self.plan.sample_rate(rows)
        self.noise = calibrate(plan.target_epsilon, plan.delta, rate, plan.total_steps, plan.accountant)
        self.coordinates: list[np.ndarray] = []  # |local - global| of every owner and round, for update_range

    def accuracy(self, parameters: Parameters) -> dict[str, float]:
        """Top-1 accuracy on each owner's mock rows, and on all together."""
        model = build_model(self.plan.model, self.vocabulary, parameters, self.plan.adapter)
        tokenizer = tokenizer_of(self.vocabulary)
        counts = {owner: evaluate(self.plan, model, tokenizer, rows, EVALUATION_SEED) for owner, rows in self.mock.items()}
        return {name: part.headline for name, part in (counts | {"all": reduce(add, counts.values())}).items()}

    def update(self, owner: str, order_round: int, parameters: Parameters) -> Parameters:
        """One owner's DP-SGD part of a round."""
        found = train_update(
            self.plan, order_round, parameters, self.vocabulary, self.private[owner], self.rows, self.noise, lambda *_: None
        )
        self.coordinates.append(np.abs(np.concatenate([array.ravel() for array in found.values()])))
        return found

    def federated(self) -> Parameters:
        """FedAvg over the three owners with DP-SGD, summed in fixed point as the demo does, but not encrypted."""
        current, sizes = self.base, [self.rows] * len(OWNERS)
        encoding, generator, specs = plan_encoding(self.plan, sizes), np.random.default_rng(0), specs_for(self.plan)
        for order_round in range(self.plan.rounds):
            updates = [flatten(self.update(owner, order_round, current), specs) for owner in OWNERS]
            mean = unflatten(mean_update(in_fixed_point(updates, sizes, encoding, generator), encoding), specs)
            current = current | {name: current[name] + mean[name] for name in mean}
        return current

    def alone(self, owner: str) -> Parameters:
        """One owner with DP-SGD and nobody else."""
        current = self.base
        for order_round in range(self.plan.rounds):
            update = self.update(owner, order_round, current)
            current = current | {name: current[name] + update[name] for name in update}
        return current

    def centralised(self) -> Parameters:
        """All text in one place, no privacy."""
        pooled = [row for rows in self.private.values() for row in rows]
        return train_without_privacy(self.plan, self.base, self.vocabulary, pooled, generator=np.random.default_rng(0))


def _rows(owner: str, count: int, seed: int) -> list[Row]:
    return [Row(text=text) for text in sentences(owner, count, seed)]


def measure(headroom: Headroom, wanted: list[str]) -> dict[str, dict[str, float]]:
    """Accuracies and seconds by row of the table."""
    runs = {"public base": lambda: headroom.base, "federated DP": headroom.federated}
    runs |= {f"local-only DP: {owner}": partial(headroom.alone, owner) for owner in OWNERS}
    runs["centralised, no privacy"] = headroom.centralised
    results = {}
    for name, run in runs.items():
        if wanted and not any(name.startswith(prefix) for prefix in wanted):
            continue
        started = time.perf_counter()
        parameters = run()
        results[name] = headroom.accuracy(parameters) | {"seconds": time.perf_counter() - started}
    local = [row for name, row in results.items() if name.startswith("local-only")]
    if len(local) == len(OWNERS):
        results["local-only DP, mean"] = {key: float(np.mean([row[key] for row in local])) for key in local[0]}
    return results


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plan", type=Path, default=FOLDER / "plan.toml")
    parser.add_argument("--base", type=Path, default=FOLDER / "public" / "base")
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="plan fields, as TOML")
    parser.add_argument("--only", nargs="*", default=[], help="rows of the table, by the beginning of their name")
    parser.add_argument("--quick", action="store_true", help="two rounds of five steps")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    bundle = load_bundle(asked.base)
    quick = {"rounds": 2, "local_steps": 5, "warmup_steps": 2} if asked.quick else {}
    told = asked.plan.read_text(encoding="utf-8")
    plan = TrainingPlan.from_toml(told, model=bundle.spec, **(quick | tomllib.loads("\n".join(asked.set))))
    headroom = Headroom(plan, bundle, asked.rows, asked.seed)
    results = measure(headroom, asked.only)
    table = Table("run", *OWNERS, "all", "seconds", title=f"top-1 on mock rows; noise multiplier {headroom.noise}")
    for name, row in results.items():
        table.add_row(name, *(f"{row[key]:.3f}" for key in (*OWNERS, "all")), f"{row['seconds']:.0f}")
    Console().print(table)
    if headroom.coordinates:
        moved = np.concatenate(headroom.coordinates)
        points = {f"{share:.4%}": float(np.quantile(moved, share)) for share in (0.5, 0.99, 0.999, 0.9999, 1.0)}
        Console().print("|local - global| quantiles:", points)
        results["update quantiles"] = points
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
