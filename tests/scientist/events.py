"""TensorBoard's event files, read back by TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl_privacy.scientist.tracking import Numbers


def read_back(folder: Path) -> dict[tuple[str, int], list[float]]:
    """All events by tag and step; one that is there twice has two values."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}, purge_orphaned_data=False)
    events.Reload()
    found: dict[tuple[str, int], list[float]] = {}
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag):
            found.setdefault((tag, event.step), []).append(event.tensor_proto.float_val[0])
    return found


def once(told: Numbers) -> dict[tuple[str, int], list[Any]]:
    return {name: [pytest.approx(value, rel=1e-6)] for name, value in told.items()}
