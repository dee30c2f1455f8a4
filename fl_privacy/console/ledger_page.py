"""The ledger's entries, whether the file verifies now, and an export for an auditor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from fl_privacy.console import parts
from fl_privacy.console.visit import Visit, one_line
from fl_privacy.errors import FlPrivacyError, LedgerError

EXPORT = "ledger.jsonl"
COLUMNS = (("seq", "entry"), ("time", "time"), ("kind", "kind"), ("what", "what"), ("epsilon", "total"), ("order", "order"))


async def draw(visit: Visit) -> None:
    """The table, newest first."""
    ledger = await visit.ask(visit.desk.ledger)
    statement, entries = ledger["statement"], ledger["entries"]
    verified = await _verified(visit)

    async def export() -> None:
        try:
            data = await visit.ask(visit.desk.export_ledger)
        except FlPrivacyError as problem:
            ui.notify(parts.plain(one_line(problem)), type="negative", timeout=0, close_button=True)
            return
        ui.download(data, f"{visit.desk.owner.name}-{EXPORT}")

    with visit.fresh():
        with parts.box("page-head spread"):
            parts.text(visit.say("ledger"), "page-title").props('role=heading aria-level="1"')
            ui.button(visit.say("export"), on_click=export, icon="download").props("outline no-caps").mark("export")
        parts.notice(*verified)
        with parts.card():
            parts.facts([(visit.say("head"), statement["head"])], mono=True)
        with parts.card(classes="table-card"):
            _table(visit, entries)


async def _verified(visit: Visit) -> tuple[str, parts.Level]:
    try:
        count = await visit.ask(visit.desk.verify_ledger)
    except LedgerError as problem:
        return visit.say("tampered", what=one_line(problem)), "bad"
    return visit.say("verified", count=count), "good"


def _table(visit: Visit, entries: list[Mapping[str, Any]]) -> None:
    columns = [
        {"name": name, "label": visit.say(label), "field": name, "align": "right" if name in ("seq", "epsilon") else "left"}
        for name, label in COLUMNS
    ]
    table = ui.table(columns=columns, rows=[_row(visit, entry) for entry in reversed(entries)], row_key="seq", pagination=25)
    table.props('flat dense wrap-cells :rows-per-page-options="[25]"').classes("entries")


def _row(visit: Visit, entry: Mapping[str, Any]) -> dict[str, object]:
    event = entry["event"]
    return {
        "seq": entry["seq"],
        "time": parts.when(entry["time"]),
        "kind": visit.say(event["kind"]),
        "what": parts.plain(_what(visit, event)),
        "epsilon": f"{event['epsilon']:.3f}" if event["kind"] == "reserve" else "",
        "order": event.get("order", "")[:12],
    }


def _what(visit: Visit, event: Mapping[str, Any]) -> str:
    match event["kind"]:
        case "open":
            return f"{visit.say('limit')} {event['epsilon']:.3f}; {visit.say('unit')} {visit.say(event.get('unit', 'record'))}"
        case "decision":
            told = f"{event['name']}: {visit.say(event['verdict'])}, epsilon {event['epsilon']:.3f}"
            return f"{told} ({event['reason']})" if event["reason"] else told
        case "reserve":
            spend = event["spend"]
            return f"σ {spend['noise_multiplier']:g}, q {spend['sample_rate']:.4g}, {spend['steps']} steps"
        case "budget":
            return f"{visit.say('limit')} {event['epsilon']:.3f}: {event['reason']}"
        case "void":
            return str(event["reason"])
        case "witness":
            return f"{len(event['survivors'])} × {visit.say('signed')}"
    return ""
