"""Owners that are late, away or out of budget: what the scientist chose happens, and they are named."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.errors import BudgetExceeded, OwnerFailed, RoundFailed
from fl_privacy.scientist import rounds, training_run
from fl_privacy.scientist.history import Watcher
from fl_privacy.scientist.late_owners import gone_for_good, may_pass, next_cohort
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Worker
from tests.guard_desk import GuardDesk, unreachable
from tests.scientist.runs import FOUR, a_run, rooms_of_four
from tests.scientist.test_rounds import failing

SPENT = "BudgetExceeded: 8.1 of 8.0"


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(training_run, "PAUSE_SECONDS", 0.01)


@pytest.fixture
def rooms(tmp_path: Path, worker: Worker) -> Iterator[Strongrooms]:
    with rooms_of_four(tmp_path, rounds=3) as made:
        yield made


@pytest.fixture
def desks(rooms: Strongrooms) -> dict[str, GuardDesk]:
    return {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}


class Seen(Watcher):
    """Counts what a run tells."""

    def __init__(self) -> None:
        self.waited: list[list[str]] = []
        self.skipped: list[tuple[int, list[str]]] = []
        self.attempts: list[int] = []

    def round_failed(self, error: RoundFailed, attempts_left: int) -> None:
        self.attempts.append(attempts_left)

    def waiting(self, error: RoundFailed, seconds_left: float) -> None:
        self.waited.append(sorted(error.failures))

    def round_skipped(self, round_index: int, failures: Sequence[Mapping[str, str]]) -> None:
        self.skipped.append((round_index, sorted(failures[-1])))


def out_of_budget(step: str) -> None:
    if step == "train":
        raise BudgetExceeded("8.1 of 8.0")


def late(times: int) -> object:
    left = [times]

    def before(step: str) -> None:
        if step == "train" and left[0]:
            left[0] -= 1
            raise OwnerFailed("shop", "no answer within 60 s")

    return before


@given(
    st.lists(st.dictionaries(st.sampled_from(FOUR), st.just("OwnerFailed: x"), min_size=1), max_size=3),
    st.integers(3, 4),
)
def test_a_cohort_never_falls_below_the_minimum_nor_names_an_owner_twice(failed: list[dict[str, str]], least: int) -> None:
    cohort = next_cohort(FOUR, failed, least)
    assert len(cohort) >= least and list(cohort) == sorted(set(cohort)) and set(cohort) <= set(FOUR)
    if failed and len(left := set(next_cohort(FOUR, failed[:-1], least)) - failed[-1].keys()) >= least:
        assert set(cohort) == left


def test_only_what_a_person_must_change_is_final_and_only_what_lost_nothing_is_waited_for() -> None:
    assert gone_for_good({"bank": SPENT, "shop": "ConnectionFailed: away"}) == {"bank": SPENT}
    assert may_pass({"bank": SPENT, "shop": "ConnectionFailed: away"})
    assert not may_pass({"bank": "OrderFailed: the worker died", "shop": "ConnectionFailed: away"})
    assert not may_pass({"the cohort together": "CohortMismatch: two ciphertexts are the same"})


def test_an_owner_out_of_budget_is_asked_once_and_left_out_by_name(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path
) -> None:
    asked = []
    desks["shop"].before = lambda step: (asked.append(step), out_of_budget(step))[1]
    history = a_run(rooms, desks, Seen()).train(tmp_path / "out")
    assert asked == ["train"]
    assert [(record.attempt, record.cohort) for record in history.rounds] == [(1, FOUR[:3]), (0, FOUR[:3]), (0, FOUR[:3])]
    assert [record.absent for record in history.rounds] == [{"shop": SPENT}] * 3
    assert history.rounds[0].failures == ({"shop": SPENT},) and history.rounds[1].failures == ()
    line = json.loads((tmp_path / "out" / "history.jsonl").read_text().splitlines()[2])
    assert line["absent"] == {"shop": SPENT}
    assert [worker.trained_by(owner) for owner in FOUR] == [3, 3, 3, 0]


def test_with_too_few_owners_left_the_run_ends_before_anyone_pays_for_nothing(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path
) -> None:
    desks["shop"].before = desks["school"].before = out_of_budget
    with pytest.raises(RoundFailed, match="school: .*BudgetExceeded.*shop: BudgetExceeded"):
        a_run(rooms, desks, seen := Seen()).train(tmp_path / "out")
    assert seen.skipped == [(0, ["school", "shop"])]
    assert [worker.trained_by(owner) for owner in FOUR] == [1, 1, 0, 0]


def test_a_resumed_run_asks_again_who_was_out_of_budget(
    rooms: Strongrooms, desks: dict[str, GuardDesk], tmp_path: Path
) -> None:
    desks["shop"].before = desks["school"].before = out_of_budget
    run = a_run(rooms, desks, Seen())
    with pytest.raises(RoundFailed):
        run.train(tmp_path / "out")
    desks["shop"].before = desks["school"].before = lambda step: None
    history = run.resume(tmp_path / "out")
    assert [(record.round, record.cohort) for record in history.rounds] == [(1, FOUR), (2, FOUR)]


def test_one_who_is_waited_for_costs_neither_an_attempt_nor_a_second_training(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path
) -> None:
    desks["shop"].before, desks["bank"].before = late(5), unreachable("close", times=2)  # type: ignore[assignment]
    history = a_run(rooms, desks, seen := Seen(), when_late="wait").train(tmp_path / "out")
    assert seen.waited == [["shop"]] * 5 + [["bank"]] * 2
    assert [(record.attempt, record.cohort, record.absent) for record in history.rounds] == [(0, FOUR, {})] * 3
    assert [worker.trained_by(owner) for owner in FOUR] == [3] * 4


def test_the_wait_has_an_end(rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path) -> None:
    desks["shop"].before = unreachable("train")
    with pytest.raises(RoundFailed):
        a_run(rooms, desks, seen := Seen(), when_late="wait", wait=3.0).train(tmp_path / "out")
    assert seen.skipped == [(0, ["shop"]), (1, ["shop"])] and seen.waited
    assert seen.attempts == [0, 0]
    assert [worker.trained_by(owner) for owner in FOUR] == [2, 2, 2, 0], "once a round, however often it was asked"


def test_an_order_that_an_owner_has_lost_is_not_waited_for_but_ordered_anew_from_all(tmp_path: Path, worker: Worker) -> None:
    rooms = make_strongrooms(tmp_path, owners=FOUR, rounds=1, retries=1)
    desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}
    failing(worker, ("shop", 1))
    history = a_run(rooms, desks, seen := Seen(), when_late="wait").train(tmp_path / "out")
    assert seen.waited == []
    assert [(record.attempt, record.cohort) for record in history.rounds] == [(1, FOUR)]
    assert [worker.trained_by(owner) for owner in FOUR] == [1, 1, 1, 2]
    for guard in rooms.guards.values():
        guard.close()


def test_a_round_may_be_skipped_at_the_first_failure(
    rooms: Strongrooms, desks: dict[str, GuardDesk], worker: Worker, tmp_path: Path
) -> None:
    desks["shop"].before = unreachable("train", times=1)
    history = a_run(rooms, desks, seen := Seen(), when_late="skip").train(tmp_path / "out")
    assert seen.skipped == [(0, ["shop"])]
    assert [(record.round, record.attempt, record.cohort) for record in history.rounds] == [(1, 0, FOUR), (2, 0, FOUR)]
    assert [worker.trained_by(owner) for owner in FOUR] == [3, 3, 3, 2]
