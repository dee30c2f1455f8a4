"""All requests, newest first, with what the guard thinks of each."""

from __future__ import annotations

from nicegui import ui

from fl_privacy.console import parts
from fl_privacy.console.desk import RequestRow
from fl_privacy.console.parts import Level
from fl_privacy.console.visit import Visit

KINDS: dict[str, Level] = {"template": "good", "template with custom task": "warn", "custom code": "bad"}


async def draw(visit: Visit) -> None:
    """The list."""
    rows = await visit.ask(visit.desk.requests)
    waiting = sum(row.request.status == "pending" for row in rows)
    with visit.fresh():
        with parts.box("page-head"):
            parts.text(visit.say("requests"), "page-title").props('role=heading aria-level="1"')
            if waiting:
                parts.badge(visit.say("waiting", count=waiting), "info")
        if not rows:
            with parts.card():
                parts.text(visit.say("no requests"), "muted")
            return
        with parts.card(classes="list"):
            with parts.box("request-row head"):
                for column in ("", "plan", "from", "verdict", "status"):
                    parts.text(visit.say(column) if column else "#")
            for row in rows:
                _row(visit, row)


def _row(visit: Visit, row: RequestRow) -> None:
    request = row.request
    with ui.link(target=f"/requests/{request.number}").classes("request-row").mark(f"request-{request.number}"):
        parts.text(request.number, "number muted")
        parts.text(plan_name(visit, row), "strong clip")
        parts.text(request.email, "muted clip")
        with parts.box("cell"):
            verdict_badge(visit, row)
        with parts.box("cell"):
            parts.badge(visit.say(request.status), parts.STATUS.get(request.status, "quiet"))


def plan_name(visit: Visit, row: RequestRow) -> str:
    """The plan's name, or that there is none."""
    if row.report is None or not row.report["plan"]:
        return visit.say("no plan") if row.report is not None else visit.say("no review")
    return str(row.report["plan"]["name"])


def verdict_badge(visit: Visit, row: RequestRow) -> None:
    """What the code is, in the colour of what to do about it."""
    if row.report is None:
        parts.badge(visit.say("no review"), "bad")
        return
    kind = row.report["verdict"]
    parts.badge(visit.say(kind), KINDS.get(kind, "bad"))
    if row.report["plan"] and row.report["objection"] and row.request.status == "pending":
        parts.badge(visit.say("objection"), "bad")
