"""What an unopened order needs stays in the guard's boxes, however many blobs arrive after it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fl_privacy.errors import TooLarge
from fl_privacy.guard import blobs
from fl_privacy.guard.retention import held
from fl_privacy.messages import RoundOrder
from tests.guard.conftest import Strongrooms, finished, upload
from tests.guard.protocol import Worker, attempt


def test_uploads_beyond_the_quota_never_drop_what_an_unopened_order_needs(
    rooms: Strongrooms, worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt(rooms, tmp_path / "scientist")
    guard, model = rooms.guards["bank"], made.order.model
    survivors = made.close()
    os.utime(guard.blobs.inbox / model, (0, 0))
    monkeypatch.setattr(blobs, "UPLOADER_COUNT", 3)
    for content in (b"one", b"two", b"three"):
        upload(guard, content)
    kept = {path.name for path in guard.blobs.inbox.iterdir() if not path.suffix}
    assert len(kept) == 3 and {model, made.closing.total} < kept
    monkeypatch.setattr(blobs, "UPLOADER_COUNT", 2)
    with pytest.raises(TooLarge, match="2 are needed by orders that are not opened yet"):
        upload(guard, b"four")
    assert survivors == made.close(), "and the round goes on"
    guard.closing.open(made.opening())
    monkeypatch.setattr(blobs, "UPLOADER_COUNT", 1)
    upload(guard, b"four")
    assert not (guard.blobs.inbox / model).exists()


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
