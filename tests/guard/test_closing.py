"""From a sealed update to an opened sum: survivor lists, self-masks, one opening. Training is a draw of random numbers here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fl_privacy.encryption.agreement import commit
from fl_privacy.encryption.keys import key_name
from fl_privacy.errors import (
    AlreadyOpened,
    CohortMismatch,
    ConnectionFailed,
    FlPrivacyError,
    KeyMissing,
    MessageError,
    OrderRefused,
    RequestDenied,
)
from fl_privacy.guard.client import FRONT_SOCKET, GuardClient
from fl_privacy.guard.domain import Policy
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OrderFolder
from fl_privacy.messages import OpenedSum, OpenRequest, SelfMaskReveal, Signed, SurvivorList, UpdateReceipt, open_signed, sign
from tests import builders
from tests.builders import OWNERS
from tests.guard.conftest import Strongrooms, make_strongrooms
from tests.guard.protocol import Attempt, Worker, attempt, changed, give, sha256, values_of


def folder_of(guard: Guard, made: Attempt) -> OrderFolder:
    return OrderFolder(guard.home.folder / "rounds" / made.order.digest())


def test_the_opened_sum_is_the_mean_of_what_the_owners_trained(sealed: Attempt, worker: Worker) -> None:
    trained = [np.random.default_rng(n + 1).uniform(-0.04, 0.04, 10**6) for n in range(3)]  # as the stand-in drew them
    request = sealed.opening()
    opened = [open_signed(guard.closing.open(request), OpenedSum, key_of(guard)) for guard in sealed.guards.values()]
    assert {(word.order, word.total) for word in opened} == {(sealed.order.digest(), request.total)}
    assert len({word.values for word in opened}) == 1
    values = values_of(sealed.guards["bank"], opened[0].values)
    mean = np.mean([draw[: values.size] for draw in trained], axis=0)
    assert np.abs(values - mean).max() <= 3 * sealed.order.encoding.value_range / 127


def test_a_survivor_list_names_every_ciphertext_and_the_total(sealed: Attempt) -> None:
    lists = [
        open_signed(signed, SurvivorList, key_of(guard))
        for signed, guard in zip(sealed.close(), sealed.guards.values(), strict=True)
    ]
    assert [word.owner for word in lists] == list(OWNERS)
    ciphertexts = tuple(sha256(path) for path in sealed.updates.values())
    assert {(word.order, word.ciphertexts, word.total) for word in lists} == {
        (sealed.order.digest(), ciphertexts, sha256(sealed.total))
    }


def test_an_order_is_closed_for_one_sum_only(sealed: Attempt) -> None:
    assert sealed.close() == sealed.close()
    with pytest.raises(AlreadyOpened, match="that is final"):
        sealed.close(total="ef" * 32)
    with pytest.raises(AlreadyOpened):
        sealed.close(receipts=sealed.receipts[::-1])


def test_what_was_not_agreed_cannot_be_closed(sealed: Attempt, rooms: Strongrooms, tmp_path: Path) -> None:
    bank = rooms.guards["bank"]
    own = UpdateReceipt.parse(sealed.receipts[0].body)
    another = sign(changed(own, ciphertext="cd" * 32), bank.home.identity.signing_key)
    forged = sign(UpdateReceipt.parse(sealed.receipts[2].body), rooms.key)
    unplaced = rooms.order(attempt=1)
    for changes, error, told in (
        ({"receipts": sealed.receipts[:2]}, CohortMismatch, "no UpdateReceipt of school"),
        ({"receipts": (*sealed.receipts[:2], sealed.receipts[0])}, CohortMismatch, "has two of"),
        ({"receipts": (*sealed.receipts[:2], forged)}, MessageError, "which no owner of the cohort has"),
        ({"receipts": (another, *sealed.receipts[1:])}, CohortMismatch, "not the one that it signed"),
        ({"order": unplaced}, OrderRefused, "has no finished update"),
        ({"order": sign(sealed.order, bank.home.identity.signing_key)}, MessageError, "signed by key"),
    ):
        with pytest.raises(error, match=told):
            bank.closing.close(changed(sealed.closing, **changes))
    assert not folder_of(bank, sealed).is_closed


def test_an_approval_that_was_taken_back_closes_nothing(sealed: Attempt, rooms: Strongrooms) -> None:
    rooms.guards["bank"].deny(rooms.code, "we changed our mind")
    with pytest.raises(RequestDenied, match="changed our mind"):
        rooms.guards["bank"].closing.close(sealed.closing)


def test_the_update_goes_with_the_closing_and_the_self_mask_stays_for_this_user_only(sealed: Attempt) -> None:
    for guard in sealed.guards.values():
        folder = folder_of(guard, sealed)
        assert (folder.update.exists(), folder.self_mask.stat().st_mode & 0o777) == (True, 0o600)
    sealed.close()
    for guard in sealed.guards.values():
        folder = folder_of(guard, sealed)
        assert (folder.update.exists(), folder.self_mask.exists()) == (False, True)


def test_a_self_mask_is_revealed_after_all_have_signed_the_same_list_and_fits_its_commitment(sealed: Attempt) -> None:
    bank = sealed.guards["bank"]
    with pytest.raises(OrderRefused, match="close it first"):
        bank.closing.reveal(sealed.revealing(()))
    revealing = sealed.revealing(sealed.close())
    revealed = bank.closing.reveal(revealing)
    assert revealed == bank.closing.reveal(revealing)
    word = open_signed(revealed, SelfMaskReveal, key_of(bank))
    receipt = UpdateReceipt.parse(sealed.receipts[0].body)
    assert commit(bytes.fromhex(word.seed), sealed.order.digest(), "bank") == receipt.self_mask


def test_every_owner_draws_a_self_mask_of_its_own(sealed: Attempt) -> None:
    assert len({folder_of(guard, sealed).self_mask.read_bytes() for guard in sealed.guards.values()}) == 3


def test_a_sum_is_opened_once_and_the_stored_answer_is_given_again(sealed: Attempt) -> None:
    bank, request = sealed.guards["bank"], sealed.opening()
    opened = bank.closing.open(request)
    assert not (bank.blobs.inbox / request.total).exists(), "the total is not kept once it is opened"
    assert bank.closing.open(request) == opened
    with pytest.raises(AlreadyOpened):
        bank.closing.open(changed(request, reveals=request.reveals[::-1]))
    with pytest.raises(AlreadyOpened):
        bank.closing.open(changed(request, total=give(bank, sealed.updates["clinic"])))


def test_an_opening_without_every_right_self_mask_is_refused_and_leaves_the_order_to_be_opened(sealed: Attempt) -> None:
    bank, request = sealed.guards["bank"], sealed.opening()
    word = SelfMaskReveal.parse(request.reveals[1].body)
    wrong = sign(changed(word, seed="ab" * 32), sealed.guards["clinic"].home.identity.signing_key)
    for reveals in ((), request.reveals[:2], (request.reveals[0], wrong, request.reveals[2])):
        with pytest.raises(CohortMismatch):
            bank.closing.open(changed(request, reveals=reveals))
    bank.closing.open(request)


def test_a_total_that_was_never_uploaded_is_named(sealed: Attempt) -> None:
    request = sealed.opening()
    (sealed.guards["bank"].blobs.inbox / request.total).unlink()
    with pytest.raises(OrderRefused, match="has not been uploaded"):
        sealed.guards["bank"].closing.open(request)


def test_a_guard_without_the_key_that_the_order_names_opens_nothing(sealed: Attempt) -> None:
    bank, request = sealed.guards["bank"], sealed.opening()
    bank.home.secret_key_path("bfv").unlink()
    with pytest.raises(KeyMissing):
        bank.closing.open(request)


def test_a_guard_that_died_while_it_closed_stands_by_it(sealed: Attempt, rooms: Strongrooms) -> None:
    """The request is on disk, the answer never went out: from outside it counts as signed."""
    bank = rooms.guards["bank"]
    folder_of(bank, sealed).close(sealed.closing)
    reborn = rebirth(rooms, "bank")
    assert not folder_of(reborn, sealed).update.exists()
    with pytest.raises(AlreadyOpened):
        reborn.closing.close(changed(sealed.closing, total="ef" * 32))
    assert open_signed(reborn.closing.close(sealed.closing), SurvivorList, key_of(reborn)).total == sealed.closing.total


def test_a_guard_that_died_while_it_opened_never_opens_again(sealed: Attempt, rooms: Strongrooms) -> None:
    bank, request = rooms.guards["bank"], sealed.opening()
    (folder_of(bank, sealed).path / "opening.json").write_bytes(request.canonical())
    with pytest.raises(FlPrivacyError, match="stopped while it opened"):
        rebirth(rooms, "bank").closing.open(request)


def test_a_crash_before_the_closing_leaves_the_update_for_the_next_attempt(sealed: Attempt, rooms: Strongrooms) -> None:
    assert folder_of(rebirth(rooms, "bank"), sealed).update.exists()


@pytest.mark.slow
def test_a_guard_process_killed_between_closing_and_reveal_reveals_when_it_is_back(sealed: Attempt, rooms: Strongrooms) -> None:
    home = rooms.guards["bank"].home
    home.close()
    with serving(home.folder) as (process, client):
        own = Signed.model_validate(client.call("POST", "/v1/closings", sealed.closing.canonical()))
        process.send_signal(signal.SIGKILL)
        process.wait()
    others = tuple(sealed.guards[owner].closing.close(sealed.closing) for owner in OWNERS[1:])
    revealing = sealed.revealing((own, *others))
    with serving(home.folder) as (process, client):
        assert Signed.model_validate(client.call("POST", "/v1/closings", sealed.closing.canonical())) == own
        revealed = Signed.model_validate(client.call("POST", "/v1/reveals", revealing.canonical()))
        process.terminate()
        process.wait()
    rooms.guards["bank"] = Guard(GuardHome(home.folder))
    assert revealed == rooms.guards["bank"].closing.reveal(revealing)


class serving:  # noqa: N801 - used as a context manager
    """A guard as a process of its own, and a client at its front door."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __enter__(self) -> tuple[subprocess.Popen[bytes], GuardClient]:
        (self.home / FRONT_SOCKET).unlink(missing_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, "-m", "fl_privacy.guard", str(self.home)], env=environment)
        client, deadline = GuardClient(self.home / FRONT_SOCKET), time.monotonic() + 240  # of a busy machine
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(ConnectionFailed):
                client.call("GET", "/v1/info")
                return self.process, client
            time.sleep(0.05)
        self.__exit__()
        raise TimeoutError(f"the guard at {self.home} does not answer; its exit code is {self.process.returncode}")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def rebirth(rooms: Strongrooms, owner: str) -> Guard:
    """The guard as it is after its process died."""
    rooms.guards[owner].home.close()
    rooms.guards[owner] = Guard(GuardHome(rooms.guards[owner].home.folder))
    return rooms.guards[owner]


def key_of(guard: Guard) -> str:
    return guard.home.registry.card(guard.home.owner).signing_key


@pytest.fixture
def ckks_rooms(tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Strongrooms]:
    """Owners whose policy allows sums without masks, and a plan that asks for them."""
    monkeypatch.setattr("tests.builders.DOMAIN", builders.DOMAIN + "allow_ckks = true\n")
    made = make_strongrooms(tmp_path, encryption="ckks")
    yield made
    for guard in made.guards.values():
        guard.close()


def test_a_ckks_order_is_closed_and_opened_without_self_masks(ckks_rooms: Strongrooms, tmp_path: Path) -> None:
    key = key_name(ckks_rooms.guards["bank"].home.secret_key("ckks"))
    made = attempt(ckks_rooms, tmp_path / "scientist", key=key)
    assert {UpdateReceipt.parse(receipt.body).self_mask for receipt in made.receipts} == {None}
    revealing = made.revealing(made.close())
    with pytest.raises(OrderRefused, match="has no self-masks"):
        made.guards["bank"].closing.reveal(revealing)
    request = OpenRequest(**dict(revealing), reveals=())
    opened = [OpenedSum.parse(guard.closing.open(request).body) for guard in made.guards.values()]
    assert len({word.values for word in opened}) == 1
    mean = np.mean([np.random.default_rng(n + 1).uniform(-0.04, 0.04, 10**6) for n in range(3)], axis=0)
    values = values_of(made.guards["bank"], opened[0].values)
    assert np.abs(values - mean[: values.size]).max() < 1e-4


def test_a_ckks_order_is_refused_where_the_policy_no_longer_allows_it(ckks_rooms: Strongrooms) -> None:
    bank = ckks_rooms.guards["bank"]
    bank.home.domain = bank.home.domain.model_copy(update={"policy": Policy()})
    with pytest.raises(OrderRefused, match="policy, allow_ckks = false"):
        bank.rounds.place(ckks_rooms.order(key=key_name(bank.home.secret_key("ckks"))))
