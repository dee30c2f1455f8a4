"""What an owner says, signed, about its privacy ledger."""

from __future__ import annotations

from typing import Literal

from fl_privacy.messages import Digest, Message, OwnerName, PrivacyUnit


class LedgerStatement(Message):
    """An owner's signed statement of its privacy ledger.

    ``epsilon_spent`` is the total since the ledger began. With ``period_days`` the budget bounds only ``epsilon_in_period``,
    what was reserved in the last so many days; nothing bounds the total. Without, the budget bounds the total.
    """

    owner: OwnerName
    epsilon_spent: float
    epsilon_budget: float
    delta: float
    unit: PrivacyUnit = "record"
    accountant: Literal["prv", "rdp"]
    entries: int
    head: Digest
    period_days: int | None = None
    epsilon_in_period: float | None = None  # None without a period
