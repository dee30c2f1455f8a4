"""A training run in a scientist's terminal: progress while it goes, tables when it is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fl_privacy.display_parts import console, table
from fl_privacy.display_screens import Notebook, Screen, Terminal
from fl_privacy.errors import RoundFailed
from fl_privacy.learning.fairness import fairness
from fl_privacy.scientist.history import EvaluationRecord, History, RoundRecord, Watcher
from fl_privacy.scientist.views import rounds_sheet

if TYPE_CHECKING:
    from fl_privacy.learning.owner_scores import OwnerScores


def rounds(records: Sequence[RoundRecord], before: float | None = None) -> Table:
    """One row per round."""
    sheet = rounds_sheet(records, before)
    return table(sheet.caption, sheet.columns, sheet.rows)


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
    """A run while it goes: a bar for each owner with what it is doing, and whatever happens. Use as a context manager.

    In a terminal every finished round is a line. In a notebook there is a table with a row for each, and a picture of score and
    epsilon by round, which are drawn anew in their places and stay when the run is over.
    """

    def __init__(self, total_rounds: int) -> None:
        self.total_rounds = total_rounds
        self.round = 1
        self._screen: Screen = Notebook(total_rounds) if console.is_jupyter else Terminal()
        self._waited_for = ""

    def __enter__(self) -> LiveRounds:
        self._screen.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._screen.stop()

    def resumed(self, history: History, round_index: int) -> None:
        """Say where the run goes on."""
        self.round = round_index + 1
        self._screen.known(history)
        self._screen.say(f"resumed before round {self.round}/{self.total_rounds}; {len(history.rounds)} rounds are done")

    def step(self, owner: str, step: int, steps: int) -> None:
        """Move an owner's bar."""
        self._screen.bar(self._title(owner), "training", step, steps)

    def phase(self, owner: str, phase: str) -> None:
        """Write it beside an owner's bar."""
        self._screen.bar(self._title(owner), phase)

    def round_done(self, record: RoundRecord) -> None:
        """Show the round and clear the bars."""
        self._clear()
        largest = max(record.spends.values(), key=lambda spend: spend.counted)
        seconds = record.seconds_training + record.seconds_crypto + record.seconds_transport
        self._screen.finished(
            record,
            f"round {record.round + 1}/{self.total_rounds}: score {record.accuracy:.2%},"
            f" largest epsilon {largest.counted:.2f}{largest.period}, {record.bytes_up / 1e6:.1f} MB up, {seconds:.0f} s",
        )
        for owner, reason in record.absent.items():
            self._screen.say(f"  without {owner} in round {record.round + 1}: {reason}", "yellow")
        self.round = record.round + 2

    def ended(self, reason: str) -> None:
        """Say why no round is left."""
        self._screen.say(f"the run ends: {reason}")

    def waiting(self, error: RoundFailed, seconds_left: float) -> None:
        """Say once who is waited for."""
        if (told := ", ".join(sorted(error.failures))) != self._waited_for:
            self._screen.say(f"{error}; waiting for {told}, for {seconds_left:,.0f} s at most", "yellow")
            self._waited_for = told

    def evaluated(self, record: EvaluationRecord) -> None:
        """Show what was measured, and how far the noise moves it."""
        self._clear()
        self._screen.measured(record, f"evaluation {self._model(record.round)}, {record.in_words}")

    def evaluation_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """Say that the run goes on."""
        owners = ", ".join(sorted({owner for attempt in failures for owner in attempt}))
        told = f"the evaluation {self._model(round_index)} is skipped after {len(failures)} attempts (failed: {owners})"
        self._screen.say(told, "red")

    def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
        """Say who failed and what happens next."""
        self._clear()
        self._screen.say(f"{error}; {'trying again' if attempts_left else 'no attempt is left'}", "red")

    def round_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        """Say that the model stays, and that what was spent is spent."""
        owners = ", ".join(sorted({owner for attempt in failures for owner in attempt}))
        self._screen.say(
            f"round {round_index + 1}/{self.total_rounds} is skipped after {len(failures)} attempts (failed: {owners});"
            " the model stays as it is, and what the owners spent stays in their ledgers",
            "bold red",
        )
        self.round = round_index + 2

    def _model(self, round_index: int) -> str:
        """Which model is evaluated: the finished one has the number of the plan's rounds, also when the run ended early."""
        return "of the finished model" if round_index == self.total_rounds else f"after round {round_index}/{self.total_rounds}"

    def _title(self, owner: str) -> str:
        return f"round {self.round}/{self.total_rounds} {owner}"

    def _clear(self) -> None:
        self._waited_for = ""
        self._screen.clear()


def _benefit(scores: OwnerScores, alone: OwnerScores) -> str:
    rate = fairness(scores.headlines, alone.headlines).benefit_rate
    return "" if scores is alone or rate is None else f"{rate:.0%}"
