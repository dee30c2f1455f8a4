"""What a privacy ledger holds: numbered entries, each with one event. ``chain`` checks that nobody edited or dropped any."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from fl_privacy.messages import Digest, Message, OwnerName, PrivacyUnit, Signed

Accountant = Literal["prv", "rdp"]
Verdict = Literal["approved", "denied", "revoked"]
FIRST = "0" * 64  # what the first entry names as the entry before it
DAY = 86_400  # seconds

# what an honest ledger never exceeds; wider, a hostile one could stop whoever audits it
Time = Annotated[int, Field(ge=0, lt=2**37)]  # Unix seconds
Epsilon = Annotated[float, Field(gt=0, le=1e9)]
Delta = Annotated[float, Field(gt=0, lt=1)]
Reason = Annotated[str, StringConstraints(max_length=500)]


class Spend(Message):
    """DP-SGD steps to pay for: each a Gaussian mechanism on a Poisson sample of the corpus. An evaluation is one at rate 1.

    ``noise_multiplier`` is the noise's standard deviation over the clipping norm (of counts, over their bound), ``sample_rate``
    the probability of each record (or subject, where that is the ledger's unit) of being in a batch, ``steps`` a count.
    """

    noise_multiplier: Annotated[float, Field(ge=0.01, le=1e6)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1, le=10**9)]


class Opening(Message):
    """The first entry: whose ledger, and the budget that every later reserve must fit.

    With ``period_days`` the budget bounds what is reserved within any so many days, and nothing bounds the total. With
    ``decisions_kept`` every reserve needs an approval before it; without, from the first decision on.
    """

    kind: Literal["open"] = "open"
    owner: OwnerName
    epsilon: Epsilon
    delta: Delta
    accountant: Accountant
    unit: PrivacyUnit = "record"
    period_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
    decisions_kept: bool = False


class BudgetChange(Message):
    """The owner's new budget; what was spent stays spent."""

    kind: Literal["budget"] = "budget"
    epsilon: Epsilon
    reason: Reason


class Decided(Message):
    """What the owner decided about one plan; a later decision about the same plan takes its place.

    The digests say what exactly was decided about: plan, submitted code, corpus, installed package, scientist's public key.
    All reserves of the plan may cost ``epsilon`` at ``delta`` by ``accountant`` (the plan's own, which need not be the
    ledger's), in at most ``rounds`` trainings and evaluations, repeated ones included, before ``expires`` (Unix seconds).
    """

    kind: Literal["decision"] = "decision"
    plan: Digest
    code: Digest
    corpus: Digest
    package: Digest
    scientist: Digest
    name: Annotated[str, StringConstraints(max_length=100)]
    verdict: Verdict
    epsilon: Epsilon
    delta: Delta
    accountant: Accountant
    rounds: Annotated[int, Field(ge=1, le=10**9)]
    expires: Time | None = None
    reason: Reason = ""


class Reserve(Message):
    """Paid before the first gradient of an order; ``epsilon`` is the bound for all reserves up to and with this one."""

    kind: Literal["reserve"] = "reserve"
    order: Digest
    plan: Digest
    spend: Spend
    epsilon: Annotated[float, Field(ge=0, le=1e9)]


class Commit(Message):
    """The order's update was sealed."""

    kind: Literal["commit"] = "commit"
    order: Digest


class Void(Message):
    """The order failed. Its noise may have been seen, so its reserve still counts."""

    kind: Literal["void"] = "void"
    order: Digest
    reason: Reason


class Witness(Message):
    """The signed SurvivorLists of an order's whole cohort, sorted by owner: each carries the ledger heads of all of them.

    So every owner keeps what every other owner has countersigned, and none can take back what its ledger held then.
    """

    kind: Literal["witness"] = "witness"
    order: Digest
    survivors: Annotated[tuple[Signed, ...], Field(min_length=1)]


Event = Opening | BudgetChange | Decided | Reserve | Commit | Void | Witness


class LedgerEntry(Message):
    """One link: its number, the digest of the entry before it, the owner's clock (Unix seconds), and what happened."""

    version: Literal[1] = 1
    seq: Annotated[int, Field(ge=0)]
    previous: Digest
    time: Time
    event: Annotated[Event, Field(discriminator="kind")]
