"""What tests in several folders share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.guard.protocol import Worker


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A stand-in for the training worker, where training is not what is tested."""
    from tests.guard.protocol import Worker  # imports torch, for the tests that want it only

    stand_in = Worker()
    monkeypatch.setattr("fl_privacy.guard.worker.run", stand_in.run)
    return stand_in
