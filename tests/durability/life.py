"""The life of three guards and one scientist, in phases that can be done again: what every crash point interrupts.

The scientist behaves as the real one: the same order again, then a new attempt. What the outside world has received, or has
seen begin, is in a journal that no crash takes back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.encryption.blind_sum import add_updates
from fl_privacy.errors import FlPrivacyError, from_wire
from fl_privacy.guard.corpus import add_corpus
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OrderFolder
from fl_privacy.messages import CloseRequest, OpenedSum, OpenRequest, Signed, UpdateReceipt, sign
from fl_privacy.plan import ATTEMPTS_PER_ROUND
from fl_privacy.round_order import RoundOrder
from tests.builders import OWNERS, enrol_all, order_for, text_rows, texts, tiny_bundle, tiny_plan, write_domain
from tests.durability.traps import Traps
from tests.guard.conftest import ROWS, finished, upload
from tests.guard.protocol import Attempt, sha256

Result = TypeVar("Result")
Request = TypeVar("Request", bound=CloseRequest)
VICTIM, OPENERS = "bank", ("bank", "clinic")  # the victim deals the keys, trains and opens
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))  # the scientist's
ROUNDS, RETRIES = 2, 1
PAID = ROUNDS + RETRIES


class Journal:
    """Facts, one JSON line each, on disk before the next step is taken."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._path = path

    def note(self, what: str, **fields: Any) -> None:
        """Add a fact."""
        os.write(self._file, (json.dumps({"what": what} | fields) + "\n").encode())

    def all(self, what: str) -> list[dict[str, Any]]:
        """The facts of one kind, oldest first."""
        facts = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [fact for fact in facts if fact["what"] == what]


class Life:
    """Guards in this process over the homes in ``folder / "homes"``, and a scientist."""

    def __init__(self, folder: Path, traps: Traps | None = None) -> None:
        self.folder, self.homes = folder, folder / "homes"
        self.journal = Journal(folder / "journal")
        self.traps = traps or Traps(self.homes / VICTIM)
        self.traps.seen = lambda what, order: self.journal.note(what, order=order)
        self.guards: dict[str, Guard] = {}
        self.bundle = tiny_bundle()
        self.plan = tiny_plan(self.bundle, rounds=ROUNDS, retries=RETRIES)
        self.troubles: list[str] = []  # typed errors that the scientist or the owner was told

    def open(self) -> None:
        """Start the guards whose homes exist."""
        self.guards = {owner: Guard(GuardHome(self.homes / owner)) for owner in OWNERS if (self.homes / owner).exists()}

    def close(self) -> None:
        """Stop the guards."""
        for guard in self.guards.values():
            guard.close()

    @property
    def victim(self) -> Guard:
        """The guard that trouble comes to."""
        return self.guards[VICTIM]

    @property
    def code(self) -> str:
        """The submitted code."""
        return template.render(sign(self.plan, KEY))

    def make_homes(self) -> None:
        """New homes, without a corpus."""
        self.homes.mkdir()
        for owner in OWNERS:
            GuardHome.create(self.homes / owner, Domain.read(write_domain(self.folder, owner))).close()

    # the phases

    def enrol(self) -> None:
        """Corpus, registry, keys, approvals, model: every command of the owners, and the uploads."""
        for owner, guard in self.guards.items():
            file = self.folder / f"{owner}.jsonl"
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(ROWS, seed=sum(map(ord, owner)))))
            add_corpus(guard.home, file, text_rows(5, seed=99))
        enrol_all({owner: guard.enrolment for owner, guard in self.guards.items()})
        for guard in self.guards.values():
            guard.approve(self.code)
            for blob in (self.bundle.weights, self.bundle.vocabulary):
                upload(guard, blob)

    def lose_an_attempt(self) -> None:
        """Round 0, attempt 0: sealed by all; the scientist does not come back for it."""
        self._sealed(self.order(0, 0))

    def reuse_the_update(self) -> None:
        """Round 0 with the update that was trained before."""
        self._round(0, first=1)

    def next_round(self) -> None:
        """Round 1."""
        self._round(1, first=0)

    PHASES: tuple[Callable[[Life], None], ...] = (enrol, lose_an_attempt, reuse_the_update, next_round)

    def go_on(self, phase: int) -> None:
        """What owners and scientist do after trouble in a phase: that again, then the rest.

        Raises: whatever is no typed error, or a typed error that does not go away.
        """
        for number in range(phase, len(self.PHASES)):
            self.PHASES[number](self)

    def knows(self, phase: int) -> bool:
        """Whether the victim has admitted the phase's order."""
        number, attempt = ((0, 0), (0, 0), (0, 1), (1, 0))[phase]
        order = RoundOrder.parse(self.order(number, attempt).body)
        return (self.victim.home.folder / "rounds" / order.digest()).exists()

    def order(self, number: int, attempt: int) -> Signed:
        """The signed order of a round's attempt."""
        home = self.victim.home
        return order_for(self.plan, KEY, home.registry, ROWS, home.secret_key("bfv"), round=number, attempt=attempt)

    def tried(self, what: Callable[[], Result]) -> Result | None:
        """Do it; a typed error is remembered, and then the disk is found full and is cleaned."""
        try:
            return what()
        except FlPrivacyError as error:
            self.troubles.append(f"{type(error).__name__}: {error}")
            self.traps.free()
            return None

    def _round(self, number: int, first: int) -> None:
        for attempt in range(first, ATTEMPTS_PER_ROUND):
            if self._is_opened(number) or self.tried(lambda: self._finish(self.order(number, attempt))):  # noqa: B023
                return
        raise RuntimeError(f"round {number} was not opened: {self.troubles}")

    def is_over(self) -> bool:
        """Whether all rounds are open."""
        return all(self._is_opened(number) for number in range(ROUNDS))

    def _is_opened(self, number: int) -> bool:
        return any(fact["round"] == number for fact in self.journal.all("opened round"))

    def _sealed(self, signed: Signed) -> tuple[Signed, ...] | None:
        order = RoundOrder.parse(signed.body)

        def place() -> tuple[Signed, ...]:
            for guard in self.guards.values():
                guard.rounds.place(signed)
            return tuple(self._receipt(guard, order) for guard in self.guards.values())

        return self.tried(place)

    def _receipt(self, guard: Guard, order: RoundOrder) -> Signed:
        state = finished(guard, order.digest(), 30.0)
        if state["state"] == "failed":
            raise from_wire(state["error"])
        receipt = Signed.model_validate(state["receipt"])
        folder = OrderFolder(guard.home.folder / "rounds" / order.digest())
        if folder.update.exists():
            self.journal.note("update", owner=guard.home.owner, order=order.digest(), answer=sha256(folder.update))
        self._told("receipt", guard, order, receipt)
        return receipt

    def _finish(self, signed: Signed) -> bool:
        """One attempt to its opened sum. Raises: FlPrivacyError."""
        order, receipts = RoundOrder.parse(signed.body), self._sealed(signed)
        if receipts is None:
            return False
        made = self._added(signed, receipts)
        survivors = tuple(self._answer("survivors", guard, guard.closing.close, made.closing) for guard in self.guards.values())
        revealing = made.revealing(survivors)
        reveals = tuple(self._answer("reveal", guard, guard.closing.reveal, revealing) for guard in self.guards.values())
        request = OpenRequest(**dict(revealing), reveals=reveals)
        opened = []
        for owner in OPENERS:
            upload(self.guards[owner], made.total.read_bytes())
            answer = self._answer("opened", self.guards[owner], self.guards[owner].closing.open, request)
            opened.append(OpenedSum.parse(answer.body).values)
        if len(set(opened)) != 1:
            raise RuntimeError(f"round {order.round}: the owners opened different sums")
        self.journal.note("opened round", round=order.round)
        return True

    def _added(self, signed: Signed, receipts: tuple[Signed, ...]) -> Attempt:
        folder, order = self.folder / "scientist", RoundOrder.parse(signed.body)
        folder.mkdir(exist_ok=True)
        updates = {owner: folder / f"{owner}.bin" for owner in order.cohort}
        for owner, receipt in zip(order.cohort, receipts, strict=True):
            blob = self.guards[owner].blobs.published(UpdateReceipt.parse(receipt.body).ciphertext)
            updates[owner].write_bytes(blob.read_bytes())
        add_updates(list(updates.values()), order, folder / "total.bin")
        return Attempt(self.guards, signed, receipts, updates, folder / "total.bin")

    def _answer(self, what: str, guard: Guard, ask: Callable[[Request], Signed], request: Request) -> Signed:
        answer = ask(request)
        self._told(what, guard, RoundOrder.parse(request.order.body), answer)
        return answer

    def _told(self, what: str, guard: Guard, order: RoundOrder, answer: Signed) -> None:
        """The scientist has the answer, unless the guard dies before it is sent."""
        if guard.home.owner == VICTIM:
            self.traps.event(f"answer {what}", lambda: None)
        told = answer.model_dump_json()
        self.journal.note(what, owner=guard.home.owner, order=order.digest(), answer=told)
