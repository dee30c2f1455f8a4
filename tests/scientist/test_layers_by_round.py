"""Whole runs in which the trained layers change from round to round, through real guards, workers and secure sums."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy.errors import OrderRefused
from fl_privacy.guard.worker import Job
from fl_privacy.learning.local_start import own_specs, sent_specs
from fl_privacy.learning.models import ModelBundle, new_bundle
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.learning.tokenizer import build_vocabulary
from fl_privacy.parameters import Parameters, from_bytes
from fl_privacy.round_order import RoundOrder
from fl_privacy.scientist.history import History, Watcher
from fl_privacy.scientist.run_folder import RunFolder
from tests.builders import CONFIG, texts
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Worker
from tests.guard_desk import GuardDesk
from tests.scientist.runs import a_run

LABELS = ("good", "bad")
LAYER = "bert.encoder.layer."


def a_bundle(layers: int, **options: Any) -> ModelBundle:
    return new_bundle(CONFIG | {"num_hidden_layers": layers}, build_vocabulary(texts(200), 100), 0, "tiny", **options)


@contextlib.contextmanager
def strongrooms(folder: Path, bundle: ModelBundle, **changes: Any) -> Iterator[Strongrooms]:
    rooms = make_strongrooms(folder, bundle=bundle, **{"local_steps": 1, "target_epsilon": 7.0} | changes)
    yield rooms
    for guard in rooms.guards.values():
        guard.close()


def trained(rooms: Strongrooms, out: Path) -> tuple[History, Parameters]:
    desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}
    history = a_run(rooms, desks, Watcher()).train(out)
    folder = RunFolder(out)
    return history, folder.model(folder.position)


def ordered(out: Path, round_index: int) -> RoundOrder:
    """The order of a round, from its evidence."""
    request = json.loads((out / "rounds" / f"{round_index:03d}" / "request.json").read_text())
    return RoundOrder.parse(request["order"]["body"])


def moved(before: Parameters, after: Parameters) -> set[str]:
    return {name for name in before if not np.array_equal(before[name], after[name])}


def test_further_pretraining_moves_one_layer_a_round_and_nothing_else(tmp_path: Path, worker: Worker) -> None:
    """FB7: layers above the last trained one and the embeddings stay, bit for bit. Owners' models differ in depth."""
    bundle = a_bundle(4)
    with strongrooms(tmp_path, bundle, rounds=3, layer_schedule="fedbt", local_depths=(2, 3, 4)) as rooms:
        history, model = trained(rooms, tmp_path / "out")
        changed = moved(from_bytes(bundle.weights), model)
    layers = [{name.split(".")[3] for name in specs if name.startswith(LAYER)} for specs in names_by_round(tmp_path / "out", 3)]
    assert layers == [{"0"}, {"0"}, {"1"}]
    assert len(history.rounds) == 3
    assert {name.split(".")[3] for name in changed if name.startswith(LAYER)} == {"0", "1"}
    assert {name.split(".")[0] for name in changed if not name.startswith(LAYER)} == {"cls"}


def names_by_round(out: Path, rounds: int) -> list[list[str]]:
    return [[spec.name for spec in ordered(out, index).tensors] for index in range(rounds)]


def test_both_stages_in_one_plan_train_first_the_language_models_head_and_then_the_labels(tmp_path: Path) -> None:
    bundle = a_bundle(2, head="classification", labels=LABELS, language_head=True)
    fields = {"task": "classification", "rounds": 4, "pretraining_rounds": 2, "layer_schedule": "fedbt", "layer_cycle": 2}
    with strongrooms(tmp_path, bundle, **fields) as rooms:
        history, model = trained(rooms, tmp_path / "out")
    heads = [{name.split(".")[0] for name in names} for names in names_by_round(tmp_path / "out", 4)]
    assert heads[:2] == [{"bert", "cls"}] * 2 and heads[2:] == [{"bert", "classifier"}] * 2
    assert len(history.rounds) == 4
    changed = moved(from_bytes(bundle.weights), model)
    assert {"classifier.weight", "cls.predictions.bias", "bert.pooler.dense.weight"} <= changed
    assert not any("embeddings" in name for name in changed)
    saved = from_bytes((tmp_path / "out" / "model" / "model.safetensors").read_bytes())
    assert "classifier.weight" in saved and not any(name.startswith("cls.") for name in saved)


def test_a_growing_model_keeps_its_old_layers_and_starts_its_head_anew(tmp_path: Path, worker: Worker) -> None:
    """PG3. Four layers in two stages: two rounds of two layers, one of the new ones only, then all of them."""
    bundle, blobs = a_bundle(4), dict[int, Parameters]()
    worker.fail = lambda job: blobs.update({job.round: from_bytes(Path(job.weights).read_bytes())})
    with strongrooms(tmp_path, bundle, rounds=8, layer_schedule="progfed", growth_stages=2, warmup_rounds=1) as rooms:
        history, model = trained(rooms, tmp_path / "out")
    names = names_by_round(tmp_path / "out", 8)
    layers = ["".join(sorted({name.split(".")[3] for name in own if name.startswith(LAYER)})) for own in names]
    assert layers == ["01", "01", "23", *["0123"] * 5]
    assert [any("embeddings" in name for name in own) for own in names] == [True, True, False, *[True] * 5]
    assert len(history.rounds) == 8 and set(names[-1]) == set(model)
    first, late, grown = blobs[0], blobs[1], blobs[2]
    head = {name for name in first if name.startswith("cls.")}
    assert moved(first, late) == set(names[0]), "the first round moved all of the small model, its head too"
    assert not moved(first, grown) & head, "the head starts anew"
    old = set(names[0]) - head
    assert moved(first, grown) == old and not any(name.startswith((LAYER + "2", LAYER + "3")) for name in moved(first, grown))


def test_an_order_out_of_schedule_is_refused(tmp_path: Path) -> None:
    """FB12: otherwise a scientist could steer to the layer that it would like to see."""
    with strongrooms(tmp_path, a_bundle(4), rounds=3, layer_schedule="fedbt") as rooms:
        bank = rooms.guards["bank"]
        for tensors in (order_specs(rooms.plan, "train", 2), order_specs(rooms.plan, "train", 0)[1:]):
            with pytest.raises(OrderRefused, match="not the ones that the approved plan trains in round 0"):
                bank.rounds.place(rooms.order(tensors=tensors))


def test_an_owners_own_layers_never_leave_it_and_are_carried_to_its_next_round(tmp_path: Path) -> None:
    """SB3: what stays differs from owner to owner, and what is shared is the same for all."""
    bundle = a_bundle(3, head="classification", labels=LABELS)
    fields = {"task": "classification", "rounds": 2, "local_layers": "2-2", "holdout": 0.25}
    with strongrooms(tmp_path, bundle, **fields) as rooms:
        plan, first = rooms.plan, from_bytes(bundle.weights)
        history, model = trained(rooms, tmp_path / "out")
        own = {}
        for owner, guard in rooms.guards.items():
            (kept,) = guard.home.folder.rglob("own-layers.safetensors")
            own[owner] = from_bytes(kept.read_bytes())
            leaving = b"".join(path.read_bytes() for path in (guard.home.folder / "outbox").iterdir())
            assert own[owner]["classifier.weight"].tobytes() not in leaving
    names = {spec.name for spec in own_specs(plan)}
    assert names and not names & {spec.name for spec in sent_specs(plan, 0)} and not names & moved(first, model)
    assert all(set(layers) == names for layers in own.values())
    assert len({layers["classifier.weight"].tobytes() for layers in own.values()}) == 3
    assert all(moved({name: first[name] for name in names}, layers) == names for layers in own.values())
    assert len(history.rounds) == 2 and len(history.evaluations) == 1


def test_a_round_starts_from_the_own_layers_of_the_last_sealed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = a_bundle(3, head="classification", labels=LABELS)
    jobs: list[Job] = []

    def leave(job: Job) -> None:
        Path(job.own_after).write_bytes(bundle.weights)

    worker = Worker(jobs, fail=leave)
    monkeypatch.setattr("fl_privacy.guard.worker.run", worker.run)
    fields = {"task": "classification", "rounds": 3, "local_layers": "1-2"}
    with strongrooms(tmp_path, bundle, **fields) as rooms:
        trained(rooms, tmp_path / "out")
        left = [path for guard in rooms.guards.values() for path in guard.home.folder.rglob("own-layers.safetensors")]
    by_round = [[job for job in jobs if job.round == number] for number in range(3)]
    assert [job.own_before for job in by_round[0]] == [""] * 3
    for before, after in zip(by_round[:-1], by_round[1:], strict=True):
        assert {job.own_after for job in before} == {job.own_before for job in after}
    assert len(left) == 6, "the round before the last may go only when the last has come to a receipt"
