"""The owner's privacy ledger: an append-only, signed chain of spends that refuses to pass the budget.

A spend is written durably before its first gradient, and nothing takes it back: no failure, crash or restart lowers epsilon.
Safe for several threads and processes; a process may be killed at any statement.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from fl_privacy.errors import BudgetExceeded, LedgerError, LedgerTampered
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import Message, PrivacyUnit, Signed, SurvivorList, first_problem, public_hex, sign
from fl_privacy.privacy.accounting import Spend, epsilon
from fl_privacy.privacy.chain import OrderState, VerifiedLedger, must_contain, open_entry, verify
from fl_privacy.privacy.entries import (
    Accountant,
    BudgetChange,
    Commit,
    Decided,
    Event,
    LedgerEntry,
    Opening,
    Reserve,
    Void,
    Witness,
)
from fl_privacy.privacy.entry_file import EntryFile
from fl_privacy.privacy.export_file import export_lines

Some = TypeVar("Some", bound=Message)


class Ledger:
    """One owner's ledger, from ``create`` or ``open``. Whoever holds it can sign as the owner."""

    def __init__(self, file: EntryFile, signing_key: Ed25519PrivateKey) -> None:
        self.path = file.path
        self._file = file
        self._key = signing_key
        self._lock = threading.RLock()
        self._verified = VerifiedLedger(public_hex(signing_key))  # grows only by verified lines of the file

    @classmethod
    def create(
        cls,
        path: Path,
        owner: str,
        signing_key: Ed25519PrivateKey,
        budget_epsilon: float,
        delta: float,
        accountant: Accountant,
        *,
        unit: PrivacyUnit = "record",
        period_days: int | None = None,
        decisions_kept: bool = False,
    ) -> Self:
        """Start a ledger with its opening entry.

        Args: budget_epsilon is the most that all orders together may cost one ``unit``, at ``delta``, by ``accountant``; with
        ``period_days``, the most that the orders of any so many days may cost, and then nothing bounds the total;
        decisions_kept: no order is paid for without an approval in the ledger.
        Raises: LedgerError when the file already holds one, or a value is out of range.
        """
        opening = _event(
            Opening,
            owner=owner,
            epsilon=budget_epsilon,
            delta=delta,
            accountant=accountant,
            unit=unit,
            period_days=period_days,
            decisions_kept=decisions_kept,
        )
        ledger = cls(EntryFile.touch(path), signing_key)
        try:
            with ledger._file.writing():
                ledger._file.make_table()
                ledger._add(opening)
            ledger._read()
        except LedgerError:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(cls, path: Path, signing_key: Ed25519PrivateKey, seen: LedgerStatement | str | None = None) -> Self:
        """Open a ledger after checking every signature and the chain.

        Args: seen is a statement, or the head of one or of a receipt, kept outside the file: with it, an older copy of the
        file that was put back is noticed too.
        Raises: LedgerTampered that names the entry; LedgerError when there is no ledger at ``path``.
        """
        ledger = cls(EntryFile(path), signing_key)
        try:
            ledger._verified = verify(ledger._file.lines(), public_hex(signing_key))
            if seen is not None:
                must_contain(ledger._verified, seen)
        except LedgerError:
            ledger.close()
            raise
        return ledger

    def decide(self, **decision: Any) -> LedgerEntry:
        """Record the owner's decision about a plan (fields of ``Decided``). Raises: LedgerError that names the field."""
        with self._writing():
            return self._add(_event(Decided, **decision))

    def reserve(self, order: str, plan: str, spend: Spend) -> LedgerEntry:
        """Pay for an order before it touches data: durable when this returns, never taken back.

        Args: order and plan are digests.
        Raises: BudgetExceeded, or PrivacyError from the accountant, before anything is written; LedgerError when the order
        was reserved before, or its plan has no approval that still holds and the ledger keeps decisions.
        """
        with self._writing() as ledger:
            after = self.forecast([spend])
            reserve = _event(Reserve, order=order, plan=plan, spend=spend, epsilon=after)
            self._must_be_possible(reserve)  # before the budget, which such an order does not touch
            self._must_fit_the_budget(ledger, reserve)
            self._must_fit_the_approval(ledger, reserve)
            return self._add(reserve)

    def commit(self, order: str) -> LedgerEntry:
        """Record that a reserved order was sealed. Raises: LedgerError when it is not waiting."""
        with self._writing():
            return self._add(_event(Commit, order=order))

    def void(self, order: str, reason: str) -> LedgerEntry:
        """Record that a reserved order failed; its spend still counts. Raises: LedgerError when it is not waiting."""
        with self._writing():
            return self._add(_event(Void, order=order, reason=reason[:500]))

    def witness(self, order: str, survivors: Sequence[Signed]) -> LedgerEntry:
        """Keep what the owners of a cohort signed of each other's ledgers; the same lists again change nothing.

        Args: survivors are the signed SurvivorLists of the whole cohort, in any order, whose signers were checked.
        Raises: LedgerError or MessageError when they prove nothing, or contradict each other or this ledger.
        """
        with self._writing() as ledger:
            by_owner = sorted(survivors, key=lambda signed: SurvivorList.parse(signed.body).owner)
            witness = _event(Witness, order=order, survivors=tuple(by_owner))
            if order in ledger.witnessed and (known := ledger.entries[ledger.witnessed[order]]).event == witness:
                return known
            return self._add(witness)

    def change_budget(self, budget_epsilon: float, reason: str) -> LedgerEntry:
        """Record the owner's new budget; one below what is spent refuses every further order."""
        with self._writing():
            return self._add(_event(BudgetChange, epsilon=budget_epsilon, reason=reason[:500]))

    @property
    def spent(self) -> float:
        """Upper bound on epsilon of all reserves, whatever became of them."""
        return self.forecast([])

    @property
    def spent_in_period(self) -> float:
        """Upper bound on epsilon of what the budget bounds now: the last ``period_days``, or everything without a period."""
        return self._in_period(self._read(), [])

    @property
    def spends(self) -> list[Spend]:
        """Every reserve, whatever became of it."""
        return self._read().spends

    @property
    def orders(self) -> dict[str, OrderState]:
        """What became of every reserved order, by digest."""
        return dict(self._read().orders)

    def forecast(self, spends: Sequence[Spend]) -> float:
        """Upper bound on epsilon if these were reserved as well. Raises: PrivacyError."""
        ledger = self._read()
        return epsilon([*ledger.spends, *spends], ledger.opening.delta, ledger.opening.accountant)

    def forecast_in_period(self, spends: Sequence[Spend]) -> float:
        """``forecast`` of what the budget bounds, if these were reserved now. Raises: PrivacyError."""
        return self._in_period(self._read(), spends)

    def statement(self) -> LedgerStatement:
        """The ledger's state, in a form to sign and hand out."""
        with self._lock:
            ledger, spent, in_period = self._read(), self.spent, self.spent_in_period
        opening = ledger.opening
        return LedgerStatement(
            owner=opening.owner,
            epsilon_spent=spent,
            epsilon_budget=ledger.budget,
            delta=opening.delta,
            unit=opening.unit,
            accountant=opening.accountant,
            entries=len(ledger.entries),
            head=ledger.head,
            period_days=opening.period_days,
            epsilon_in_period=None if opening.period_days is None else in_period,
        )

    def entries(self) -> list[LedgerEntry]:
        """Every entry, oldest first."""
        return list(self._read().entries)

    def export(self, path: Path) -> None:
        """Write the signed entries as JSON lines after a signed header: for an auditor, or for ``restore``."""
        with self._lock:
            lines = export_lines(self._file.lines(), self._key)
            path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def close(self) -> None:
        """Close the file; the ledger cannot be used after."""
        with self._lock:
            self._file.close()

    @contextmanager
    def _writing(self) -> Iterator[VerifiedLedger]:
        """Nobody else, thread or process, writes between the look at the ledger and the new entry."""
        with self._lock:
            with self._file.writing():
                yield self._read()
            self._read()

    def _read(self) -> VerifiedLedger:
        """Take in what was added to the file, here or by another process."""
        with self._lock:
            known = len(self._verified.entries)
            first = max(known - 1, 0)  # the last known entry again, to see that it still stands
            added = [open_entry(line, first + n, public_hex(self._key)) for n, line in enumerate(self._file.lines(first))]
            if known and (not added or added.pop(0).digest != self._verified.head):
                raise LedgerTampered(f"entry {first} was changed or removed while the ledger was open", first)
            for link in added:
                self._verified.append(link)
            return self._verified

    def _now(self) -> int:
        return max(int(time.time()), self._verified.time)

    def _in_period(self, ledger: VerifiedLedger, spends: Sequence[Spend]) -> float:
        opening = ledger.opening
        return epsilon([*ledger.spends_in_period(self._now()), *spends], opening.delta, opening.accountant)

    def _must_be_possible(self, event: Event) -> None:
        if problem := self._verified.conflict(event, self._now()):
            raise LedgerError(f"not recorded: {problem}")

    def _must_fit_the_budget(self, ledger: VerifiedLedger, reserve: Reserve) -> None:
        opening, budget = ledger.opening, ledger.budget
        after = self._in_period(ledger, [reserve.spend])
        if after > budget:
            period = f" within {opening.period_days} days" if opening.period_days else ""
            raise BudgetExceeded(
                f"order {reserve.order[:16]}… would take {opening.owner} from epsilon {self.spent_in_period:.4f} to"
                f" {after:.4f}{period}, over the budget {budget:.4f} (delta {opening.delta:g}, {opening.accountant}, per"
                f" {opening.unit}). Nothing was reserved. Propose more noise, fewer steps or a smaller sample rate, or ask the"
                " owner for a larger budget"
            )

    def _must_fit_the_approval(self, ledger: VerifiedLedger, reserve: Reserve) -> None:
        decision = ledger.decisions.get(reserve.plan)
        if decision is None:
            return  # a ledger that keeps decisions has refused the reserve before
        after = epsilon([*ledger.spends_of(reserve.plan), reserve.spend], decision.delta, decision.accountant)
        if after > decision.epsilon:
            raise BudgetExceeded(
                f"order {reserve.order[:16]}… would take plan {decision.name} to epsilon {after:.4f}, over the"
                f" {decision.epsilon:.4f} that was approved (delta {decision.delta:g}, {decision.accountant}). Nothing was"
                " reserved"
            )

    def _add(self, event: Event) -> LedgerEntry:
        self._must_be_possible(event)
        number = len(self._verified.entries)
        entry = LedgerEntry(seq=number, previous=self._verified.head, time=self._now(), event=event)
        self._file.add(number, sign(entry, self._key).canonical().decode())
        return entry


def _event(kind: type[Some], **fields: Any) -> Some:
    try:
        return kind.model_validate(fields)
    except ValidationError as problem:
        raise LedgerError(f"not recorded: {kind.__name__}: {first_problem(problem)}") from None
