"""The ledger of a guard's home: the last head is kept beside it, so that an older copy of the database is noticed.

The entry is written first, then ``ledger.head``. A crash in between leaves a head that the ledger holds one entry further back,
which is fine; a ledger that lacks the head is not the one that was closed. Both files put back together are not noticed here:
the other owners' countersignatures show that (``privacy.witness``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy.durable_files import write_atomically
from fl_privacy.errors import LedgerTampered
from fl_privacy.messages import Signed
from fl_privacy.privacy.accounting import epsilon
from fl_privacy.privacy.entries import Decided, LedgerEntry, Opening, Spend
from fl_privacy.privacy.ledger import Ledger

FILE, HEAD = "ledger.sqlite", "ledger.head"


class HomeLedger(Ledger):
    """A ledger whose every write is followed by its head file."""

    def decide(self, **decision: Any) -> LedgerEntry:
        """See ``Ledger.decide``."""
        return self._kept(super().decide(**decision))

    def reserve(self, order: str, plan: str, spend: Spend) -> LedgerEntry:
        """See ``Ledger.reserve``."""
        return self._kept(super().reserve(order, plan, spend))

    def commit(self, order: str) -> LedgerEntry:
        """See ``Ledger.commit``."""
        return self._kept(super().commit(order))

    def void(self, order: str, reason: str) -> LedgerEntry:
        """See ``Ledger.void``."""
        return self._kept(super().void(order, reason))

    def witness(self, order: str, survivors: Sequence[Signed]) -> LedgerEntry:
        """See ``Ledger.witness``."""
        return self._kept(super().witness(order, survivors))

    def change_budget(self, budget_epsilon: float, reason: str) -> LedgerEntry:
        """See ``Ledger.change_budget``."""
        return self._kept(super().change_budget(budget_epsilon, reason))

    @property
    def opening(self) -> Opening:
        """Unit, delta, accountant and period, fixed when the ledger was made."""
        return self._read().opening

    @property
    def budget(self) -> float:
        """The present budget (epsilon)."""
        return self._read().budget

    @property
    def time(self) -> int:
        """When the last entry counts as made, Unix seconds; a clock that goes back does not take it back."""
        return self._read().time

    @property
    def decisions(self) -> dict[str, Decided]:
        """The last decision about each plan, by digest."""
        return dict(self._read().decisions)

    def epsilon_of_scientist(self, scientist: str, spends: Sequence[Spend]) -> float:
        """Upper bound on epsilon of all reserves for plans of this key (hex) and of ``spends``. Raises: PrivacyError."""
        ledger = self._read()
        own = [plan for plan, decision in ledger.decisions.items() if decision.scientist == scientist]
        before = [spend for plan in own for spend in ledger.spends_of(plan)]
        return epsilon([*before, *spends], ledger.opening.delta, ledger.opening.accountant)

    def keep_head(self) -> None:
        """Write the present head beside the database."""
        with self._lock:  # or an earlier head could be written last
            write_atomically(self.path.with_name(HEAD), self._read().head)

    def _kept(self, entry: LedgerEntry) -> LedgerEntry:
        self.keep_head()
        return entry


def open_ledger(home: Path, key: Ed25519PrivateKey) -> HomeLedger:
    """The ledger of a guard's home, checked against its last head.

    Raises: LedgerTampered (also for an older copy of the database, or when the head is gone), LedgerError.
    """
    return HomeLedger.open(home / FILE, key, last_head(home))


def last_head(home: Path) -> str:
    """The head that the guard wrote down last. Raises: LedgerTampered when it is gone."""
    try:
        return (home / HEAD).read_text(encoding="ascii")
    except FileNotFoundError:
        raise LedgerTampered(
            f"{home / HEAD} is gone, so an older copy of the ledger could not be told; stop the guard, and give the latest"
            " export to `fl-privacy ledger import`"
        ) from None
