"""What a federation tells, as values that are ordinary dicts and lists and show themselves as tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import CorpusCard, Row
from fl_privacy.scientist.history import OwnerSpend, RoundRecord
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


@dataclass(frozen=True)
class RoundForecast:
    """What one round may cost. Bytes are HTTP bodies of all its owners together.

    ``coordinates`` are sent of each update. ``compute`` are operations (``compute_costs``), ``noise`` is the norm of the noise
    in the mean update at one noise multiplier, both over those of training and sending all of the same model.
    """

    round: int
    trained: str
    owners: int
    coordinates: int
    bytes_up: int
    bytes_down: int
    compute: float
    noise: float


@dataclass(frozen=True, repr=False)
class Preview(Shown):
    """What a plan may cost. Bytes are HTTP bodies of all owners together, evaluations included.

    ``seconds`` are there only where a like run was measured. Rounds that fail and are repeated cost more.
    """

    name: str
    owners: tuple[OwnerForecast, ...]
    by_round: tuple[RoundForecast, ...]
    evaluations: int
    bytes_up: int
    bytes_down: int
    seconds: float | None

    @property
    def rounds(self) -> int:
        """Rounds of training."""
        return len(self.by_round)

    @property
    def coordinates(self) -> int:
        """Coordinates that are sent of an update, the mean over rounds."""
        return round(fmean(one.coordinates for one in self.by_round))

    @property
    def compute(self) -> float:
        """Operations over those of training all of the same model, the mean over rounds."""
        return fmean(one.compute for one in self.by_round)

    @property
    def noise(self) -> float:
        """Norm of the noise in an update over that of training all, at one noise multiplier, the mean over rounds."""
        return fmean(one.noise for one in self.by_round)

    def sheet(self) -> Sheet:
        """Epsilon by owner; bytes, operations, noise and seconds below."""
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
        return Sheet(f"Forecast of plan {self.name!r}", columns, rows, self._in_words)

    def sheets(self) -> tuple[Sheet, ...]:
        """Where rounds differ, also one row for each kind of round."""
        kinds = dict[tuple[str, int, str], list[RoundForecast]]()
        for one in self.by_round:
            kinds.setdefault((one.trained, one.coordinates, f"{one.compute:.0%}"), []).append(one)
        if len(kinds) < 2:
            return (self.sheet(),)
        rows = [
            (_runs([one.round + 1 for one in alike]), trained, f"{coordinates:,}", _mega_by_owner(alike), compute)
            for (trained, coordinates, compute), alike in kinds.items()
        ]
        columns = ("rounds", "trained", "coordinates sent", "MB up, an owner", "operations")
        note = "operations: over those of training all of the same model"
        return self.sheet(), Sheet("By kind of round", columns, rows, note)

    @property
    def _in_words(self) -> str:
        took = "not measured yet" if self.seconds is None else f"about {self.seconds:,.0f} s, as a like run took"
        told = (
            f"{self.rounds} rounds and {self.evaluations} evaluations of {self.coordinates:,} coordinates: about"
            f" {self.bytes_up / 1e6:,.1f} MB up, {self.bytes_down / 1e6:,.1f} MB down; time: {took}."
        )
        if (self.compute, self.noise) != (1, 1):
            told += (
                f" Training takes {self.compute:.0%} of the operations that all layers of the same model would take in every"
                f" round; at the same noise multiplier, the noise in an update is {self.noise:.2f} times as large."
            )
        return (
            f"{told} Each owner's guard computes its epsilon itself before it approves and before every round; only its figures"
            " count."
        )


def rounds_sheet(records: Sequence[RoundRecord], before: float | None = None) -> Sheet:
    """One row per round, below that of the model that the run started from, where its score ``before`` is known."""
    latest = {owner: spend for record in records for owner, spend in record.spends.items()}
    owners = sorted(latest)
    epsilons = [f"ε {owner}{latest[owner].period}" for owner in owners]
    columns = ["round", "score", *epsilons, "MB up", "MB down", "s train", "s crypto", "s transport"]
    has_floor = any(record.noise_floor is not None for record in records)
    columns += ["update", "noise alone"] if has_floor else []
    rows: list[list[str]] = []
    if before is not None:
        rows.append(["base", f"{before:.2%}", *([""] * (len(columns) - 2))])
    for record in records:
        spends = [_spend_in_words(spend) if (spend := record.spends.get(owner)) else "-" for owner in owners]
        seconds = [record.seconds_training, record.seconds_crypto, record.seconds_transport]
        mega = [f"{record.bytes_up / 1e6:.2f}", f"{record.bytes_down / 1e6:.2f}"]
        timed, norms = [f"{s:.1f}" for s in seconds], _norms(record) if has_floor else []
        rows.append([str(record.round + 1), f"{record.accuracy:.2%}", *spends, *mega, *timed, *norms])
    return Sheet("Rounds", columns, rows)


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


def _runs(numbers: Sequence[int]) -> str:
    """Rising numbers in few words: 1-3, 5."""
    starts = [number for number in numbers if number - 1 not in numbers]
    ends = [number for number in numbers if number + 1 not in numbers]
    return ", ".join(str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=True))


def _mega_by_owner(alike: Sequence[RoundForecast]) -> str:
    return f"{sum(one.bytes_up for one in alike) / sum(one.owners for one in alike) / 1e6:,.2f}"


def _limit(one: OwnerForecast) -> str:
    if one.budget is None:
        return "?"
    return f"{one.budget:.2f}" + (f" in {one.period_days} days" if one.period_days else "") + f" at delta {one.delta:g}"


def _verdict(one: OwnerForecast) -> str:
    if one.after is None or one.budget is None:
        return ""
    return "yes" if one.after <= one.budget else "perhaps not"


def _norms(record: RoundRecord) -> list[str]:
    floor = "not predicted" if record.noise_floor is None else f"{record.noise_floor:.3g}"
    return [f"{record.update_norm:.3g}", floor]


def _spend_in_words(spend: OwnerSpend) -> str:
    total = f"\n{spend.epsilon:.2f} in total" if spend.period_days else ""
    return f"{spend.counted:.2f} / {spend.budget:.2f}{total}"
