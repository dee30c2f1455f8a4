"""What a privacy ledger holds: signed, hash-chained entries, and the check that nobody edited, dropped or forked them.

An entry's place in the chain is its number and the digest of the entry before it; its time is for the reader only, so a
clock that goes back changes nothing. The chain shows tampering by anyone without the owner's key, and an owner who rewrites
its own past to anyone who kept an earlier head (every receipt and statement carries one).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from fl_privacy.errors import LedgerTampered, MessageError, SignatureInvalid
from fl_privacy.messages import Digest, LedgerStatement, Message, OwnerName, Signed, open_signed

Accountant = Literal["prv", "rdp"]
OrderState = Literal["reserved", "committed", "void"]
FIRST = "0" * 64  # what the first entry names as the entry before it

Epsilon = Annotated[float, Field(gt=0)]
Reason = Annotated[str, StringConstraints(max_length=500)]


class Spend(Message):
    """DP-SGD steps to pay for: each a Gaussian mechanism on a Poisson sample of the corpus.

    ``noise_multiplier`` is the noise's standard deviation over the clipping norm, ``sample_rate`` each record's probability
    of being in a batch, ``steps`` a count.
    """

    noise_multiplier: Annotated[float, Field(gt=0, le=1e6)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, le=10**9)]


class Opening(Message):
    """The first entry: whose ledger, and the budget that every later reserve must fit."""

    kind: Literal["open"] = "open"
    owner: OwnerName
    epsilon: Epsilon
    delta: Annotated[float, Field(gt=0, lt=1)]
    accountant: Accountant
    unit: Literal["record"] = "record"


class BudgetChange(Message):
    """The owner's new budget; what was spent stays spent."""

    kind: Literal["budget"] = "budget"
    epsilon: Epsilon
    reason: Reason


class Reserve(Message):
    """Paid before the first gradient of an order; ``epsilon`` is the bound for all reserves up to and with this one."""

    kind: Literal["reserve"] = "reserve"
    order: Digest
    plan: Digest
    spend: Spend
    epsilon: Annotated[float, Field(ge=0)]


class Commit(Message):
    """The order's update was sealed."""

    kind: Literal["commit"] = "commit"
    order: Digest


class Void(Message):
    """The order failed. Its noise may have been seen, so its reserve still counts."""

    kind: Literal["void"] = "void"
    order: Digest
    reason: Reason


Event = Opening | BudgetChange | Reserve | Commit | Void


class LedgerEntry(Message):
    """One link: its number, the digest of the entry before it, the owner's clock (Unix seconds), and what happened."""

    version: Literal[1] = 1
    seq: Annotated[int, Field(ge=0)]
    previous: Digest
    time: int
    event: Annotated[Event, Field(discriminator="kind")]


class VerifiedLedger:
    """Entries of one ledger that were checked, and what they add up to. Grows by ``append`` only."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self.orders: dict[str, OrderState] = {}
        self.head = FIRST
        self.epsilon = 0.0  # as the ledger's own accountant signed it with the last reserve

    @property
    def opening(self) -> Opening:
        """The first event. Raises: LedgerTampered when there is none."""
        if not self.entries or not isinstance(self.entries[0].event, Opening):
            raise LedgerTampered("entry 0 is missing: the ledger has no opening entry")
        return self.entries[0].event

    @property
    def budget(self) -> float:
        """The owner's present budget (epsilon)."""
        changes = (entry.event.epsilon for entry in reversed(self.entries) if isinstance(entry.event, BudgetChange))
        return next(changes, self.opening.epsilon)

    @property
    def spends(self) -> list[Spend]:
        """Every reserve, voided ones too."""
        return [entry.event.spend for entry in self.entries if isinstance(entry.event, Reserve)]

    def conflict(self, event: Event) -> str | None:
        """Why this event may not come next, or None."""
        if isinstance(event, Opening) != (not self.entries):
            return "an opening must be the first entry, and only the first"
        if isinstance(event, Opening | BudgetChange):
            return None
        state = self.orders.get(event.order)
        if isinstance(event, Reserve):
            return f"order {event.order[:16]}… was reserved before (now {state})" if state else None
        if state != "reserved":
            return f"{event.kind} of order {event.order[:16]}…, which is {state or 'not reserved'}"
        return None

    def append(self, entry: LedgerEntry) -> None:
        """Take the next entry. Raises: LedgerTampered that names it when it does not follow."""
        number = len(self.entries)
        if entry.seq != number:
            raise LedgerTampered(f"entry {number} is missing: entry {entry.seq} stands in its place")
        if entry.previous != self.head:
            raise LedgerTampered(f"entry {number} forks the ledger: it was signed to follow another entry {number - 1}")
        if problem := self.conflict(entry.event):
            raise LedgerTampered(f"entry {number} cannot follow: {problem}")
        event = entry.event
        if isinstance(event, Reserve):
            self.orders[event.order], self.epsilon = "reserved", event.epsilon
        elif isinstance(event, Commit | Void):
            self.orders[event.order] = "committed" if isinstance(event, Commit) else "void"
        self.entries.append(entry)
        self.head = entry.digest()


def open_entry(line: str, number: int, owner_key: str) -> LedgerEntry:
    """Check form, signer and signature of the signed entry at position ``number``; raises LedgerTampered that names it."""
    try:
        entry = open_signed(signed := Signed.parse(line), LedgerEntry, owner_key)
    except SignatureInvalid as problem:
        raise LedgerTampered(f"entry {number} was edited, or signed by another key: {problem}") from None
    except MessageError as problem:
        raise LedgerTampered(f"entry {number} is not a ledger entry: {problem}") from None
    if entry.canonical() != signed.body.encode():
        raise LedgerTampered(f"entry {number} is not in canonical form")
    return entry


def verify(lines: Sequence[str], owner_key: str) -> VerifiedLedger:
    """Check every signature, the order, the chain and the meaning of a whole ledger.

    Args: lines are signed entries as JSON, oldest first; owner_key is the public key (hex) that must have signed them all.
    Raises: LedgerTampered that names the first entry at fault and what happened to it.
    """
    entries = [open_entry(line, number, owner_key) for number, line in enumerate(lines)]
    ledger = VerifiedLedger()
    for number, entry in enumerate(entries):
        if entry.seq < number:
            twin = "repeated" if entry in entries[:number] else "forked: two different entries carry its number"
            raise LedgerTampered(f"entry {entry.seq} is {twin}")
        if entry.seq > number and any(other.seq == number for other in entries[number + 1 :]):
            raise LedgerTampered(f"entry {number} was moved: entry {entry.seq} stands in its place")
        ledger.append(entry)
    _ = ledger.opening  # an empty ledger has lost its first entry
    return ledger


def must_contain(ledger: VerifiedLedger, seen: LedgerStatement | str) -> None:
    """Check that a ledger continues the state that somebody saw earlier: a statement, or the head of one or of a receipt.

    Raises: LedgerTampered when entries were cut off, or replaced by others.
    """
    digests = [entry.digest() for entry in ledger.entries]
    if isinstance(seen, str):
        if seen not in digests:
            raise LedgerTampered(
                f"the ledger was cut short at entry {len(digests)} or forked: its {len(digests)} entries lack head {seen[:16]}…"
            )
    elif seen.entries > len(digests):
        raise LedgerTampered(f"entry {len(digests)} is missing: the ledger was cut short, {seen.entries} entries were stated")
    elif seen.entries < 1 or digests[seen.entries - 1] != seen.head:
        raise LedgerTampered(f"entry {seen.entries - 1} is not the one that was stated: the ledger was forked at or before it")
