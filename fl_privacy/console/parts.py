"""Small pieces that several pages share. All text goes through ``text``: submitted text is shown, never interpreted.

Elements of ``ui.html`` and ``ui.markdown`` are used nowhere in the console; labels become text nodes in the browser.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from nicegui import ui

from fl_privacy.printable import printable

Level = Literal["good", "warn", "bad", "quiet", "info"]
SEVERITY: dict[str, Level] = {"critical": "bad", "warning": "warn", "note": "quiet"}
STATUS: dict[str, Level] = {"pending": "info", "approved": "good", "denied": "quiet", "revoked": "warn"}
LINES_AT_ONCE = 300


def plain(value: object) -> str:
    """A value as text, with every character escaped that would be hidden or change the direction of others."""
    return printable(str(value))


def text(value: object, classes: str = "") -> ui.label:
    """A label that shows a value as ``plain`` text."""
    return ui.label(plain(value)).classes(classes)


def badge(value: str, level: Level) -> ui.label:
    """A short word on a coloured ground."""
    return text(value, f"badge {level}")


def box(classes: str) -> ui.element:
    """A plain container."""
    return ui.element("div").classes(classes)


def card(title: str = "", classes: str = "") -> ui.element:
    """A section with a heading; use as a context manager."""
    section = ui.element("section").classes(f"card {classes}")
    if title:
        with section:
            text(title, "card-title").props('role=heading aria-level="2"')
    return section


def notice(value: str, level: Level) -> None:
    """One line across the page."""
    text(value, f"notice {level}").props("role=status")


def facts(pairs: Iterable[tuple[str, object]], mono: bool = False) -> None:
    """Names and values in two columns, under each other on a telephone."""
    with box("facts"):
        for name, value in pairs:
            text(name, "fact-name")
            text(value, "mono" if mono else "")


def rows(columns: Sequence[str], lines: Iterable[Sequence[object]], classes: str = "") -> None:
    """A small table: the first column to the left, the others to the right."""
    with ui.element("table").classes(f"plain {classes}"):
        with ui.element("thead"), ui.element("tr"):
            for column in columns:
                with ui.element("th"):
                    text(column)
        with ui.element("tbody"):
            for line in lines:
                with ui.element("tr"):
                    for cell in line:
                        with ui.element("td"):
                            text(cell)


def bar(fraction: float, level: Level = "info") -> ui.element:
    """A thin bar, filled to a fraction."""
    track = box("bar")
    with track:
        box(f"fill {level}").style(f"width: {100 * min(max(fraction, 0.0), 1.0):.1f}%")
    return track


def when(seconds: int) -> str:
    """Unix seconds as UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


@dataclass(frozen=True)
class CodeLine:
    """A line of the viewer: its number (empty in a diff), its text, and what it is marked as."""

    number: str
    text: str
    mark: str = ""


def code_lines(source: str, marked: dict[int, str]) -> list[CodeLine]:
    """The lines of source code; ``marked`` maps line numbers to severities."""
    return [CodeLine(str(n), line, marked.get(n, "")) for n, line in enumerate(source.removesuffix("\n").split("\n"), start=1)]


def diff_lines(diff: str) -> list[CodeLine]:
    """The lines of a unified diff."""
    marks = {"+": "added", "-": "removed", "@": "place"}
    heading, body = diff.split("\n")[:2], diff.split("\n")[2:]
    return [CodeLine("", line, "place") for line in heading] + [CodeLine("", line, marks.get(line[:1], "")) for line in body]


class CodeView:
    """Code to be read: every line is wrapped, so that nothing hides to the right, and all lines can be shown."""

    def __init__(self, lines: Sequence[CodeLine], more: str) -> None:
        """Args: ``more`` is the label of the button for further lines, with {count} and {left}."""
        self._left, self._more = list(lines), more
        with box("code"):
            self._shown = box("code-lines")
            self._button = ui.button(on_click=self._extend).props("flat no-caps dense").classes("code-more")
        self._extend()

    def _extend(self) -> None:
        now, self._left = self._left[:LINES_AT_ONCE], self._left[LINES_AT_ONCE:]
        with self._shown:
            for line in now:
                with box(f"code-line {line.mark}"):
                    text(line.number, "code-number")
                    text(line.text, "code-text")
        self._button.set_text(self._more.format(count=min(LINES_AT_ONCE, len(self._left)), left=len(self._left)))
        self._button.set_visibility(bool(self._left))
