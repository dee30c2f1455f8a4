"""What has been spent of the budget, what is left, over time, and because of whom."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from nicegui import ui

from fl_privacy.console import charts, parts, spending
from fl_privacy.console.parts import Level
from fl_privacy.console.spending import Share
from fl_privacy.console.visit import Visit

VERDICTS: dict[str, Level] = {"approved": "good", "denied": "quiet", "revoked": "warn"}


async def draw(visit: Visit) -> None:
    """The dashboard."""
    ledger = await visit.ask(visit.desk.ledger)
    statement, entries = ledger["statement"], ledger["entries"]
    plans = spending.by_plan(entries)
    with visit.fresh():
        parts.text(visit.say("budget"), "page-title").props('role=heading aria-level="1"')
        with parts.box("columns narrow-left"):
            _gauge(visit, statement)
            _over_time(visit, statement, entries)
        with parts.box("columns"):
            _shares(visit, "per plan", [(_plan_name(visit, share), share) for share in plans])
            people = spending.by_scientist(plans)
            _shares(
                visit,
                "per scientist",
                [(f"{share.name[:16]}…" if share.name else visit.say("unknown scientist"), share) for share in people],
            )


def _gauge(visit: Visit, statement: Mapping[str, Any]) -> None:
    period, budget = statement["period_days"], statement["epsilon_budget"]
    spent = statement["epsilon_spent"] if period is None else statement["epsilon_in_period"]
    with parts.card(classes="gauge-card"):
        ui.echart(charts.gauge(spent, budget, visit.say("of budget"))).classes("gauge")
        with parts.box("figures"):
            for name, value in (("spent", spent), ("left to spend", max(budget - spent, 0.0)), ("limit", budget)):
                with parts.box("figure"):
                    parts.text(f"{value:.3f}", "figure-value")
                    parts.text(visit.say(name), "small muted")
        if period is not None:
            caveat = visit.say("period caveat", days=period, unit=visit.say(statement["unit"]))
            parts.text(f"{visit.say('in total')}: {statement['epsilon_spent']:.3f}. {caveat}", "caveat")
        pairs: list[tuple[str, object]] = [
            (visit.say("unit"), visit.say(statement["unit"])),
            (visit.say("delta"), f"{statement['delta']:g}"),
            (visit.say("accountant"), statement["accountant"].upper()),
        ]
        parts.facts(pairs)


def _over_time(visit: Visit, statement: Mapping[str, Any], entries: list[Mapping[str, Any]]) -> None:
    with parts.card(visit.say("over time")):
        points = spending.over_time(entries)
        if not any(point.epsilon for point in points):
            parts.text(visit.say("nothing spent"), "muted")
            return
        limit = visit.say("limit") if statement["period_days"] is None else None
        ui.echart(charts.over_time(points, int(time.time()), visit.say("epsilon"), limit)).classes("chart tall")


def _shares(visit: Visit, title: str, shares: list[tuple[str, Share]]) -> None:
    largest = max((share.epsilon for _, share in shares), default=0.0)
    with parts.card(visit.say(title)):
        if not shares:
            parts.text(visit.say("nothing spent"), "muted")
            return
        for name, share in shares:
            with parts.box("share"):
                with parts.box("share-head"):
                    parts.text(name, "strong clip")
                    parts.text(f"{share.epsilon:.3f}", "number")
                parts.bar(share.epsilon / largest if largest else 0.0)
                with parts.box("share-foot"):
                    parts.text(_trainings(visit, share), "small muted")
                    if share.verdict:
                        parts.badge(visit.say(share.verdict), VERDICTS.get(share.verdict, "quiet"))
        parts.text(visit.say("share note"), "small muted")


def _trainings(visit: Visit, share: Share) -> str:
    if share.most is None:
        return visit.say("trainings", count=share.trainings)
    return visit.say("trainings of", count=share.trainings, most=share.most)


def _plan_name(visit: Visit, share: Share) -> str:
    return share.name if share.verdict else visit.say("undecided", digest=share.name)
