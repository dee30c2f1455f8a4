"""A mended part of NiceGUI 2.12, the newest that can be installed beside PySyft, which pins an older Jinja2.

``nicegui.binding.remove`` goes through a dict from which finalizers take entries whenever the garbage collector runs, so that
a page could fail with "dictionary changed size during iteration" (zauberzeug/nicegui issue 4419, mended there in 2.16).
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from nicegui import binding

if TYPE_CHECKING:
    from _collections_abc import dict_items


class SteadyDict(dict[tuple[int, str], "weakref.finalize[Any, Any]"]):
    """A dict whose ``items`` are those of a copy, which no finalizer changes."""

    def items(self) -> dict_items[tuple[int, str], weakref.finalize[Any, Any]]:
        """All entries as they are now."""
        return dict(self).items()


def mend() -> None:
    """Put the steady dict in the place of NiceGUI's; does nothing the second time."""
    if not isinstance(binding.bindable_properties, SteadyDict):
        binding.bindable_properties = SteadyDict(binding.bindable_properties)
