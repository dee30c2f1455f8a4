"""A run ends by the plan's rules before its rounds are done, with the best model, also when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from fl_privacy.learning.metrics import Counts, TokenCounts
from fl_privacy.parameters import Parameters, from_bytes
from fl_privacy.scientist.history import RoundRecord, Watcher
from fl_privacy.scientist.run_folder import RunFolder
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Worker
from tests.guard_desk import GuardDesk
from tests.scientist.runs import a_run


class Seen(Watcher):
    """Why a run ended, and after which rounds."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.done: list[int] = []

    def ended(self, reason: str) -> None:
        self.reasons.append(reason)

    def round_done(self, record: RoundRecord) -> None:
        self.done.append(record.round)


class Scores:
    """An evaluation that gives these hits of ten, one after the other, and remembers the models."""

    def __init__(self, *hits: int) -> None:
        self.hits, self.models = list(hits), list[Parameters]()

    def __call__(self, model: Parameters, round_index: int) -> Counts:
        self.models.append(model)
        return TokenCounts([30, self.hits[len(self.models) - 1], 2, 10])


def prepared(folder: Path, **plan: object) -> tuple[Strongrooms, dict[str, GuardDesk]]:
    rooms = make_strongrooms(folder, rounds=6, target_epsilon=7.0, **plan)
    return rooms, {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}


@pytest.fixture
def rooms_of(tmp_path: Path, worker: Worker) -> Iterator[object]:
    made: list[Strongrooms] = []

    def make(**plan: object) -> tuple[Strongrooms, dict[str, GuardDesk]]:
        rooms, desks = prepared(tmp_path, **plan)
        made.append(rooms)
        return rooms, desks

    yield make
    for rooms in made:
        for guard in rooms.guards.values():
            guard.close()


def test_rounds_without_gain_end_the_run_and_the_best_model_is_kept_and_evaluated(rooms_of: object, tmp_path: Path) -> None:
    rooms, desks = rooms_of(patience=2, holdout=0.25, evaluation_bound=60.0)  # type: ignore[operator]
    scores, out = Scores(1, 3, 2, 3), tmp_path / "out"
    history = a_run(rooms, desks, seen := Seen(), scores).train(out)
    assert seen.done == [0, 1, 2] and seen.reasons == ["2 rounds without a better validation score"]
    (evaluation,) = history.evaluations
    assert evaluation.round == 6
    folder = RunFolder(out)
    best = folder.model(folder.position)
    assert all((best[name] == scores.models[1][name]).all() for name in best), "a tie is no gain: the first of the best"
    saved = from_bytes((out / "model" / "model.safetensors").read_bytes())
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert (saved[name] == best[name]).all() and (best[name] != scores.models[3][name]).any()


def test_a_run_that_ended_early_stays_ended_when_it_is_resumed(rooms_of: object, tmp_path: Path) -> None:
    rooms, desks = rooms_of(patience=1)  # type: ignore[operator]
    run = a_run(rooms, desks, Seen(), Scores(1, 1))
    assert len(run.train(tmp_path / "out").rounds) == len(run.resume(tmp_path / "out").rounds) == 1


def test_without_a_rule_the_last_model_counts(rooms_of: object, tmp_path: Path) -> None:
    rooms, desks = rooms_of()  # type: ignore[operator]
    scores = Scores(9, 8, 7, 6, 5, 4, 3)
    history = a_run(rooms, desks, seen := Seen(), scores).train(tmp_path / "out")
    assert seen.reasons == ["all 6 rounds are done"] and len(history.rounds) == 6
    folder = RunFolder(tmp_path / "out")
    last = folder.model(folder.position)
    assert all((last[name] == scores.models[-1][name]).all() for name in last)
    assert all(record.relative_update is not None and record.relative_update > 0 for record in history.rounds)
