"""The check of a ledger: every signature, the order of the entries, and that each may follow those before it.

An entry's place is its number and the digest of the signed bytes before it, so fields that a later version adds change no old
digest. The chain shows tampering by anyone without the owner's key, and an owner who rewrites its own past to anyone who kept
an earlier head (every receipt and statement carries one, and the other owners' witnesses).

Times are the owner's word. An entry counts as made no earlier than the one before it, so a clock that goes back neither
frees a period's budget nor revives an approval.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fl_privacy.errors import LedgerTampered, MessageError, SignatureInvalid
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import Signed, open_signed
from fl_privacy.privacy.entries import (
    DAY,
    FIRST,
    BudgetChange,
    Commit,
    Decided,
    Event,
    LedgerEntry,
    Opening,
    Reserve,
    Spend,
    Void,
    Witness,
)
from fl_privacy.privacy.witness import agreed_heads

OrderState = Literal["reserved", "committed", "void"]


@dataclass(frozen=True)
class Link:
    """An entry whose signature was checked, and the digest of its signed bytes."""

    entry: LedgerEntry
    digest: str


class VerifiedLedger:
    """Entries of one ledger that were checked, and what they add up to. Grows by ``append`` only."""

    def __init__(self, owner_key: str) -> None:
        """Args: ``owner_key`` is the public key (hex) that signed the entries."""
        self.owner_key = owner_key
        self.entries: list[LedgerEntry] = []
        self.positions: dict[str, int] = {}  # of each head that the ledger had: digest of an entry -> its number
        self.times: list[int] = []  # when each entry counts as made; never falls
        self.orders: dict[str, OrderState] = {}
        self.committed_at: dict[str, int] = {}  # order -> number of its commit
        self.witnessed: dict[str, int] = {}  # order -> number of its witness
        self.decisions: dict[str, Decided] = {}  # plan -> the last decision
        self.reserves_of: Counter[str] = Counter()  # plan -> how many
        self.budgets: list[float] = []  # in force after each entry
        self.head = FIRST
        self.epsilon = 0.0  # as the ledger's own accountant signed it with the last reserve

    @property
    def opening(self) -> Opening:
        """The first event. Raises: LedgerTampered when there is none."""
        if not self.entries or not isinstance(self.entries[0].event, Opening):
            raise LedgerTampered("entry 0 is missing: the ledger has no opening entry", 0)
        return self.entries[0].event

    @property
    def budget(self) -> float:
        """The owner's present budget (epsilon)."""
        return self.budgets[-1] if self.budgets else self.opening.epsilon

    @property
    def time(self) -> int:
        """When the last entry counts as made, Unix seconds."""
        return self.times[-1] if self.times else 0

    @property
    def keeps_decisions(self) -> bool:
        """Whether a reserve needs an approval: from the opening on if that says so, else from the first decision on."""
        return self.opening.decisions_kept or bool(self.decisions)

    @property
    def spends(self) -> list[Spend]:
        """Every reserve, voided ones too."""
        return [entry.event.spend for entry in self.entries if isinstance(entry.event, Reserve)]

    def spends_of(self, plan: str) -> list[Spend]:
        """Every reserve of one plan (digest)."""
        return [entry.event.spend for entry in self.entries if isinstance(entry.event, Reserve) and entry.event.plan == plan]

    def spends_in_period(self, now: int, upto: int | None = None) -> list[Spend]:
        """The reserves that the budget bounds at a time: those of the last ``period_days``, or all without a period.

        Args: ``upto`` leaves out the entries after this one.
        """
        days = self.opening.period_days
        since = -1 if days is None else now - days * DAY
        made = list(zip(self.entries, self.times, strict=True))[: None if upto is None else upto + 1]
        return [entry.event.spend for entry, time in made if isinstance(entry.event, Reserve) and time > since]

    def decision_at(self, number: int) -> Decided | None:
        """The decision under which a reserve was made, if there was one."""
        plan = getattr(self.entries[number].event, "plan", None)
        earlier = (entry.event for entry in reversed(self.entries[:number]) if isinstance(entry.event, Decided))
        return next((decision for decision in earlier if decision.plan == plan), None)

    def conflict(self, event: Event, time: int) -> str | None:
        """Why this event may not come next, at this time (Unix seconds), or None."""
        if isinstance(event, Opening) != (not self.entries):
            return "an opening must be the first entry, and only the first"
        if isinstance(event, Opening | BudgetChange | Decided):
            return None
        if isinstance(event, Witness):
            return self._bad_witness(event)
        state = self.orders.get(event.order)
        if isinstance(event, Reserve):
            taken = f"order {event.order[:16]}… was reserved before (now {state})"
            return taken if state else self._unapproved(event.plan, max(time, self.time))
        if state != "reserved":
            return f"{event.kind} of order {event.order[:16]}…, which is {state or 'not reserved'}"
        return None

    def append(self, link: Link) -> None:
        """Take the next entry. Raises: LedgerTampered that names it when it does not follow."""
        entry, number = link.entry, len(self.entries)
        if entry.seq != number:
            raise LedgerTampered(f"entry {number} is missing: entry {entry.seq} stands in its place", number)
        if entry.previous != self.head:
            raise LedgerTampered(f"entry {number} forks the ledger: it was signed to follow another entry {number - 1}", number)
        if problem := self.conflict(entry.event, entry.time):
            raise LedgerTampered(f"entry {number} cannot follow: {problem}", number)
        self._take_in(entry.event, number)
        self.entries.append(entry)
        self.times.append(max(entry.time, self.time))
        self.positions[link.digest] = number
        self.head = link.digest

    def _take_in(self, event: Event, number: int) -> None:
        self.budgets.append(event.epsilon if isinstance(event, Opening | BudgetChange) else self.budget)
        if isinstance(event, Decided):
            self.decisions[event.plan] = event
        elif isinstance(event, Reserve):
            self.orders[event.order], self.epsilon = "reserved", event.epsilon
            self.reserves_of[event.plan] += 1
        elif isinstance(event, Commit):
            self.orders[event.order], self.committed_at[event.order] = "committed", number
        elif isinstance(event, Void):
            self.orders[event.order] = "void"
        elif isinstance(event, Witness):
            self.witnessed[event.order] = number

    def _unapproved(self, plan: str, time: int) -> str | None:
        if not self.keeps_decisions:
            return None
        decision, named = self.decisions.get(plan), f"plan {plan[:16]}…"
        if decision is None:
            return f"no approval of {named} stands before this reserve"
        if decision.verdict != "approved":
            return f"{named} ({decision.name}) was {decision.verdict}"
        if decision.expires is not None and time >= decision.expires:
            return f"the approval of {named} ({decision.name}) had expired"
        if self.reserves_of[plan] >= decision.rounds:
            return f"all {decision.rounds} orders that were approved for {named} ({decision.name}) are used"
        return None

    def _bad_witness(self, event: Witness) -> str | None:
        named = f"order {event.order[:16]}…"
        if event.order in self.witnessed:
            return f"{named} was witnessed before"
        try:
            heads = agreed_heads(event, self.opening.owner, self.owner_key)
        except MessageError as problem:
            return f"the witness of {named} proves nothing: {problem}"
        at = self.positions.get(heads[self.opening.owner])
        if at is None:
            return f"the witness of {named} carries a head that this ledger never had"
        state = self.orders.get(event.order, "committed")  # an order that took over a trained update was not reserved again
        if state != "committed" or at < self.committed_at.get(event.order, 0):
            return f"the witness of {named} carries a head from before the order was committed"
        return None


def open_entry(line: str, number: int, owner_key: str) -> Link:
    """Check form, signer and signature of the signed entry at position ``number``; raises LedgerTampered that names it."""
    try:
        entry = open_signed(signed := Signed.parse(line), LedgerEntry, owner_key)
    except SignatureInvalid as problem:
        raise LedgerTampered(f"entry {number} was edited, or signed by another key: {problem}", number) from None
    except MessageError as problem:
        raise LedgerTampered(f"entry {number} is not a ledger entry: {problem}", number) from None
    # only what was given: a field that a later version added is not in an older entry
    given = entry.model_dump(mode="json", exclude_unset=True)
    if json.dumps(given, sort_keys=True, separators=(",", ":"), ensure_ascii=False) != signed.body:
        raise LedgerTampered(f"entry {number} is not in canonical form", number)
    return Link(entry, signed.body_digest())


def verify_prefix(lines: Sequence[str], owner_key: str) -> tuple[VerifiedLedger, LedgerTampered | None]:
    """As much of a ledger as can be verified, and what is wrong with the entry after it."""
    ledger, links = VerifiedLedger(owner_key), []
    try:
        for number, line in enumerate(lines):
            links.append(open_entry(line, number, owner_key))
    except LedgerTampered as problem:
        fault: LedgerTampered | None = problem
    else:
        fault = None
    entries = [link.entry for link in links]
    try:
        for number, link in enumerate(links):
            _check_place(entries, number)
            ledger.append(link)
        if fault is None:
            _ = ledger.opening  # an empty ledger has lost its first entry
    except LedgerTampered as problem:
        fault = problem
    return ledger, fault


def _check_place(entries: Sequence[LedgerEntry], number: int) -> None:
    entry = entries[number]
    if entry.seq < number:
        twin = "repeated" if entry in entries[:number] else "forked: two different entries carry its number"
        raise LedgerTampered(f"entry {entry.seq} is {twin}", entry.seq)
    if entry.seq > number and any(other.seq == number for other in entries[number + 1 :]):
        raise LedgerTampered(f"entry {number} was moved: entry {entry.seq} stands in its place", number)


def verify(lines: Sequence[str], owner_key: str) -> VerifiedLedger:
    """Check every signature, the order, the chain and the meaning of a whole ledger.

    Args: lines are signed entries as JSON, oldest first; owner_key is the public key (hex) that must have signed them all.
    Raises: LedgerTampered that names the first entry at fault and what happened to it.
    """
    ledger, fault = verify_prefix(lines, owner_key)
    if fault is not None:
        raise fault
    return ledger


def must_contain(ledger: VerifiedLedger, seen: LedgerStatement | str) -> None:
    """Check that a ledger continues the state that somebody saw earlier: a statement, or the head of one or of a receipt.

    Raises: LedgerTampered when entries were cut off, or replaced by others.
    """
    count = len(ledger.entries)
    if isinstance(seen, str):
        if seen not in ledger.positions:
            raise LedgerTampered(
                f"the ledger was cut short at entry {count} or forked: its {count} entries lack head {seen[:16]}…", count
            )
    elif seen.entries > count:
        raise LedgerTampered(f"entry {count} is missing: the ledger was cut short, {seen.entries} entries were stated", count)
    elif ledger.positions.get(seen.head) != seen.entries - 1:
        at = seen.entries - 1
        raise LedgerTampered(f"entry {at} is not the one that was stated: the ledger was forked at or before it", at)
