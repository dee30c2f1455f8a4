"""Pictures of a run, from its history."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fl_privacy.scientist.history import History


def plot_run(history: History, path: Path) -> None:
    """Accuracy, epsilon, bytes and seconds by round, and accuracy by epsilon, as one PNG."""
    figure = Figure(figsize=(21, 3.8), layout="constrained")  # not of pyplot, which is for one thread
    axes: Any = figure.subplots(1, 5)
    at = [record.round + 1 for record in history.rounds]
    _plot_scores(history, axes[0])
    _plot_epsilon(history, axes[1])
    axes[2].bar([i - 0.2 for i in at], [record.bytes_up / 1e6 for record in history.rounds], 0.4, label="up (encrypted)")
    axes[2].bar([i + 0.2 for i in at], [record.bytes_down / 1e6 for record in history.rounds], 0.4, label="down")
    axes[2].set(title="MB on the wire, all owners", xlabel="round")
    axes[2].legend()
    bottom = [0.0] * len(at)
    for label in ("training", "crypto", "transport"):
        heights = [getattr(record, f"seconds_{label}") for record in history.rounds]
        axes[3].bar(at, heights, bottom=bottom, label=label)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes[3].set(title="seconds", xlabel="round")
    axes[3].legend()
    _plot_score_by_epsilon(history, axes[4])
    for axis in axes[:4]:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(path, dpi=110)


def picture_of(history: History, total_rounds: int) -> bytes:
    """Scores and epsilon by round, of a run that is to have so many, as a PNG."""
    figure, file = Figure(figsize=(9, 2.8), layout="constrained"), io.BytesIO()
    axes: Any = figure.subplots(1, 2)
    _plot_scores(history, axes[0])
    _plot_epsilon(history, axes[1])
    axes[1].set_ylim(bottom=0.0)
    for axis in axes:
        axis.set_xlim(-0.04 * total_rounds, 1.04 * total_rounds)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.savefig(file, dpi=90, format="png")
    return file.getvalue()


def _plot_scores(history: History, axis: Axes) -> None:
    """By round on the scientist's validation rows, and wherever it was measured on private rows."""
    at = [0, *(record.round + 1 for record in history.rounds)]
    axis.plot(at, history.scores, marker="o", label="validation rows")
    axis.set(title="validation: accuracy (entities: F1)", xlabel="round")
    _plot_evaluations(history, axis)


def _plot_evaluations(history: History, axis: Axes) -> None:
    """What was measured on private rows, with two standard deviations of the noise."""
    known = [
        (min(record.round, history.rounds_over), record.headline, 2 * record.headline_deviation)
        for record in history.evaluations
        if record.headline is not None and record.headline_deviation is not None
    ]
    if known:
        at, measured, spread = (list(column) for column in zip(*known, strict=True))
        axis.errorbar(at, measured, yerr=spread, marker="s", capsize=4, alpha=0.8, label="held-out private rows, ± 2 sd")
        axis.legend()


def _plot_epsilon(history: History, axis: Axes) -> None:
    """What budgets bound; where one holds for a period, also the total, as a thin line."""
    for index, owner in enumerate(sorted({owner for record in history.rounds for owner in record.spends})):
        spends = [(record.round + 1, record.spends[owner]) for record in history.rounds if owner in record.spends]
        at, last = [number for number, _ in spends], spends[-1][1]
        (line,) = axis.plot(
            at,
            [spend.counted for _, spend in spends],
            marker="osD^v<>"[index % 7],
            markersize=11 - 2 * (index % 4),
            alpha=0.7,
            label=f"{owner}{last.period}",
        )
        if last.period_days:
            axis.plot(at, [spend.epsilon for _, spend in spends], ls=":", c=line.get_color(), label=f"{owner} in total")
    axis.set(title="epsilon spent (upper bound)", xlabel="round")
    if history.rounds:
        budget = min(spend.budget for spend in history.rounds[-1].spends.values())
        axis.axhline(budget, ls="--", c="grey", label="smallest budget")
        axis.legend()


def _plot_score_by_epsilon(history: History, axis: Axes) -> None:
    """What each round's score had cost by then, at the owner that had spent most; totals, whatever a period bounds."""
    latest: dict[str, float] = {}  # also of owners that were not in the round
    largest: list[float] = []
    for record in history.rounds:
        latest |= {owner: spend.epsilon for owner, spend in record.spends.items()}
        largest.append(max(latest.values()))
    axis.plot(largest, [record.accuracy for record in history.rounds], marker="o")
    axis.axhline(history.accuracy_before, ls="--", c="grey", label="before the run")
    axis.set(title="validation score by epsilon", xlabel="largest total epsilon of an owner")
    axis.legend()
