"""The scientist's handle on all owners: look at corpora, submit a plan, train."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from fl_privacy import parameters, template
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import KeyMissing, NotApproved, OwnerFailed, PlanError, RequestDenied
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_start import evaluated_start
from fl_privacy.learning.metrics import Counts
from fl_privacy.learning.models import ModelBundle, build_model, save_pretrained
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import Row, Signed, open_signed, sign
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.credentials import Login as Login
from fl_privacy.scientist.credentials import signing_key
from fl_privacy.scientist.desk import Desk
from fl_privacy.scientist.enrolment import Relayed, common_key, common_registry, registry_states, relay_keys
from fl_privacy.scientist.files import read_federation
from fl_privacy.scientist.history import History, Watcher
from fl_privacy.scientist.late_owners import WhenLate
from fl_privacy.scientist.orders import Orders
from fl_privacy.scientist.preview import preview
from fl_privacy.scientist.proposal import check_proposal
from fl_privacy.scientist.relay import RelayClient
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.scientist.tracking import Tracker, tracked
from fl_privacy.scientist.training_run import DAY, TrainingRun
from fl_privacy.scientist.views import Corpora, MockRows, Owners, OwnerView, Preview, Statuses
from fl_privacy.strategies.base import Strategy

VALIDATION_SEED = 20250911  # the same masks every time, so that rounds can be compared


class Federation:
    """Desks at every owner's datasite and the scientist's signing key."""

    def __init__(self, home: Path, desks: Mapping[str, Desk]) -> None:
        self.home, self.desks = home, dict(desks)
        self._key = signing_key(home)

    @classmethod
    def connect(cls, file: Path | str = "federation.toml", ask_password: Callable[[str], str] | None = None) -> Federation:
        """Log in at every owner of a federation.toml.

        It holds ``home``, the folder of the scientist's key (relative to the file), and for each owner an ``[[owner]]`` with
        ``name``, ``url`` and ``email``. Passwords come from ``FL_PRIVACY_PASSWORD_<OWNER>``, a ``password_file``, the
        system's keyring or, last, ``ask_password`` (a prompt in the terminal or the notebook); they are never in the file.
        Raises: HomeError that names the field, CredentialsRefused, ConnectionFailed.
        """
        return cls.login(*read_federation(Path(file), ask_password))

    @classmethod
    def login(cls, home: Path, logins: Sequence[Login]) -> Federation:
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

    def owners(self) -> Owners:
        """Every owner: title, address, and what its ledger has spent of its budget."""
        ledgers = self._known_ledgers()
        titles = {owner: str(desk.relay.info()["title"]) for owner, desk in self.desks.items()}
        views = {
            owner: OwnerView(owner, titles[owner], desk.url, desk.email, ledgers.get(owner))
            for owner, desk in self.desks.items()
        }
        return Owners(views)

    def corpora(self) -> Corpora:
        """What each owner tells about its corpora, mock rows included."""
        return Corpora({owner: desk.corpora() for owner, desk in self.desks.items()})

    def mock_rows(self, plan: TrainingPlan | None = None) -> MockRows:
        """The rows that the plan's owners (or all) publish: public text in the shape of the private one, to validate on."""
        owners = self.desks if plan is None else plan.owners
        return MockRows(row for owner in owners for card in self.desks[owner].corpora() for row in card.mock_rows)

    def preview(self, plan: TrainingPlan, bundle: ModelBundle, like: Path | None = None) -> Preview:
        """What a plan may cost, before anybody is asked: epsilon by owner, bytes on the wire, and perhaps seconds.

        Args: ``like`` is the folder of an earlier run, whose times are scaled to this plan.
        Raises: PlanError when a corpus does not suit the plan.
        """
        corpora = {owner: self.desks[owner].corpora() for owner in plan.owners}
        return preview(plan, bundle, corpora, self._known_ledgers(), like)

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
        check_proposal(plan, bundle, {owner: self.desks[owner].corpora() for owner in plan.owners})
        code = self._code(plan)
        ids = {owner: self.desks[owner].submit(code, plan.name) for owner in plan.owners}
        submissions = self.home / "submissions"
        submissions.mkdir(exist_ok=True)
        (submissions / f"{plan.digest()}.json").write_text(json.dumps(ids))
        return ids

    def status(self, plan: TrainingPlan) -> Statuses:
        """By owner: pending, approved, denied or revoked, and the reason. Raises: NotApproved if never submitted from here."""
        try:
            ids = json.loads((self.home / "submissions" / f"{plan.digest()}.json").read_text())
        except FileNotFoundError:
            raise NotApproved(f"plan {plan.name!r}, as it stands now, was never submitted; submit it first") from None
        return Statuses({owner: self.desks[owner].request_state(ids[owner]) for owner in plan.owners})

    def evaluate(
        self,
        plan: TrainingPlan,
        bundle: ModelBundle,
        model: parameters.Parameters,
        rows: Sequence[Row],
        round_index: int | None = None,
    ) -> Counts:
        """Counts of the plan's task on the scientist's own or published rows; no private row is involved.

        Args: round_index is the round that the model was trained in, which matters while it grows; by default it is finished.
        Raises: PlanError when the rows hold nothing that the task predicts.
        """
        plan, model = evaluated_start(plan, plan.rounds if round_index is None else round_index, model)
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
        when_late: WhenLate = "go-on",
        wait: float = DAY,
        resume: bool = False,
        track: Sequence[Tracker] = (),
    ) -> History:
        """Train as planned; leave ``model/``, ``history.jsonl``, ``rounds.png`` and the evidence of ``rounds/`` in ``out``.

        After every round ``checkpoint/`` holds all that ``resume`` needs, the validation rows included. A round that nobody
        could open in three attempts is skipped: the model stays, and so do the spends in the ledgers.
        Args: ``validation`` rows have what the plan's task predicts; ``timeout`` in seconds for an owner's part of an attempt;
            ``when_late`` an owner is late, away or out of budget: ``go-on`` without it while the plan's ``minimal_cohort`` is
            left, ``wait`` for it up to ``wait`` seconds, or ``skip`` the round; with ``resume`` a run of this plan that
            lies in ``out`` goes on, and one is begun where there is none; ``track`` shows the history elsewhere as it grows.
        Raises: NotApproved or RequestDenied before anything is ordered; RoundFailed when two rounds in a row were skipped, or
            the last one and nothing was trained, or too few owners are left (the model so far is kept in ``out/model``);
            CheckpointError when ``out`` holds another run that is not finished.
        """
        is_resumed = resume and RunFolder(out).exists
        with tracked(track, RunFolder(out), is_resumed, watcher or Watcher()) as told:
            run = self._training_run(plan, bundle, validation, told, timeout, when_late, wait)
            return run.resume(out, strategy) if is_resumed else run.train(out, strategy)

    def resume(
        self, out: Path, strategy: Strategy | None = None, watcher: Watcher | None = None, track: Sequence[Tracker] = ()
    ) -> History:
        """Go on with the run in ``out``, whose process has ended, at whatever moment; one that is finished is read, no more.

        The plan, its model, the validation rows and the run's settings are in ``out``. The round in hand is ordered again by
        the very same order, which owners answer from what they have: nothing that was trained is trained or paid for again.
        Args: ``strategy`` only where the run was begun with one that is not the plan's; ``track`` as in ``run``.
        Raises: as ``run``; CheckpointError when ``out`` holds no run, or its files do not fit together.
        """
        folder = RunFolder(out)
        kept = folder.settings
        with tracked(track, folder, True, watcher or Watcher()) as told:
            given = (folder.bundle, folder.validation, told, kept.timeout, kept.when_late, kept.wait)
            return self._training_run(kept.plan, *given).resume(out, strategy)

    @staticmethod
    def save_pretrained(out: Path, folder: Path) -> None:
        """Write the model of the run in ``out``, the best so far or the latest as its plan has it, as Hugging Face reads it.

        Raises: CheckpointError when ``out`` holds no run.
        """
        run = RunFolder(out)
        plan, model = run.settings.plan, run.model(run.position)
        save_pretrained(folder, plan.model, run.bundle.vocabulary, model, plan.adapter)

    def _training_run(
        self,
        plan: TrainingPlan,
        bundle: ModelBundle,
        validation: Sequence[Row],
        watcher: Watcher,
        timeout: float,
        when_late: WhenLate,
        wait: float,
    ) -> TrainingRun:
        self._require_approval(plan)
        orders = Orders(
            plan=plan,
            function=template.function_name(sign(plan, self._key)),
            code=template.code_digest(self._code(plan)),
            registry=self.registry(),
            key=self.key(plan),
            sizes=self._sizes(plan),
            sign=partial(sign, key=self._key),
        )
        return TrainingRun(
            plan=plan,
            bundle=bundle,
            orders=orders,
            desks=self.desks,
            evaluate=lambda model, round_index: self.evaluate(plan, bundle, model, validation, round_index),
            watcher=watcher,
            timeout=timeout,
            validation=validation,
            when_late=when_late,
            wait=wait,
        )

    def _relays(self) -> dict[str, RelayClient]:
        return {owner: desk.relay for owner, desk in self.desks.items()}

    def _known_ledgers(self) -> dict[str, LedgerStatement]:
        """Statements of all ledgers; none while owners are not enrolled with each other, since nobody could check them."""
        try:
            return self.statements()
        except (KeyMissing, OwnerFailed):
            return {}

    def _require_approval(self, plan: TrainingPlan) -> None:
        for owner, request in self.status(plan).items():
            if request.status in ("denied", "revoked"):
                raise RequestDenied(f"{owner} {request.status} plan {plan.name!r}: {request.reason}")
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
