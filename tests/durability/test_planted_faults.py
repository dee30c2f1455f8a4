"""The matrix can fail: each fault is planted in the guards' code, and a point of the matrix finds it and says what is wrong.

What is patched here is what the runner's children are forked with. A planted fault shifts the events after it, so each point is
the place where the fault does its harm, not the event that it is named after.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fl_privacy.guard import closing, orders
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.home_ledger import HomeLedger
from fl_privacy.guard.rounds import Rounds
from fl_privacy.messages import RevealRequest, SelfMaskReveal, Signed
from fl_privacy.privacy.chain import VerifiedLedger
from fl_privacy.privacy.entries import Reserve
from fl_privacy.privacy.entry_file import EntryFile
from fl_privacy.round_order import RoundOrder
from tests.durability.runner import Runner
from tests.durability.test_crash_matrix import ORDER, point
from tests.durability.traps import Mode

Patch = pytest.MonkeyPatch


def no_reserve(patch: Patch) -> None:
    """Trains without paying."""
    patch.setattr(HomeLedger, "reserve", lambda *_: None)


def late_commit(patch: Patch) -> None:
    """An entry becomes durable with the next one only."""

    @contextmanager
    def writing(self: EntryFile) -> Iterator[None]:
        if self._db.in_transaction:
            self._db.execute("COMMIT")
        self._db.execute("BEGIN IMMEDIATE")
        yield

    patch.setattr(EntryFile, "writing", writing)
    patch.setattr(HomeLedger, "keep_head", lambda self: None)  # else the guard itself finds it at its next start


def refund(patch: Patch) -> None:
    """What was paid for and not sealed is not counted."""

    def spends(self: VerifiedLedger) -> list[Any]:
        reserves = [entry.event for entry in self.entries if isinstance(entry.event, Reserve)]
        return [event.spend for event in reserves if self.orders[event.order] == "committed"]

    patch.setattr(VerifiedLedger, "spends", property(spends))


def second_receipt(patch: Patch) -> None:
    """An order that comes again is sealed again, with another self-mask."""
    place = Rounds.place

    def place_and_seal(self: Rounds, signed: Signed) -> dict[str, Any]:
        order = RoundOrder.parse(signed.body)
        folder = self.orders.folder(order.digest())
        if folder.is_sealed and not folder.is_closed:
            self._seal(folder, order, 0.0)
        return place(self, signed)

    patch.setattr(Rounds, "place", place_and_seal)


def reveal_unclosed(patch: Patch) -> None:
    """The self-mask is given before the survivor list is signed."""

    def reveal(self: closing.Closing, request: RevealRequest) -> Signed:
        _, folder = self._sealed(request)
        seed = folder.self_mask.read_bytes().hex()
        return self._sign(SelfMaskReveal(order=folder.digest, owner=self.home.owner, seed=seed))

    patch.setattr(closing.Closing, "reveal", reveal)


def reveal_to_one(patch: Patch) -> None:
    """The self-mask is given before the others have signed the survivor list."""
    patch.setattr(closing, "verify_survivors", lambda *_: None)
    patch.setattr(HomeLedger, "witness", lambda *_: None)


def open_again(patch: Patch) -> None:
    """The opening is not written down before it is done."""
    write = closing.write_atomically
    patch.setattr(closing, "write_atomically", lambda path, text: None if path.name == "opening.json" else write(path, text))


def torn_message(patch: Patch) -> None:
    """Files are written under their own names."""

    def write(path: Path, content: bytes) -> None:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    patch.setattr(orders, "write_atomically", write)


def torn_blob(patch: Patch) -> None:
    """So are blobs."""

    def publish(self: Blobs, write: Callable[[Any], object]) -> tuple[str, int]:
        buffer = io.BytesIO()
        write(buffer)
        content = buffer.getvalue()
        sha256 = hashlib.sha256(content).hexdigest()
        with open(os.open(self.outbox / sha256, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return sha256, len(content)

    patch.setattr(Blobs, "publish", publish)


@dataclass(frozen=True)
class Planted:
    """A fault, a point at which it does harm, and what the matrix says then."""

    plant: Callable[[Patch], None]
    phase: str
    event: str
    mode: Mode
    said: str


PLANTED = (
    Planted(no_reserve, "train", "worker step 1", "before", "trained without a reserve"),
    Planted(late_commit, "train", "worker step 1", "before", "trained without a reserve"),
    Planted(refund, "train", "worker step 1", "before", "the ledger says 0"),
    Planted(second_receipt, "reuse", f"create {ORDER}closing.json.partial", "before", "two different answers (receipt)"),
    Planted(reveal_unclosed, "reuse", f"create {ORDER}closing.json.partial", "before", "was answered, and not refused"),
    Planted(reveal_to_one, "reuse", "answer survivors", "before", "was answered, and not refused"),
    Planted(open_again, "reuse", f"replace {ORDER}opening.json", "after", "a sum was decrypted twice"),
    Planted(torn_message, "train", f"sync {ORDER}order.json.partial", "torn", "MessageError"),
    Planted(torn_blob, "train", "sync outbox/<random>.partial", "torn", "not what their names say"),
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED, ids=lambda fault: fault.plant.__name__)
def test_the_matrix_finds_a_planted_fault(runner: Runner, monkeypatch: Patch, fault: Planted) -> None:
    struck = point(runner, fault.phase, fault.event, fault.mode)
    honest = runner.run(struck)
    fault.plant(monkeypatch)
    found = runner.run(struck)
    assert not honest.problem
    assert fault.said in found.problem
