"""The scientist's handle on all owners: look at corpora, submit a plan, train."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import parameters, template
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import HomeError, NotApproved, OwnerFailed, PlanError, RequestDenied
from fl_privacy.learning import custom_task
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.metrics import Counts
from fl_privacy.learning.models import ModelBundle, build_model
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import CorpusCard, LedgerStatement, Row, Signed, open_signed, sign
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.desk import Desk, RequestState
from fl_privacy.scientist.enrolment import Relayed, common_key, common_registry, registry_states, relay_keys
from fl_privacy.scientist.history import History, Watcher
from fl_privacy.scientist.relay import RelayClient
from fl_privacy.scientist.training_run import TrainingRun
from fl_privacy.strategies.base import Strategy
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

    def mock_rows(self, plan: TrainingPlan) -> list[Row]:
        """The rows that the plan's owners publish: public text in the shape of the private one, to validate on."""
        return [row for owner in plan.owners for card in self.desks[owner].corpora() for row in card.mock_rows]

    def cards(self) -> list[Signed]:
        """The owners' signed identity cards, for the owners to vet and enrol."""
        return [Signed.model_validate(desk.relay.info()["card"]) for desk in self.desks.values()]

    def relay_keys(self) -> Relayed:
        """Carry the owners' signatures of the registry, then the sealed encryption keys, which cannot be read here.

        What an owner holds already is not sent again. Returns: how many of each were carried.
        Raises: OwnerFailed (an owner signed another registry; says whose card or which serial differs), SignatureInvalid,
            KeyMissing (an owner has not enrolled, or is not connected and so cannot sign).
        """
        return relay_keys(self._relays())

    def statements(self) -> dict[str, LedgerStatement]:
        """Each owner's ledger statement, its signature checked against the registry."""
        registry = self.registry()
        return {
            owner: open_signed(desk.relay.ledger(), LedgerStatement, registry.card(owner).signing_key)
            for owner, desk in self.desks.items()
        }

    def registry(self) -> Registry:
        """The registry, which every owner must have signed alike. Raises: OwnerFailed naming the one that differs."""
        return common_registry(registry_states(self._relays()))

    def key(self, plan: TrainingPlan) -> str:
        """The public name of the encryption key that the plan's owners share. Raises: OwnerFailed naming one without it."""
        return common_key(registry_states(self._relays()), plan.owners, plan.encryption)

    def submit(self, plan: TrainingPlan, bundle: ModelBundle | None = None) -> dict[str, str]:
        """Ask every owner of the plan for approval; returns a request id per owner.

        A custom task is checked here as the guards will check it, and with the plan's ``bundle`` it is first tried on the
        owners' mock rows: in training, nobody is told of its failures.
        Raises: PlanError (then no owner was asked; names the owner whose corpus does not suit the plan, or the line of a custom
            task), ConnectionFailed.
        """
        missing = set(plan.owners) - self.desks.keys()
        if missing:
            raise PlanError(f"owners: not connected to {', '.join(sorted(missing))}")
        for owner in plan.owners:
            self._check_corpora(owner, plan)
        if plan.task == "custom":
            self._check_task(plan, bundle)
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

    def evaluate(self, plan: TrainingPlan, bundle: ModelBundle, model: parameters.Parameters, rows: Sequence[Row]) -> Counts:
        """Counts of the plan's task on the scientist's own or published rows; no private row is involved.

        Raises: PlanError when the rows hold nothing that the task predicts.
        """
        built, tokenizer = build_model(plan.model, bundle.vocabulary, model, plan.adapter), tokenizer_of(bundle.vocabulary)
        counts = evaluate(plan, built, tokenizer, rows, VALIDATION_SEED)
        if not counts.vector.any():
            raise PlanError(f"task: the {len(rows)} validation rows hold nothing that {plan.task} predicts; give others")
        return counts

    def run(
        self,
        plan: TrainingPlan,
        bundle: ModelBundle,
        validation: Sequence[Row],
        out: Path,
        strategy: Strategy | None = None,
        watcher: Watcher | None = None,
        timeout: float = 3600.0,
    ) -> History:
        """Train as planned; leave ``model/``, ``history.jsonl``, ``rounds.png`` and the evidence of ``rounds/`` in ``out``.

        A round that nobody could open in three attempts is skipped: the model stays, and so do the spends in the ledgers.
        Args: ``validation`` rows have what the plan's task predicts; ``timeout`` in seconds for an owner's part of an attempt.
        Raises: NotApproved or RequestDenied before anything is ordered; RoundFailed when two rounds in a row were skipped, or
        the last one and nothing was trained (the model so far is kept in ``out/model``).
        """
        self._require_approval(plan)
        run = TrainingRun(
            plan=plan,
            bundle=bundle,
            function=template.function_name(sign(plan, self._key)),
            code=template.code_digest(self._code(plan)),
            registry=self.registry(),
            key=self.key(plan),
            sizes=self._sizes(plan),
            desks=self.desks,
            sign=partial(sign, key=self._key),
            evaluate=partial(self.evaluate, plan, bundle, rows=validation),
            watcher=watcher or Watcher(),
            timeout=timeout,
        )
        return run.train(strategy or FedAvg(plan.server_lr), out)

    def _check_corpora(self, owner: str, plan: TrainingPlan) -> None:
        for card in self.desks[owner].corpora():
            try:
                plan.check_suits(card)
            except PlanError as problem:
                raise PlanError(f"{problem}; this is so at {owner}") from None

    def _check_task(self, plan: TrainingPlan, bundle: ModelBundle | None) -> None:
        custom_task.check(plan.custom_task)
        if bundle is None:
            return
        if bundle.spec != plan.model:
            raise PlanError(f"model: the bundle is not that of plan {plan.name!r}")
        tokenizer = tokenizer_of(bundle.vocabulary)
        texts = [row.text for row in self.mock_rows(plan)]
        custom_task.rehearse(plan.custom_task, tokenizer, plan.max_length, texts)

    def _relays(self) -> dict[str, RelayClient]:
        return {owner: desk.relay for owner, desk in self.desks.items()}

    def _require_approval(self, plan: TrainingPlan) -> None:
        for owner, request in self.status(plan).items():
            if request.status == "denied":
                raise RequestDenied(f"{owner} denied plan {plan.name!r}: {request.reason}")
            if request.status != "approved":
                raise NotApproved(f"{owner} has not decided on plan {plan.name!r} yet")

    def _sizes(self, plan: TrainingPlan) -> dict[str, int]:
        sizes = {owner: self.desks[owner].corpora() for owner in plan.owners}
        for owner, cards in sizes.items():
            if len(cards) != 1:
                raise OwnerFailed(owner, f"offers {len(cards)} corpora, expected one")
        return {owner: cards[0].declared_size for owner, cards in sizes.items()}

    def _code(self, plan: TrainingPlan) -> str:
        return template.render(sign(plan, self._key))


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
