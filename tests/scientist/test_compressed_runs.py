"""Whole runs of plans that compress, through real guards and secure sums; the worker's updates are drawn at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_privacy.auditor import verify_sums
from fl_privacy.compression.order_codec import sent_count
from fl_privacy.errors import OrderRefused, PlanError
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.parameters import count, flatten, from_bytes
from fl_privacy.round_order import Compression, RoundOrder
from fl_privacy.scientist.history import Watcher
from fl_privacy.scientist.run_folder import RunFolder
from tests.builders import tiny_bundle, tiny_plan
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Worker
from tests.guard_desk import GuardDesk
from tests.scientist.runs import a_run

PARTS: dict[str, dict[str, Any]] = {
    "a random part": {"sent": "random", "sent_share": 0.2},
    "a random part, the rest kept": {"sent": "random", "sent_share": 0.2, "error_feedback": True},
    "the shared top": {"sent": "shared-top", "sent_share": 0.2, "error_feedback": True},
    "a rotation": {"rotation": True},
    "a rotated part": {"rotation": True, "sent": "random", "sent_share": 0.3},
    "adaptive ranges": {"update_ranges": "adaptive"},
    "adaptive ranges of a part": {"update_ranges": "adaptive", "sent": "random", "sent_share": 0.5},
    "steps of 8 bits": {"downlink_bits": 8},
}


def run(rooms: Strongrooms, out: Path) -> RunFolder:
    a_run(rooms, {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}, Watcher()).train(out)
    return RunFolder(out)


def closed(rooms: Strongrooms) -> None:
    for guard in rooms.guards.values():
        guard.close()


@pytest.mark.parametrize("changes", PARTS.values(), ids=PARTS)
def test_every_map_goes_through_the_guards_and_moves_the_model(changes: dict[str, Any], tmp_path: Path, worker: Worker) -> None:
    rooms = make_strongrooms(tmp_path, trainable="head", rounds=3, target_epsilon=7.0, **changes)
    folder = run(rooms, tmp_path / "out")
    closed(rooms)
    history, specs = folder.read_history(), order_specs(rooms.plan, "train")
    assert len(history.rounds) == 3
    orders = [order for guard in rooms.guards.values() for order in guard.rounds.orders.all()]
    sent = sent_count(rooms.plan, count(specs))
    assert {folder.order.coordinates for folder in orders} == {sent}
    place, first = flatten(folder.model(folder.position), specs), flatten(from_bytes(rooms.bundle.weights), specs)
    moved = int((place != first).sum())
    assert moved > sent * 0.5 and (sent == count(specs) or rooms.plan.rotation or moved <= 3 * sent)
    sums = verify_sums(tmp_path / "out", rooms.guards["bank"].home.registry)
    assert sums.is_true and len(sums) == 3
    assert all(record.ciphertext_bytes == history.rounds[0].ciphertext_bytes for record in history.rounds)


def test_what_an_owner_did_not_send_comes_later_and_nothing_is_lost(tmp_path: Path, worker: Worker) -> None:
    """C4 through guards: what was sent in all rounds and what is still kept add up to all updates, but for rounding."""
    updates: dict[str, list[np.ndarray]] = {}
    run_worker = worker.run

    def remembered(job: Any, *callbacks: Any) -> None:
        run_worker(job, *callbacks)
        updates.setdefault(job.owner, []).append(np.fromfile(job.update, "<f4"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fl_privacy.guard.worker.run", remembered)
        fields = {"sent": "random", "sent_share": 0.5, "error_feedback": True, "update_bits": 12, "update_range": 1.0}
        rooms = make_strongrooms(tmp_path, trainable="head", rounds=3, target_epsilon=7.0, **fields)
        folder = run(rooms, tmp_path / "out")
    closed(rooms)
    specs = order_specs(rooms.plan, "train")
    moved = flatten(folder.model(folder.position), specs) - flatten(from_bytes(rooms.bundle.weights), specs)
    newest = [
        max(guard.home.folder.rglob("memory.f32"), key=lambda path: path.stat().st_mtime_ns) for guard in rooms.guards.values()
    ]
    left = np.mean([np.fromfile(path, "<f4") for path in newest], axis=0)
    told = np.mean([np.sum(own, axis=0) for own in updates.values()], axis=0)
    assert moved + left == pytest.approx(told, abs=1e-5), "a step of the rounding is 1 / 2047: that, too, is kept"
    assert np.abs(left).max() > 0.01, "else nothing was left out, and this shows nothing"


def test_an_order_with_another_map_than_the_plans_is_refused(tmp_path: Path) -> None:
    rooms = make_strongrooms(tmp_path, trainable="head", sent="random", sent_share=0.5)
    bank, size = rooms.guards["bank"], count(order_specs(rooms.plan, "train"))
    right = Compression(coordinates=size // 2 + size % 2)
    for told, changes in {
        "no others": None,
        "the plan sends": {"coordinates": size},
        "update_ranges are fixed": {"ranges": (0.1,)},
        "what is sent is 'random'": {"kept": rooms.upload(b"1234")},
    }.items():
        wrong = None if changes is None else right.model_copy(update=changes)
        with pytest.raises(OrderRefused, match=told):
            bank.rounds.place(rooms.order(compression=wrong))
    assert bank.rounds.place(rooms.order(compression=right))["state"] in ("training", "sealed")
    closed(rooms)


def test_an_order_keeps_its_digest_when_nothing_is_compressed(tmp_path: Path) -> None:
    rooms = make_strongrooms(tmp_path, trainable="head")
    closed(rooms)
    assert "compression" not in RoundOrder.parse(rooms.order().body).model_dump(mode="json")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sent": "top-k", "sent_share": 0.1}, "would tell which ones it changed"),
        ({"sent": "shared-top", "sent_share": 0.1}, "never be learnt"),
        ({"sent": "random"}, "share below 1"),
        ({"sent_share": 0.5}, "nothing is left out"),
        ({"rotation": True, "update_ranges": "adaptive"}, "mixes the coordinates"),
        ({"rotation": True, "strategy": "scaffold", "optimizer": "sgd"}, "scaffold needs whole updates"),
        (
            {"sent": "random", "sent_share": 0.5, "error_feedback": True, "layer_schedule": "progfed", "rounds": 8},
            "fit the next",
        ),
    ],
)
def test_a_plan_refuses_compression_that_cannot_be(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        tiny_plan(tiny_bundle(), **changes)
