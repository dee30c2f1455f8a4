"""What is forecast of a plan's bytes is what whole runs take, through real guards and secure sums; shares of cost and noise."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from fl_privacy.compute_costs import compute_share
from fl_privacy.guard import model_steps
from fl_privacy.learning.models import ModelBundle, new_bundle, outline
from fl_privacy.learning.tokenizer import build_vocabulary
from fl_privacy.learning.trainable import trainable_specs
from fl_privacy.parameters import count
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist import traffic
from fl_privacy.scientist.history import Watcher
from fl_privacy.scientist.preview import preview
from fl_privacy.scientist.views import Preview
from tests.builders import CONFIG, texts, tiny_plan
from tests.guard.conftest import make_strongrooms
from tests.guard.protocol import Worker
from tests.guard_desk import GuardDesk
from tests.scientist.fake_desks import FakeDesk
from tests.scientist.runs import FOUR, a_run

LABELS = ("good", "bad")
SIX = (*FOUR, "stall", "studio")


def a_bundle(**options: Any) -> ModelBundle:
    """Four layers of width 48: large enough for a round to be more than its words."""
    config = CONFIG | {"num_hidden_layers": 4, "hidden_size": 48, "intermediate_size": 96}
    return new_bundle(config, build_vocabulary(texts(200), 100), 0, "small", **options)


def labelled(**options: Any) -> ModelBundle:
    return a_bundle(head="classification", labels=LABELS, **options)


METHODS: dict[str, dict[str, Any]] = {
    "everything": {"holdout": 0.25, "evaluate_every": 2},
    "adapters": {"trainable": "lora", "labelled": True},
    "FedBT, both stages": {"layer_schedule": "fedbt", "labelled": True, "pretraining_rounds": 1, "holdout": 0.25},
    "ProgFed": {"layer_schedule": "progfed", "growth_stages": 2, "rounds": 4, "holdout": 0.25},
    "own layers": {"local_layers": "2-3", "labelled": True, "holdout": 0.25},
    "a random part": {"sent": "random", "sent_share": 0.2},
    "the shared top": {"sent": "shared-top", "sent_share": 0.3, "error_feedback": True},
    "steps of 8 bits": {"downlink_bits": 8, "holdout": 0.25, "evaluate_every": 1},
    "SCAFFOLD": {"strategy": "scaffold", "optimizer": "sgd"},
}
MORE: dict[str, dict[str, Any]] = {
    "the head": {"trainable": "head"},
    "upper layers": {"trainable": "layers:2-3"},
    "adapters, one half frozen, steps of 8 bits": {"trainable": "ffa-lora", "downlink_bits": 8},
    "FedBT, stage 1": {"layer_schedule": "fedbt", "local_depths": (2, 3, 4)},
    "FedBT, stage 2": {"layer_schedule": "fedbt", "labelled": True, "layer_cycle": 2, "rounds": 4},
    "ProgFed with rounds of the new layers alone": {
        "layer_schedule": "progfed",
        "growth_stages": 2,
        "warmup_rounds": 1,
        "rounds": 8,
    },
    "ProgFed with SCAFFOLD": {
        "layer_schedule": "progfed",
        "growth_stages": 2,
        "rounds": 5,
        "strategy": "scaffold",
        "optimizer": "sgd",
    },
    "FedBT with SCAFFOLD": {"layer_schedule": "fedbt", "strategy": "scaffold", "optimizer": "sgd"},
    "momentum and adaptive ranges": {"strategy": "fedavgm", "update_ranges": "adaptive"},
    "a rotation": {"rotation": True, "sent": "random", "sent_share": 0.5},
    "adapters, in groups that take turns": {
        "trainable": "ffa-lora",
        "labelled": True,
        "owners": SIX,
        "selection": "groups",
        "cohort_size": 3,
        "rounds": 4,
    },
    "groups that take turns": {
        "owners": SIX,
        "selection": "groups",
        "cohort_size": 3,
        "holdout": 0.25,
        "evaluate_every": 2,
        "rounds": 4,
    },
}


def bundle_for(changes: dict[str, Any]) -> ModelBundle:
    """The model of a method, with both heads where a plan needs them."""
    return labelled(language_head="pretraining_rounds" in changes) if changes.get("labelled") else a_bundle()


def fields_for(changes: dict[str, Any]) -> dict[str, Any]:
    task = {"task": "classification"} if changes.get("labelled") else {}
    changes = {name: value for name, value in changes.items() if name != "labelled"}
    return {"rounds": 3, "local_steps": 1, "target_epsilon": 7.0} | task | changes


def check_bytes(folder: Path, changes: dict[str, Any]) -> None:
    """Carry a plan through, and compare what it took with its forecast: all of it, and round by round."""
    bundle = bundle_for(changes)
    rooms = make_strongrooms(folder, bundle=bundle, **fields_for(changes))
    told = preview(rooms.plan, bundle, {owner: guard.corpora() for owner, guard in rooms.guards.items()}, {})
    desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}
    history = a_run(rooms, desks, Watcher()).train(folder / "out")
    for guard in rooms.guards.values():
        guard.close()
    rounds, lines = history.rounds, [*history.rounds, *history.evaluations]
    assert (told.rounds, told.evaluations) == (len(rounds), len(history.evaluations))
    assert told.bytes_up == pytest.approx(sum(line.bytes_up for line in lines), rel=0.02)
    assert told.bytes_down == pytest.approx(sum(line.bytes_down for line in lines), rel=0.02)
    assert [one.bytes_up for one in told.by_round] == pytest.approx([record.bytes_up for record in rounds], rel=0.02)
    assert [one.bytes_down for one in told.by_round] == pytest.approx([record.bytes_down for record in rounds], rel=0.02)


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS)
def test_a_run_takes_the_bytes_that_were_forecast(changes: dict[str, Any], tmp_path: Path, worker: Worker) -> None:
    check_bytes(tmp_path, changes)


@pytest.mark.slow
@pytest.mark.parametrize("changes", MORE.values(), ids=MORE)
def test_so_do_runs_of_all_other_methods(changes: dict[str, Any], tmp_path: Path, worker: Worker) -> None:
    check_bytes(tmp_path, changes)


def test_a_model_too_large_for_guards_to_make_goes_whole_after_its_step_in_forecast_and_run(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (traffic, model_steps):
        monkeypatch.setattr(module, "LARGEST_COMPOSED", 100_000)
    check_bytes(tmp_path, {"trainable": "layers:3-3", "rounds": 2})


def told_of(**changes: Any) -> tuple[TrainingPlan, Preview]:
    """A plan and its forecast, without anything being run."""
    bundle = bundle_for(changes)
    plan = tiny_plan(bundle, **fields_for(changes))
    (card,) = FakeDesk("bank").corpora()
    return plan, preview(plan, bundle, dict.fromkeys(plan.owners, [card.model_copy(update={"annotations": ("label",)})]), {})


def size_of(plan: TrainingPlan, setting: str) -> int:
    return count(trainable_specs(outline(plan.model), setting))


def test_noise_goes_with_the_root_of_what_is_trained() -> None:
    for setting in ("head", "layers:1-2"):
        plan, told = told_of(trainable=setting)
        assert told.noise == pytest.approx(math.sqrt(size_of(plan, setting) / size_of(plan, "all")))
    plan, told = told_of(layer_schedule="fedbt", labelled=True, layer_cycle=2, rounds=4)
    each = [math.sqrt(size_of(plan, f"layers:{lowest}-3") / size_of(plan, "all")) for lowest in (3, 2, 3, 2)]
    assert [one.noise for one in told.by_round] == pytest.approx(each)
    assert told.noise == pytest.approx(sum(each) / 4)


def test_a_part_that_stands_for_all_has_more_noise_and_one_whose_rest_comes_later_has_not() -> None:
    part = {"sent": "random", "sent_share": 0.25}
    assert told_of(**part)[1].noise == pytest.approx(2, rel=1e-4)
    assert told_of(**part, error_feedback=True)[1].noise == 1


def test_what_stays_with_an_owner_takes_computing_and_sends_no_noise() -> None:
    plan, told = told_of(local_layers="2-3", labelled=True)
    sent = size_of(plan, "all") - size_of(plan, "layers:2-3")
    assert told.compute == 1
    assert (told.coordinates, told.noise) == (sent, pytest.approx(math.sqrt(sent / size_of(plan, "all"))))


def test_a_plan_that_trains_everything_is_told_without_shares_and_in_one_table() -> None:
    _, told = told_of()
    assert (told.compute, told.noise, len(told.sheets())) == (1, 1, 1)
    assert "of the operations" not in str(told) and "By kind of round" not in told._repr_html_()


def test_rounds_that_differ_are_told_by_kind_with_what_each_trains() -> None:
    plan, told = told_of(layer_schedule="fedbt", labelled=True, layer_cycle=2, pretraining_rounds=3, rounds=7)
    _, kinds = told.sheets()
    assert [row[:2] for row in kinds.rows] == [
        ("1-2", "layer 0 and the mlm head"),
        ("3", "layer 1 and the mlm head"),
        ("4, 6", "layer 3 and the classification head"),
        ("5, 7", "layers 2-3 and the classification head"),
    ]
    assert [row[2] for row in kinds.rows[2:]] == [f"{size_of(plan, setting):,}" for setting in ("layers:3-3", "layers:2-3")]
    flat = " ".join(str(told).split())
    assert "By kind of round" in flat and f"{told.compute:.0%} of the operations" in flat
    assert "times as large" in flat and told._repr_html_().count("<table>") == 2


def test_kinds_of_rounds_are_named_after_what_is_trained() -> None:
    named = {
        "all of 4 layers": {},
        "the mlm head": {"trainable": "head"},
        "adapters of rank 8": {"trainable": "lora"},
        "adapters of rank 8 and the classification head": {"trainable": "ffa-lora", "labelled": True},
        "all of 4 layers; sent without layers 2-3 and the head": {"local_layers": "2-3", "labelled": True},
    }
    for words, changes in named.items():
        assert told_of(**changes)[1].by_round[0].trained == words
    _, told = told_of(layer_schedule="progfed", growth_stages=2, warmup_rounds=1, rounds=8)
    trained = ["all of 2 layers"] * 2 + ["layers 2-3 and the mlm head"] + ["all of 4 layers"] * 5
    assert [one.trained for one in told.by_round] == trained


def test_seconds_are_those_of_a_like_run_by_operations_and_coordinates(tmp_path: Path, worker: Worker) -> None:
    rooms = make_strongrooms(tmp_path, rounds=2)
    history = a_run(rooms, {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}, Watcher()).train(
        tmp_path / "out"
    )
    cards = {owner: guard.corpora() for owner, guard in rooms.guards.items()}
    for guard in rooms.guards.values():
        guard.close()
    training = sum(record.seconds_training for record in history.rounds)
    other = sum(record.seconds_crypto + record.seconds_transport for record in history.rounds)

    def seconds(**changes: Any) -> float | None:
        plan = rooms.plan.model_copy(update=changes)
        return preview(plan, rooms.bundle, cards, {}, tmp_path / "out").seconds

    assert seconds() == pytest.approx(training + other)
    assert seconds(local_steps=6, rounds=4) == pytest.approx(6 * training + 2 * other)
    shares = compute_share(rooms.plan.model_copy(update={"trainable": "head"}), 0)
    sent = size_of(rooms.plan, "head") / size_of(rooms.plan, "all")
    assert seconds(trainable="head") == pytest.approx(shares * training + sent * other)
