"""What an unopened order needs stays in the guard's boxes, however many blobs arrive after it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fl_privacy.errors import TooLarge
from fl_privacy.guard import blobs
from fl_privacy.guard.retention import held
from fl_privacy.round_order import RoundOrder
from tests.guard.conftest import Strongrooms, finished, upload
from tests.guard.protocol import Worker, attempt


def test_uploads_beyond_the_quota_never_drop_what_an_unopened_order_needs(
    rooms: Strongrooms, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt(rooms, tmp_path / "scientist")
    guard, model, total = rooms.guards["bank"], made.order.model, made.closing.total
    monkeypatch.setattr(blobs, "UPLOADER_COUNT", 3)
    for name in (model, total):  # the model until the order is closed, the total from then on until it is opened
        os.utime(guard.blobs.inbox / name, (0, 0))
        for content in (b"one", b"two", b"three"):
            upload(guard, content)
        kept = {path.name for path in guard.blobs.inbox.iterdir() if not path.suffix}
        assert len(kept) == 3 and name in kept
        if name == model:
            upload(guard, made.total.read_bytes())
            survivors = made.close()
    monkeypatch.setattr(blobs, "UPLOADER_COUNT", 1)
    with pytest.raises(TooLarge, match="1 are needed by orders that are not opened yet"):
        upload(guard, b"four")
    assert survivors == made.close(), "and the round goes on"
    guard.closing.open(made.opening())
    upload(guard, b"four")
    assert not (guard.blobs.inbox / model).exists()


def test_an_owner_that_opens_no_sum_has_room_for_the_models_of_all_rounds(
    rooms: Strongrooms, worker: Worker, tmp_path: Path
) -> None:
    """Orders that it has closed, and others opened, stay unopened at this owner for ever."""
    guard = rooms.guards["bank"]
    models = [rooms.plan.model.weights, rooms.upload(b"the model after round 0")]
    for number, model in enumerate(models):
        made = attempt(rooms, tmp_path / f"scientist{number}", round=number, model=model)
        with held(guard.orders, guard.approvals) as needed:
            assert needed & set(models) == {model}
        made.close()
    with held(guard.orders, guard.approvals) as needed:
        assert not needed & set(models)


def test_while_it_is_trained_an_order_needs_the_vocabulary_too(rooms: Strongrooms, worker: Worker) -> None:
    guard = rooms.guards["bank"]
    seen = list[frozenset[str]]()

    def look(job: object) -> None:
        with held(guard.orders, guard.approvals) as needed:
            seen.append(needed)

    worker.fail = look
    signed = rooms.order()
    guard.rounds.place(signed)
    finished(guard, RoundOrder.parse(signed.body).digest())
    assert seen == [{rooms.plan.model.weights, rooms.plan.model.vocabulary}]
