"""May this order run? Every reason to say no, checked before the ledger or the corpus is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fl_privacy.encryption.keys import key_name
from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.errors import BlobMissing, CohortTooSmall, MessageError, NotApproved, OrderRefused
from fl_privacy.guard.approvals import AGAIN, Approvals, Decision, check_not_expired
from fl_privacy.guard.corpus import card_of
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.pause import check_running
from fl_privacy.guard.policy import check_hours, check_plan
from fl_privacy.guard.sandbox import Isolation
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.messages import CorpusCard, Signed, open_signed
from fl_privacy.plan import ATTEMPTS_PER_ROUND, TrainingPlan
from fl_privacy.privacy.accounting import calibrate
from fl_privacy.privacy.entries import Spend
from fl_privacy.round_order import RoundOrder


def round_spend(plan: TrainingPlan, declared_size: int) -> Spend:
    """What one training costs at an owner; the noise is calibrated for the whole plan, its evaluations included.

    Raises: PlanError (batches larger than the corpus), PrivacyError (out of reach).
    """
    rate, evaluations = plan.sample_rate(declared_size), (evaluation_spend(plan),) * plan.evaluations
    sigma = calibrate(plan.target_epsilon, plan.delta, rate, plan.paid_steps, plan.accountant, evaluations)
    return Spend(noise_multiplier=sigma, sample_rate=rate, steps=plan.local_steps)


def evaluation_spend(plan: TrainingPlan) -> Spend:
    """What one evaluation costs at an owner: one Gaussian mechanism on all held-out units."""
    return Spend(noise_multiplier=plan.evaluation_noise, sample_rate=1.0, steps=1)


def order_spend(order: RoundOrder, plan: TrainingPlan, declared_size: int) -> Spend:
    """What an order costs at an owner that has to work for it. Raises: as ``round_spend``."""
    return evaluation_spend(plan) if order.purpose == "evaluate" else round_spend(plan, declared_size)


def plan_spends(plan: TrainingPlan, declared_size: int) -> list[Spend]:
    """What the whole plan costs at an owner, one entry per paid order, trainings first."""
    trainings = [round_spend(plan, declared_size)] * plan.trainings
    return trainings + [evaluation_spend(plan)] * plan.evaluations


def spends_by_round(plan: TrainingPlan, declared_size: int) -> list[list[Spend]]:
    """What a plan has cost at an owner after each paid training, its evaluations until then included; the last is all of it."""
    training, evaluation = round_spend(plan, declared_size), evaluation_spend(plan)
    own_rounds = [*plan.busiest_rounds, *[plan.rounds] * plan.retries]  # retries may come last
    evaluations = [sum(before <= own for before in plan.evaluated_rounds) for own in own_rounds[:-1]] + [plan.evaluations]
    return [[training] * done + [evaluation] * count for done, count in enumerate(evaluations, start=1)]


def decision_for(signed: Signed, approvals: Approvals) -> tuple[RoundOrder, Decision]:
    """The order and the approval that covers it, checked against the approved scientist's key and the installed package.

    Raises: DatasitePaused, NotApproved, RequestDenied, SignatureInvalid, MessageError.
    """
    check_running(approvals.home)
    if signed.kind != RoundOrder.__name__:
        raise MessageError(f"expected a signed RoundOrder, got {signed.kind[:40]!r}")
    decision = approvals.approved(RoundOrder.parse(signed.body).plan)
    return open_signed(signed, RoundOrder, decision.scientist), decision


def key_of(order: RoundOrder, home: GuardHome) -> bytes:
    """The HE secret key that an order names. Raises: OrderRefused when another one is held, KeyMissing."""
    key = home.secret_key(order.encoding.scheme)
    if key_name(key) != order.key:
        raise OrderRefused(f"the order names encryption key {order.key[:16]}…, {home.owner} holds {key_name(key)[:16]}…")
    return key


def check_order(
    order: RoundOrder, decision: Decision, home: GuardHome, earlier: Sequence[RoundOrder], inbox: Path, isolation: Isolation
) -> TrainingPlan:
    """Raise unless ``order`` is exactly what was approved, in turn, for a cohort that can hide one update.

    ``earlier`` are the orders of the same plan that this guard has admitted before, the latest last. Returns the plan.
    Raises: NotApproved, PolicyRefused, OrderRefused, CohortTooSmall, KeyMissing, PlanError (the corpus does not suit it).
    """
    plan, card, registry = decision.training_plan, card_of(home), home.require_complete_registry()
    check_not_expired(decision, home)
    check_plan(plan, home, isolation)
    check_hours(home)
    if order.code != decision.code:
        raise NotApproved(f"the order names code {order.code[:16]}…, approved was {decision.code[:16]}…; {AGAIN}")
    if card.corpus != decision.corpus:
        raise NotApproved(
            f"the corpus has changed since the approval: approved {decision.corpus[:16]}…, present {card.corpus[:16]}…; {AGAIN}"
        )
    if order.registry != registry.digest():
        raise OrderRefused("the order names another registry of owners than the one this owner vetted")
    plan.check_suits(card)
    _check_cohort(order, plan, home.domain, card)
    _check_turn(order, plan, earlier)
    if order.tensors != order_specs(plan, order.purpose, order.round):
        given = (
            f"the approved plan trains in round {order.round}"
            if order.purpose == "train"
            else "an evaluation of this task counts"
        )
        raise OrderRefused(f"the order's tensors are not the ones that {given}")
    if order.encoding != plan_encoding(plan, order.weights, order.purpose):
        raise OrderRefused("the order's encoding is not the one that the plan implies for this cohort")
    key_of(order, home)
    if order.round == 0 and order.model != plan.model.weights:
        raise OrderRefused("round 0 must start from the approved model's weights")
    for blob in (order.model, plan.model.vocabulary):
        if not (inbox / blob).is_file():
            raise BlobMissing(f"blob {blob[:16]}… has not been uploaded")
    return plan


def check_paid_for(order: RoundOrder, plan: TrainingPlan, reserved: Sequence[RoundOrder]) -> None:
    """Raise OrderRefused when this owner has ``reserved`` as many orders of the same purpose as the plan pays for."""
    used = sum(past.purpose == order.purpose for past in reserved)
    paid, what = {
        "train": (plan.trainings, "trainings"),
        "evaluate": (plan.evaluations, "evaluations"),
    }[order.purpose]
    if used >= paid:
        raise OrderRefused(f"all {paid} {what} that the plan pays for have been used")


def _check_cohort(order: RoundOrder, plan: TrainingPlan, domain: Domain, card: CorpusCard) -> None:
    least = max(plan.minimal_cohort, domain.policy.minimal_cohort)
    if len(order.cohort) < least:
        whose = "policy" if domain.policy.minimal_cohort == least else "plan"
        raise CohortTooSmall(
            f"a cohort of {len(order.cohort)} is less than {least}, minimal_cohort of the {whose}: a sum over it could give one"
            " update away"
        )
    if list(order.cohort) != sorted(set(order.cohort)):
        raise OrderRefused("the cohort must name each owner once, in order")
    if not set(order.cohort) <= set(plan.owners):
        raise OrderRefused(f"not in the approved plan: {', '.join(sorted(set(order.cohort) - set(plan.owners)))}")
    if order.purpose == "train" and (others := sorted(set(order.cohort) - set(plan.cohort(order.round)))):
        raise OrderRefused(f"the plan's selection has no part in round {order.round} for {', '.join(others)}")
    if domain.owner not in order.cohort or len(order.weights) != len(order.cohort):
        raise OrderRefused(f"the order has no part for {domain.owner}")
    if order.weights[order.cohort.index(domain.owner)] != card.declared_size:
        raise OrderRefused(f"the weight of {domain.owner} must be its declared size {card.declared_size}")


def _check_turn(order: RoundOrder, plan: TrainingPlan, earlier: Sequence[RoundOrder]) -> None:
    if order.purpose == "evaluate" and order.round not in plan.evaluated_rounds:
        raise OrderRefused(f"the approved plan evaluates no model before round {order.round}")
    if order.purpose == "train" and order.round >= plan.rounds:
        raise OrderRefused(f"round {order.round} is outside the approved {plan.rounds} rounds")
    if order.attempt >= ATTEMPTS_PER_ROUND:
        raise OrderRefused(f"attempt {order.attempt} is more than the {ATTEMPTS_PER_ROUND} that a round may take")
    if earlier and order.turn <= earlier[-1].turn:
        raise OrderRefused(f"{_named(order)} is not after {_named(earlier[-1])}")


def _named(order: RoundOrder) -> str:
    what = "the evaluation before " if order.purpose == "evaluate" else ""
    return f"{what}round {order.round} attempt {order.attempt}"
