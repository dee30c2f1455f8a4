"""Values that show themselves: an HTML table in a notebook, the same table in a terminal.

What owners publish is shown as text, never as markup: a title or a mock row can neither run a script nor move the cursor.
"""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fl_privacy.printable import printable

WIDTH = 118  # of a table that is turned into text

_CELL = "text-align:left;vertical-align:top;white-space:pre-wrap"


@dataclass(frozen=True)
class Sheet:
    """A table: a caption, the columns' names, rows of as many cells, and a note below."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


class Shown(ABC):
    """Base of values that show themselves."""

    @abstractmethod
    def sheet(self) -> Sheet:
        """What is shown."""

    def sheets(self) -> tuple[Sheet, ...]:
        """All that is shown, one table below the other; most values have one."""
        return (self.sheet(),)

    def _repr_html_(self) -> str:
        """For notebooks."""
        return "".join(map(as_html, self.sheets()))

    def __rich__(self) -> Group:
        """For terminals."""
        return Group(*map(as_table, self.sheets()))

    def __str__(self) -> str:
        return "\n".join(map(as_text, self.sheets()))

    def __repr__(self) -> str:
        return str(self)


def as_html(sheet: Sheet) -> str:
    """A sheet for notebooks."""
    head = "".join(f'<th style="{_CELL}">{escaped(column)}</th>' for column in sheet.columns)
    rows = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{escaped(cell)}</td>' for cell in row) + "</tr>" for row in sheet.rows
    )
    note = f"<p>{escaped(sheet.note)}</p>" if sheet.note else ""
    caption = f'<caption style="text-align:left"><b>{escaped(sheet.caption)}</b></caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def as_table(sheet: Sheet) -> Table:
    """A sheet for terminals."""
    drawn = Table(title=Text(printable(sheet.caption)), title_justify="left", caption=Text(printable(sheet.note)))
    for column in sheet.columns:
        drawn.add_column(Text(printable(column)), overflow="fold")
    for row in sheet.rows:
        drawn.add_row(*(Text(printable(str(cell))) for cell in row))
    return drawn


def as_text(sheet: Sheet) -> str:
    """A sheet as plain text."""
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False).print(as_table(sheet))
    return file.getvalue().rstrip("\n")


def escaped(cell: object) -> str:
    """Text as HTML: no markup in it counts, and no control character."""
    return html.escape(printable(str(cell)))
