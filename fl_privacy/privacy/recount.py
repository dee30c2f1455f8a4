"""One owner's ledger in numbers, each epsilon counted twice: by the ledger's own accountant (Opacus) and by dp-accounting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.accounting import epsilon
from fl_privacy.privacy.audit import Finding, pld_epsilon
from fl_privacy.privacy.chain import VerifiedLedger
from fl_privacy.privacy.cross_check import Audited
from fl_privacy.privacy.entries import Decided, Reserve, Spend

EXACT = 1e-3  # relative; one accountant in two versions


@dataclass(frozen=True)
class Point:
    """The ledger right after one reserve. Epsilons are upper bounds at the ledger's delta; None where none can be certified."""

    entry: int
    time: int  # Unix seconds, as the ledger counts it
    plan: str
    epsilon_signed: float  # as the owner signed it
    epsilon_opacus: float | None
    epsilon_pld: float
    epsilon_in_period: float  # what the budget bounds, by dp-accounting; the total without a period
    budget: float


@dataclass(frozen=True)
class PlanSpend:
    """What one plan has cost one owner: ``epsilon`` by dp-accounting at ``delta``, the approval's, else the ledger's."""

    plan: str
    name: str
    scientist: str
    verdict: str
    epsilon: float
    delta: float
    approved: float | None
    trainings: int
    trainings_approved: int | None
    expires: int | None


@dataclass(frozen=True)
class OwnerReport:
    """One owner's ledger, as far as it could be verified."""

    owner: str
    key: str
    sources: tuple[str, ...]
    entries: int
    entries_given: int
    head: str
    unit: str
    delta: float
    accountant: str
    budget: float
    period_days: int | None
    epsilon_signed: float
    epsilon_opacus: float | None
    epsilon_pld: float
    epsilon_in_period: float
    course: tuple[Point, ...]
    plans: tuple[PlanSpend, ...]
    scientists: dict[str, float]  # public key -> epsilon of all its plans, by dp-accounting at the ledger's delta
    countersigned: dict[str, int]  # by whom -> the last entry that this covers


def recount(audited: Audited) -> tuple[OwnerReport, list[Finding]]:
    """An owner's numbers, and every reserve that signs less than the ledger's own accountant finds."""
    ledger, opening = audited.ledger, audited.ledger.opening
    course = _course(ledger)
    plans, scientists = _by_plan(ledger), _by_scientist(ledger)
    in_period = pld_epsilon(ledger.spends_in_period(ledger.time), opening.delta)
    report = OwnerReport(
        owner=audited.owner,
        key=audited.key,
        sources=tuple(audited.sources),
        entries=len(ledger.entries),
        entries_given=audited.given,
        head=ledger.head,
        unit=opening.unit,
        delta=opening.delta,
        accountant=opening.accountant,
        budget=ledger.budget,
        period_days=opening.period_days,
        epsilon_signed=ledger.epsilon,
        epsilon_opacus=course[-1].epsilon_opacus if course else 0.0,
        epsilon_pld=course[-1].epsilon_pld if course else 0.0,
        epsilon_in_period=in_period,
        course=tuple(course),
        plans=tuple(plans),
        scientists=scientists,
        countersigned=dict(audited.countersigned),
    )
    return report, [finding for point in course if (finding := _wrong_claim(audited.owner, point, opening.accountant))]


def _course(ledger: VerifiedLedger) -> list[Point]:
    points, spends, opening = [], list[Spend](), ledger.opening
    for number, entry in enumerate(ledger.entries):
        if not isinstance(entry.event, Reserve):
            continue
        spends.append(entry.event.spend)
        total = pld_epsilon(spends, opening.delta)
        period = ledger.spends_in_period(ledger.times[number], upto=number)
        point = Point(
            entry=number,
            time=ledger.times[number],
            plan=entry.event.plan,
            epsilon_signed=entry.event.epsilon,
            epsilon_opacus=_opacus(ledger, spends),
            epsilon_pld=total,
            epsilon_in_period=total if len(period) == len(spends) else pld_epsilon(period, opening.delta),
            budget=ledger.budgets[number],
        )
        points.append(point)
    return points


def _opacus(ledger: VerifiedLedger, spends: Sequence[Spend]) -> float | None:
    try:
        return epsilon(spends, ledger.opening.delta, ledger.opening.accountant)
    except PrivacyError:
        return None


def _wrong_claim(owner: str, point: Point, accountant: str) -> Finding | None:
    found = math.inf if point.epsilon_opacus is None else point.epsilon_opacus
    if point.epsilon_signed >= found * (1 - EXACT):
        return None
    told = "no finite bound" if point.epsilon_opacus is None else f"epsilon {found:.4f}"
    what = f"the entry claims epsilon {point.epsilon_signed:.4f}, where {accountant} (Opacus) finds {told}"
    return Finding("epsilon", owner, point.entry, what)


def _by_plan(ledger: VerifiedLedger) -> list[PlanSpend]:
    plans = dict.fromkeys([*ledger.reserves_of, *ledger.decisions])
    return [_plan_spend(ledger, plan, ledger.decisions.get(plan)) for plan in plans]


def _plan_spend(ledger: VerifiedLedger, plan: str, decision: Decided | None) -> PlanSpend:
    delta = decision.delta if decision else ledger.opening.delta
    return PlanSpend(
        plan=plan,
        name=decision.name if decision else plan[:12] + "…",
        scientist=decision.scientist if decision else "",
        verdict=decision.verdict if decision else "no decision kept",
        epsilon=pld_epsilon(ledger.spends_of(plan), delta),
        delta=delta,
        approved=decision.epsilon if decision else None,
        trainings=ledger.reserves_of[plan],
        trainings_approved=decision.rounds if decision else None,
        expires=decision.expires if decision else None,
    )


def _by_scientist(ledger: VerifiedLedger) -> dict[str, float]:
    spends: dict[str, list[Spend]] = {}
    for plan in ledger.reserves_of:
        decision = ledger.decisions.get(plan)
        spends.setdefault(decision.scientist if decision else "", []).extend(ledger.spends_of(plan))
    return {scientist: pld_epsilon(found, ledger.opening.delta) for scientist, found in spends.items()}
