"""The six strategies on owners that differ: ten classes of headlines, Dirichlet 0.5, without DP and at epsilon 8.

    python benchmarks/strategies.py --data FOLDER --json out.json --png out.png

Task, split, base, test rows and what the folder holds are those of ``accuracy.py``. Every strategy has the same rounds, steps,
batches and rates at the owners, and differs from FedAvg by its own constants only. README.md beside this file says how to read
the result. Cells that are finished are kept in ``--out``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from accuracy_arms import Cell, Recipe
from accuracy_cells import Workplace, arguments
from accuracy_report import Cells, Spread, show_overspent, spread
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

EPSILONS = (None, 8.0)
# SGD at the owners: SCAFFOLD needs it, and so the others have it, too
PLAIN = Recipe(learning_rate=0.3, batch_size=64, rounds=30, local_steps=5, optimizer="sgd", update_range=0.1)
PRIVATE = Recipe(
    learning_rate=3.0, batch_size=128, rounds=10, local_steps=5, trainable="lora", optimizer="sgd", update_range=0.3
)
# Hardly tuned: README.md says what was tried. With momentum 0.9 a step of FedAvgM becomes up to ten times as long; the server's
# rate of FedAdam and FedYogi is the length of a step itself, and the plan's default.
SERVER_RATES = {"fedavg": 1.0, "fedprox": 1.0, "scaffold": 1.0, "fedavgm": 0.1, "fedadam": 0.01, "fedyogi": 0.01}
PULL = 0.1  # of the way back that FedProx goes in a step at the full rate; its default mu is no different from FedAvg in five
_COLOURS = {None: "#1f5fa8", 8.0: "#b5651d"}


def recipe_of(strategy: str, epsilon: float | None) -> Recipe:
    """What a strategy is run with: the common recipe and its own constants."""
    common = PLAIN if epsilon is None else PRIVATE
    mu = PULL / common.learning_rate if strategy == "fedprox" else 0.0
    return common._replace(strategy=strategy, server_lr=SERVER_RATES[strategy], prox_mu=mu)


def cells_of(strategies: Sequence[str], epsilons: Sequence[float | None], seeds: int) -> Iterator[tuple[str, Cell]]:
    """Everything to run, seed by seed, so that a stopped run has whole seeds."""
    for seed in range(seeds):
        for value in epsilons:
            yield from ((strategy, Cell("cls", "federated", value, seed)) for strategy in strategies)


def show(cells: Cells, console: Console) -> None:
    """Accuracy by strategy and privacy; what the runs with DP cost by both counts, of the costliest owner and seed."""
    epsilons = _epsilons(cells)
    private = [cell for cell in cells if cell["epsilon"] is not None]
    table = Table("strategy", *map(_title, epsilons), title="accuracy on the test rows of all owners, points")
    for count in (counts := {"ledger": "epsilon_ledger", "dp-accounting": "epsilon_recounted"}) if private else ():
        table.add_column(f"epsilon by {count}")
    for strategy in _strategies(cells):
        entries = [_entry(cells, strategy, value) for value in epsilons]
        paid = [cell for cell in private if cell["strategy"] == strategy]
        spent = [f"{max(cell[name] for cell in paid):.3f}" for name in counts.values()] if paid else []
        table.add_row(strategy, *("-" if entry is None else str(entry) for entry in entries), *spent)
    console.print(table)
    if private:
        show_overspent(private, console)


def draw(cells: Cells, path: Path) -> None:
    """Accuracy by strategy, a bar for each epsilon; the lines are one deviation over seeds."""
    strategies, epsilons = _strategies(cells), _epsilons(cells)
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes, width = figure.subplots(), 0.8 / len(epsilons)
    for row, value in enumerate(epsilons):
        found = {place: entry for place, strategy in enumerate(strategies) if (entry := _entry(cells, strategy, value))}
        means, deviations = ([entry[index] for entry in found.values()] for index in (0, 1))
        places = [place + (row - (len(epsilons) - 1) / 2) * width for place in found]
        bars = axes.bar(places, means, width, label=_title(value), color=_COLOURS.get(value))
        if any(deviations):
            axes.errorbar(places, means, deviations, fmt="none", ecolor="black", capsize=3)
        axes.bar_label(bars, fmt="%.0f", fontsize="small")
    axes.set_xticks(range(len(strategies)), strategies)
    axes.set(ylabel="accuracy, points", title="ten classes, four owners, Dirichlet 0.5 (delta 1e-5)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(epsilons), frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    parser = arguments(__doc__.splitlines()[0], out=Path("runs/strategies"), seeds=1, quick="")
    parser.add_argument("--strategy", nargs="*", choices=tuple(SERVER_RATES), default=tuple(SERVER_RATES))
    asked = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    if (place := Workplace.of(asked, console)) is None:
        return
    cells = cells_of(asked.strategy, place.epsilons(EPSILONS), place.seeds)
    results = place.run([place.job(cell, recipe_of(strategy, cell.epsilon)) for strategy, cell in cells], console)
    show(results, console)
    if asked.quick:
        console.print("a quick run tries the code out; its base knows next to nothing, so its accuracies say nothing")
    if asked.json:
        recipes = {strategy: [recipe_of(strategy, value)._asdict() for value in EPSILONS] for strategy in SERVER_RATES}
        asked.json.write_text(json.dumps({"cells": results, "recipes": recipes}, indent=1, ensure_ascii=False), "utf-8")
    if asked.png:
        draw(results, asked.png)


def _entry(cells: Cells, strategy: str, epsilon: float | None) -> Spread | None:
    return spread([cell for cell in cells if cell["strategy"] == strategy], "cls", "federated", epsilon)


def _strategies(cells: Cells) -> list[str]:
    return list(dict.fromkeys(cell["strategy"] for cell in cells))


def _epsilons(cells: Cells) -> list[float | None]:
    return list(dict.fromkeys(cell["epsilon"] for cell in cells))


def _title(epsilon: float | None) -> str:
    return "no privacy" if epsilon is None else f"epsilon {epsilon:g}"


if __name__ == "__main__":
    main()
