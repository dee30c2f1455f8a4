"""The mended parts of NiceGUI."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest
from nicegui import Client, binding

from fl_privacy.console.nicegui_mends import SteadyDict, mend
from tests.console.fake_owner import fake_owner
from tests.console.visitor import logged_in


class Box:
    content = binding.BindableProperty()

    def __init__(self) -> None:
        self.content, self.itself = 1, self  # only the garbage collector can take it


def test_elements_are_removed_while_the_garbage_collector_takes_others() -> None:
    mend()
    assert isinstance(binding.bindable_properties, SteadyDict)
    thresholds = gc.get_threshold()
    gc.disable()
    for _ in range(300):
        Box()
    gc.set_threshold(gc.get_count()[0] + 100)  # due in the middle of going through the boxes
    gc.enable()
    try:
        binding.remove([])
    finally:
        gc.set_threshold(*thresholds)


@pytest.mark.timeout(60)  # it would never end
def test_a_page_that_does_not_hear_that_it_is_cancelled_ends_with_the_server(tmp_path: Path) -> None:
    async def told() -> None:
        with fake_owner(tmp_path) as owner:
            async with logged_in(owner) as user:
                await user.open("/owners")
                await user.should_see("Registry 1", retries=60)
                pages = list(Client.instances.values())
                await asyncio.sleep(0.5)  # every loop waits for something to send
        for page in pages:
            page.outbox._set_enqueue_event()  # which comes together with the cancellation at the end of asyncio.run

    asyncio.run(told())
