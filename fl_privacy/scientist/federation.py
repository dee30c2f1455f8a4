"""The scientist's handle on all owners: look at corpora, submit a plan, train."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import parameters, template
from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import HomeError, NotApproved, OwnerFailed, PlanError, RequestDenied, RoundFailed
from fl_privacy.learning.evaluation import EvaluationCounts, evaluate
from fl_privacy.learning.models import ModelBundle, build_model, save_pretrained
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import CorpusCard, LedgerStatement, RoundOrder, Signed, open_signed, sign
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.desk import Desk, RequestState
from fl_privacy.scientist.history import History, OwnerSpend, RoundRecord, Watcher
from fl_privacy.scientist.rounds import Opened, run_round
from fl_privacy.strategies.base import ServerState, Strategy
from fl_privacy.strategies.fedavg import FedAvg

VALIDATION_SEED = 20250911  # the same masks every time, so that rounds can be compared


@dataclass(frozen=True)
class Login:
    """How to reach one owner's datasite."""

    owner: str
    url: str
    email: str
    password: str

    def __repr__(self) -> str:
        return f"Login({self.owner!r}, {self.url!r}, {self.email!r}, password hidden)"


class Federation:
    """Desks at every owner's datasite and the scientist's signing key."""

    def __init__(self, home: Path, desks: Mapping[str, Desk]) -> None:
        self.home, self.desks = home, dict(desks)
        self._key = _signing_key(home)

    @classmethod
    def connect(cls, home: Path, logins: Sequence[Login]) -> Federation:
        """Log in everywhere. Args: ``home`` keeps the scientist's key. Raises: CredentialsRefused, ConnectionFailed."""
        return cls(home, {login.owner: Desk.login(login.owner, login.url, login.email, login.password) for login in logins})

    def close(self) -> None:
        """Close all connections."""
        for desk in self.desks.values():
            desk.close()

    def __enter__(self) -> Federation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def corpora(self) -> dict[str, list[CorpusCard]]:
        """What each owner tells about its corpora, mock rows included."""
        return {owner: desk.corpora() for owner, desk in self.desks.items()}

    def mock_rows(self, plan: TrainingPlan) -> list[str]:
        """The rows that the plan's owners publish: public text in the shape of the private one, to validate on."""
        return [row for owner in plan.owners for card in self.desks[owner].corpora() for row in card.mock_rows]

    def cards(self) -> list[Signed]:
        """The owners' signed identity cards, for the owners to vet and enrol."""
        return [Signed.model_validate(desk.relay.info()["card"]) for desk in self.desks.values()]

    def relay_keys(self) -> int:
        """Pass the sealed encryption keys from the owner that dealt them to the others; returns how many. Cannot read them."""
        envelopes = [envelope for desk in self.desks.values() for envelope in desk.relay.envelopes()]
        for envelope in envelopes:
            recipient = _recipient(envelope)
            if recipient in self.desks:
                self.desks[recipient].relay.put_envelope(envelope)
        return len(envelopes)

    def statements(self) -> dict[str, LedgerStatement]:
        """Each owner's ledger statement, its signature checked against the registry."""
        registry = self.registry()
        return {
            owner: open_signed(desk.relay.ledger(), LedgerStatement, registry.card(owner).signing_key)
            for owner, desk in self.desks.items()
        }

    def registry(self) -> Registry:
        """The registry, which every owner must show alike. Raises: OwnerFailed naming the one that differs."""
        shown = {owner: Registry.model_validate(desk.relay.registry()) for owner, desk in self.desks.items()}
        first = next(iter(shown.values()))
        for owner, registry in shown.items():
            if registry != first:
                raise OwnerFailed(owner, "shows another registry of owners than the others")
        return first

    def submit(self, plan: TrainingPlan) -> dict[str, str]:
        """Ask every owner of the plan for approval; returns a request id per owner. Raises: PlanError, ConnectionFailed."""
        missing = set(plan.owners) - self.desks.keys()
        if missing:
            raise PlanError(f"owners: not connected to {', '.join(sorted(missing))}")
        code = self._code(plan)
        ids = {owner: self.desks[owner].submit(code, plan.name) for owner in plan.owners}
        submissions = self.home / "submissions"
        submissions.mkdir(exist_ok=True)
        (submissions / f"{plan.digest()}.json").write_text(json.dumps(ids))
        return ids

    def status(self, plan: TrainingPlan) -> dict[str, RequestState]:
        """Per owner: pending, approved or denied, and the owner's reason. Raises: NotApproved if never submitted from here."""
        try:
            ids = json.loads((self.home / "submissions" / f"{plan.digest()}.json").read_text())
        except FileNotFoundError:
            raise NotApproved(f"plan {plan.name!r}, as it stands now, was never submitted; submit it first") from None
        return {owner: self.desks[owner].request_state(ids[owner]) for owner in plan.owners}

    def evaluate(
        self, plan: TrainingPlan, bundle: ModelBundle, model: parameters.Parameters, texts: Sequence[str]
    ) -> EvaluationCounts:
        """Masked-language-model counts on the scientist's own or published text; no private row is involved."""
        return evaluate(
            build_model(plan.model, bundle.vocabulary, model),
            tokenizer_of(bundle.vocabulary),
            texts,
            plan.max_length,
            plan.mask_probability,
            VALIDATION_SEED,
        )

    def run(
        self,
        plan: TrainingPlan,
        bundle: ModelBundle,
        validation: Sequence[str],
        out: Path,
        strategy: Strategy | None = None,
        watcher: Watcher | None = None,
        timeout: float = 3600.0,
    ) -> History:
        """Train as planned and leave ``model/``, ``history.jsonl`` and ``rounds.png`` in ``out``.

        Raises: NotApproved or RequestDenied before anything is ordered; RoundFailed when a round is lost and no retry is left
        (the model so far is kept in ``out/model``).
        """
        strategy, watcher = strategy or FedAvg(plan.server_lr), watcher or Watcher()
        self._require_approval(plan)
        registry, weights = self.registry(), self._weights(plan)
        state = strategy.init(parameters.from_bytes(bundle.weights))
        history = History(out / "history.jsonl", self.evaluate(plan, bundle, state.model, validation).accuracy)
        attempt, retries = 0, plan.retries
        while state.round < plan.rounds:
            blob = bundle.weights if state.round == 0 else parameters.to_bytes(state.model)
            order = self._order(plan, registry, weights, state.round, attempt, blob)
            try:
                opened = run_round(
                    self.desks, self._function(plan), order, (bundle.vocabulary, blob), registry, timeout, watcher.step
                )
            except RoundFailed as error:
                watcher.round_failed(error, retries)
                if retries == 0:
                    raise
                attempt, retries = attempt + 1, retries - 1
                continue
            state = strategy.apply(state, opened.mean)
            counts = self.evaluate(plan, bundle, state.model, validation)
            record = _record(state, attempt, order, opened, counts)
            history.append(record)
            save_pretrained(out / "model", plan.model, bundle.vocabulary, state.model)
            watcher.round_done(record)
            attempt = 0
        history.plot(out / "rounds.png")
        return history

    def _require_approval(self, plan: TrainingPlan) -> None:
        for owner, request in self.status(plan).items():
            if request.status == "denied":
                raise RequestDenied(f"{owner} denied plan {plan.name!r}: {request.reason}")
            if request.status != "approved":
                raise NotApproved(f"{owner} has not decided on plan {plan.name!r} yet")

    def _weights(self, plan: TrainingPlan) -> dict[str, int]:
        sizes = {owner: self.desks[owner].corpora() for owner in plan.owners}
        for owner, cards in sizes.items():
            if len(cards) != 1:
                raise OwnerFailed(owner, f"offers {len(cards)} corpora, expected one")
        return {owner: cards[0].declared_size for owner, cards in sizes.items()}

    def _order(
        self, plan: TrainingPlan, registry: Registry, sizes: Mapping[str, int], round_index: int, attempt: int, blob: bytes
    ) -> Signed:
        cohort = tuple(sorted(plan.owners))
        weights = tuple(sizes[owner] for owner in cohort)
        order = RoundOrder(
            plan=plan.digest(),
            code=template.code_digest(self._code(plan)),
            registry=registry.digest(),
            round=round_index,
            attempt=attempt,
            model=hashlib.sha256(blob).hexdigest(),
            tensors=specs_for(plan.model, plan.trainable),
            cohort=cohort,
            weights=weights,
            encoding=plan_encoding(plan, weights),
        )
        return sign(order, self._key)

    def _code(self, plan: TrainingPlan) -> str:
        return template.render(sign(plan, self._key))

    def _function(self, plan: TrainingPlan) -> str:
        return template.function_name(sign(plan, self._key))


def _recipient(envelope: Signed) -> str:
    from fl_privacy.encryption.registry import SealedKey

    return SealedKey.parse(envelope.body).recipient


def _record(state: ServerState, attempt: int, order: Signed, opened: Opened, counts: EvaluationCounts) -> RoundRecord:
    return RoundRecord(
        round=state.round - 1,
        attempt=attempt,
        order=RoundOrder.parse(order.body).digest(),
        accuracy=counts.accuracy,
        perplexity=counts.perplexity,
        update_norm=parameters.norm(opened.mean),
        spends={
            receipt.owner: OwnerSpend(
                epsilon=receipt.epsilon_spent,
                budget=receipt.epsilon_budget,
                delta=receipt.delta,
                ledger_head=receipt.ledger_head,
            )
            for receipt in opened.receipts
        },
        parameters=parameters.count(RoundOrder.parse(order.body).tensors),
        ciphertext_bytes=opened.ciphertext_bytes,
        bytes_up=opened.bytes_up,
        bytes_down=opened.bytes_down,
        seconds_training=opened.seconds_training,
        seconds_crypto=opened.seconds_crypto,
        seconds_transport=max(0.0, opened.seconds_total - opened.seconds_training - opened.seconds_crypto),
    )


def _signing_key(home: Path) -> Ed25519PrivateKey:
    """The scientist's key, made on first use; orders signed with another key are not covered by an approval."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = home / "scientist.key"
    if not path.exists():
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(Ed25519PrivateKey.generate().private_bytes_raw())
    if path.stat().st_mode & 0o077:
        raise HomeError(f"{path} can be read by other users; run `chmod 600 {path}`")
    return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
