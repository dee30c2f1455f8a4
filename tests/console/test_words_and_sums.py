"""The catalogue of labels, and who caused which part of epsilon."""

from __future__ import annotations

import ast
import string
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import fl_privacy.console
from fl_privacy.console import budget_page, charts, jobs_page, ledger_page, parts, spending
from fl_privacy.console.visit import TABS
from fl_privacy.console.words import WORDS, say
from fl_privacy.guard.approvals import Verdict
from fl_privacy.guard.domain import Policy
from fl_privacy.guard.review import CodeVerdict
from fl_privacy.guard.sandbox import Isolation
from fl_privacy.messages import PrivacyUnit
from fl_privacy.privacy.entries import Event

PLAN_A, PLAN_B, KEY = "a" * 64, "b" * 64, "c" * 64


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


@pytest.mark.parametrize("key", WORDS)
def test_both_languages_tell_the_same_values(key: str) -> None:
    english, chinese = WORDS[key]
    assert english and chinese
    assert fields(english) == fields(chinese)


def labels_used() -> set[str]:
    """Every constant that a page passes to ``say``, also as one of two."""
    found = set()
    for file in Path(fl_privacy.console.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "say":
                found |= {label for argument in node.args for label in constants(argument)}
    return found


def constants(argument: ast.expr) -> Iterator[str]:
    if isinstance(argument, ast.IfExp):
        yield from constants(argument.body)
        yield from constants(argument.orelse)
    elif isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        yield argument.value


def labels_looked_up() -> set[str]:
    """Every label that a page takes from a table, or makes of what the guard tells."""
    kinds = {event.model_fields["kind"].default for event in get_args(Event)}
    tables = {
        *TABS,
        *parts.STATUS,
        *parts.SEVERITY,
        *jobs_page.STATES,
        *budget_page.VERDICTS,
        *dict(ledger_page.COLUMNS).values(),
    }
    told = {*get_args(Verdict), *get_args(CodeVerdict), *get_args(PrivacyUnit)}
    sandbox = {f"{part} {how}" for part in Isolation.model_fields for how in ("shut", "open")}
    policy = {f"policy {line}" for line in Policy.model_fields}
    without = {f"policy no {line}" for line, field in Policy.model_fields.items() if field.default in (None, False)}
    return kinds | tables | told | sandbox | policy | without


def test_every_label_that_a_page_names_is_in_the_catalogue() -> None:
    used = labels_used()
    assert len(used) > 60 and used - WORDS.keys() == set()
    assert {"signed", "not signed"} <= used, "both of two"


def test_every_state_kind_and_policy_line_that_a_guard_can_tell_is_in_the_catalogue() -> None:
    assert labels_looked_up() - WORDS.keys() == set()


def test_a_state_that_no_catalogue_knows_is_shown_as_it_is() -> None:
    assert say("zh", "{not} a label") == "{not} a label"


def test_a_label_does_not_interpret_its_values() -> None:
    assert say("en", "paused", reason="{reason.__class__}") == "This datasite is paused: {reason.__class__}"


def decided(plan: str, name: str, rounds: int = 3) -> dict:
    return {"kind": "decision", "plan": plan, "name": name, "scientist": KEY, "verdict": "approved", "rounds": rounds}


def reserve(plan: str, epsilon: float) -> dict:
    return {"kind": "reserve", "plan": plan, "epsilon": epsilon}


EVENTS = [
    {"kind": "open", "epsilon": 8.0},
    decided(PLAN_A, "first"),
    reserve(PLAN_A, 1.0),
    {"kind": "commit"},
    decided(PLAN_B, "second"),
    reserve(PLAN_B, 1.5),
    {"kind": "budget", "epsilon": 9.0},
    reserve(PLAN_A, 2.25),
    {"kind": "void"},
]
ENTRIES = [{"seq": n, "time": 1000 + n, "event": event} for n, event in enumerate(EVENTS)]


def test_the_shares_of_all_plans_add_up_to_the_total_bound() -> None:
    shares = spending.by_plan(ENTRIES)
    assert [(share.name, share.epsilon, share.trainings, share.most) for share in shares] == [
        ("first", 1.75, 2, 3),
        ("second", 0.5, 1, 3),
    ]
    assert [(share.name, share.epsilon) for share in spending.by_scientist(shares)] == [(KEY, 2.25)]


def test_plans_of_a_ledger_that_kept_no_decisions_are_named_by_digest() -> None:
    share = spending.by_plan([ENTRIES[0], ENTRIES[2]])[0]
    assert (share.name, share.scientist, share.verdict, share.most) == (PLAN_A[:12], "", "", None)


def test_the_curve_holds_the_total_and_the_budget_of_its_time() -> None:
    points = [(point.time, point.epsilon, point.budget) for point in spending.over_time(ENTRIES)]
    assert points == [(1000, 0, 8), (1002, 1, 8), (1005, 1.5, 8), (1006, 1.5, 9), (1007, 2.25, 9)]


def test_charts_show_their_tooltips_as_text() -> None:
    points = spending.over_time(ENTRIES)
    drawn = [charts.over_time(points, 2000, "e", "b"), charts.forecast([0, 1], 8, ["now", "1"], "e", "b")]
    assert {chart["tooltip"]["renderMode"] for chart in drawn} == {"richText"}
    assert drawn[0]["series"][0]["data"][-1] == [2_000_000, 2.25]


def test_a_budget_that_is_passed_is_drawn_as_passed() -> None:
    drawn = charts.gauge(9.0, 8.0, "spent")["series"][0]
    assert drawn["data"][0]["value"] == 112.5 and drawn["progress"]["itemStyle"]["color"] == charts.FULL
