"""What the cells of the accuracy benchmark add up to: a table of means and spreads, the goals, a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

ARMS = {"base": "public base", "local": "each owner alone", "federated": "federated", "centralised": "all in one place"}
METRICS = {"mlm": "top-1 of hidden tokens", "cls": "accuracy", "ner": "strict micro-F1"}
NEAR_CENTRALISED, NEAR_NO_PRIVACY = 0.5, 4.0  # points
_COLOURS = {"local": "#b5651d", "federated": "#1f5fa8", "centralised": "#5b8c3a"}

Cells = Sequence[dict[str, Any]]


class Spread(NamedTuple):
    """Points (per cent) over seeds."""

    mean: float
    deviation: float  # of the sample; 0 for one seed
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.deviation:.1f}" if self.seeds > 1 else f"{self.mean:.1f}"


class Goal(NamedTuple):
    """A bound on how far one arm may be behind another, in points, mean over the seeds that both have."""

    task: str
    what: str
    bound: float
    found: float

    @property
    def met(self) -> bool:
        return self.found <= self.bound


def spread(cells: Cells, task: str, arm: str, epsilon: float | None) -> Spread | None:
    """One entry of the table; None when no cell is there."""
    found = [100 * value for value in _by_seed(cells, task, arm, epsilon).values()]
    return Spread(mean(found), stdev(found) if len(found) > 1 else 0.0, len(found)) if found else None


def goals(cells: Cells) -> list[Goal]:
    """Every goal whose arms are there."""
    found = []
    for task in _tasks(cells):
        plain = _by_seed(cells, task, "federated", None)
        pooled, private = _by_seed(cells, task, "centralised", None), _by_seed(cells, task, "federated", 3.0)
        for what, bound, ahead, behind in (
            ("federated behind all in one place, no privacy", NEAR_CENTRALISED, pooled, plain),
            ("federated at epsilon 3 behind no privacy", NEAR_NO_PRIVACY, plain, private),
        ):
            if both := sorted(ahead.keys() & behind.keys()):
                found.append(Goal(task, what, bound, mean(100 * (ahead[seed] - behind[seed]) for seed in both)))
    return found


def show(cells: Cells, console: Console) -> None:
    """The tables of the metrics and of the epsilons."""
    epsilons = _epsilons(cells)
    for task in _tasks(cells):
        columns = ("arm", "no privacy", *(f"epsilon {value:g}" for value in epsilons))
        table = Table(*columns, title=f"{task}: {METRICS[task]}, points")
        for arm, title in ARMS.items():
            entries = [spread(cells, task, arm, value) for value in (None, *epsilons)]
            table.add_row(title, *("-" if entry is None else str(entry) for entry in entries))
        console.print(table)
    _show_epsilons(cells, console)


def show_goals(cells: Cells, console: Console) -> None:
    """Met or missed, by how much."""
    for goal in goals(cells):
        verdict = "[green]met[/]" if goal.met else "[red]missed[/]"
        console.print(f"{goal.task}: {goal.what}: {goal.found:.1f} points, goal at most {goal.bound:g}: {verdict}")


def _show_epsilons(cells: Cells, console: Console) -> None:
    private = [cell for cell in cells if cell["epsilon"] is not None]
    if not private:
        return
    table = Table("task", "arm", "target", "ledger", "dp-accounting", title="epsilon at the costliest site, by seed")
    for run in dict.fromkeys(map(_run, private)):
        same = sorted((cell for cell in private if _run(cell) == run), key=lambda cell: cell["seed"])
        counts = (" ".join(f"{cell[name]:.3f}" for cell in same) for name in ("epsilon_ledger", "epsilon_recounted"))
        table.add_row(run[0], ARMS[run[1]], f"{run[2]:g}", *counts)
    console.print(table)
    show_overspent(private, console)


def show_overspent(private: Cells, console: Console) -> None:
    """How many runs with DP cost more than they should have, by either count."""
    beyond = [cell for cell in private if max(cell["epsilon_ledger"], cell["epsilon_recounted"]) > cell["epsilon"]]
    console.print(f"runs that cost more than their target by either count: {len(beyond)} of {len(private)}")


def draw(cells: Cells, path: Path) -> None:
    """The metric by epsilon, a line for each arm, a panel for each task; bars are one deviation over seeds."""
    tasks, places = _tasks(cells), [*sorted(_epsilons(cells)), None]
    figure = Figure(figsize=(4.2 * len(tasks), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for arm, colour in _COLOURS.items():
            entries = {place: entry for place, value in enumerate(places) if (entry := spread(cells, task, arm, value))}
            means, bars = ([entry[index] for entry in entries.values()] for index in (0, 1))
            axes.errorbar(list(entries), means, bars, color=colour, marker="o", capsize=3, label=ARMS[arm])
        if base := spread(cells, task, "base", None):
            axes.axhline(base.mean, color="grey", linestyle="--", label=ARMS["base"])
        axes.set_xticks(range(len(places)), ["no privacy" if value is None else f"{value:g}" for value in places])
        axes.set(title=f"{task}: {METRICS[task]}", xlabel="epsilon (delta 1e-5)", ylabel="points")
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _run(cell: dict[str, Any]) -> tuple[str, str, float | None]:
    return cell["task"], cell["arm"], cell["epsilon"]


def _by_seed(cells: Cells, *run: str | float | None) -> dict[int, float]:
    return {cell["seed"]: cell["headline"] for cell in cells if _run(cell) == run}


def _tasks(cells: Cells) -> list[str]:
    present = {cell["task"] for cell in cells}
    return [task for task in METRICS if task in present]


def _epsilons(cells: Iterable[dict[str, Any]]) -> list[float]:
    return sorted({cell["epsilon"] for cell in cells if cell["epsilon"] is not None}, reverse=True)
