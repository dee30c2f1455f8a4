"""The mended part of NiceGUI."""

from __future__ import annotations

import gc

from nicegui import binding

from fl_privacy.console.nicegui_registry import SteadyDict, mend


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
