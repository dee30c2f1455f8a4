"""What an owner is told about a request: the verdict on its code, its findings, a sentence that is true, and a diff."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console

from fl_privacy import template
from fl_privacy.display_review import review as drawn
from fl_privacy.errors import NotApproved, PlanError
from fl_privacy.guard.guard import Guard
from fl_privacy.guard.review import Review, check_approvable
from fl_privacy.messages import sign
from tests.builders import tiny_bundle, tiny_plan
from tests.guard.conftest import make_guard

BUNDLE, KEY = tiny_bundle(), Ed25519PrivateKey.generate()
TASK = """
import torch.nn.functional as F

def features(text, tokenizer):
    ids = tokenizer.encode(text)
    return {"input_ids": ids, "labels": ids}

def loss(scores, labels):
    return F.cross_entropy(scores, labels)
"""
FOREIGN = "def train(task, site, datasite):\n    import os\n    return open('/keys').read()\n"


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    made = make_guard(tmp_path_factory.mktemp("guard"), "bank", epsilon=8.0)
    yield made
    made.close()


def code_of(**changes: Any) -> str:
    return template.render(sign(tiny_plan(BUNDLE, **changes), KEY))


def shown(report: Review) -> str:
    """The review as a terminal gets it, with its escape sequences."""
    console = Console(width=110, force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(drawn(3, "ada@lab.org", report.model_dump(mode="json") | {"objection": report.objection}))
    return capture.get()


def test_the_template_has_no_findings_and_no_difference(guard: Guard) -> None:
    report = guard.review(code_of())
    assert (report.verdict, report.findings, report.diff, report.objection) == ("template", (), "", "")
    check_approvable(report)
    assert "Verdict: template; the code is the vetted one" in shown(report) and "\x1b[1;32m" in shown(report)


def test_a_custom_task_in_the_language_is_approvable_and_shown_for_reading(guard: Guard) -> None:
    report = guard.review(code_of(task="custom", custom_task=TASK))
    assert (report.verdict, report.findings, report.diff, report.objection) == ("template with custom task", (), "", "")
    check_approvable(report)
    assert "Custom task" in shown(report) and "read the custom task before you decide" in shown(report)
    assert any("scientist's own features and loss" in words for words in report.words)


def test_a_custom_task_outside_the_language_is_critical_and_not_approvable(guard: Guard) -> None:
    report = guard.review(code_of(task="custom", custom_task=TASK.replace("ids = tok", "print(text)\n    ids = tok")))
    assert report.verdict == "template with custom task"
    assert (report.findings[0].severity, report.findings[0].line) == ("critical", 5)
    assert "does not run this custom task (line 5: print" in report.objection
    with pytest.raises(NotApproved, match="line 5"):
        check_approvable(report)
    assert "\x1b[1;31mVerdict" in shown(report).replace("│ ", "")


def test_foreign_code_is_reviewed_without_being_run_and_never_approvable(guard: Guard) -> None:
    report = guard.review(FOREIGN)
    assert report.verdict == "custom code" and report.plan is None and report.epsilon_after == report.epsilon_now
    assert {finding.what for finding in report.findings} == {"import os", "open"}
    assert "-    plan = '<signed plan>'" in report.diff and "+    import os" in report.diff
    with pytest.raises(NotApproved, match="this code: the guard runs its own template and no other code"):
        guard.approve(FOREIGN)
    assert "custom code; do not approve" in shown(report) and "critical" in shown(report)


def test_a_changed_template_is_compared_with_what_its_own_plan_renders_to(guard: Guard) -> None:
    report = guard.review(code_of().replace("hand_over(task, plan", "hand_over(site, plan"))
    changed = [line for line in report.diff.splitlines()[2:] if line[0] in "+-"]
    assert changed == ["-    return hand_over(task, plan, datasite)", "+    return hand_over(site, plan, datasite)"]
    assert report.verdict == "custom code" and report.objection


def test_a_plan_for_others_is_refused(guard: Guard) -> None:
    with pytest.raises(NotApproved, match="not for bank"):
        guard.review(code_of(owners=("clinic", "school", "shop")))


def test_the_forecast_by_round_rises_to_what_would_be_spent(guard: Guard) -> None:
    report = guard.review(code_of(rounds=3))
    assert len(report.epsilon_by_round) == 3 and list(report.epsilon_by_round) == sorted(report.epsilon_by_round)
    assert report.epsilon_after == report.epsilon_by_round[-1]
    assert all(f"{value:.3f}" in shown(report) for value in report.epsilon_by_round)


def test_a_plan_over_the_budget_is_not_approvable(guard: Guard) -> None:
    report = guard.review(code_of(target_epsilon=20.0))
    assert "of a budget of 8.00" in report.objection


@pytest.mark.parametrize("epsilon", [0.5, 4.0])
def test_the_sentence_states_unit_factor_delta_adversary_and_what_is_not_covered(guard: Guard, epsilon: float) -> None:
    report = guard.review(code_of(target_epsilon=epsilon, retries=1))
    told = report.sentence
    assert f"at most {math.exp(epsilon):,.1f} times as large (epsilon {epsilon:g})" in told
    assert "one record (one row)" in told and "1e-05 (delta)" in told and "at most 3 different updates of all layers" in told
    assert "the scientist, the other owners, whoever gets the model later" in told
    assert f"epsilon {report.epsilon_after:.2f} of the 8.00" in told
    assert "Not covered: a person with several records" in told and "how long training takes" in told


def test_a_terminal_is_never_given_submitted_control_characters(guard: Guard) -> None:
    trick = "\x1b[8m\u202e\x9b"
    for report in (guard.review(FOREIGN + f"# {trick}"), guard.review(code_of(purpose=f"to hide {trick} things"))):
        text = shown(report)
        assert not any(mark in text for mark in ("\x1b[8m", "\u202e", "\x9b")) and "\\x1b[8m" in text


def test_denying_code_that_is_not_a_plan_still_tells_that_there_is_no_plan(guard: Guard) -> None:
    with pytest.raises(PlanError, match="not the template"):
        guard.deny(FOREIGN, "no")
