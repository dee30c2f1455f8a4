"""What an owner reads before deciding: the plan in words, what the code is, and epsilon against the budget."""

from __future__ import annotations

import difflib
from typing import Literal

from fl_privacy import template
from fl_privacy.errors import NotApproved, PlanError
from fl_privacy.guard import wording
from fl_privacy.guard.admission import plan_spends, spends_by_round
from fl_privacy.guard.findings import Finding, ordered, scan
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.labels import misfits
from fl_privacy.guard.policy import refusals, scientist_refusal
from fl_privacy.guard.sandbox import Isolation
from fl_privacy.learning.custom_task import problems
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import CorpusCard, Message, PrivacyUnit, Signed, open_signed
from fl_privacy.plan import TrainingPlan

CodeVerdict = Literal["template", "template with custom task", "custom code"]


class Review(Message):
    """A request, explained. ``epsilon_*`` are upper bounds at the ledger's delta, for adding or removing one unit;
    ``epsilon_by_round`` counts the evaluations until then, and its last entry all of them.

    ``verdict`` says what the code is. For "custom code" there is no plan, and nothing would be spent: the guard never runs it.
    ``findings`` are about the custom task or the custom code; ``diff`` compares custom code with the template.
    """

    verdict: CodeVerdict
    findings: tuple[Finding, ...] = ()
    diff: str = ""
    sentence: str
    plan: TrainingPlan | None = None
    plan_digest: str = ""
    scientist: str = ""
    code: str
    code_sha256: str
    words: tuple[str, ...]
    noise_multiplier: float = 0.0
    sample_rate: float = 0.0
    epsilon_by_round: tuple[float, ...] = ()
    epsilon_now: float
    epsilon_after: float
    epsilon_budget: float
    delta: float
    unit: PrivacyUnit
    period_days: int | None = None  # if set, epsilon_* count the last so many days, as the budget does
    refused_by_policy: tuple[str, ...] = ()  # lines of domain.toml, each with why

    @property
    def _period(self) -> str:
        return f" within {self.period_days} days" if self.period_days else ""

    @property
    def objection(self) -> str:
        """Why the guard will not let this be approved; empty if it will."""
        if self.plan is None:
            return "the guard runs its own template and no other code; ask for a plan, with a custom task if need be"
        if self.findings and self.findings[0].severity == "critical":
            first = self.findings[0]
            return f"the guard does not run this custom task (line {first.line}: {first.what}: {first.why})"
        if self.refused_by_policy:
            return "this owner's policy refuses it. " + "; ".join(self.refused_by_policy)
        if self.epsilon_after > self.epsilon_budget:
            return (
                f"epsilon would reach {self.epsilon_after:.2f} of a budget of {self.epsilon_budget:.2f}"
                f" ({self.epsilon_now:.2f} is spent{self._period}); ask for fewer rounds or a smaller target_epsilon"
            )
        if self.plan.delta > self.delta:
            return f"the plan's delta {self.plan.delta:g} is larger than the ledger's {self.delta:g}"
        return ""


def review(code: str, home: GuardHome, card: CorpusCard, isolation: Isolation) -> Review:
    """Explain submitted code, whatever it is; nothing of it is run.

    What it says about labels that the plan does not name is an exact count over private rows: for the owner only.
    Raises: PlanError when the plan does not suit this corpus; NotApproved when the plan is not for this owner.
    """
    try:
        signed = template.signed_plan_of(code)
    except PlanError as difference:
        return _review_foreign(code, home, str(difference))
    return _review_plan(code, signed, home, card, isolation)


def check_approvable(report: Review) -> None:
    """Raise NotApproved when the guard would refuse this request's orders anyway; the message is the objection."""
    if report.objection:
        name = f"plan {report.plan.name!r}" if report.plan else "this code"
        raise NotApproved(f"cannot approve {name}: {report.objection}")


def _review_plan(code: str, signed: Signed, home: GuardHome, card: CorpusCard, isolation: Isolation) -> Review:
    plan = open_signed(signed, TrainingPlan, signed.signer)
    if home.owner not in plan.owners:
        raise NotApproved(f"the plan is for {', '.join(plan.owners)}, not for {home.owner}")
    plan.check_suits(card)
    spends = plan_spends(plan, card.declared_size)
    statement = home.ledger.statement()
    by_round = tuple(home.ledger.forecast_in_period(spends) for spends in spends_by_round(plan, card.declared_size))
    too_much = scientist_refusal(home, signed.signer, spends)
    return Review(
        verdict="template" if plan.task != "custom" else "template with custom task",
        findings=_task_findings(plan.custom_task),
        sentence=wording.sentence(plan, card, statement, by_round[-1], home.ledger.forecast(spends)),
        plan=plan,
        plan_digest=plan.digest(),
        scientist=signed.signer,
        code=code,
        code_sha256=template.code_digest(code),
        words=(*wording.plan_in_words(plan, signed.signer, card, statement.unit), *_labels_in_words(home, card, plan)),
        noise_multiplier=spends[0].noise_multiplier,
        sample_rate=spends[0].sample_rate,
        epsilon_by_round=by_round,
        epsilon_now=_counted(statement),
        epsilon_after=by_round[-1],
        epsilon_budget=statement.epsilon_budget,
        delta=statement.delta,
        unit=statement.unit,
        period_days=statement.period_days,
        refused_by_policy=(*refusals(plan, home.domain.policy, isolation), *([too_much] if too_much else [])),
    )


def _labels_in_words(home: GuardHome, card: CorpusCard, plan: TrainingPlan) -> list[str]:
    found = misfits(home, card, plan)
    return [] if found is None else [wording.labels_in_words(plan, found.rows, found.of)]


def _review_foreign(code: str, home: GuardHome, difference: str) -> Review:
    statement = home.ledger.statement()
    return Review(
        verdict="custom code",
        findings=scan(code),
        diff=_difference(template.expected_text(code), code),
        sentence="This is not a plan for training but a program. The guard never runs it, whatever is approved elsewhere, so it"
        " spends nothing and nothing leaves through the guard. Do not approve it in Syft either.",
        code=code,
        code_sha256=template.code_digest(code),
        words=(f"What it is: {difference}.", "Purpose: the code does not say in a form that can be checked."),
        epsilon_now=_counted(statement),
        epsilon_after=_counted(statement),
        epsilon_budget=statement.epsilon_budget,
        delta=statement.delta,
        unit=statement.unit,
        period_days=statement.period_days,
    )


def _counted(statement: LedgerStatement) -> float:
    """What the budget bounds of what was spent."""
    return statement.epsilon_spent if statement.epsilon_in_period is None else statement.epsilon_in_period


def _task_findings(source: str) -> tuple[Finding, ...]:
    """What the task language refuses, with what a static look finds beside it; of a task that is run, what to read twice."""
    if not source:
        return ()
    refused = {Finding(severity="critical", line=line, what=what, why=why) for line, what, why in problems(source)}
    return ordered(refused | {finding for finding in scan(source) if refused or finding.severity != "critical"})


def _difference(expected: str, code: str) -> str:
    vetted, submitted = (text[: template.LONGEST].splitlines() for text in (expected, code))
    names = ("the vetted template", "the submitted code")
    return "\n".join(difflib.unified_diff(vetted, submitted, *names, lineterm=""))
