"""What a federation tells, as values that are ordinary dicts and lists and show themselves as tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import CorpusCard, Row
from fl_privacy.scientist.shown import Sheet, Shown

SAMPLES = 2  # mock rows of each corpus in a table of corpora
MOST_ROWS = 20  # in a table of mock rows


@dataclass(frozen=True)
class OwnerView:
    """One owner as the scientist knows it; ``ledger`` is None until all owners have signed one registry."""

    owner: str
    title: str
    url: str
    email: str
    ledger: LedgerStatement | None


class Owners(Shown, dict[str, OwnerView]):
    """Owners by name."""

    def sheet(self) -> Sheet:
        """Names, addresses, budgets."""
        rows = [(one.owner, one.title, one.url, *_budget(one.ledger)) for one in self.values()]
        columns = ("owner", "title", "datasite", "epsilon spent / budget", "unit")
        note = "epsilon: what the owner's signed ledger counts against its budget, an upper bound"
        return Sheet("Owners", columns, rows, note)


class Corpora(Shown, dict[str, list[CorpusCard]]):
    """Corpora by owner."""

    def sheet(self) -> Sheet:
        """Declared sizes and a few mock rows of each."""
        rows = [
            (
                owner,
                card.title,
                f"~{card.declared_size:,} {card.unit}s",
                ", ".join(("text", *card.annotations)),
                "\n".join(row.text for row in card.mock_rows[:SAMPLES]),
            )
            for owner, cards in self.items()
            for card in cards
        ]
        note = "mock rows are published by the owners; private rows never leave them"
        return Sheet("Corpora", ("owner", "title", "declared size", "each row has", "mock rows"), rows, note)


class MockRows(Shown, list[Row]):
    """Rows that owners publish: public text in the shape of the private one."""

    def sheet(self) -> Sheet:
        """The first rows."""
        rows = [(row.text, row.label or "", " ".join(row.tags or ())) for row in self[:MOST_ROWS]]
        note = f"and {len(self) - MOST_ROWS:,} more" if len(self) > MOST_ROWS else ""
        return Sheet("Mock rows", ("text", "label", "tags"), rows, note)


@dataclass(frozen=True)
class RequestState:
    """What became of a request for approval, and the owner's reason."""

    status: Literal["pending", "approved", "denied", "revoked"]
    reason: str = ""


class Statuses(Shown, dict[str, RequestState]):
    """What each owner has decided about a plan."""

    @property
    def is_approved(self) -> bool:
        """Whether all have approved."""
        return all(state.status == "approved" for state in self.values())

    def sheet(self) -> Sheet:
        """Decisions and reasons."""
        return Sheet(
            "Approval", ("owner", "status", "reason"), [(owner, one.status, one.reason) for owner, one in self.items()]
        )


@dataclass(frozen=True)
class OwnerForecast:
    """What a plan may cost an owner. ``before`` is None where the ledger cannot be read yet; ``after`` is a sum of both."""

    owner: str
    unit: str
    before: float | None
    plan: float
    budget: float | None
    delta: float
    period_days: int | None

    @property
    def after(self) -> float | None:
        """Epsilon when all of the plan is spent, about: composing it with what was spent before is the ledger's matter."""
        return None if self.before is None else self.before + self.plan


@dataclass(frozen=True, repr=False)
class Preview(Shown):
    """What a plan may cost. Bytes are HTTP bodies of all owners together; ``seconds`` only where a like run was measured."""

    name: str
    owners: tuple[OwnerForecast, ...]
    rounds: int
    evaluations: int
    coordinates: int
    bytes_up: int
    bytes_down: int
    seconds: float | None

    def sheet(self) -> Sheet:
        """Epsilon by owner; bytes and seconds below."""
        rows = [
            (
                one.owner,
                f"one {one.unit}",
                _number(one.before),
                f"{one.plan:.2f}",
                _number(one.after),
                _limit(one),
                _verdict(one),
            )
            for one in self.owners
        ]
        columns = ("owner", "unit", "epsilon so far", "this plan, at most", "after, about", "budget", "suffices")
        took = "not measured yet" if self.seconds is None else f"about {self.seconds:,.0f} s, as a like run took"
        note = (
            f"{self.rounds} rounds and {self.evaluations} evaluations of {self.coordinates:,} coordinates: about"
            f" {self.bytes_up / 1e6:,.1f} MB up, {self.bytes_down / 1e6:,.1f} MB down; time: {took}. Each owner's guard"
            " computes its epsilon itself before it approves and before every round; only its figures count."
        )
        return Sheet(f"Forecast of plan {self.name!r}", columns, rows, note)


def _budget(ledger: LedgerStatement | None) -> tuple[str, str]:
    if ledger is None:
        return "not enrolled yet", ""
    period = f" in {ledger.period_days} days" if ledger.period_days else ""
    return f"{counted(ledger):.2f} / {ledger.epsilon_budget:.2f}{period} at delta {ledger.delta:g}", f"one {ledger.unit}"


def counted(ledger: LedgerStatement) -> float:
    """What the budget bounds of what was spent."""
    return ledger.epsilon_spent if ledger.epsilon_in_period is None else ledger.epsilon_in_period


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f}"


def _limit(one: OwnerForecast) -> str:
    if one.budget is None:
        return "?"
    return f"{one.budget:.2f}" + (f" in {one.period_days} days" if one.period_days else "") + f" at delta {one.delta:g}"


def _verdict(one: OwnerForecast) -> str:
    if one.after is None or one.budget is None:
        return ""
    return "yes" if one.after <= one.budget else "perhaps not"
