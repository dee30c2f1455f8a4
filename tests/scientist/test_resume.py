"""A run whose process is killed goes on where it was: the same model, and nothing is trained or paid for twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fl_privacy.encryption.evidence import round_folders
from fl_privacy.errors import CheckpointError
from fl_privacy.parameters import from_bytes
from fl_privacy.scientist.history import Watcher
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.scientist.training_run import TrainingRun
from fl_privacy.strategies.fedavg import FedAvg
from tests.builders import text_rows
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.scientist.remote_desks import GuardsOffice, finish, train_exactly
from tests.scientist.runs import a_run

KILLED = -9
PLAN = {"holdout": 0.25, "evaluation_noise": 4.0, "evaluation_bound": 60.0, "rounds": 2}


@contextmanager
def an_office(folder: Path, **plan: Any) -> Iterator[GuardsOffice]:
    """Guards in this process, lent to others; their workers give the same updates in every test."""
    (folder / "rooms").mkdir()
    rooms = make_strongrooms(folder / "rooms", **PLAN | plan)
    office = GuardsOffice(rooms, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fl_privacy.guard.worker.run", train_exactly)
        yield office
    office.close()
    for guard in rooms.guards.values():
        guard.close()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[GuardsOffice]:
    with an_office(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], list[str]]:
    """What a run without trouble leaves, and its moments."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with an_office(folder) as office:
        assert finish(office.sent(folder / "out"), folder / "moments") == 0
        left = left_behind(office.rooms, folder / "out")
    return left, (folder / "moments").read_text().splitlines()


def left_behind(rooms: Strongrooms, out: Path, rounds: int = 2) -> dict[str, object]:
    """Everything that a run decides: the model, what the owners paid, the history without times and signatures."""
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    statements = {owner: guard.home.ledger.statement() for owner, guard in rooms.guards.items()}
    return {
        "model": (out / "checkpoint" / f"state-{rounds:03d}.safetensors").read_bytes(),
        "saved": (out / "model" / "model.safetensors").read_bytes(),
        "spent": {owner: (statement.epsilon_spent, statement.entries) for owner, statement in statements.items()},
        "turns": [(line["round"], line.get("evaluation", False), line["attempt"], line["cohort"]) for line in lines],
        "evidence": [f"{folder.parent.name}/{folder.name}" for folder in round_folders(out)],
    }


def number_of(moments: list[str], name: str, occurrence: int) -> int:
    """Which moment, counted from one, is a certain occurrence of this name."""
    return [place for place, found in enumerate(moments, start=1) if found == name][occurrence - 1]


# name -> the moment in the second round: of three owners' the first, or the last
PHASES = {
    "before the order is on disk": ("position.json is to be written", 4),
    "before the order is sent": ("position.json is written", 4),
    "one owner was asked to train": ("train is answered", 4),
    "all have trained": ("train is answered", 6),
    "the sums are fetched": ("fetch_blob is answered", 7),
    "one owner closed": ("close_order is answered", 4),
    "all closed": ("close_order is answered", 6),
    "one owner revealed": ("reveal_self_mask is answered", 4),
    "all revealed": ("reveal_self_mask is answered", 6),
    "one owner opened": ("open is answered", 3),
    "opened by both": ("open is answered", 4),
    "the values are fetched": ("fetch_blob is answered", 8),
    "applied, before the checkpoint": ("state-002.safetensors is to be written", 1),
    "in the middle of the state": ("state-002.safetensors is written in part", 1),
    "between state and position": ("state-002.safetensors is written", 1),
    "in the middle of the position": ("position.json is written in part", 5),
    "after the checkpoint": ("position.json is written", 5),
    "in the middle of the history's line": ("a line is written in part", 2),
    "after the history's line": ("a line is written", 2),
}


QUICK = ("between state and position",)


def kill_and_resume(office: GuardsOffice, folder: Path, moment: int) -> dict[str, object]:
    """What is left of a run that is killed at a moment and then resumed."""
    sent = office.sent(folder / "out")
    assert finish(sent, folder / "moments", moment) == KILLED
    assert finish(sent, folder / "moments") == 0
    return left_behind(office.rooms, folder / "out")


@pytest.mark.parametrize("phase", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PHASES])
def test_a_run_killed_in_the_second_round_ends_as_an_undisturbed_one(
    phase: str, office: GuardsOffice, undisturbed: tuple[dict[str, object], list[str]], tmp_path: Path
) -> None:
    left, moments = undisturbed
    assert kill_and_resume(office, tmp_path, number_of(moments, *PHASES[phase])) == left


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_run_killed_at_any_moment_ends_as_an_undisturbed_one(
    undisturbed: tuple[dict[str, object], list[str]], tmp_path: Path
) -> None:
    left, moments = undisturbed
    differ = []
    for moment in range(1, len(moments) + 1):
        (folder := tmp_path / str(moment)).mkdir()
        with an_office(folder) as office:
            if kill_and_resume(office, folder, moment) != left:
                differ.append((moment, moments[moment - 1]))
    assert len(moments) > 100 and differ == []


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_in_each_turn_still_ends_as_an_undisturbed_one(
    office: GuardsOffice, undisturbed: tuple[dict[str, object], list[str]], tmp_path: Path
) -> None:
    sent, statuses = office.sent(tmp_path / "out"), list[int | None]()
    while 0 not in statuses:  # a turn has more than forty moments
        statuses.append(finish(sent, tmp_path / "moments", last=15 + 12 * (len(statuses) % 5)))
        assert len(statuses) < 25, "it makes no headway"
    assert statuses[:-1].count(KILLED) == len(statuses) - 1 > 5
    assert left_behind(office.rooms, tmp_path / "out") == undisturbed[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", [{"strategy": "fedadam"}, {"strategy": "scaffold", "optimizer": "sgd"}], ids=lambda plan: plan["strategy"]
)
def test_a_strategys_own_tensors_survive_too(plan: dict[str, str], tmp_path: Path) -> None:
    """Killed once the second round's state is written and its position not, and once owners have revealed in the third."""
    left, moments = [], list[str]()
    for name, occurrence in (("", 0), ("state-002.safetensors is written", 1), ("reveal_self_mask is answered", 8)):
        (folder := tmp_path / str(occurrence)).mkdir()
        with an_office(folder, rounds=3, holdout=0.0, **plan) as office:
            sent = office.sent(folder / "out")
            if name:
                assert finish(sent, folder / "moments", number_of(moments, name, occurrence)) == KILLED
            assert finish(sent, folder / "moments") == 0
            left.append(left_behind(office.rooms, folder / "out", rounds=3))
        moments = moments or (folder / "moments").read_text().splitlines()
    assert left[1:] == left[:1] * 2


@pytest.mark.slow
def test_a_run_killed_between_its_last_round_and_its_model_still_leaves_the_model(tmp_path: Path) -> None:
    out, name = tmp_path / "out", "bert.encoder.layer.0.attention.self.query.weight"
    with an_office(tmp_path, rounds=1, holdout=0.0) as office:
        for folder in (out, tmp_path / "warm"):  # which sends nothing that owners have, as the next will
            assert finish(replace(office.sent(out), out=folder), tmp_path / "moments", last=10**6) == 0
        moments = (tmp_path / "moments").read_text().splitlines()
        sent = replace(office.sent(out), out=tmp_path / "again")  # the same orders, answered from what is there
        assert finish(sent, tmp_path / "moments", number_of(moments, "a line is written", 1)) == KILLED
        assert not (sent.out / "model").exists()
        assert finish(sent, tmp_path / "moments") == 0
    saved = from_bytes((sent.out / "model" / "model.safetensors").read_bytes())
    run = RunFolder(sent.out)
    assert (saved[name] == run.model(run.position)[name]).all() and (sent.out / "rounds.png").exists()


@pytest.fixture
def stopped(office: GuardsOffice, tmp_path: Path) -> tuple[TrainingRun, Path]:
    """A run that its second round has ended, and its folder."""
    office.desks["bank"].before = lose_round(1)
    run = a_run(office.rooms, office.desks, Watcher(), when_late="skip")
    with pytest.raises(Lost):
        run.train(tmp_path / "out")
    for desk in office.desks.values():
        desk.before = lambda step: None
    return run, tmp_path / "out"


class Lost(Exception):
    """A defect, in the middle of a round."""


def lose_round(number: int) -> Callable[[str], None]:
    """A ``before`` that raises at the survivor list of a round."""
    seen = []

    def before(step: str) -> None:
        seen.append(step)
        if seen.count("close") > number:
            raise Lost

    return before


def test_an_unfinished_run_is_not_overwritten(stopped: tuple[TrainingRun, Path]) -> None:
    run, out = stopped
    before = (out / "history.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="'tiny' that is not finished; resume it, or take another folder"):
        run.train(out)
    assert (out / "history.jsonl").read_bytes() == before
    history = run.resume(out)
    assert [record.round for record in history.rounds] == [0, 1]


def test_a_finished_run_is_only_read(stopped: tuple[TrainingRun, Path]) -> None:
    run, out = stopped
    run.resume(out)
    history = replace(run, desks={}).resume(out)
    assert [record.round for record in history.rounds] == [0, 1] and len(history.evaluations) == 1
    assert history.accuracy_before == 0.1


def test_a_run_whose_folder_is_lost_is_ordered_again_at_no_cost(
    stopped: tuple[TrainingRun, Path], office: GuardsOffice, tmp_path: Path
) -> None:
    """The same plan gives the same orders, which the owners answer from what they have."""
    run, out = stopped
    run.resume(out)
    first = left_behind(office.rooms, out)
    run.train(tmp_path / "again")
    assert left_behind(office.rooms, tmp_path / "again") == first


def test_a_run_is_resumed_with_its_own_plan_and_strategy_only(stopped: tuple[TrainingRun, Path]) -> None:
    run, out = stopped
    other = run.plan.model_copy(update={"name": "other"})
    with pytest.raises(CheckpointError, match="a run of another plan, 'tiny'"):
        replace(run, plan=other).resume(out)
    with pytest.raises(
        CheckpointError, match=r"with the plan's strategy; resume it with that, not with FedAvg\(server_lr=0.5\)"
    ):
        run.resume(out, FedAvg(0.5))


def test_a_folder_in_use_is_left_alone(stopped: tuple[TrainingRun, Path]) -> None:
    run, out = stopped
    with RunFolder(out).locked(), pytest.raises(CheckpointError, match="in use by another process"):
        run.resume(out)


def test_a_folder_without_a_run_cannot_be_resumed(stopped: tuple[TrainingRun, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run that could go on: run.json cannot be read"):
        stopped[0].resume(tmp_path / "elsewhere")


@pytest.mark.parametrize("name", ["run.json", "position.json", "state-001.safetensors", "weights.safetensors"])
def test_a_damaged_file_is_named(stopped: tuple[TrainingRun, Path], name: str) -> None:
    run, out = stopped
    file = out / "checkpoint" / name
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match=name):
        _ = RunFolder(out).bundle
        run.resume(out)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines + lines[:1], "has 2 lines, the run has written 1"),
        (lambda lines: [lines[0].replace(b'"round":0', b'"round":5')], "or the last one is another"),
    ],
)
def test_a_history_that_is_not_the_runs_is_refused(
    stopped: tuple[TrainingRun, Path], change: Callable[[list[bytes]], list[bytes]], said: str
) -> None:
    run, out = stopped
    file = out / "history.jsonl"
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(CheckpointError, match=said):
        run.resume(out)


def test_what_the_run_validates_on_is_kept_from_other_users(stopped: tuple[TrainingRun, Path]) -> None:
    _, out = stopped
    file = out / "checkpoint" / "validation.jsonl"
    assert file.stat().st_mode & 0o077 == 0
    assert RunFolder(out).validation == text_rows(3)
