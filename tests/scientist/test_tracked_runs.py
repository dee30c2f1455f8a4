"""``Federation.run`` and ``resume`` with trackers, against guards: a run that lost its process shows once, and as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fl_privacy.errors import CheckpointError
from fl_privacy.scientist.federation import Federation
from fl_privacy.scientist.history import History, RoundRecord, Watcher
from fl_privacy.scientist.tracking import TensorBoard, numbers
from fl_privacy.scientist.training_run import TrainingRun
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard_desk import GuardDesk
from tests.scientist.events import once, read_back
from tests.scientist.remote_desks import train_exactly
from tests.scientist.runs import a_run


class Killed(Watcher):
    """Ends the process in the first round, before trackers hear of it."""

    def round_done(self, record: RoundRecord) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Strongrooms]:
    monkeypatch.setattr("fl_privacy.guard.worker.run", train_exactly)
    (tmp_path / "rooms").mkdir()
    made = make_strongrooms(tmp_path / "rooms", rounds=2)
    yield made
    for guard in made.guards.values():
        guard.close()


@pytest.fixture
def federation(rooms: Strongrooms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Connected to guards in this process, without datasites between."""
    desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}

    def training_run(_: Federation, plan: Any, bundle: Any, validation: Any, watcher: Watcher, *__: Any) -> TrainingRun:
        return a_run(rooms, desks, watcher)

    monkeypatch.setattr(Federation, "_training_run", training_run)
    return Federation(tmp_path / "scientist", {})


def test_a_run_that_lost_its_process_is_tracked_once_and_as_a_whole(
    federation: Federation, rooms: Strongrooms, tmp_path: Path
) -> None:
    out, board = tmp_path / "out", tmp_path / "board"
    given: Any = (rooms.plan, rooms.bundle, [], out)
    with pytest.raises(KeyboardInterrupt):
        federation.run(*given, watcher=Killed(), track=[TensorBoard(board)])
    history = federation.resume(out, track=[TensorBoard(board)])
    assert len(history.rounds) == 2 and read_back(board) == once(numbers(history))
    again = federation.run(*given, resume=True, track=[TensorBoard(board)])
    assert isinstance(again, History) and read_back(board) == once(numbers(history))
    federation.resume(out, track=[TensorBoard(tmp_path / "another")])
    assert read_back(tmp_path / "another") == once(numbers(history))
    with pytest.raises(CheckpointError, match="holds numbers of another run"):
        federation.run(*given, track=[TensorBoard(board)])  # begun anew
