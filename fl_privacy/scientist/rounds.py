"""One attempt at one round: train everywhere, add the ciphertexts blindly, have all owners agree, have two open the sum."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from fl_privacy.encryption.agreement import commit, survivor_list, verify_receipts
from fl_privacy.encryption.blind_sum import add_updates, check_update
from fl_privacy.encryption.evidence import OPENERS, Evidence
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import ConnectionFailed, EncryptionError, FlPrivacyError, MessageError, RoundFailed
from fl_privacy.messages import (
    CloseRequest,
    OpenedSum,
    OpenRequest,
    RevealRequest,
    SelfMaskReveal,
    Signed,
    SurvivorList,
    UpdateReceipt,
    open_signed,
)
from fl_privacy.parameters import Parameters, Vector, unflatten
from fl_privacy.round_order import RoundOrder
from fl_privacy.scientist.deliveries import Delivery, deliver
from fl_privacy.scientist.desk import Desk

PATIENCE_SECONDS = 60.0  # for an owner to come back: a new attempt costs more, and a signed update can go into no other
PAUSE_SECONDS = 1.0
TOGETHER = "the cohort together"  # in place of an owner, where the fault is in how words of several fit

OnStep = Callable[[str, int, int], None]
OnPhase = Callable[[str, str], None]
Result = TypeVar("Result")
Word = TypeVar("Word", UpdateReceipt, SurvivorList, SelfMaskReveal, OpenedSum)


@dataclass(frozen=True)
class Opened:
    """A round's outcome: the opened sum and the mean update that it stands for, the receipts, and what it cost."""

    order: RoundOrder
    values: Vector
    mean: Parameters
    receipts: tuple[UpdateReceipt, ...]
    openers: tuple[str, ...]
    ciphertext_bytes: int  # of the largest encrypted update
    bytes_up: int
    bytes_down: int
    seconds_training: float
    seconds_crypto: float
    seconds_total: float


def run_round(
    desks: Mapping[str, Desk],
    function: str,
    order: Signed,
    deliveries: Sequence[Delivery],
    registry: Registry,
    evidence: Evidence,
    timeout: float,
    on_step: OnStep,
    on_phase: OnPhase = lambda owner, phase: None,
    read: Callable[[RoundOrder, Vector], Parameters] = lambda order, values: unflatten(values, order.tensors),
) -> Opened:
    """Carry one signed order through and leave the proof in ``evidence``.

    Args: ``function`` is the approved code's name; ``deliveries`` are what the owners need (model, vocabulary); ``timeout`` in
    seconds per owner, after which that owner has failed; ``on_phase`` gets an owner and what goes on there;
    ``read`` makes the mean update of the opened sum, where that is not of all coordinates.
    Raises: RoundFailed that names every owner at fault. Owners who have trained keep their update for the next attempt, unless
    they have signed a survivor list for it.
    """
    attempt = _Attempt(desks, function, order, RoundOrder.parse(order.body), registry, evidence, timeout, on_phase)
    clock, wire_before = time.perf_counter(), attempt.wire()
    receipts = attempt.train(deliveries, on_step)
    verified = attempt.fetch(receipts)
    seconds_adding = attempt.add(verified)
    request = attempt.agree(receipts, verified)
    opened = attempt.open(request)
    values = attempt.take_values(opened)
    evidence.write(request, [signed for signed, _ in opened.values()])
    up, down = (after - before for after, before in zip(attempt.wire(), wire_before, strict=True))
    seconds_opening = max(word.decryption_seconds for _, word in opened.values())
    return Opened(
        order=attempt.ordered,
        values=values,
        mean=read(attempt.ordered, values),
        receipts=verified,
        openers=tuple(opened),
        ciphertext_bytes=max(receipt.ciphertext_bytes for receipt in verified),
        bytes_up=up,
        bytes_down=down,
        seconds_training=max(receipt.training_seconds for receipt in verified),
        seconds_crypto=max(receipt.encryption_seconds for receipt in verified) + seconds_adding + seconds_opening,
        seconds_total=time.perf_counter() - clock,
    )


@dataclass(frozen=True)
class _Attempt:
    desks: Mapping[str, Desk]
    function: str
    order: Signed
    ordered: RoundOrder
    registry: Registry
    evidence: Evidence
    timeout: float
    on_phase: OnPhase

    def wire(self) -> tuple[int, int]:
        """Bytes from and to the cohort's owners so far."""
        relays = [self.desks[owner].relay for owner in self.ordered.cohort]
        return sum(relay.bytes_received for relay in relays), sum(relay.bytes_sent for relay in relays)

    def train(self, deliveries: Sequence[Delivery], on_step: OnStep) -> tuple[Signed, ...]:
        """Every owner's receipt, in the order of the cohort."""

        def stepped(owner: str, step: int, steps: int) -> None:
            on_step(owner, step, steps)
            if step == steps:
                self.on_phase(owner, "encrypting")  # what an owner does next

        def train_at(owner: str) -> Signed:
            self.on_phase(owner, "sending")
            for delivery in deliveries:
                _patiently(partial(deliver, self.desks[owner].relay, delivery))
            # a guard goes on while its datasite is away: the same order again is answered from what it has, at no cost
            signed = _patiently(lambda: self._run(owner, "train", self.order.canonical().decode(), stepped))
            self._word(owner, signed, UpdateReceipt)
            return signed

        return self._everywhere(train_at)

    def fetch(self, receipts: Sequence[Signed]) -> tuple[UpdateReceipt, ...]:
        """Store every owner's ciphertext, as named in its receipt."""
        try:
            verified = verify_receipts(self.ordered, receipts, self.registry)
        except (EncryptionError, MessageError) as error:  # each is right by itself
            raise RoundFailed(self.ordered.round, {TOGETHER: _told(error)}) from None
        digests = {receipt.owner: receipt.ciphertext for receipt in verified}

        def fetch_from(owner: str) -> None:
            self.on_phase(owner, "fetching")
            _patiently(lambda: self.desks[owner].relay.fetch_blob(digests[owner], self.evidence.update_path(owner)))

        self._everywhere(fetch_from)
        return verified

    def add(self, receipts: Sequence[UpdateReceipt]) -> float:
        """Store the sum of the ciphertexts; returns seconds."""
        clock = time.perf_counter()
        for owner in self.ordered.cohort:
            self.on_phase(owner, "adding")
        updates = {receipt.owner: self.evidence.update_path(receipt.owner) for receipt in receipts}
        try:
            add_updates(list(updates.values()), self.ordered, self.evidence.total_path)
        except EncryptionError as error:
            _, failures = self._at(self.ordered.cohort, lambda owner: check_update(updates[owner], self.ordered, owner))
            raise RoundFailed(self.ordered.round, failures or {TOGETHER: _told(error)}) from None
        return time.perf_counter() - clock

    def agree(self, receipts: tuple[Signed, ...], verified: Sequence[UpdateReceipt]) -> OpenRequest:
        """All owners sign the survivor list; then, and only then, all reveal their self-masks."""
        with self.evidence.total_path.open("rb") as file:
            total = hashlib.file_digest(file, "sha256").hexdigest()
        closing = CloseRequest(order=self.order, receipts=receipts, total=total)
        commitments = {receipt.owner: receipt.self_mask for receipt in verified}

        def close_at(owner: str) -> Signed:
            self.on_phase(owner, "agreeing")
            signed = _patiently(lambda: self.desks[owner].relay.close_order(closing))
            if self._word(owner, signed, SurvivorList) != survivor_list(closing, self.ordered, verified, owner):
                raise MessageError("signed another survivor list than the one of these receipts")
            return signed

        survivors = self._everywhere(close_at)
        revealing = RevealRequest(order=self.order, receipts=receipts, total=total, survivors=survivors)

        def reveal_at(owner: str) -> Signed:
            signed = _patiently(lambda: self.desks[owner].relay.reveal_self_mask(revealing))
            seed = bytes.fromhex(self._word(owner, signed, SelfMaskReveal).seed)
            if commit(seed, self.ordered.digest(), owner) != commitments[owner]:
                raise MessageError("revealed another self-mask than its receipt commits to")
            return signed

        reveals = () if self.ordered.encoding.scheme == "ckks" else self._everywhere(reveal_at)
        return OpenRequest(order=self.order, receipts=receipts, total=total, survivors=survivors, reveals=reveals)

    def open(self, request: OpenRequest) -> dict[str, tuple[Signed, OpenedSum]]:
        """The words of two owners who opened the sum and agree on its values; others of the cohort stand in for who fails."""

        def open_at(owner: str) -> tuple[Signed, OpenedSum]:
            self.on_phase(owner, "opening")
            self.desks[owner].relay.put_file(request.total, self.evidence.total_path)
            signed = self._run(owner, "open", self.desks[owner].relay.put_blob(request.canonical()))
            word = self._word(owner, signed, OpenedSum)
            if word.total != request.total:
                raise MessageError("the opened sum is not the one that was asked for")
            return signed, word

        start = (self.ordered.round + self.ordered.attempt) % len(self.ordered.cohort)
        waiting = self.ordered.cohort[start:] + self.ordered.cohort[:start]
        opened: dict[str, tuple[Signed, OpenedSum]] = {}
        failures: dict[str, str] = {}
        while len(opened) < OPENERS:
            asked, waiting = waiting[: OPENERS - len(opened)], waiting[OPENERS - len(opened) :]
            if not asked:
                raise RoundFailed(self.ordered.round, failures)
            results, failed = self._at(asked, open_at)
            opened |= results
            failures |= failed
        if len({word.values for _, word in opened.values()}) > 1:
            told = {
                owner: f"opened the sum to values {word.values[:16]}…, the other not" for owner, (_, word) in opened.items()
            }
            raise RoundFailed(self.ordered.round, told)
        return opened

    def take_values(self, opened: Mapping[str, tuple[Signed, OpenedSum]]) -> Vector:
        """The opened sum, from the first opener that gives it."""
        failures: dict[str, str] = {}
        for owner, (_, word) in opened.items():
            try:
                self.desks[owner].relay.fetch_blob(word.values, self.evidence.values_path)
                values = np.fromfile(self.evidence.values_path, "<f4")
                if values.shape != (self.ordered.coordinates,):
                    raise MessageError(f"the opened sum has {values.size} coordinates, expected {self.ordered.coordinates}")
                return values
            except FlPrivacyError as error:
                failures[owner] = _told(error)
        raise RoundFailed(self.ordered.round, failures)

    def _run(self, owner: str, action: str, message: str, on_step: OnStep | None = None) -> Signed:
        """Hand a message to an owner's guard, by the approved function as a Syft job; see ``datasite.front_desk.hand_over``."""
        task = {"action": action, "message": message}
        progress = None if on_step is None else lambda step, steps: on_step(owner, step, steps)
        return Signed.parse(json.dumps(self.desks[owner].run(self.function, task, self.timeout, progress)))

    def _word(self, owner: str, signed: Signed, kind: type[Word]) -> Word:
        """What an owner signed for this order, in its own name. Raises: SignatureInvalid, MessageError."""
        word = open_signed(signed, kind, self.registry.card(owner).signing_key)
        if (word.order, word.owner) != (self.ordered.digest(), owner):
            raise MessageError(f"a {kind.__name__} in the name of {word.owner!r} for order {word.order[:16]}… is of no use")
        return word

    def _everywhere(self, step: Callable[[str], Result]) -> tuple[Result, ...]:
        """Do one step with every owner of the cohort at once. Raises: RoundFailed when all are done and any has failed."""
        results, failures = self._at(self.ordered.cohort, step)
        if failures:
            raise RoundFailed(self.ordered.round, failures)
        return tuple(results[owner] for owner in self.ordered.cohort)

    def _at(self, owners: Sequence[str], step: Callable[[str], Result]) -> tuple[dict[str, Result], dict[str, str]]:
        results: dict[str, Result] = {}
        failures: dict[str, str] = {}
        with ThreadPoolExecutor(max_workers=len(owners)) as pool:
            futures = {owner: pool.submit(step, owner) for owner in owners}
            for owner, future in futures.items():
                try:
                    results[owner] = future.result()
                except FlPrivacyError as error:
                    failures[owner] = _told(error)
        return results, failures


def _patiently(ask: Callable[[], Result]) -> Result:
    """Ask until there is an answer, also of an owner that is being restarted; its guard answers the same request alike."""
    deadline = math.inf
    while True:
        try:
            return ask()
        except ConnectionFailed:
            now = time.monotonic()
            deadline = min(deadline, now + PATIENCE_SECONDS)  # from the first failure on: a training may take hours
            if now >= deadline:
                raise
            time.sleep(PAUSE_SECONDS)


def _told(error: FlPrivacyError) -> str:
    return f"{type(error).__name__}: {error}"
