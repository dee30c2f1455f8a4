"""The guard's own record of what the owner decided; Syft's approvals count for nothing here.

A decision is in the ledger first, then in its file. What a crash leaves in between is settled at the next start, and always for
the stricter word: a refusal counts as soon as it is in the ledger, an approval only when it is in its file too.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from fl_privacy.durable_files import write_atomically
from fl_privacy.errors import NotApproved, RequestDenied
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.package import installed_package
from fl_privacy.messages import Digest, Message, Signed, open_signed
from fl_privacy.plan import TrainingPlan

Verdict = Literal["approved", "denied", "revoked"]
AGAIN = "ask the owner to review the request again"


class Decision(Message):
    """What the owner decided about one plan, and exactly what it was about.

    An approval covers this plan (its rounds included), submitted as this code, on this corpus, ordered with this scientist's
    key, by this installed package, until it ``expires`` (Unix seconds): what differs in any of them is refused.
    """

    plan: Signed
    code: Digest
    corpus: Digest
    package: Digest
    scientist: Digest
    verdict: Verdict
    reason: Annotated[str, StringConstraints(max_length=500)] = ""
    expires: Annotated[int, Field(ge=0, lt=2**37)] | None = None
    decided_at: str

    @property
    def training_plan(self) -> TrainingPlan:
        """The plan, with the scientist's signature checked again."""
        return open_signed(self.plan, TrainingPlan, self.scientist)

    def for_ledger(self) -> dict[str, Any]:
        """The fields of ``privacy.entries.Decided``."""
        plan = self.training_plan
        return {
            "plan": plan.digest(),
            "code": self.code,
            "corpus": self.corpus,
            "package": self.package,
            "scientist": self.scientist,
            "name": plan.name,
            "verdict": self.verdict,
            "epsilon": plan.target_epsilon,
            "delta": plan.delta,
            "accountant": plan.accountant,
            "rounds": plan.paid_orders,
            "expires": self.expires,
            "reason": self.reason,
        }


class Approvals:
    """Decisions by plan digest, one small file each, replaced atomically."""

    def __init__(self, home: GuardHome) -> None:
        self.home = home
        self.folder = home.folder / "approvals"
        self._settle()

    def record(
        self, plan: Signed, code: str, corpus: str, verdict: Verdict, reason: str = "", expires: int | None = None
    ) -> Decision:
        """Write down a decision, in the ledger and in its file; a later one about the same plan replaces it.

        Raises: LedgerError that names the field when it cannot be recorded; then nothing was decided.
        """
        decision = Decision(
            plan=plan,
            code=code,
            corpus=corpus,
            package=installed_package(),
            scientist=plan.signer,
            verdict=verdict,
            reason=reason[:500],
            expires=expires,
            decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        self.home.ledger.decide(**decision.for_ledger())
        self._write(decision)
        return decision

    def all(self) -> list[Decision]:
        """Every decision, oldest first."""
        found = [Decision.parse(path.read_bytes()) for path in self.folder.glob("*.json")]
        return sorted(found, key=lambda decision: decision.decided_at)

    def of_plan(self, plan_digest: str) -> Decision | None:
        """The decision about a plan, if there was one."""
        try:
            return Decision.parse((self.folder / f"{plan_digest}.json").read_bytes())
        except FileNotFoundError:
            return None

    def approved(self, plan_digest: str) -> Decision:
        """The approval of a plan, which holds with the installed package.

        Raises: NotApproved, RequestDenied with the owner's reason.
        """
        decision = self.of_plan(plan_digest)
        if decision is None:
            raise NotApproved(f"plan {plan_digest[:16]}… was never approved by this owner")
        if decision.verdict != "approved":
            name = decision.training_plan.name
            what = "denied" if decision.verdict == "denied" else "revoked its approval of"
            raise RequestDenied(f"the owner {what} plan {name!r}: {decision.reason}")
        if decision.package != installed_package():
            raise NotApproved(
                f"the installed fl_privacy changed since the approval: approved {decision.package[:16]}…, installed"
                f" {installed_package()[:16]}…; {AGAIN}"
            )
        return decision

    def code_approved(self, sha256: str) -> Decision:
        """The approval that covers code with this hash. Raises: NotApproved."""
        for decision in self.all():
            if decision.code == sha256 and decision.verdict == "approved":
                return decision
        raise NotApproved(f"code {sha256[:16]}… was never approved by this owner's guard")

    def _write(self, decision: Decision) -> None:
        write_atomically(self.folder / f"{decision.training_plan.digest()}.json", decision.canonical())

    def _settle(self) -> None:
        """After a crash between the two writes, or a ledger that was brought back from an older export."""
        recorded = self.home.ledger.decisions
        for decision in self.all():
            fields = decision.for_ledger()
            kept = recorded.get(fields["plan"])
            if kept is not None and kept.verdict != "approved" and kept.verdict != decision.verdict:
                self._write(decision.model_copy(update={"verdict": kept.verdict, "reason": kept.reason}))
            elif kept is None or kept.model_dump(exclude={"kind"}) != fields:
                self.home.ledger.decide(**fields)


def check_not_expired(decision: Decision, home: GuardHome) -> None:
    """Raise NotApproved once an approval admits no more orders; a clock that goes back does not revive it."""
    now = max(int(time.time()), home.ledger.time)
    if decision.expires is not None and now >= decision.expires:
        when = datetime.fromtimestamp(decision.expires, UTC).isoformat(" ", "minutes")
        raise NotApproved(f"the approval of plan {decision.training_plan.name!r} expired at {when}; {AGAIN}")
