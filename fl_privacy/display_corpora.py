"""Corpora in a terminal: what owners offer, and what one has just added; escaped as in ``display_review``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table
from rich.text import Text

from fl_privacy.messages import CorpusCard, Row
from fl_privacy.model_spec import OUTSIDE
from fl_privacy.printable import printable

MOST_LABELS = 50  # shown of a corpus


def corpora(cards: Mapping[str, Sequence[CorpusCard]], mock_rows: int = 2) -> Table:
    """What the owners offer: declared sizes and a few mock rows, with their labels and entities."""
    drawn = Table(title="Corpora (mock rows are published by the owners; private rows never leave)", title_justify="left")
    for column in ("owner", "title", "size", "mock rows"):
        drawn.add_column(column, justify="right" if column == "size" else "left", overflow="fold")
    for owner, offered in cards.items():
        for card in offered:
            size = " ".join((f"~{card.declared_size:,} {card.unit}s", *(f"+ {what}" for what in card.annotations)))
            shown = "\n".join(_mock_row(row) for row in card.mock_rows[:mock_rows])
            drawn.add_row(*(Text(printable(cell)) for cell in (owner, card.title, size, shown)))
    return drawn


def labels(what: str, counts: Mapping[str, int]) -> Text:
    """For the owner only: its labels (or kinds of entities), the most frequent first, and how many rows have each."""
    ordered = sorted(counts, key=lambda label: (-counts[label], label))
    told = ", ".join(f"{label} ({counts[label]:,})" for label in ordered[:MOST_LABELS])
    more = f" and {len(ordered) - MOST_LABELS:,} more" if len(ordered) > MOST_LABELS else ""
    return Text(printable(f"{what}, number of rows with each (only you are told): {told or 'none'}{more}"))


def _mock_row(row: Row) -> str:
    """A row's text, then its label or its entities."""
    told = [*([row.label] if row.label is not None else []), *(f"{text} = {kind}" for kind, text in _entities(row))]
    return f"{row.text}  [{', '.join(told)}]" if told else row.text


def _entities(row: Row) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    tags = row.tags or ()
    for character, tag, before in zip(row.text, tags, (OUTSIDE, *tags), strict=False):
        if tag.startswith("I") and tag[2:] == before[2:]:
            kind, begun = found.pop()
            found.append((kind, begun + character))
        elif tag != OUTSIDE:
            found.append((tag[2:], character))
    return found
