"""One prepared runner for all tests that meet trouble, and real owners for those that need datasites, too."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.durability.crash_matrix import MEMORY
from tests.durability.runner import Runner
from tests.end_to_end.test_federation import world  # noqa: F401 - a fixture


@pytest.fixture(scope="session")
def runner() -> Iterator[Runner]:
    """The snapshots of one whole life."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        made = Runner(Path(folder))
        made.prepare()
        yield made
