"""Where ``LiveRounds`` shows a run: a terminal with bars and lines, or a notebook's cell that is drawn anew in its place."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from fl_privacy.display_parts import console
from fl_privacy.printable import printable
from fl_privacy.scientist.history import EvaluationRecord, History, Line, RoundRecord
from fl_privacy.scientist.shown import as_html, as_text, escaped
from fl_privacy.scientist.views import rounds_sheet

DRAWN_EVERY = 0.25  # seconds between two pictures of bars that move; whatever else happens is drawn at once

# a line's colours by their names in a terminal, readable on light and dark pages
_CSS = {"yellow": "color:#c77700", "red": "color:#d9480f", "bold red": "color:#d9480f;font-weight:bold"}


class Screen(ABC):
    """Shows a bar for each owner at work, lines, and finished turns. Bars are moved from several threads."""

    @abstractmethod
    def start(self) -> None:
        """Show what there is from now on."""

    @abstractmethod
    def stop(self) -> None:
        """Leave what is to stay."""

    @abstractmethod
    def bar(self, title: str, phase: str, step: int | None = None, steps: int | None = None) -> None:
        """Begin or move the bar with this title; without ``step`` it stays where it is."""

    @abstractmethod
    def clear(self) -> None:
        """Take all bars away."""

    @abstractmethod
    def say(self, told: str, style: str = "") -> None:
        """One line; what owners wrote is in it, and neither markup nor control characters of theirs count."""

    def known(self, history: History) -> None:  # noqa: B027  # lines of an earlier process stay where it printed them
        """What an earlier process has done of this run."""

    def finished(self, record: RoundRecord, told: str) -> None:
        """A round's record, and the same in one line."""
        self.say(told)

    def measured(self, record: EvaluationRecord, told: str) -> None:
        """An evaluation's record, and the same in one line."""
        self.say(told)


class Terminal(Screen):
    """Bars at the bottom, which go when they are done, and lines that stay."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[phase]}"), MofNCompleteColumn())
        self.bars = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._tasks: dict[str, TaskID] = {}

    def start(self) -> None:
        """Begin to draw bars."""
        self.bars.start()

    def stop(self) -> None:
        """Take them away."""
        self.bars.stop()

    def bar(self, title: str, phase: str, step: int | None = None, steps: int | None = None) -> None:
        """Begin or move a bar."""
        if title not in self._tasks:
            self._tasks[title] = self.bars.add_task(title, total=None, phase="")
        self.bars.update(self._tasks[title], completed=step, total=steps, phase=phase)

    def clear(self) -> None:
        """Take all bars away."""
        for task in self._tasks.values():
            self.bars.remove_task(task)
        self._tasks.clear()

    def say(self, told: str, style: str = "") -> None:
        """Print a line above the bars."""
        console.print(Text(printable(f"  {told}"), style=style))


@dataclass
class _Bar:
    phase: str
    step: int = 0
    steps: int | None = None


class Notebook(Screen):
    """One table of finished rounds with the bars above and the lines below, and one picture: score and epsilon by round."""

    def __init__(self, total_rounds: int) -> None:
        self._history = History(Path(), math.nan)  # of what was told here; never written
        self._total = total_rounds
        self._bars: dict[str, _Bar] = {}
        self._lines: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._cell = self._picture = None  # display handles
        self._drawn = -math.inf

    def start(self) -> None:
        """Show the table in the cell that runs."""
        with self._lock:
            self._draw()

    def stop(self) -> None:
        """Leave the table, the lines and the picture."""
        self.clear()

    def bar(self, title: str, phase: str, step: int | None = None, steps: int | None = None) -> None:
        """Begin or move a bar."""
        with self._lock:
            bar = self._bars.setdefault(title, _Bar(phase))
            is_moved_only = bar.phase == phase and step is not None
            bar.phase, bar.step, bar.steps = phase, bar.step if step is None else step, steps or bar.steps
            if not is_moved_only or time.monotonic() - self._drawn >= DRAWN_EVERY:
                self._draw()

    def clear(self) -> None:
        """Take all bars away."""
        with self._lock:
            self._bars.clear()
            self._draw()

    def say(self, told: str, style: str = "") -> None:
        """Add a line below the table."""
        with self._lock:
            self._lines.append((told, style))
            self._draw()

    def known(self, history: History) -> None:
        """Begin with the rounds that an earlier process has done."""
        with self._lock:
            lines: list[Line] = [*history.rounds, *history.evaluations, *history.skipped]
            self._history = History(Path(), history.accuracy_before, lines)
            self._draw_all()

    def finished(self, record: RoundRecord, told: str) -> None:
        """Add a row to the table, and a point to the picture."""
        with self._lock:
            self._history.rounds.append(record)
            self._draw_all()

    def measured(self, record: EvaluationRecord, told: str) -> None:
        """Add a line, and a point to the picture."""
        with self._lock:
            self._history.evaluations.append(record)
            self._lines.append((told, ""))
            self._draw_all()

    def _draw_all(self) -> None:
        from fl_privacy.scientist.plots import picture_of  # matplotlib: a second of import

        self._draw()
        if self._history.rounds:
            told = {"image/png": picture_of(self._history, self._total), "text/plain": "score and epsilon by round"}
            self._picture = _shown(told, self._picture)

    def _draw(self) -> None:
        before = self._history.accuracy_before
        sheet = rounds_sheet(self._history.rounds, None if math.isnan(before) else before)
        bars = "".join(_bar_as_html(title, bar) for title, bar in self._bars.items())
        lines = "".join(f'<div style="{_CSS.get(style, "")}">{escaped(told)}</div>' for told, style in self._lines)
        told = {
            "text/html": f"{bars}{as_html(sheet) if self._history.rounds else ''}{lines}",
            "text/plain": "\n".join([as_text(sheet), *(printable(told) for told, _ in self._lines)]),
        }
        self._cell = _shown(told, self._cell)
        self._drawn = time.monotonic()


def _shown(told: dict[str, Any], handle: Any) -> Any:
    """Show something in the cell that runs, or anew in the place where it was shown before; returns its handle."""
    from IPython.display import display

    if handle is None:
        return display(told, raw=True, display_id=True)  # type: ignore[no-untyped-call]
    handle.update(told, raw=True)
    return handle


def _bar_as_html(title: str, bar: _Bar) -> str:
    moved = f'value="{bar.step}" max="{bar.steps}"' if bar.steps else ""
    done = f" {bar.step}/{bar.steps}" if bar.steps else ""
    return f"<div><progress {moved}></progress> {escaped(title)}: {escaped(bar.phase)}{done}</div>"
