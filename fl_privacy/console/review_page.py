"""One request as its owner reads it before deciding: what it means, what it costs, what was found, the code itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from fl_privacy.console import charts, parts
from fl_privacy.console.desk import RequestLike, RequestRow
from fl_privacy.console.requests_page import plan_name, verdict_badge
from fl_privacy.console.visit import Draw, Visit

Report = Mapping[str, Any]


def page(number: int) -> Draw:
    """The drawing of one request."""

    async def draw(visit: Visit) -> None:
        request, report = await visit.ask(visit.desk.request, number)
        with visit.fresh():
            ui.link(f"← {visit.say('back')}", "/requests").classes("back")
            _head(visit, request, report)
            _explanation(visit, report)
            _code(visit, report)

    return draw


def _explanation(visit: Visit, report: Report) -> None:
    with parts.box("columns wide-left" if report["plan"] else "columns"):
        with parts.box("stack"):
            _meaning(visit, report)
            (_findings if report["plan"] else _bound)(visit, report)
        with parts.box("stack"):
            if report["plan"]:
                _forecast(visit, report)
            (_bound if report["plan"] else _findings)(visit, report)


def _head(visit: Visit, request: RequestLike, report: Report) -> None:
    row = RequestRow(request, report)
    with parts.card(classes="review-head"):
        with parts.box("review-what"):
            parts.text(f"{visit.say('request', number=request.number)} · {request.email}", "muted")
            parts.text(plan_name(visit, row), "page-title").props('role=heading aria-level="1"')
            with parts.box("badges"):
                verdict_badge(visit, row)
                parts.badge(visit.say(request.status), parts.STATUS.get(request.status, "quiet"))
            if request.reason:
                parts.text(visit.say("reason given", reason=request.reason), "muted")
        _buttons(visit, request, report)
        if report["objection"]:
            with parts.box("objection"):
                parts.text(visit.say("why not"), "strong")
                parts.text(report["objection"])


def _buttons(visit: Visit, request: RequestLike, report: Report) -> None:
    async def approve() -> None:
        note = visit.say("approve cost", **_cost(report))
        title = visit.say("approve?", number=request.number)
        if (days := await visit.confirm(title, note, visit.say("approve"), "good", visit.days)) is not None:
            done = visit.say("done approve", number=request.number)
            await visit.act(done, visit.desk.approve, request.number, request.digest, int(days))

    async def deny() -> None:
        title, note = visit.say("deny?", number=request.number), visit.say("reason read")
        if (reason := await visit.confirm(title, note, visit.say("deny"), "bad", visit.reason)) is not None:
            done = visit.say("done deny", number=request.number)
            await visit.act(done, visit.desk.deny, request.number, request.digest, reason)

    async def revoke() -> None:
        title, note = visit.say("revoke?", number=request.number), visit.say("revoke note")
        if (reason := await visit.confirm(title, note, visit.say("revoke"), "bad", visit.reason)) is not None:
            done = visit.say("done revoke", number=request.number)
            await visit.act(done, visit.desk.revoke, request.number, request.digest, reason)

    with parts.box("buttons"):
        if request.status == "pending":
            ui.button(visit.say("deny"), on_click=deny).props("outline no-caps").classes("action-outline bad").mark("deny")
            if not report["objection"]:
                button = ui.button(visit.say("approve"), on_click=approve).props("unelevated no-caps")
                button.classes("action good").mark("approve")
        elif request.status == "approved":
            ui.button(visit.say("revoke"), on_click=revoke).props("outline no-caps").classes("action-outline bad").mark(
                "revoke"
            )


def _cost(report: Report) -> dict[str, object]:
    now, after = report["epsilon_now"], report["epsilon_after"]
    return {
        "cost": f"{after - now:.3f}",
        "now": f"{now:.3f}",
        "after": f"{after:.3f}",
        "budget": f"{report['epsilon_budget']:.3f}",
        "delta": f"{report['delta']:g}",
        "alone": f"{report['plan']['target_epsilon']:g}",
    }


def _meaning(visit: Visit, report: Report) -> None:
    with parts.card(visit.say("means")):
        parts.text(report["sentence"], "sentence")
    with parts.card(visit.say("in words")), ui.element("ul").classes("words"):
        for line in report["words"]:
            with ui.element("li"):
                parts.text(line)


def _findings(visit: Visit, report: Report) -> None:
    with parts.card(visit.say("findings")):
        if not report["findings"]:
            parts.text(visit.say("no findings"), "muted")
        for finding in report["findings"]:
            with parts.box("finding"):
                parts.badge(visit.say(finding["severity"]), parts.SEVERITY.get(finding["severity"], "bad"))
                with parts.box("finding-text"):
                    with parts.box("finding-what"):
                        parts.text(finding["what"], "mono strong")
                        parts.text(visit.say("line", number=finding["line"]), "muted")
                    parts.text(finding["why"])


def _forecast(visit: Visit, report: Report) -> None:
    budget, values = report["epsilon_budget"], [report["epsilon_now"], *report["epsilon_by_round"]]
    labels = [visit.say("now"), *(visit.say("round", number=i) for i in range(1, len(values)))]
    with parts.card(visit.say("forecast")):
        ui.echart(charts.forecast(values, budget, labels, visit.say("epsilon"), visit.say("limit"))).classes("chart")
        columns = [visit.say("after"), visit.say("epsilon"), visit.say("left")]
        lines = [(label, f"{v:.3f}", f"{budget - v:.3f}") for label, v in zip(labels, values, strict=True)]
        with parts.box("scroll short"):
            parts.rows(columns, lines)
        told = {"unit": visit.say(report["unit"]), "delta": f"{report['delta']:g}"}
        days = report["period_days"]
        note = visit.say("forecast period note", days=days, **told) if days else visit.say("forecast note", **told)
        parts.text(note, "small muted")


def _bound(visit: Visit, report: Report) -> None:
    with parts.card(visit.say("identity")):
        digests = [("code digest", report["code_sha256"])]
        if report["plan"]:
            digests = [("plan digest", report["plan_digest"]), *digests, ("scientist key", report["scientist"])]
        parts.facts([(visit.say(name), value) for name, value in digests], mono=True)
        if report["plan"]:
            noise = [("noise", f"{report['noise_multiplier']:.4f}"), ("sample rate", f"{report['sample_rate']:.4f}")]
            parts.facts([(visit.say(name), value) for name, value in noise])


def _code(visit: Visit, report: Report) -> None:
    marked: dict[int, str] = {}
    for finding in reversed(report["findings"]):  # the worst come first, so they are set last
        marked[finding["line"]] = finding["severity"]
    task = report["plan"]["custom_task"] if report["plan"] else ""
    if task:
        _view(visit, "custom task", parts.code_lines(task, marked), opened=True)
    if report["diff"]:
        _view(visit, "difference", parts.diff_lines(report["diff"]), opened=True)
    of_code = {} if task else marked
    _view(visit, "code", parts.code_lines(report["code"], of_code), opened=not report["plan"])


def _view(visit: Visit, title: str, lines: list[parts.CodeLine], opened: bool) -> None:
    with parts.card(classes="code-card"):
        label = f"{visit.say(title)} · {visit.say('lines', count=len(lines))}"
        with ui.expansion(label, value=opened).classes("code-fold"):
            parts.CodeView(lines, visit.say("more lines"))
