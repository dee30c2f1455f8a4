"""The steps of a round, made by hand against guards in this process: train, add, close, reveal, open."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.worker import Job
from fl_privacy.messages import CloseRequest, OpenRequest, RevealRequest, Signed, UpdateReceipt
from fl_privacy.parameters import Vector, count
from fl_privacy.round_order import RoundOrder
from tests.guard.conftest import Strongrooms, finished


@dataclass
class Worker:
    """Stands in for the training worker: draws an update at random, or fails; remembers what it was asked to train."""

    jobs: list[Job] = field(default_factory=list)
    fail: Callable[[Job], None] = lambda job: None

    def run(self, job: Job, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> None:
        self.jobs.append(job)
        self.fail(job)
        draw = np.random.default_rng(len(self.jobs))
        draw.uniform(-0.04, 0.04, count(job.tensors)).astype("<f4").tofile(job.update)

    def trained_by(self, owner: str) -> int:
        """How many updates an owner has trained."""
        return sum(f"/{owner}/" in job.update for job in self.jobs)


@dataclass
class Attempt:
    """One attempt, sealed by all guards of its cohort; the fields are what a scientist has of it."""

    guards: Mapping[str, Guard]
    signed: Signed
    receipts: tuple[Signed, ...]
    updates: dict[str, Path]
    total: Path

    @property
    def order(self) -> RoundOrder:
        return RoundOrder.parse(self.signed.body)

    @property
    def closing(self) -> CloseRequest:
        return CloseRequest(order=self.signed, receipts=self.receipts, total=sha256(self.total))

    def close(self, **changes: Any) -> tuple[Signed, ...]:
        """Every owner's survivor list, in the order of the cohort."""
        request = changed(self.closing, **changes)
        return tuple(self.guards[owner].closing.close(request) for owner in self.order.cohort)

    def revealing(self, survivors: tuple[Signed, ...]) -> RevealRequest:
        return RevealRequest(**dict(self.closing), survivors=survivors)

    def opening(self) -> OpenRequest:
        """Close and reveal everywhere; what is to be sent to the openers, who get the total, too."""
        revealing = self.revealing(self.close())
        reveals = tuple(self.guards[owner].closing.reveal(revealing) for owner in self.order.cohort)
        return OpenRequest(**dict(revealing), reveals=reveals)


def attempt(rooms: Strongrooms, folder: Path, **changes: Any) -> Attempt:
    """Have an order sealed by its whole cohort and add the ciphertexts; ``changes`` are the order's."""
    return collected(rooms, rooms.order(**changes), folder)


def collected(rooms: Strongrooms, signed: Signed, folder: Path) -> Attempt:
    """The attempt at a signed order, which is placed where it is not yet."""
    order = RoundOrder.parse(signed.body)
    guards = {owner: rooms.guards[owner] for owner in order.cohort}
    for guard in guards.values():
        guard.rounds.place(signed)
    receipts = tuple(sealed(guard, order) for guard in guards.values())
    folder.mkdir(parents=True)
    updates = {owner: folder / f"{owner}.bin" for owner in order.cohort}
    for receipt, (owner, path) in zip(receipts, updates.items(), strict=True):
        path.write_bytes(guards[owner].blobs.published(UpdateReceipt.parse(receipt.body).ciphertext).read_bytes())
    add_updates(list(updates.values()), order, folder / "total.bin")
    for guard in guards.values():
        give(guard, folder / "total.bin")
    return Attempt(guards, signed, receipts, updates, folder / "total.bin")


def sealed(guard: Guard, order: RoundOrder) -> Signed:
    """Wait for an order's receipt."""
    state = finished(guard, order.digest())
    assert state["state"] == "sealed", state
    return Signed.model_validate(state["receipt"])


def give(guard: Guard, path: Path) -> str:
    """Put a file into a guard's inbox, as the relay does."""
    digest = sha256(path)
    (guard.blobs.inbox / digest).write_bytes(path.read_bytes())
    return digest


def values_of(guard: Guard, digest: str) -> Vector:
    """The opened vector that a guard has published."""
    return np.fromfile(guard.blobs.published(digest), "<f4")


def changed(message: Any, **changes: Any) -> Any:
    """The same message but for some fields."""
    return type(message)(**dict(message) | changes)


def sha256(path: Path) -> str:
    """Of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
