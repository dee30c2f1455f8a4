"""What the ledger's entries say about who caused which part of epsilon. The ledger's bounds are taken as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Entry = Mapping[str, Any]  # a LedgerEntry as JSON


@dataclass(frozen=True)
class Point:
    """After an entry: Unix seconds, the total bound, and the budget that was in force."""

    time: int
    epsilon: float
    budget: float


@dataclass
class Share:
    """One plan's or scientist's part of the total bound; ``most`` is the number of trainings that were approved."""

    name: str
    scientist: str = ""
    verdict: str = ""
    epsilon: float = 0.0
    trainings: int = 0
    most: int | None = None


def over_time(entries: Iterable[Entry]) -> list[Point]:
    """The total bound after each entry that changed it or the budget."""
    points: list[Point] = []
    epsilon = budget = 0.0
    for entry in entries:
        event = entry["event"]
        if event["kind"] in ("open", "budget"):
            budget = event["epsilon"]
        elif event["kind"] == "reserve":
            epsilon = event["epsilon"]
        else:
            continue
        points.append(Point(entry["time"], epsilon, budget))
    return points


def by_plan(entries: Iterable[Entry]) -> list[Share]:
    """How far each plan's reserves raised the total, the largest first; decided plans that spent nothing are there too."""
    shares: dict[str, Share] = {}
    total = 0.0
    for entry in entries:
        event = entry["event"]
        if event["kind"] == "decision":
            share = shares.setdefault(event["plan"], Share(""))
            share.name, share.scientist = event["name"], event["scientist"]
            share.verdict, share.most = event["verdict"], event["rounds"]
        elif event["kind"] == "reserve":
            share = shares.setdefault(event["plan"], Share(event["plan"][:12]))
            share.epsilon += event["epsilon"] - total
            share.trainings += 1
            total = event["epsilon"]
    return sorted(shares.values(), key=lambda share: -share.epsilon)


def by_scientist(shares: Sequence[Share]) -> list[Share]:
    """The same, added up by the scientist's key; empty where the ledger kept no decision."""
    sums: dict[str, Share] = {}
    for share in shares:
        total = sums.setdefault(share.scientist, Share(share.scientist, share.scientist))
        total.epsilon += share.epsilon
        total.trainings += share.trainings
    return sorted(sums.values(), key=lambda share: -share.epsilon)
