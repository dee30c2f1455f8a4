"""A whole round through three guards, and what the guards refuse around it. Trains for real, once for all tests here."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.errors import (
    AlreadyOpened,
    CohortMismatch,
    DigestMismatch,
    EncryptionError,
    OrderRefused,
    SignatureInvalid,
)
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import OpenedSum, OpenRequest, RoundOrder, Signed, UpdateReceipt, open_signed, sign
from fl_privacy.parameters import count
from tests.builders import OWNERS
from tests.guard.conftest import Strongrooms, finished, make_strongrooms, upload


@dataclass
class Round:
    """A trained round 0: its order, receipts by owner, ciphertexts by owner, and their sum."""

    rooms: Strongrooms
    signed: Signed
    receipts: dict[str, Signed]
    ciphertexts: dict[str, bytes]
    total: bytes

    @property
    def order(self) -> RoundOrder:
        return RoundOrder.parse(self.signed.body)

    def request(self, **changes: object) -> OpenRequest:
        fields = {
            "order": self.signed,
            "receipts": tuple(self.receipts[owner] for owner in OWNERS),
            "total": hashlib.sha256(self.total).hexdigest(),
        }
        return OpenRequest(**fields | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    rooms = make_strongrooms(tmp_path_factory.mktemp("rooms"))
    signed = rooms.order()
    order = RoundOrder.parse(signed.body)
    for guard in rooms.guards.values():
        assert guard.rounds.place(signed)["state"] == "training"
    states = {owner: finished(guard, order.digest()) for owner, guard in rooms.guards.items()}
    assert {state["state"] for state in states.values()} == {"sealed"}, states
    receipts = {owner: Signed.model_validate(state["receipt"]) for owner, state in states.items()}
    ciphertexts = {
        owner: guard.blobs.published(UpdateReceipt.parse(receipts[owner].body).ciphertext).read_bytes()
        for owner, guard in rooms.guards.items()
    }
    total = add_updates(ciphertexts.values(), order)
    rooms.upload(total)
    yield Round(rooms, signed, receipts, ciphertexts, total)
    for guard in rooms.guards.values():
        guard.close()


def test_the_cohorts_sum_opens_alike_at_every_owner(trained: Round) -> None:
    values = set()
    for owner, guard in trained.rooms.guards.items():
        key = guard.home.registry.card(owner).signing_key
        opened = open_signed(guard.rounds.open(trained.request()), OpenedSum, key)
        assert (opened.order, opened.owner, opened.total) == (trained.order.digest(), owner, trained.request().total)
        values.add(opened.values)
    assert len(values) == 1, "SA: owners that open the same sum must agree"
    vector = np.frombuffer(trained.rooms.guards["bank"].blobs.published(values.pop()).read_bytes(), "<f4")
    assert vector.shape == (count(trained.order.tensors),)
    assert 0 < np.abs(vector).max() <= trained.rooms.plan.update_range * (1 + 1e-5)


def test_the_same_order_again_neither_trains_nor_pays(trained: Round) -> None:
    bank = trained.rooms.guards["bank"]
    before = bank.home.ledger.statement()
    again = bank.rounds.place(trained.signed)
    assert again["state"] == "sealed"
    assert Signed.model_validate(again["receipt"]) == trained.receipts["bank"]
    assert bank.home.ledger.statement() == before


def test_a_receipt_states_the_ledger_and_is_signed_by_its_owner(trained: Round) -> None:
    for owner, guard in trained.rooms.guards.items():
        key = guard.home.registry.card(owner).signing_key
        receipt = open_signed(trained.receipts[owner], UpdateReceipt, key)
        statement = guard.home.ledger.statement()
        assert receipt.epsilon_spent == statement.epsilon_spent > 0
        assert receipt.ciphertext_bytes == len(trained.ciphertexts[owner])


def test_a_replayed_round_is_refused(trained: Round) -> None:
    """A second, different order for a round and attempt that was admitted before."""
    bank = trained.rooms.guards["bank"]
    before = bank.home.ledger.statement()
    for changes in ({"weights": (200, 200, 100)}, {"model": "cd" * 32}):
        with pytest.raises(OrderRefused, match="is not after round 0 attempt 0"):
            bank.rounds.place(trained.rooms.order(**changes))
    assert bank.home.ledger.statement() == before


def test_receipts_must_be_the_whole_cohorts(trained: Round) -> None:
    bank, request = trained.rooms.guards["bank"], trained.request()
    with pytest.raises(CohortMismatch, match="no receipt of school"):
        bank.rounds.open(trained.request(receipts=request.receipts[:2]))
    with pytest.raises(CohortMismatch, match="two receipts"):
        bank.rounds.open(trained.request(receipts=(*request.receipts[:2], request.receipts[0])))
    forged = sign(UpdateReceipt.parse(trained.receipts["school"].body), trained.rooms.key)
    with pytest.raises(SignatureInvalid):
        bank.rounds.open(trained.request(receipts=(*request.receipts[:2], forged)))


def test_a_sum_that_was_never_uploaded_is_refused(trained: Round) -> None:
    with pytest.raises(OrderRefused, match="has not been uploaded"):
        trained.rooms.guards["bank"].rounds.open(trained.request(total="ef" * 32))


def test_a_second_sum_for_an_opened_order_is_refused(trained: Round) -> None:
    """SA6: also when it is one owner's ciphertext, which an aggregator would love to see opened."""
    bank = trained.rooms.guards["bank"]
    bank.rounds.open(trained.request())
    upload(bank, trained.ciphertexts["clinic"])
    with pytest.raises(AlreadyOpened):
        bank.rounds.open(trained.request(total=hashlib.sha256(trained.ciphertexts["clinic"]).hexdigest()))


def test_wrong_bytes_under_a_right_name_never_arrive(trained: Round) -> None:
    with pytest.raises(DigestMismatch):
        upload(trained.rooms.guards["bank"], trained.total[:-1], trained.request().total)


def test_secrets_and_rows_are_in_nothing_that_leaves(trained: Round) -> None:
    for guard in trained.rooms.guards.values():
        home = guard.home.folder
        secrets = [(home / "keys" / "identity.key").read_bytes()[:32], guard.home.secret_key[40:72]]
        row = (home / "corpus" / "rows.jsonl").read_text().splitlines()[0].split('"')[3]
        leaving = [path.read_bytes() for path in (home / "outbox").iterdir()]
        leaving += [receipt.canonical() for receipt in trained.receipts.values()]
        for secret in secrets:
            assert all(secret not in blob and secret.hex().encode() not in blob for blob in leaving)
        assert all(row.encode() not in blob for blob in leaving)
        assert not list(home.glob("rounds/*/update*")), "the plain update is removed once it is encrypted"


def test_a_wrong_sum_is_found_and_closes_the_order_for_good(tmp_path: Path, trained: Round) -> None:
    """Partial and tampered sums, at owners who have not opened yet; the refusal is remembered, not recomputed."""
    # a fresh trained round would cost another training: use copies of the guards' folders as they are before any opening
    import shutil

    wrong = {
        "truncated": trained.total[:-7],
        "one owner's update": trained.ciphertexts["clinic"],
        "bit flipped": bytes([*trained.total[:-100], trained.total[-100] ^ 1, *trained.total[-99:]]),
    }
    for name, blob in wrong.items():
        folder = tmp_path / name.replace(" ", "-").replace("'", "")
        shutil.copytree(
            trained.rooms.guards["school"].home.folder, folder, ignore=shutil.ignore_patterns("opening*", "opened*")
        )
        guard = Guard(GuardHome(folder))
        upload(guard, blob)
        request = trained.request(total=hashlib.sha256(blob).hexdigest())
        with pytest.raises(EncryptionError) as first:
            guard.rounds.open(request)
        with pytest.raises(type(first.value)):
            guard.rounds.open(request)
        with pytest.raises(AlreadyOpened):
            guard.rounds.open(trained.request())
        guard.close()


def test_a_worker_killed_in_training_fails_the_order_and_keeps_the_spend(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    signed = rooms.order()
    digest = RoundOrder.parse(signed.body).digest()
    bank.rounds.place(signed)
    spent = bank.home.ledger.statement().epsilon_spent
    deadline = time.monotonic() + 60
    while not bank.rounds._pids and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(bank.rounds._pids[digest], signal.SIGKILL)
    state = finished(bank, digest)
    assert (state["state"], state["error"]["error"]) == ("failed", "OrderFailed")
    assert bank.home.ledger.statement().epsilon_spent == spent > 0
    assert bank.rounds.place(signed)["state"] == "failed", "the same order is never trained again"


def test_an_order_that_a_guards_death_interrupted_is_found_failed(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    signed = rooms.order()
    bank.rounds._reserve(RoundOrder.parse(signed.body).digest(), signed, rooms.plan.digest(), _spend(rooms))
    spent = bank.home.ledger.statement().epsilon_spent
    bank.home.close()
    reborn = Guard(GuardHome(bank.home.folder))
    rooms.guards["bank"] = reborn
    state = reborn.rounds.place(signed)
    assert (state["state"], state["error"]["error"]) == ("failed", "OrderFailed")
    assert reborn.home.ledger.statement().epsilon_spent == spent > 0
    with pytest.raises(OrderRefused, match="is not after"):
        reborn.rounds.place(rooms.order(model=rooms.bundle.spec.weights, weights=(200, 200, 300)))


def _spend(rooms: Strongrooms) -> object:
    from fl_privacy.guard.admission import round_spend

    return round_spend(rooms.plan, 200)


def test_attempts_beyond_those_paid_for_are_refused(rooms: Strongrooms) -> None:
    bank = rooms.guards["bank"]
    for attempt in range(rooms.plan.rounds + rooms.plan.retries):
        signed = rooms.order(attempt=attempt)
        bank.rounds._reserve(RoundOrder.parse(signed.body).digest(), signed, rooms.plan.digest(), _spend(rooms))
    with pytest.raises(OrderRefused, match="have been used"):
        bank.rounds.place(rooms.order(attempt=9))
