"""Dropouts, faked or real, cost a new attempt and nothing else: no owner's update can be had as a difference of two sums.

Guards are real, training is a draw of random numbers. The adversary is the scientist, who carries all messages, holds all
ciphertexts and, through one owner that colludes, the HE secret key and that owner's own secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenseal.sealapi as seal
from scipy.stats import chisquare

from fl_privacy.encryption import cipher, packing
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.encryption.cipher import Kind
from fl_privacy.encryption.keys import load_secret_key
from fl_privacy.encryption.masks import self_mask_seed, uniform
from fl_privacy.encryption.packing import DEGREE, block_count, plan_encoding
from fl_privacy.errors import (
    AlreadyOpened,
    ChecksumMismatch,
    CiphertextInvalid,
    CohortMismatch,
    EncryptionError,
    FlPrivacyError,
    OrderRefused,
    SignatureInvalid,
)
from fl_privacy.guard.guard import Guard
from fl_privacy.messages import CloseRequest, SurvivorList, UpdateReceipt, sign
from fl_privacy.parameters import Vector
from fl_privacy.round_order import RoundOrder
from tests.guard.conftest import ROWS, Strongrooms, make_strongrooms
from tests.guard.protocol import Attempt, Worker, attempt, changed, collected, give, sealed, values_of

FOUR = ("bank", "clinic", "school", "shop")
THREE = FOUR[:3]


@pytest.fixture
def rooms(tmp_path: Path, worker: Worker) -> Iterator[Strongrooms]:
    made = make_strongrooms(tmp_path, owners=FOUR, retries=1)
    yield made
    for guard in made.guards.values():
        guard.close()


def without_shop(rooms: Strongrooms, **changes: Any) -> dict[str, Any]:
    """The changes of an order that leaves the fourth owner out."""
    weights = (ROWS,) * 3
    return {"cohort": THREE, "weights": weights, "encoding": plan_encoding(rooms.plan, weights), "attempt": 1} | changes


def statement(guard: Guard) -> Any:
    return guard.home.ledger.statement()


def seed_of(guard: Guard, made: Attempt) -> bytes:
    """b_k, as it lies on the guard's disk."""
    return (guard.home.folder / "rounds" / made.order.digest() / "self-mask.key").read_bytes()


def modulus_of(made: Attempt) -> int:
    return 1 << made.order.encoding.modulus_bits


def decrypted(made: Attempt, path: Path, secret_key: bytes) -> Any:
    """What a key holder sees: (blocks, 4096) coefficients modulo t, as int64."""
    bits, order = made.order.encoding.modulus_bits, made.order
    chain, kind = cipher.context(bits), Kind.TOTAL if path == made.total else Kind.UPDATE
    decryptor, plain, rows = seal.Decryptor(chain, load_secret_key(secret_key, bits)), seal.Plaintext(), []
    with path.open("rb") as file, cipher.Scratch() as scratch:
        for block in cipher.read_blocks(file, kind, order, range(block_count(order))):
            decryptor.decrypt(cipher.load_block(block, bits, scratch), plain)
            rows.append(cipher.plaintext_coefficients(plain).view(np.int64))
    return np.array(rows)


def unmasked(made: Attempt, secret_key: bytes, seeds: dict[str, bytes]) -> Any:
    """The total as a key holder sees it who knows these self-masks."""
    coefficients, modulus, digest = decrypted(made, made.total, secret_key), modulus_of(made), made.order.digest()
    for owner, seed in seeds.items():
        for index, row in enumerate(coefficients):
            row -= uniform(self_mask_seed(seed, digest, owner), index, DEGREE).view(np.int64)
    return coefficients % modulus


def is_uniform(coefficients: Any, made: Attempt) -> bool:
    parts = np.bincount((coefficients.ravel().astype(np.float64) * 64 / modulus_of(made)).astype(np.int64), minlength=64)
    low = np.bincount(coefficients.ravel() % 64, minlength=64)
    return bool(chisquare(parts).pvalue > 1e-6 and chisquare(low).pvalue > 1e-6)


def as_total(made: Attempt, update: Path, folder: Path) -> Path:
    """One owner's container in the form of a sum: every block with as many seeds as the cohort has owners."""
    path = folder / "relabelled.bin"
    with update.open("rb") as file, path.open("wb") as out:
        cipher.write_header(out, Kind.TOTAL, made.order, 0)
        for block in cipher.read_blocks(file, Kind.UPDATE, made.order, range(block_count(made.order))):
            out.write(bytes(block) + bytes(block[packing.POLYNOMIAL_BYTES :]) * (len(made.order.cohort) - 1))
    return path


def test_after_a_dropout_the_others_resend_for_free_and_their_sum_opens(
    rooms: Strongrooms, worker: Worker, tmp_path: Path
) -> None:
    attempt(rooms, tmp_path / "first")
    before = {owner: statement(guard) for owner, guard in rooms.guards.items()}
    updates = {owner: drawn(worker, owner) for owner in THREE}
    second = attempt(rooms, tmp_path / "second", **without_shop(rooms))
    assert {owner: statement(guard) for owner, guard in rooms.guards.items()} == before, "a resend spends nothing"
    assert all(worker.trained_by(owner) == 1 for owner in FOUR)
    request = second.opening()
    opened = {guard.closing.open(request).body for guard in second.guards.values()}
    values = values_of(rooms.guards["bank"], next(iter(opened)).split('"values":"')[1][:64])
    mean = np.mean([update[: values.size] for update in updates.values()], axis=0)
    assert np.abs(values - mean).max() <= 3 * second.order.encoding.value_range / 127


def drawn(worker: Worker, owner: str) -> Vector:
    """The update that the stand-in worker drew for an owner."""
    number = next(n for n, job in enumerate(worker.jobs, start=1) if f"/{owner}/" in job.update)
    return np.random.default_rng(number).uniform(-0.04, 0.04, 10**6).astype(np.float32)


def test_a_resent_update_opens_in_one_sum_only(rooms: Strongrooms, tmp_path: Path) -> None:
    """Nobody signs for an attempt once a later one was placed, sealed or not; and its self-masks are gone for good."""
    first = attempt(rooms, tmp_path / "first")
    seeds = {owner: seed_of(guard, first) for owner, guard in rooms.guards.items()}
    survivors = (rooms.guards["shop"].closing.close(first.closing),)  # left out of the second, so it knows no better
    second = rooms.order(**without_shop(rooms))
    for owner in THREE:
        guard = rooms.guards[owner]
        guard.rounds.place(second)
        with pytest.raises(OrderRefused, match="is dead: a later order"):
            guard.closing.close(first.closing)
        with pytest.raises(OrderRefused, match="close it first"):
            guard.closing.reveal(first.revealing(survivors))
        sealed(guard, RoundOrder.parse(second.body))
        with pytest.raises(OrderRefused, match="is dead"):
            guard.closing.close(first.closing)
        assert_is_nowhere(seeds[owner], guard)
    with pytest.raises(CohortMismatch, match="no SurvivorList of bank, clinic, school"):
        rooms.guards["shop"].closing.reveal(first.revealing(survivors))


def assert_is_nowhere(seed: bytes, guard: Guard) -> None:
    for path in guard.home.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert seed not in content and seed.hex().encode() not in content, path


def test_a_faked_dropout_shows_a_key_holder_nothing(rooms: Strongrooms, tmp_path: Path) -> None:
    """SA13: the adversary wants shop's update, and has sk, all ciphertexts, the second sum and bank's secrets."""
    first = attempt(rooms, tmp_path / "first")
    seeds = {owner: seed_of(guard, first) for owner, guard in rooms.guards.items()}
    second = attempt(rooms, tmp_path / "second", **without_shop(rooms))
    request = second.opening()
    rooms.guards["bank"].closing.open(request)
    secret_key = rooms.guards["bank"].home.secret_key("bfv")

    known = unmasked(first, secret_key, {"bank": seeds["bank"]})
    assert is_uniform(known, first), "three self-masks still cover the sum"
    bare = unmasked(first, secret_key, seeds)
    assert not is_uniform(bare, first), "the test can fail: with all self-masks the sum lies open"


def test_one_missing_self_mask_covers_the_whole_sum(rooms: Strongrooms, tmp_path: Path) -> None:
    """Even K - 1 owners who give theirs away in an attempt that is not closed gain nothing."""
    first = attempt(rooms, tmp_path / "first")
    seeds = {owner: seed_of(guard, first) for owner, guard in rooms.guards.items() if owner != "shop"}
    assert is_uniform(unmasked(first, rooms.guards["bank"].home.secret_key("bfv"), seeds), first)


def test_an_update_that_was_signed_for_is_never_sent_again(rooms: Strongrooms, worker: Worker, tmp_path: Path) -> None:
    """One owner signs, another's signature never comes: the signer trains and pays anew, the others resend."""
    first = attempt(rooms, tmp_path / "first")
    rooms.guards["bank"].closing.close(first.closing)
    before = {owner: statement(guard) for owner, guard in rooms.guards.items()}
    attempt(rooms, tmp_path / "second", attempt=1)
    assert {owner: worker.trained_by(owner) for owner in FOUR} == {"bank": 2, "clinic": 1, "school": 1, "shop": 1}
    assert statement(rooms.guards["bank"]).epsilon_spent > before["bank"].epsilon_spent
    assert all(statement(rooms.guards[owner]) == before[owner] for owner in FOUR[1:])


def test_who_has_signed_and_has_no_paid_training_left_takes_no_part_any_more(rooms: Strongrooms, tmp_path: Path) -> None:
    bank = rooms.guards["bank"]
    for number in range(3):  # two rounds and one retry are paid for
        bank.closing.close(attempt(rooms, tmp_path / str(number), round=number // 2, attempt=number % 2).closing)
    with pytest.raises(OrderRefused, match="all 3 trainings that the plan pays for have been used"):
        bank.rounds.place(rooms.order(round=1, attempt=1))


def test_another_round_or_model_is_another_training(rooms: Strongrooms, worker: Worker, tmp_path: Path) -> None:
    attempt(rooms, tmp_path / "first")
    attempt(rooms, tmp_path / "next-round", round=1)
    assert worker.trained_by("bank") == 2
    attempt(rooms, tmp_path / "other-model", round=1, attempt=1, model=rooms.upload(rooms.bundle.vocabulary))
    assert worker.trained_by("bank") == 3


def test_only_the_last_attempts_update_is_kept_and_only_while_it_can_be_sent(rooms: Strongrooms, tmp_path: Path) -> None:
    def kept() -> list[str]:
        return sorted(path.parent.name for path in rooms.guards["bank"].home.folder.glob("rounds/*/update*"))

    first = attempt(rooms, tmp_path / "first")
    assert kept() == [first.order.digest()]
    second = attempt(rooms, tmp_path / "second", attempt=1)
    assert kept() == [second.order.digest()]
    second.close()
    assert kept() == []


def test_a_dropout_in_training_keeps_every_spend(rooms: Strongrooms, worker: Worker, tmp_path: Path) -> None:
    def fail_shop_once(job: Any) -> None:
        if "/shop/" in job.update and worker.trained_by("shop") == 1:
            raise EncryptionError("the worker died")

    worker.fail = fail_shop_once
    signed = rooms.order()
    for guard in rooms.guards.values():
        guard.rounds.place(signed)
    for owner in THREE:
        sealed(rooms.guards[owner], RoundOrder.parse(signed.body))
    before = {owner: statement(guard).epsilon_spent for owner, guard in rooms.guards.items()}
    assert min(before.values()) > 0
    collected(rooms, rooms.order(attempt=1), tmp_path / "second")
    after = {owner: statement(guard).epsilon_spent for owner, guard in rooms.guards.items()}
    assert {owner: after[owner] - before[owner] for owner in THREE} == dict.fromkeys(THREE, 0.0)
    assert after["shop"] > before["shop"], "what was lost in training stays spent"


def test_no_self_mask_is_revealed_without_one_survivor_list_signed_by_all(rooms: Strongrooms, tmp_path: Path) -> None:
    first = attempt(rooms, tmp_path / "first")
    bank, clinic = rooms.guards["bank"], rooms.guards["clinic"]
    own = bank.closing.close(first.closing)
    theirs = CloseRequest(order=first.signed, receipts=first.receipts, total="ef" * 32)
    others = tuple(rooms.guards[owner].closing.close(theirs) for owner in FOUR[1:])
    forged = sign(SurvivorList.parse(own.body), rooms.key)
    borrowed = sign(SurvivorList.parse(own.body), clinic.home.identity.signing_key)
    for survivors, error in (
        ((), CohortMismatch),
        ((own,), CohortMismatch),
        ((own, own, own, own), CohortMismatch),
        ((own, *others), CohortMismatch),  # of another total
        ((own, forged), SignatureInvalid),
        ((own, borrowed), SignatureInvalid),
    ):
        with pytest.raises(error):
            bank.closing.reveal(first.revealing(survivors))
    with pytest.raises(AlreadyOpened):
        bank.closing.reveal(changed(first.revealing((own, *others)), total="ef" * 32))


def test_messages_of_one_order_are_of_no_use_in_another(rooms: Strongrooms, tmp_path: Path) -> None:
    """SA7: replayed and reordered: every part of a request, taken from another order that was carried through."""
    bank = rooms.guards["bank"]
    old = attempt(rooms, tmp_path / "old")
    old_request = old.opening()
    bank.closing.open(old_request)
    new = attempt(rooms, tmp_path / "new", round=1)
    for part in ("order", "receipts", "total"):
        mixed = changed(new.closing, **{part: getattr(old_request, part)})
        if part == "total":
            continue  # a total is only a claim until it is opened; see the single ciphertext below
        with pytest.raises((CohortMismatch, AlreadyOpened)):
            bank.closing.close(mixed)
    request = new.opening()
    revealing = new.revealing(request.survivors)
    for part in ("order", "receipts", "total", "survivors"):
        with pytest.raises((CohortMismatch, AlreadyOpened)):
            bank.closing.reveal(changed(revealing, **{part: getattr(old_request, part)}))
    for part in ("order", "receipts", "total", "survivors", "reveals"):
        with pytest.raises((CohortMismatch, AlreadyOpened)):
            bank.closing.open(changed(request, **{part: getattr(old_request, part)}))
    assert bank.closing.open(old_request) == bank.closing.open(old_request)
    bank.closing.open(request)


def test_one_ciphertext_delivered_twice_closes_nothing(rooms: Strongrooms, tmp_path: Path) -> None:
    """An owner that colludes signs for a copy of the victim's ciphertext, so that the sum would hold it twice."""
    first = attempt(rooms, tmp_path / "first")
    victim, copier = (UpdateReceipt.parse(first.receipts[index].body) for index in (0, 3))
    copied = sign(changed(copier, ciphertext=victim.ciphertext), rooms.guards["shop"].home.identity.signing_key)
    with pytest.raises(CohortMismatch, match="same ciphertext"):
        rooms.guards["bank"].closing.close(changed(first.closing, receipts=(*first.receipts[:3], copied)))


def single(made: Attempt, folder: Path) -> Path:
    return made.updates["clinic"]


def relabelled(made: Attempt, folder: Path) -> Path:
    """One owner's ciphertexts with the header of a sum, and in its size."""
    return as_total(made, made.updates["clinic"], folder)


def old_total(made: Attempt, folder: Path) -> Path:
    """The right sum, with bytes of the header changed to another order's."""
    data = made.total.read_bytes()
    path = folder / "old.bin"
    path.write_bytes(data[:8] + bytes(32) + data[40:])
    return path


@pytest.mark.parametrize(
    ("forge", "error"), [(single, CiphertextInvalid), (relabelled, ChecksumMismatch), (old_total, CiphertextInvalid)]
)
def test_what_is_not_the_whole_cohorts_sum_is_not_opened_even_if_all_signed_for_it(
    rooms: Strongrooms, tmp_path: Path, forge: Callable[[Attempt, Path], Path], error: type[FlPrivacyError]
) -> None:
    """SA6: owners cannot see what a total is made of when they sign; the pairwise masks keep all but the whole sum closed."""
    made = attempt(rooms, tmp_path / "first")
    made.total = forge(made, tmp_path)
    for guard in made.guards.values():
        give(guard, made.total)
    request = made.opening()
    for guard in made.guards.values():
        with pytest.raises(error):
            guard.closing.open(request)
        with pytest.raises(error):
            guard.closing.open(request)


def test_owners_that_were_given_different_models_never_sum(rooms: Strongrooms, tmp_path: Path) -> None:
    """SA5 (Pasquini et al. 2022): one changed byte of the model is another order, other masks, and no common survivor list."""
    attempt(rooms, tmp_path / "first")
    crafted = bytearray(rooms.bundle.weights)
    crafted[-1] ^= 1
    orders = [rooms.order(round=1), rooms.order(round=1, model=rooms.upload(bytes(crafted)))]
    assert orders[0].body != orders[1].body
    signed = dict.fromkeys(THREE, orders[0]) | {"shop": orders[1]}
    for owner, order in signed.items():
        rooms.guards[owner].rounds.place(order)
    receipts = {owner: sealed(rooms.guards[owner], RoundOrder.parse(order.body)) for owner, order in signed.items()}
    request = CloseRequest(order=orders[0], receipts=tuple(receipts.values()), total="ab" * 32)
    for owner, order in signed.items():
        with pytest.raises(CohortMismatch, match="is for order"):
            rooms.guards[owner].closing.close(changed(request, order=order))
    updates = []
    for owner, receipt in receipts.items():
        updates.append(rooms.guards[owner].blobs.published(UpdateReceipt.parse(receipt.body).ciphertext))
    with pytest.raises(CiphertextInvalid):
        add_updates(updates, RoundOrder.parse(orders[0].body), tmp_path / "total.bin")


def test_the_same_update_in_two_attempts_looks_unrelated_to_a_key_holder(rooms: Strongrooms, tmp_path: Path) -> None:
    """Fresh masks and a fresh b_k each time: the difference of the two plaintexts is uniform."""
    secret_key = rooms.guards["clinic"].home.secret_key("bfv")
    first = attempt(rooms, tmp_path / "first")
    second = attempt(rooms, tmp_path / "second", attempt=1)
    coefficients = [decrypted(made, made.updates["bank"], secret_key) for made in (first, second)]
    assert is_uniform((coefficients[0] - coefficients[1]) % modulus_of(first), first)
