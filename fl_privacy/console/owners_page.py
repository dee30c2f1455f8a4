"""Who the owners are: fingerprints to be compared by telephone, who has signed, the names of the encryption keys; and what this
owner's guard is: its sandbox, code, policy and approvals."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fl_privacy.console import guard_card, parts
from fl_privacy.console.visit import Visit


async def draw(visit: Visit) -> None:
    """The registry, and this owner's own guard."""
    status = visit.status
    registry = await visit.ask(visit.desk.registry)
    with visit.fresh():
        parts.text(visit.say("owners"), "page-title").props('role=heading aria-level="1"')
        if registry is None:
            parts.notice(visit.say("not enrolled"), "info")
        else:
            _registry(visit, registry, status["registry"])
        with parts.box("columns"):
            _keys(visit, status["keys"])
            with parts.card(visit.say("signing key")):
                parts.text(status["signing_key"], "mono digits")
                parts.text(visit.say("fingerprint"), "small muted")
                parts.text(status["fingerprint"], "mono digits")
        guard_card.draw(visit, status, int(time.time()))


def _registry(visit: Visit, registry: Any, told: Mapping[str, Any]) -> None:
    with parts.card(visit.say("registry", serial=registry.serial), "whole"):
        parts.text(visit.say("all of it"), "small muted")
        parts.text(registry.fingerprint, "mono digits large")
        parts.text(visit.say("compare"), "small muted")
    with parts.card():
        for card in registry.cards:
            with parts.box("owner-row"):
                with parts.box("owner-name"):
                    parts.text(card.owner, "strong")
                    if card.owner == visit.desk.owner.name:
                        parts.badge(visit.say("you"), "info")
                parts.text(card.fingerprint, "mono digits")
                waiting = card.owner in told["waiting_for"]
                parts.badge(visit.say("not signed" if waiting else "signed"), "warn" if waiting else "good")


def _keys(visit: Visit, keys: Mapping[str, str]) -> None:
    with parts.card(visit.say("key names")):
        if not keys:
            parts.text(visit.say("no keys"), "muted")
        for scheme, name in keys.items():
            parts.text(scheme.upper(), "small muted")
            parts.text(name, "mono digits")
        if keys:
            parts.text(visit.say("key note"), "small muted")
