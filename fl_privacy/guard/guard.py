"""The guard's parts put together, and what the owner may tell it."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fl_privacy import __version__, template
from fl_privacy.encryption.registry import OwnerCard
from fl_privacy.errors import CorpusError, HomeError, NotApproved
from fl_privacy.guard import sandbox
from fl_privacy.guard.approvals import Approvals, Decision, Verdict
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.closing import Closing
from fl_privacy.guard.corpus import card_of
from fl_privacy.guard.enrolment import Enrolment
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.jobs import jobs
from fl_privacy.guard.model_steps import ModelSteps
from fl_privacy.guard.orders import Orders
from fl_privacy.guard.package import installed_package
from fl_privacy.guard.pause import check_running, paused
from fl_privacy.guard.policy import check_auto_approvable
from fl_privacy.guard.retention import delete_old, held
from fl_privacy.guard.review import Review, check_approvable, review
from fl_privacy.guard.rounds import Rounds
from fl_privacy.learning.devices import Device, resolve
from fl_privacy.messages import CorpusCard, Signed, open_signed, public_hex, sign
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.entries import DAY


class Guard:
    """One owner's strong room."""

    def __init__(self, home: GuardHome) -> None:
        self.home = home
        self.enrolment = Enrolment(home)
        self.device = _device(home)
        self.isolation = sandbox.probe(home.folder / "domain.toml")
        if self.device == "cuda":  # whose driver begins threads before the sandbox closes
            self.isolation = self.isolation.model_copy(update={"files": "not isolated"})
        self.approvals = Approvals(home)
        self.orders = Orders(home.folder)
        self.blobs = Blobs(home.folder, partial(held, self.orders, self.approvals))
        self.model_steps = ModelSteps(self.blobs)
        self.rounds = Rounds(home, self.approvals, self.blobs, self.orders, self.isolation, self.device)
        self.closing = Closing(home, self.approvals, self.blobs, self.orders)
        self._finish_refusals()
        self.tidy()

    def close(self) -> None:
        """Stop workers and release the home."""
        self.rounds.stop()
        self.home.close()

    def _finish_refusals(self) -> None:
        """After a crash between a refusal and what follows from it."""
        with self.orders.lock:
            for decision in self.approvals.all():
                if decision.verdict != "approved":
                    self.rounds.withdraw(decision.training_plan.digest(), decision.reason)

    def info(self) -> dict[str, Any]:
        """Name and signed identity card."""
        card = self.home.identity.card(self.home.owner)
        return {"owner": self.home.owner, "title": self.home.domain.title, "card": card.model_dump(mode="json")}

    def corpora(self) -> list[CorpusCard]:
        """The card of the corpus, if there is one."""
        try:
            return [card_of(self.home)]
        except CorpusError:
            return []

    def statement(self) -> Signed:
        """A signed statement of the ledger."""
        return sign(self.home.ledger.statement(), self.home.identity.signing_key)

    def status(self) -> dict[str, Any]:
        """What the owner wants to see at a glance."""
        statement, card = self.home.ledger.statement(), self.home.identity.card(self.home.owner)
        return {
            "owner": self.home.owner,
            "title": self.home.domain.title,
            "fingerprint": open_signed(card, OwnerCard, card.signer).fingerprint,
            "signing_key": public_hex(self.home.identity.signing_key),
            "registry": self.enrolment.summary(),
            "keys": self.enrolment.key_names(),
            "corpora": [card.model_dump(mode="json", exclude={"mock_rows"}) for card in self.corpora()],
            "epsilon_spent": statement.epsilon_spent,
            "epsilon_budget": statement.epsilon_budget,
            "epsilon_in_period": statement.epsilon_in_period,
            "period_days": statement.period_days,
            "delta": statement.delta,
            "unit": statement.unit,
            "ledger_entries": statement.entries,
            "paused": paused(self.home),
            "sandbox": self.isolation.model_dump(),
            "training": {"device": self.device, "processes": self.home.domain.training.processes},
            "package": installed_package(),
            "version": __version__,
            "policy": self.home.domain.policy.model_dump(mode="json"),
            "decisions": [_told(decision) for decision in self.approvals.all()],
        }

    def jobs(self) -> list[dict[str, Any]]:
        """The latest orders, newest first; see ``guard.jobs``."""
        return jobs(self.orders, self.rounds, self.approvals)

    def ledger(self) -> dict[str, Any]:
        """``statement`` and all ``entries``."""
        entries = [entry.model_dump(mode="json") for entry in self.home.ledger.entries()]
        return {"statement": self.home.ledger.statement().model_dump(mode="json"), "entries": entries}

    def review(self, code: str) -> Review:
        """Explain a request."""
        return review(code, self.home, card_of(self.home), self.isolation)

    def approve(self, code: str, days: int | None = None) -> Decision:
        """Approve exactly this code, plan, corpus, scientist's key and installed package, by default for ``approval_days``.

        Raises: NotApproved when it may not be.
        """
        return self._approve(self.review(code), "", days)

    def approve_by_policy(self, code: str) -> Decision:
        """Approve what ``auto_approve_epsilon`` covers, without the owner.

        Raises: NotApproved when that is not so, when anything else stands against it, or when the owner has decided before.
        """
        check_running(self.home)
        report = self.review(code)
        if report.plan is not None:
            check_auto_approvable(report.plan, self.home.domain.policy)
        if self.approvals.of_plan(report.plan_digest) is not None:
            raise NotApproved("the owner has decided about this plan before; only the owner decides again")
        return self._approve(report, "approved by policy, auto_approve_epsilon", None)

    def deny(self, code: str, reason: str) -> Decision:
        """Deny with a reason that the scientist is told; an approval is taken back as ``revoke`` does.

        Raises: PlanError for code that is no plan.
        """
        return self._refuse(code, "denied", reason)

    def revoke(self, code: str, reason: str) -> Decision:
        """Take an approval back at once: its orders are dead, also those that all owners have closed; spends stay.

        What was opened before stays opened. Approving again admits new orders but revives none.
        Raises: NotApproved when there is no approval to take back.
        """
        decision = self.approvals.of_plan(_plan_digest(code))
        if decision is None or decision.verdict != "approved":
            raise NotApproved("there is no approval of this request to revoke; deny it instead")
        return self._refuse(code, "revoked", reason)

    def tidy(self) -> int:
        """Delete blobs past ``retention_days``; returns how many."""
        return delete_old(self.blobs, self.orders, self.approvals, self.home.domain.policy.retention_days)

    def _approve(self, report: Review, reason: str, days: int | None) -> Decision:
        check_approvable(report)
        expires = int(time.time()) + (days or self.home.domain.policy.approval_days) * DAY
        plan, corpus = template.signed_plan_of(report.code), card_of(self.home).corpus
        return self.approvals.record(plan, report.code_sha256, corpus, "approved", reason, expires)

    def _refuse(self, code: str, verdict: Verdict, reason: str) -> Decision:
        plan, corpus = template.signed_plan_of(code), card_of(self.home).corpus
        with self.orders.lock:
            decision = self.approvals.record(plan, template.code_digest(code), corpus, verdict, reason)
            self.rounds.withdraw(decision.training_plan.digest(), reason)
        return decision


def _device(home: GuardHome) -> Device:
    training = home.domain.training
    try:
        return resolve(training.device, training.processes)
    except HomeError as problem:
        raise HomeError(f"{home.folder / 'domain.toml'}, [training]: {problem}") from None


def _plan_digest(code: str) -> str:
    return TrainingPlan.parse(template.signed_plan_of(code).body).digest()


def _told(decision: Decision) -> dict[str, Any]:
    name = decision.training_plan.name
    return {"plan": name, "verdict": decision.verdict, "reason": decision.reason, "expires": decision.expires}
