"""This owner's guard on one card: how its training workers are shut in, which code it runs, what its policy says, and until
when each approval admits orders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from nicegui import ui

from fl_privacy.console import parts
from fl_privacy.console.visit import Visit
from fl_privacy.console.words import WORDS


def draw(visit: Visit, status: Mapping[str, Any], now: int) -> None:
    """The card. Args: now in Unix seconds."""
    with parts.card(visit.say("this guard")):
        with parts.box("badges"):
            for part, told in status["sandbox"].items():
                is_shut = told == "isolated"
                label = visit.say(f"{part} shut" if is_shut else f"{part} open")
                parts.badge(label, "good" if is_shut else "warn")
        installed = [("version", f"fl_privacy {status['version']}"), ("package", status["package"])]
        parts.facts([(visit.say(name), value) for name, value in installed], mono=True)
        with parts.box("columns"):
            with parts.box("stack"):
                parts.text(visit.say("policy"), "strong")
                with ui.element("ul").classes("words"):
                    for line in policy_in_words(visit, status["policy"]):
                        with ui.element("li"):
                            parts.text(line)
            with parts.box("stack"):
                _approvals(visit, status["decisions"], now)


def policy_in_words(visit: Visit, policy: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each line of ``[policy]``, set or not; one that no label is for is told as it stands there."""
    for line, value in policy.items():
        key = f"policy no {line}" if value is None or value is False else f"policy {line}"
        told = ", ".join(map(str, value)) if isinstance(value, list) else f"{value:g}" if isinstance(value, float) else value
        yield visit.say(key, value=told) if key in WORDS else f"{line} = {told}"


def _approvals(visit: Visit, decisions: list[Mapping[str, Any]], now: int) -> None:
    approved = [decision for decision in reversed(decisions) if decision["verdict"] == "approved"]
    parts.text(visit.say("approvals"), "strong")
    if not approved:
        parts.text(visit.say("no approvals"), "muted")
        return
    with parts.box("scroll short"):
        lines = [(decision["plan"], _until(visit, decision["expires"], now)) for decision in approved]
        parts.rows([visit.say("plan"), visit.say("admits orders until")], lines)


def _until(visit: Visit, expires: int | None, now: int) -> str:
    if expires is None:
        return visit.say("without end")
    when = f"{parts.when(expires)[:-3]} UTC"
    return visit.say("expired", when=when) if expires <= now else when
