"""Text that others wrote, made safe to look at."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with every character escaped that a terminal would obey, hide, or show in another direction."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
