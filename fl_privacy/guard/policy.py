"""``[policy]`` of domain.toml, enforced: what this owner refuses whatever has been approved. Refusals name the line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, time

from fl_privacy.errors import NotApproved, PolicyRefused
from fl_privacy.guard.domain import Policy, hour_of
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.sandbox import Isolation
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.accounting import Spend
from fl_privacy.round_plan import round_plan


def refusals(plan: TrainingPlan, policy: Policy, isolation: Isolation) -> Iterator[str]:
    """Each line that a plan runs into, and why; whatever the ledger holds and whatever time it is."""
    if len(plan.owners) < policy.minimal_cohort:
        yield f"minimal_cohort = {policy.minimal_cohort}: the plan names {len(plan.owners)} owners"
    if plan.encryption == "ckks" and not policy.allow_ckks:
        yield (
            "allow_ckks = false: the plan sums in CKKS, without masks, which this policy does not allow; ask for encryption ="
            ' "bfv", or allow it if other owners may read this owner\'s updates'
        )
    most = policy.max_epsilon_per_request
    if most is not None and plan.target_epsilon > most:
        yield f"max_epsilon_per_request = {most:g}: the plan asks for epsilon {plan.target_epsilon:g}"
    if plan.task == "custom" and not policy.custom_tasks:
        yield "custom_tasks = false: the plan brings its own features and loss"
    stages = [plan, *(round_plan(plan, round_index) for round_index in range(plan.rounds))]
    for task in sorted({stage.task for stage in stages} - {"custom", *policy.tasks}):
        yield f"tasks = {list(policy.tasks)}: the plan's task is {task!r}"
    if (model := plan.model.config["model_type"]) not in policy.model_types:
        yield f"model_types = {list(policy.model_types)}: the plan trains {model!r}"
    trained = {stage.trainable.split(":")[0]: stage.trainable for stage in stages[1:]}
    for kind in sorted(trained.keys() - set(policy.trainable)):
        yield f"trainable = {list(policy.trainable)}: the plan trains {trained[kind]!r}"
    if policy.require_isolation and isolation.missing:
        yield f"require_isolation = true: on this system a training worker's {isolation.missing} would not be isolated"


def scientist_refusal(home: GuardHome, scientist: str, spends: Sequence[Spend]) -> str | None:
    """Why these spends are too many for one scientist's key (hex), if they are. Raises: PrivacyError."""
    most = home.domain.policy.max_epsilon_per_scientist
    if most is None or (after := home.ledger.epsilon_of_scientist(scientist, spends)) <= most:
        return None
    return f"max_epsilon_per_scientist = {most:g}: with this, plans of key {scientist[:16]}… would reach epsilon {after:.4f}"


def check_plan(plan: TrainingPlan, home: GuardHome, isolation: Isolation) -> None:
    """Raise PolicyRefused that names the first line which a plan runs into."""
    for line in refusals(plan, home.domain.policy, isolation):
        _refuse(home, line)


def check_scientist(home: GuardHome, scientist: str, spend: Spend) -> None:
    """Raise PolicyRefused when one more spend is too much for one scientist."""
    if line := scientist_refusal(home, scientist, [spend]):
        _refuse(home, line)


def check_hours(home: GuardHome, now: datetime | None = None) -> None:
    """Raise PolicyRefused outside the hours (local time) in which orders are admitted."""
    window, now = home.domain.policy.hours, now or datetime.now()
    if window is not None and not _within(now.time(), *hour_of(window)):
        _refuse(home, f'hours = "{window}": it is {now:%H:%M} here')


def check_auto_approvable(plan: TrainingPlan, policy: Policy) -> None:
    """Raise NotApproved unless a plan may be approved without its owner; all else that a review objects to holds besides."""
    most = policy.auto_approve_epsilon
    if most is None:
        raise NotApproved("policy, auto_approve_epsilon is not set: the owner approves every request itself")
    if plan.task == "custom":
        raise NotApproved("policy, auto_approve_epsilon: a custom task is for the owner to read")
    if plan.target_epsilon > most:
        raise NotApproved(f"policy, auto_approve_epsilon = {most:g}: the plan asks for epsilon {plan.target_epsilon:g}")


def _within(now: time, begin: time, end: time) -> bool:
    return begin <= now < end if begin < end else now >= begin or now < end


def _refuse(home: GuardHome, line: str) -> None:
    raise PolicyRefused(f"{home.owner}'s policy, {line}")
