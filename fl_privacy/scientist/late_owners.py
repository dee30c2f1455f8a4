"""What becomes of a round when an owner is late, away, out of budget, or takes its approval back: the scientist's choice.

go-on  the next attempt leaves out who failed, if the plan's ``minimal_cohort`` is left; else all are asked again
wait   the same order is sent again until all have answered; owners that have trained send what they have, at no cost. After
       so long the round is given up; only an order that an owner has lost is followed by another attempt
skip   the round is given up at the first failure; the model stays

None of them changes what an owner may be asked to pay: its guard counts trainings and attempts itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

WhenLate = Literal["go-on", "wait", "skip"]
Failures = Mapping[str, str]  # owner -> "ErrorClass: reason", of one attempt

# an owner that answers with one of these does so again until a person has acted: no later round asks it
FINAL = frozenset({"BudgetExceeded", "NotApproved", "RequestDenied", "LedgerTampered"})
# ... with one of these may answer otherwise later, to the very same order: nothing of the order is lost
PASSING = frozenset({"ConnectionFailed", "OwnerFailed", "DatasitePaused", "PolicyRefused", "TooManyRequests"}) | FINAL


# ... with one of these, the next order is made otherwise, and may be for it, too
MENDED = frozenset({"ControlMismatch"})


def next_cohort(planned: Sequence[str], failures: Sequence[Failures], minimal: int) -> tuple[str, ...]:
    """Who is asked after these lost attempts at a round: without those who failed, or all again where too few are left.

    Args: planned is who the round is for, in order; failures are by attempt.
    """
    cohort = tuple(planned)
    for failed in failures:
        left = tuple(owner for owner in cohort if kind(failed.get(owner, "")) in MENDED or owner not in failed)
        cohort = left if len(left) >= minimal else tuple(planned)
    return cohort


def may_pass(failures: Failures) -> bool:
    """Whether the same order, sent again, may still be answered by all: nobody has lost it, or sent what is wrong."""
    return all(kind(reason) in PASSING for reason in failures.values())


def gone_for_good(failures: Failures) -> dict[str, str]:
    """Those of the failed whom it is of no use to ask again before a person has acted, and why."""
    return {owner: reason for owner, reason in failures.items() if kind(reason) in FINAL}


def absent(planned: Sequence[str], cohort: Sequence[str], failures: Sequence[Failures], gone: Failures) -> dict[str, str]:
    """Who was planned and is not in the cohort, and the last reason."""
    last = dict(gone) | {owner: reason for failed in failures for owner, reason in failed.items()}
    return {owner: last[owner] for owner in planned if owner not in cohort}


def lost_its_control(failures: Failures) -> bool:
    """Whether an owner has no use for the control variates of the order (SCAFFOLD); then all of them start anew."""
    return any(kind(reason) in MENDED for reason in failures.values())


def kind(reason: str) -> str:
    """The class name of the error that a reason tells of; see ``rounds.run_round``."""
    return reason.partition(":")[0]
