"""Orders on their way to a sealed update, trained for real, and what the guards refuse around it."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_privacy.errors import DigestMismatch, MessageError, OrderRefused
from fl_privacy.guard.admission import round_spend
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OrderFolder
from fl_privacy.messages import OpenedSum, Signed, UpdateReceipt, open_signed
from fl_privacy.parameters import count
from fl_privacy.round_order import RoundOrder
from tests.guard.conftest import ROWS, Strongrooms, finished, make_strongrooms, upload
from tests.guard.protocol import Attempt, attempt, collected, sealed, values_of


@pytest.fixture(scope="module")
def rooms_of_training(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strongrooms]:
    rooms = make_strongrooms(tmp_path_factory.mktemp("rooms"))
    yield rooms
    for guard in rooms.guards.values():
        guard.close()


@pytest.fixture(scope="module")
def trained(rooms_of_training: Strongrooms, tmp_path_factory: pytest.TempPathFactory) -> Attempt:
    """A trained round 0."""
    signed = rooms_of_training.order()
    for guard in rooms_of_training.guards.values():
        assert guard.rounds.place(signed)["state"] == "training"
    return collected(rooms_of_training, signed, tmp_path_factory.mktemp("scientist") / "first")


def test_the_update_waits_for_its_closing_where_only_this_user_can_read_it(trained: Attempt) -> None:
    for guard in trained.guards.values():
        update = folder_of(guard, trained.order).update
        assert update.stat().st_mode & 0o777 == 0o600
        values = np.fromfile(update, "<f4")
        assert values.size == count(trained.order.tensors) and np.isfinite(values).all() and np.abs(values).max() > 0


def test_the_same_order_again_neither_trains_nor_pays(trained: Attempt) -> None:
    bank = trained.guards["bank"]
    before = bank.home.ledger.statement()
    again = bank.rounds.place(trained.signed)
    assert again["state"] == "sealed"
    assert Signed.model_validate(again["receipt"]) == trained.receipts[0]
    assert bank.home.ledger.statement() == before


def test_a_receipt_states_the_ledger_and_is_signed_by_its_owner(trained: Attempt) -> None:
    for receipt, (owner, guard) in zip(trained.receipts, trained.guards.items(), strict=True):
        word = open_signed(receipt, UpdateReceipt, guard.home.registry.card(owner).signing_key)
        statement = guard.home.ledger.statement()
        assert word.epsilon_spent == statement.epsilon_spent > 0
        assert word.ciphertext_bytes == trained.updates[owner].stat().st_size


def test_a_replayed_round_is_refused(trained: Attempt, rooms_of_training: Strongrooms) -> None:
    """A second, different order for a round and attempt that was admitted before."""
    bank = trained.guards["bank"]
    before = bank.home.ledger.statement()
    for changes in ({"weights": (200, 200, 100)}, {"model": "cd" * 32}):
        with pytest.raises(OrderRefused, match="is not after round 0 attempt 0"):
            bank.rounds.place(rooms_of_training.order(**changes))
    assert bank.home.ledger.statement() == before


def test_wrong_bytes_under_a_right_name_never_arrive(trained: Attempt) -> None:
    with pytest.raises(DigestMismatch):
        upload(trained.guards["bank"], trained.total.read_bytes()[:-1], trained.closing.total)


def test_secrets_rows_and_updates_are_in_nothing_that_leaves(trained: Attempt) -> None:
    for guard in trained.guards.values():
        home, folder = guard.home.folder, folder_of(guard, trained.order)
        secrets = [
            (home / "keys" / "identity.key").read_bytes()[:32],
            guard.home.secret_key("bfv")[40:72],
            folder.self_mask.read_bytes(),
            folder.update.read_bytes()[:64],
        ]
        row = (home / "corpus" / "rows.jsonl").read_text().splitlines()[0].split('"')[3]
        leaving = [path.read_bytes() for path in (home / "outbox").iterdir()]
        leaving += [receipt.canonical() for receipt in trained.receipts]
        for secret in secrets:
            assert all(secret not in blob and secret.hex().encode() not in blob for blob in leaving)
        assert all(row.encode() not in blob for blob in leaving)


def test_trained_updates_are_resent_for_free_and_their_sum_opens(
    trained: Attempt, rooms_of_training: Strongrooms, tmp_path: Path
) -> None:
    """On copies of the homes, so that other tests find the first attempt as it was."""
    rooms = copied(rooms_of_training, tmp_path)
    before = {owner: guard.home.ledger.statement() for owner, guard in rooms.guards.items()}
    second = attempt(rooms, tmp_path / "second", attempt=1)
    words = [UpdateReceipt.parse(receipt.body) for receipt in second.receipts]
    assert {word.training_seconds for word in words} == {0.0}
    assert {owner: guard.home.ledger.statement() for owner, guard in rooms.guards.items()} == before
    request = second.opening()
    opened = {OpenedSum.parse(guard.closing.open(request).body).values for guard in second.guards.values()}
    assert len(opened) == 1, "owners that open the same sum must agree"
    values = values_of(rooms.guards["bank"], opened.pop())
    assert values.shape == (count(second.order.tensors),)
    assert 0 < np.abs(values).max() <= rooms.plan.update_range * (1 + 1e-5)
    for guard in rooms.guards.values():
        guard.close()


def copied(rooms: Strongrooms, folder: Path) -> Strongrooms:
    """The same strong rooms in other folders."""
    guards = {}
    for owner, guard in rooms.guards.items():
        shutil.copytree(guard.home.folder, folder / "copies" / owner)
        guards[owner] = Guard(GuardHome(folder / "copies" / owner))
    return Strongrooms(guards, rooms.key, rooms.plan, rooms.bundle)


def test_a_worker_killed_in_training_fails_the_order_and_keeps_the_spend(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    signed = rooms.order()
    digest = RoundOrder.parse(signed.body).digest()
    bank.rounds.place(signed)
    spent = bank.home.ledger.statement().epsilon_spent
    os.kill(worker_of(bank, digest), signal.SIGKILL)
    state = finished(bank, digest)
    assert (state["state"], state["error"]["error"]) == ("failed", "OrderFailed")
    assert bank.home.ledger.statement().epsilon_spent == spent > 0
    assert bank.rounds.place(signed)["state"] == "failed", "the same order is never trained again"


def worker_of(guard: Guard, digest: str) -> int:
    deadline = time.monotonic() + 60
    while digest not in guard.rounds._pids and time.monotonic() < deadline:
        time.sleep(0.01)
    return guard.rounds._pids[digest]


def test_a_later_order_stops_the_training_of_an_earlier_one(tmp_path: Path) -> None:
    """Its spend stays; the later one trains at once instead of waiting for work that is of no more use."""
    rooms = make_strongrooms(tmp_path, retries=1, local_steps=500)
    bank, first, second = rooms.guards["bank"], rooms.order(), rooms.order(attempt=1)
    digest = RoundOrder.parse(first.body).digest()
    bank.rounds.place(first)
    worker_of(bank, digest)
    bank.rounds.place(second)
    state = finished(bank, digest, 30)
    assert (state["state"], state["error"]["error"]) == ("failed", "OrderFailed")
    assert len(bank.home.ledger.spends) == 2
    assert not folder_of(bank, RoundOrder.parse(first.body)).update.exists()
    later = RoundOrder.parse(second.body).digest()
    os.kill(worker_of(bank, later), signal.SIGKILL)
    finished(bank, later)
    for guard in rooms.guards.values():
        guard.close()


def test_an_order_that_a_guards_death_interrupted_is_found_failed(rooms: Strongrooms) -> None:
    bank, signed = rooms.guards["bank"], rooms.order()
    reserve(rooms, signed)
    spent = bank.home.ledger.statement().epsilon_spent
    folder = folder_of(bank, RoundOrder.parse(signed.body))
    for path in (folder.update, folder.self_mask):
        path.write_bytes(bytes(32))
    bank.home.close()
    reborn = Guard(GuardHome(bank.home.folder))
    rooms.guards["bank"] = reborn
    state = reborn.rounds.place(signed)
    assert (state["state"], state["error"]["error"]) == ("failed", "OrderFailed")
    assert not folder.update.exists() and not folder.self_mask.exists(), "what no order needs is deleted at the next start"
    assert reborn.home.ledger.statement().epsilon_spent == spent > 0
    with pytest.raises(OrderRefused, match="is not after"):
        reborn.rounds.place(rooms.order(model=rooms.bundle.spec.weights, weights=(200, 200, 300)))


def reserve(rooms: Strongrooms, signed: Signed) -> None:
    """Leave an order at the bank as it is found when the guard died right after it had paid."""
    bank, order = rooms.guards["bank"], RoundOrder.parse(signed.body)
    folder_of(bank, order).create(signed)
    bank.home.ledger.reserve(order.digest(), order.plan, round_spend(rooms.plan, ROWS))


def test_trainings_beyond_those_paid_for_are_refused(rooms: Strongrooms) -> None:
    for number in range(rooms.plan.rounds + rooms.plan.retries):
        reserve(rooms, rooms.order(attempt=number))
    before = rooms.guards["bank"].home.ledger.statement()
    with pytest.raises(OrderRefused, match="all 2 trainings that the plan pays for have been used"):
        rooms.guards["bank"].rounds.place(rooms.order(attempt=2))
    assert rooms.guards["bank"].home.ledger.statement() == before


def test_an_order_that_was_never_paid_for_does_not_count_as_paid(rooms: Strongrooms) -> None:
    """The guard died between admission and payment: nothing was trained, and the plan's trainings are all still there."""
    bank = rooms.guards["bank"]
    for number in range(2):
        signed = rooms.order(attempt=number)
        folder_of(bank, RoundOrder.parse(signed.body)).create(signed)
    last = rooms.order(attempt=2)
    bank.rounds.place(last)
    sealed(bank, RoundOrder.parse(last.body))
    assert len(bank.home.ledger.spends) == 1


def test_a_name_that_is_no_digest_reaches_no_folder(rooms: Strongrooms) -> None:
    for name in ("..", "../keys", "", "A" * 64):
        with pytest.raises(MessageError):
            rooms.guards["bank"].rounds.state(name)


def folder_of(guard: Guard, order: RoundOrder) -> OrderFolder:
    return OrderFolder(guard.home.folder / "rounds" / order.digest())
