"""A training run in a scientist's terminal: progress while it goes, tables when it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fl_privacy.display_parts import console, table
from fl_privacy.errors import RoundFailed
from fl_privacy.learning.fairness import fairness
from fl_privacy.printable import printable
from fl_privacy.scientist.history import EvaluationRecord, History, OwnerSpend, RoundRecord, Watcher

if TYPE_CHECKING:
    from fl_privacy.learning.owner_scores import OwnerScores


def rounds(records: Sequence[RoundRecord], before: float | None = None) -> Table:
    """One row per round."""
    latest = {owner: spend for record in records for owner, spend in record.spends.items()}
    owners = sorted(latest)
    epsilons = [f"ε {owner}{latest[owner].period}" for owner in owners]
    columns = ["round", "score", *epsilons, "MB up", "MB down", "s train", "s crypto", "s transport"]
    has_floor = any(record.noise_floor is not None for record in records)
    columns += ["update", "noise alone"] if has_floor else []
    rows: list[list[str]] = []
    if before is not None:
        rows.append(["base", f"{before:.2%}", *([""] * (len(columns) - 2))])
    for record in records:
        spends = [_spend_in_words(spend) if (spend := record.spends.get(owner)) else "-" for owner in owners]
        seconds = [record.seconds_training, record.seconds_crypto, record.seconds_transport]
        mega = [f"{record.bytes_up / 1e6:.2f}", f"{record.bytes_down / 1e6:.2f}"]
        timed, norms = [f"{s:.1f}" for s in seconds], _norms(record) if has_floor else []
        rows.append([str(record.round + 1), f"{record.accuracy:.2%}", *spends, *mega, *timed, *norms])
    return table("Rounds", columns, rows)


def by_owner(scores: Mapping[str, OwnerScores]) -> Group:
    """Scores of models on each owner's mock rows, with their spread and calibration.

    Args: scores by model, each of the same owners; ``alone`` is each owner's own model, with which the others are compared.
    """
    found = list(scores.values())
    uncounted = f"Nothing that the task predicts is in the mock rows of {', '.join(found[0].uncounted)}."
    if not found[0].headlines:
        return Group(Text(f"No scores by owner. {uncounted}"))
    rows = [[owner, *(f"{one.headlines[owner]:.2%}" for one in found)] for owner in found[0].headlines]
    drawn = table("Score by owner, on the mock rows that it publishes itself", ["owner", *scores], rows)
    drawn.add_section()
    spreads = [fairness(one.headlines) for one in found]
    drawn.add_row("lowest", *(f"{spread.minimum:.2%}" for spread in spreads))
    drawn.add_row("gap between highest and lowest", *(f"{spread.gap:.2%}" for spread in spreads))
    if alone := scores.get("alone"):
        drawn.add_row("share of owners better off than alone", *(_benefit(one, alone) for one in found))
    drawn.add_section()
    believed = [one.calibration.summary() for one in found]
    drawn.add_row("calibration error", *(f"{told['calibration_error']:.2%}" for told in believed))
    drawn.add_row("perplexity", *(f"{told['perplexity']:.2f}" for told in believed))
    drawn.add_row("perplexity that the model expects", *(f"{told['own_perplexity']:.2f}" for told in believed))
    note = (
        "Calibration error: how far the model's confidence is from how often it is right, over all these rows; 0% is best."
        " A model that expects a lower perplexity than it has is too sure of itself."
    )
    return Group(drawn, Text(note, style="dim"), *([Text(uncounted)] if found[0].uncounted else []))


class LiveRounds(Watcher):
    """Progress bars, one per owner and round, and a line per finished round. Use as a context manager."""

    def __init__(self, total_rounds: int) -> None:
        self.total_rounds = total_rounds
        self.round = 1
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}
        self._waited_for = ""

    def __enter__(self) -> LiveRounds:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def resumed(self, history: History, round_index: int) -> None:
        """Say where the run goes on."""
        self.round = round_index + 1
        _say(f"  resumed before round {self.round}/{self.total_rounds}; {len(history.rounds)} rounds are done")

    def step(self, owner: str, step: int, steps: int) -> None:
        """Move an owner's bar."""
        self._bars.update(self._bar(owner), completed=step, total=steps, phase="training")

    def phase(self, owner: str, phase: str) -> None:
        """Write it beside an owner's bar."""
        self._bars.update(self._bar(owner), phase=phase)

    def round_done(self, record: RoundRecord) -> None:
        """Print the round and clear the bars."""
        self._clear()
        largest = max(record.spends.values(), key=lambda spend: spend.counted)
        seconds = record.seconds_training + record.seconds_crypto + record.seconds_transport
        _say(
            f"  round {record.round + 1}/{self.total_rounds}: score {record.accuracy:.2%},"
            f" largest epsilon {largest.counted:.2f}{largest.period}, {record.bytes_up / 1e6:.1f} MB up, {seconds:.0f} s"
        )
        for owner, reason in record.absent.items():
            _say(f"    without {owner}: {reason}", style="yellow")
        self.round = record.round + 2

    def ended(self, reason: str) -> None:
        """Say why no round is left."""
        _say(f"  the run ends: {reason}")

    def waiting(self, error: RoundFailed, seconds_left: float) -> None:
        """Say once who is waited for."""
        if (told := ", ".join(sorted(error.failures))) != self._waited_for:
            _say(f"  {error}; waiting for {told}, for {seconds_left:,.0f} s at most", style="yellow")
            self._waited_for = told

    def evaluated(self, record: EvaluationRecord) -> None:
        """Print what was measured, and how far the noise moves it."""
        self._clear()
        _say(f"  after round {record.round}/{self.total_rounds}, {record.in_words}")

    def evaluation_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """Say that the run goes on."""
        owners = ", ".join(sorted({owner for attempt in failures for owner in attempt}))
        told = f"  the evaluation after round {round_index} is skipped after {len(failures)} attempts (failed: {owners})"
        _say(told, style="red")

    def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
        """Say who failed and what happens next."""
        self._clear()
        _say(f"  {error}; {'trying again' if attempts_left else 'no attempt is left'}", style="red")

    def round_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """Say that the model stays, and that what was spent is spent."""
        owners = ", ".join(sorted({owner for attempt in failures for owner in attempt}))
        _say(
            f"  round {round_index + 1}/{self.total_rounds} is skipped after {len(failures)} attempts (failed: {owners});"
            " the model stays as it is, and what the owners spent stays in their ledgers",
            style="bold red",
        )
        self.round = round_index + 2

    def _bar(self, owner: str) -> TaskID:
        if owner not in self._tasks:
            told = f"round {self.round}/{self.total_rounds} {owner}"
            self._tasks[owner] = self._bars.add_task(told, total=None, phase="")
        return self._tasks[owner]

    def _clear(self) -> None:
        self._waited_for = ""
        for task in self._tasks.values():
            self._bars.remove_task(task)
        self._tasks.clear()


def _say(told: str, style: str = "") -> None:
    """One line; what owners wrote is in it, and neither markup nor control characters of theirs count."""
    console.print(Text(printable(told), style=style))


def _benefit(scores: OwnerScores, alone: OwnerScores) -> str:
    rate = fairness(scores.headlines, alone.headlines).benefit_rate
    return "" if scores is alone or rate is None else f"{rate:.0%}"


def _norms(record: RoundRecord) -> list[str]:
    floor = "not predicted" if record.noise_floor is None else f"{record.noise_floor:.3g}"
    return [f"{record.update_norm:.3g}", floor]


def _spend_in_words(spend: OwnerSpend) -> str:
    total = f"\n{spend.epsilon:.2f} in total" if spend.period_days else ""
    return f"{spend.counted:.2f} / {spend.budget:.2f}{total}"
