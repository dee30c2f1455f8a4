"""What the benchmark of efficient training shows: costs as shares of full FedAvg's, accuracies, and both side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accuracy_report import METRICS, Cells, Spread, show_overspent, spread
from efficient_arms import ARMS, TASKS
from efficient_cost import OWNERS
from efficient_methods import BASELINE, METHODS
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

SLACK = 0.0025  # of full FedAvg's cost, by which a share may be above the published one and still meet it
DIFFERENTLY = "differently counted"
LESS_TRAFFIC, BEHIND = 4.7, 0.5  # goals: times less than plain federated, points behind it
# Methods with one model for all, so that their accuracies are of the same test rows; what they send is encrypted.
CANDIDATES = tuple(name for name in METHODS if name in ARMS and name != "split" and METHODS[name].task == "classification")
Costs = Mapping[str, Mapping[str, float]]  # by method


class Share(NamedTuple):
    """One published share of full FedAvg's cost, and ours."""

    method: str
    what: str
    published: float
    found: float
    why: str

    @property
    def verdict(self) -> str:
        """met, not met, or differently counted, where that alone explains the difference."""
        if self.found <= self.published + SLACK:
            return "met"
        return DIFFERENTLY if self.why.startswith(DIFFERENTLY) else "not met"


def shares(costs: Costs) -> list[Share]:
    """Every published share whose method and baseline were measured."""
    found = []
    for name, method in METHODS.items():
        told, full = method.published, BASELINE[method.task]
        if told is None or not {name, full} <= costs.keys():
            continue
        if told.compute is not None:
            ratio = costs[name]["flops"] / costs[full]["flops"]
            found.append(Share(name, "compute", told.compute, ratio, told.compute_why))
        if told.traffic is not None:
            ratio = traffic(costs[name], told.traffic_bits) / traffic(costs[full], 32)
            found.append(Share(name, "traffic", told.traffic, ratio, told.traffic_why))
    return found


def traffic(cost: Mapping[str, float], bits: int) -> float:
    """Bytes of an owner in a round, up and down, unencrypted."""
    form = {8: "int8", 32: "float32"}[bits]
    return cost[f"up_{form}"] + cost[f"down_{form}"]


def show_costs(costs: Costs, console: Console) -> None:
    """Compute and memory, bytes, and both as shares of full FedAvg on the same task."""
    compute = Table("method", "GFLOP", "of full", "plain s", "DP s", "of full", "DP GB", "of full", title="compute of an owner")
    wire = Table(
        *("method", "shared", "up float32", "8 bit", "encrypted", "down float32", "8 bit", "whole model", "traffic of full"),
        title="MB of an owner and round, mean over the schedule; traffic: encrypted up and 8 bit down, of float32 both ways",
    )
    for name, cost in costs.items():
        full = costs.get(BASELINE[METHODS[name].task])
        compute.add_row(
            METHODS[name].title,
            f"{cost['flops'] / 1e9:.2f}",
            _share(cost, full, "flops"),
            f"{cost['plain_seconds']:.2f}",
            f"{cost['private_seconds']:.2f}",
            _share(cost, full, "private_seconds"),
            f"{cost['private_bytes'] / 1e9:.2f}",
            _share(cost, full, "private_bytes"),
        )
        forms = ("up_float32", "up_int8", "up_encrypted", "down_float32", "down_int8", "whole")
        small = "-" if full is None else f"{encrypted_traffic(cost) / traffic(full, 32):.2%}"
        megabytes = (f"{cost[form] / 1e6:.2f}" for form in forms)
        wire.add_row(METHODS[name].title, f"{cost['shared']:,.0f}", *megabytes, small)
    console.print(compute)
    console.print(wire)


def encrypted_traffic(cost: Mapping[str, float]) -> float:
    """Bytes of an owner in a round as they are least: encrypted up, in steps of 8 bits down."""
    return cost["up_encrypted"] + cost["down_int8"]


def show_shares(found: Sequence[Share], console: Console) -> None:
    """Published and ours."""
    table = Table("method", "of full FedAvg", "published", "ours", "verdict", "why", title="published proportions")
    for share in found:
        why = share.why.removeprefix(f"{DIFFERENTLY}: ") if share.verdict != "met" else ""
        values = (f"{share.published:.1%}", f"{share.found:.1%}")
        table.add_row(METHODS[share.method].title, share.what, *values, share.verdict, why)
    console.print(table)


def _share(cost: Mapping[str, float], full: Mapping[str, float] | None, name: str) -> str:
    return "-" if full is None else f"{cost[name] / full[name]:.1%}"


class Row(NamedTuple):
    """One line of the headline table; GB are of all owners in a round of a BERT-base, both ways."""

    title: str
    accuracy: Spread | None
    gigabytes: float | None


def headline(costs: Costs, cells: Cells) -> list[Row]:
    """In one place, plain federated, and the candidates with enough less traffic, the most accurate first."""
    if "full" not in costs:
        return []
    plain = Row("plain federated, float32", _accuracy(cells, "plain"), _of_all(traffic(costs["full"], 32)))
    rows = [
        Row(f"{ARMS[name].title}, encrypted", _accuracy(cells, name), _of_all(encrypted_traffic(costs[name])))
        for name in CANDIDATES
        if name in costs
    ]
    rows.sort(key=lambda row: (row.gigabytes * LESS_TRAFFIC > plain.gigabytes, -(row.accuracy.mean if row.accuracy else 0)))
    return [Row("all in one place", _accuracy(cells, "centralised"), None), plain, *rows]


def show_headline(rows: Sequence[Row], console: Console) -> None:
    """The table; the goals are for the best candidate, the third row."""
    if not rows:
        return
    table = Table("", "accuracy, no privacy", "GB a round", "times less", title=f"BERT-base, {len(OWNERS)} owners, both ways")
    for row in rows:
        less = "-" if row.gigabytes is None else f"{rows[1].gigabytes / row.gigabytes:.1f}"
        gigabytes = "-" if row.gigabytes is None else f"{row.gigabytes:.3f}"
        table.add_row(row.title, "-" if row.accuracy is None else str(row.accuracy), gigabytes, less)
    console.print(table)
    for goal in goals(rows):
        verdict = "[green]met[/]" if goal["met"] else "[red]missed[/]"
        console.print(f"{goal['what']}: {goal['found']:.2f}, goal {goal['bound']}: {verdict}", highlight=False)


def goals(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Whether the best candidate meets them; nothing without its accuracy, or that of plain federated learning."""
    _, plain, best, *_ = *rows, None, None, None
    if best is None or not (plain.accuracy and best.accuracy):
        return []
    less, behind = plain.gigabytes / best.gigabytes, plain.accuracy.mean - best.accuracy.mean
    return [
        {"what": f"{best.title}: times less traffic", "found": less, "bound": LESS_TRAFFIC, "met": less >= LESS_TRAFFIC},
        {"what": f"{best.title}: points behind", "found": behind, "bound": BEHIND, "met": behind <= BEHIND},
    ]


def show_accuracy(cells: Cells, console: Console) -> None:
    """Every arm by privacy, and what private runs cost by both counts."""
    for task, arms in TASKS.items():
        epsilons = list(dict.fromkeys(cell["epsilon"] for cell in cells if cell["task"] == task))
        if not epsilons:
            continue
        names = ("no privacy" if value is None else f"epsilon {value:g}" for value in epsilons)
        table = Table("arm", *names, "ledger", "dp-accounting", title=f"{task}: {METRICS[task]}, points")
        for arm in arms:
            entries = [spread(cells, task, arm, value) for value in epsilons]
            paid = [cell for cell in cells if (cell["task"], cell["arm"]) == (task, arm) and cell["epsilon"] is not None]
            counts = (max((cell[name] for cell in paid), default=None) for name in ("epsilon_ledger", "epsilon_recounted"))
            told = ("-" if count is None else f"{count:.3f}" for count in counts)
            table.add_row(ARMS[arm].title, *("-" if entry is None else str(entry) for entry in entries), *told)
        console.print(table)
    if private := [cell for cell in cells if cell["epsilon"] is not None]:
        show_overspent(private, console)


def draw(costs: Costs, cells: Cells, path: Path) -> None:
    """Accuracy without privacy over GB a round, of a model that is small and of one that is not."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row in headline(costs, cells):
        if row.accuracy and row.gigabytes:
            axes.errorbar(
                [row.gigabytes], [row.accuracy.mean], [row.accuracy.deviation], marker="o", capsize=3, label=row.title
            )
        elif row.accuracy:
            axes.axhline(row.accuracy.mean, color="grey", linestyle="--", label=row.title)
    axes.set(xscale="log", xlabel=f"GB a round, BERT-base, {len(OWNERS)} owners", ylabel="accuracy of the small model, points")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=150)


def as_json(costs: Costs, cells: Cells) -> dict[str, Any]:
    """What ``--json`` holds."""
    rows = headline(costs, cells)
    return {
        "cost": costs,
        "published": [share._asdict() | {"verdict": share.verdict} for share in shares(costs)],
        "cells": cells,
        "headline": [row._asdict() | {"accuracy": row.accuracy and row.accuracy._asdict()} for row in rows],
        "goals": goals(rows),
    }


def _accuracy(cells: Cells, arm: str) -> Spread | None:
    return spread(cells, "cls", arm, None)


def _of_all(bytes_of_one: float) -> float:
    return len(OWNERS) * bytes_of_one / 1e9
