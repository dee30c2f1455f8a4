"""The guard's parts put together, and what the owner may tell it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fl_privacy import template
from fl_privacy.encryption.keys import generate_secret_key, seal_key, unseal_key
from fl_privacy.encryption.registry import OwnerCard, Registry, build_registry
from fl_privacy.errors import CorpusError, KeyMissing, OrderRefused, SignatureInvalid
from fl_privacy.guard.approvals import Approvals, Decision, Verdict
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.corpus import card_of
from fl_privacy.guard.home import GuardHome, write_atomically
from fl_privacy.guard.review import Review, check_approvable, review
from fl_privacy.guard.rounds import Rounds
from fl_privacy.messages import CorpusCard, Signed, open_signed, public_hex, sign


class Guard:
    """One owner's strong room."""

    def __init__(self, home: GuardHome) -> None:
        self.home = home
        self.approvals = Approvals(home.folder / "approvals")
        self.blobs = Blobs(home.folder)
        self.rounds = Rounds(home, self.approvals, self.blobs)

    def close(self) -> None:
        """Stop workers and release the home."""
        self.rounds.stop()
        self.home.close()

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
        keys = self.home.folder / "keys"
        return {
            "owner": self.home.owner,
            "title": self.home.domain.title,
            "fingerprint": open_signed(card, OwnerCard, card.signer).fingerprint,
            "signing_key": public_hex(self.home.identity.signing_key),
            "enrolled": (self.home.folder / "registry.json").exists(),
            "encryption_key": (keys / "he_secret.bin").exists(),
            "corpora": [card.model_dump(mode="json", exclude={"mock_rows"}) for card in self.corpora()],
            "epsilon_spent": statement.epsilon_spent,
            "epsilon_budget": statement.epsilon_budget,
            "delta": statement.delta,
            "ledger_entries": statement.entries,
            "decisions": [
                {"plan": decision.training_plan.name, "verdict": decision.verdict, "reason": decision.reason}
                for decision in self.approvals.all()
            ],
        }

    def review(self, code: str) -> Review:
        """Explain a request."""
        return review(code, self.home, card_of(self.home))

    def approve(self, code: str) -> Decision:
        """Approve exactly this code, plan, corpus and scientist's key. Raises: NotApproved when it may not be."""
        report = self.review(code)
        check_approvable(report)
        return self._decide(code, report, "approved", "")

    def deny(self, code: str, reason: str) -> Decision:
        """Deny with a reason that the scientist is told."""
        return self._decide(code, self.review(code), "denied", reason)

    def enrol(self, cards: Sequence[Signed]) -> Registry:
        """Accept the owners whose fingerprints this owner has compared; the first of them makes the shared HE key.

        Raises: SignatureInvalid when this owner's own card is not among them, OrderRefused after an earlier enrolment.
        """
        registry, home = build_registry(cards), self.home
        if registry.card(home.owner).signing_key != public_hex(home.identity.signing_key):
            raise SignatureInvalid(f"the registry shows another key for {home.owner} than its own")
        path = home.folder / "registry.json"
        if path.exists() and home.registry != registry:
            raise OrderRefused(f"{home.owner} has enrolled with other owners before; changing them needs a new home")
        if registry.cards[0].owner == home.owner and not (home.folder / "keys" / "he_secret.bin").exists():
            self._deal_key(registry)
        write_atomically(path, registry.canonical())
        return registry

    def envelopes(self) -> list[Signed]:
        """The sealed HE keys for the other owners; only the dealer has any. The relaying scientist cannot read them."""
        path = self.home.folder / "keys" / "envelopes.json"
        return [Signed.model_validate(item) for item in json.loads(path.read_bytes())] if path.exists() else []

    def take_envelope(self, envelope: Signed) -> None:
        """Accept the HE key sealed for this owner by the dealer of the registry.

        Raises: SignatureInvalid, CiphertextInvalid, KeyMissing before enrolment, OrderRefused if a different key is held.
        """
        home = self.home
        key = unseal_key(envelope, home.owner, home.identity, home.registry)
        try:
            if home.secret_key != key:
                raise OrderRefused(f"{home.owner} already holds another encryption key")
        except KeyMissing:
            write_atomically(home.folder / "keys" / "he_secret.bin", key)

    def _deal_key(self, registry: Registry) -> None:
        home, key = self.home, generate_secret_key()
        sealed = [
            seal_key(key, home.owner, card.owner, home.identity, registry).model_dump(mode="json")
            for card in registry.cards
            if card.owner != home.owner
        ]
        write_atomically(home.folder / "keys" / "envelopes.json", json.dumps(sealed))
        write_atomically(home.folder / "keys" / "he_secret.bin", key)

    def _decide(self, code: str, report: Review, verdict: Verdict, reason: str) -> Decision:
        plan, corpus = template.signed_plan_of(code), card_of(self.home).corpus
        return self.approvals.record(plan, report.code_sha256, corpus, verdict, reason)
