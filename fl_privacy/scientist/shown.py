"""Values that show themselves: an HTML table in a notebook, the same table in a terminal.

What owners publish is shown as text, never as markup: a title or a mock row can neither run a script nor move the cursor.
"""

from __future__ import annotations

import html
import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
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

    def _repr_html_(self) -> str:
        """For notebooks."""
        sheet = self.sheet()
        head = "".join(f'<th style="{_CELL}">{_escaped(column)}</th>' for column in sheet.columns)
        rows = "".join(
            "<tr>" + "".join(f'<td style="{_CELL}">{_escaped(cell)}</td>' for cell in row) + "</tr>" for row in sheet.rows
        )
        note = f"<p>{_escaped(sheet.note)}</p>" if sheet.note else ""
        caption = f'<caption style="text-align:left"><b>{_escaped(sheet.caption)}</b></caption>'
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"

    def __rich__(self) -> Table:
        """For terminals."""
        sheet = self.sheet()
        drawn = Table(title=Text(printable(sheet.caption)), title_justify="left", caption=Text(printable(sheet.note)))
        for column in sheet.columns:
            drawn.add_column(Text(printable(column)), overflow="fold")
        for row in sheet.rows:
            drawn.add_row(*(Text(printable(str(cell))) for cell in row))
        return drawn

    def __str__(self) -> str:
        file = io.StringIO()
        Console(file=file, width=WIDTH, color_system=None, force_terminal=False, force_jupyter=False).print(self)
        return file.getvalue().rstrip("\n")

    def __repr__(self) -> str:
        return str(self)


def _escaped(cell: object) -> str:
    return html.escape(printable(str(cell)))
