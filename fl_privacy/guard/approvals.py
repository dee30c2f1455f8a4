"""The guard's own record of what the owner decided; Syft's approvals count for nothing here."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from fl_privacy.errors import NotApproved, RequestDenied
from fl_privacy.guard.home import write_atomically
from fl_privacy.messages import Digest, Message, Signed, open_signed
from fl_privacy.plan import TrainingPlan

Verdict = Literal["approved", "denied"]


class Decision(Message):
    """What the owner decided about one plan, and exactly what it was about.

    The decision covers this plan, submitted as this code, on this corpus, ordered with this scientist's key: an order that
    differs in any of them is refused.
    """

    plan: Signed
    code: Digest
    corpus: Digest
    scientist: Digest
    verdict: Verdict
    reason: Annotated[str, StringConstraints(max_length=1000)] = ""
    decided_at: str

    @property
    def training_plan(self) -> TrainingPlan:
        """The plan, with the scientist's signature checked again."""
        return open_signed(self.plan, TrainingPlan, self.scientist)


class Approvals:
    """Decisions by plan digest, one small file each, replaced atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def record(self, plan: Signed, code: str, corpus: str, verdict: Verdict, reason: str = "") -> Decision:
        """Write down a decision; a later one about the same plan replaces it."""
        decision = Decision(
            plan=plan,
            code=code,
            corpus=corpus,
            scientist=plan.signer,
            verdict=verdict,
            reason=reason,
            decided_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        write_atomically(self.folder / f"{decision.training_plan.digest()}.json", decision.canonical())
        return decision

    def all(self) -> list[Decision]:
        """Every decision, oldest first."""
        found = [Decision.parse(path.read_bytes()) for path in self.folder.glob("*.json")]
        return sorted(found, key=lambda decision: decision.decided_at)

    def approved(self, plan_digest: str) -> Decision:
        """The approval of a plan. Raises: NotApproved, RequestDenied with the owner's reason."""
        try:
            decision = Decision.parse((self.folder / f"{plan_digest}.json").read_bytes())
        except FileNotFoundError:
            raise NotApproved(f"plan {plan_digest[:16]}… was never approved by this owner") from None
        if decision.verdict == "denied":
            raise RequestDenied(f"the owner denied plan {decision.training_plan.name!r}: {decision.reason}")
        return decision

    def code_approved(self, sha256: str) -> Decision:
        """The approval that covers code with this hash. Raises: NotApproved."""
        for decision in self.all():
            if decision.code == sha256 and decision.verdict == "approved":
                return decision
        raise NotApproved(f"code {sha256[:16]}… was never approved by this owner's guard")
