"""What an owner reads before deciding: the plan in words, the code, the forecast of epsilon against the budget."""

from __future__ import annotations

from fl_privacy import template
from fl_privacy.errors import NotApproved
from fl_privacy.guard.admission import plan_spends
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import CorpusCard, Message, Signed, open_signed
from fl_privacy.plan import TrainingPlan


class Review(Message):
    """A request, explained. ``epsilon_*`` are upper bounds at the ledger's delta, for adding or removing one record."""

    plan: TrainingPlan
    plan_digest: str
    scientist: str
    code: str
    code_sha256: str
    words: tuple[str, ...]
    noise_multiplier: float
    sample_rate: float
    epsilon_by_round: tuple[float, ...]
    epsilon_now: float
    epsilon_after: float
    epsilon_budget: float
    delta: float

    @property
    def objection(self) -> str:
        """Why the guard will not let this be approved; empty if it will."""
        if self.epsilon_after > self.epsilon_budget:
            return (
                f"epsilon would reach {self.epsilon_after:.2f} of a budget of {self.epsilon_budget:.2f}"
                f" ({self.epsilon_now:.2f} is spent); ask for fewer rounds or a smaller target_epsilon"
            )
        if self.plan.delta > self.delta:
            return f"the plan's delta {self.plan.delta:g} is larger than the ledger's {self.delta:g}"
        return ""


def review(code: str, home: GuardHome, card: CorpusCard) -> Review:
    """Explain submitted code.

    Raises: PlanError when the code is not the vetted template of the installed version, or does not suit this corpus;
    NotApproved when the plan is not for this owner.
    """
    signed = template.signed_plan_of(code)
    plan = open_signed(signed, TrainingPlan, signed.signer)
    if home.owner not in plan.owners:
        raise NotApproved(f"the plan is for {', '.join(plan.owners)}, not for {home.owner}")
    spends = plan_spends(plan, card.declared_size)
    statement = home.ledger.statement()
    return Review(
        plan=plan,
        plan_digest=plan.digest(),
        scientist=signed.signer,
        code=code,
        code_sha256=template.code_digest(code),
        words=tuple(_in_words(plan, signed, card)),
        noise_multiplier=spends[0].noise_multiplier,
        sample_rate=spends[0].sample_rate,
        epsilon_by_round=tuple(home.ledger.forecast(spends[: i + 1]) for i in range(len(spends))),
        epsilon_now=statement.epsilon_spent,
        epsilon_after=home.ledger.forecast(spends),
        epsilon_budget=statement.epsilon_budget,
        delta=statement.delta,
    )


def check_approvable(report: Review) -> None:
    """Raise NotApproved when the guard would refuse this plan's orders anyway: more than the budget, or a larger delta."""
    if report.objection:
        raise NotApproved(f"cannot approve plan {report.plan.name!r}: {report.objection}")


def _in_words(plan: TrainingPlan, signed: Signed, card: CorpusCard) -> list[str]:
    trained = {"all": "all layers", "head": "only the prediction head"}.get(
        plan.trainable, f"encoder layers {plan.layers and plan.layers[0]} to {plan.layers and plan.layers[1]} and the head"
    )
    return [
        f"Purpose: {plan.purpose}",
        f"Who: scientist's key {signed.signer[:16]}…; together with {', '.join(o for o in plan.owners if o != card.owner)}.",
        f"What is read: about {card.declared_size} records, a random {plan.batch_size / card.declared_size:.1%} of them a step;"
        f" each is cut to {plan.max_length} tokens and used to guess masked characters (masked language model).",
        f"What is trained: {trained} of {plan.model.source}; {plan.rounds} rounds of {plan.local_steps} steps.",
        "What leaves: after each round one update of the model, with noise added by DP-SGD, quantised, masked and encrypted;"
        f" only the sum over at least {plan.minimal_cohort} owners is opened. No record leaves.",
        "Protection: (epsilon, delta)-differential privacy. One record (one row) more or less changes the odds of whatever is"
        f" released by a factor of at most e^{plan.target_epsilon:g}, but for a slack of {plan.delta:g}, all rounds together.",
    ]
