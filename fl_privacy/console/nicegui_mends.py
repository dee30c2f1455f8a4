"""Two mended parts of NiceGUI 2.12, the newest that can be installed beside PySyft, which pins an older Jinja2.

``nicegui.binding.remove`` goes through a dict from which finalizers take entries whenever the garbage collector runs, so that
a page could fail with "dictionary changed size during iteration" (zauberzeug/nicegui issue 4419, mended there in 2.16).

``Outbox.loop`` waits with ``asyncio.wait_for``, which before Python 3.12 forgets a cancellation that arrives together with what
it waits for (python/cpython issue 86296). A console told to end in that moment would then wait for its page for ever.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from nicegui import Client, app, binding

if TYPE_CHECKING:
    from _collections_abc import dict_items


class SteadyDict(dict[tuple[int, str], "weakref.finalize[Any, Any]"]):
    """A dict whose ``items`` are those of a copy, which no finalizer changes."""

    def items(self) -> dict_items[tuple[int, str], weakref.finalize[Any, Any]]:
        """All entries as they are now."""
        return dict(self).items()


def mend() -> None:
    """Put the steady dict in the place of NiceGUI's and let the pages end with the server; the second time changes nothing."""
    if not isinstance(binding.bindable_properties, SteadyDict):
        binding.bindable_properties = SteadyDict(binding.bindable_properties)
        app.on_shutdown(end_pages)


def end_pages() -> None:
    """Tell the loop of every open page to end by itself, whether or not it hears that it is cancelled."""
    for client in Client.instances.values():
        client.outbox.stop()
