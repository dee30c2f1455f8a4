"""A whole run of an approved plan: turns one after the other, attempts at each, and what is left behind.

A turn is the training of a round, or the evaluation before it. It is finished when ``RunFolder.commit`` returns; a run that was
killed before goes on with the same turn, with the very order that owners may have got.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from fl_privacy import parameters
from fl_privacy.encryption.evidence import KEPT_IN, Evidence
from fl_privacy.errors import CheckpointError, RoundFailed
from fl_privacy.learning.local_start import grown
from fl_privacy.learning.metrics import Counts
from fl_privacy.learning.models import ModelBundle, save_pretrained, with_adapters
from fl_privacy.messages import Purpose, Row, Signed
from fl_privacy.parameters import Parameters
from fl_privacy.plan import ATTEMPTS_PER_ROUND, TrainingPlan
from fl_privacy.scientist.deliveries import Delivery
from fl_privacy.scientist.desk import Desk
from fl_privacy.scientist.history import EvaluationRecord, History, Line, RoundRecord, SkippedRound, Watcher
from fl_privacy.scientist.late_owners import WhenLate, absent, gone_for_good, lost_its_control, may_pass, next_cohort
from fl_privacy.scientist.orders import Orders, control_of
from fl_privacy.scientist.records import evaluation_record, round_record
from fl_privacy.scientist.rounds import Opened, run_round
from fl_privacy.scientist.run_folder import Position, RunFolder, RunSettings
from fl_privacy.scientist.wire import Wire, still_owed
from fl_privacy.strategies.base import ServerState, Strategy
from fl_privacy.strategies.registry import strategy_of
from fl_privacy.strategies.scaffold import Scaffold
from fl_privacy.strategies.stopping import Stopping, relative_update

DAY = 86_400.0  # seconds
PAUSE_SECONDS = 30.0  # between two times that late owners are asked


@dataclass(frozen=True)
class TrainingRun:
    """A plan, its model and orders, and who hears of it.

    ``evaluate`` scores a model on the ``validation`` rows, as a round has trained it; ``timeout`` is in seconds for an owner's
    part of an attempt.
    ``when_late`` is explained in ``late_owners``; ``wait`` is how many seconds long owners are waited for in one turn.
    """

    plan: TrainingPlan
    bundle: ModelBundle
    orders: Orders
    desks: Mapping[str, Desk]
    evaluate: Callable[[Parameters, int], Counts]
    watcher: Watcher
    timeout: float
    validation: Sequence[Row] = ()
    when_late: WhenLate = "go-on"
    wait: float = DAY

    def train(self, out: Path, own: Strategy | None = None) -> History:
        """Carry all rounds and planned evaluations through, from the beginning.

        Args: ``own`` is a strategy in the place of the plan's.
        ``out`` gets ``history.jsonl``, ``rounds.png``, ``model/``, ``checkpoint/``, and ``rounds/`` and ``evaluations/`` with
        evidence. Raises: RoundFailed when two rounds in a row were skipped, or the last one and nothing was trained, or too few
        owners are left; CheckpointError when ``out`` holds a run that is not finished.
        """
        folder, strategy = RunFolder(out), own or strategy_of(self.plan)
        with folder.locked():
            if folder.exists and folder.position.purpose is not None:
                told = f"{out} holds a run of plan {folder.settings.plan.name!r} that is not finished"
                raise CheckpointError(f"{told}; resume it, or take another folder")
            for kept in KEPT_IN.values():  # the evidence of an earlier run would not fit this history
                shutil.rmtree(out / kept, ignore_errors=True)
            state = strategy.init(with_adapters(self.plan, parameters.from_bytes(self.bundle.weights)))
            settings = RunSettings(
                plan=self.plan,
                strategy=_described(own),
                when_late=self.when_late,
                wait=self.wait,
                timeout=self.timeout,
                score_before=self.evaluate(state.model, 0).headline,
            )
            folder.create(settings, self.bundle, self.validation, state, self._first_turn(0))
            return self._go_on(strategy, folder)

    def resume(self, out: Path, own: Strategy | None = None) -> History:
        """Go on with the run in ``out`` and ask every owner again; of a finished one model and picture are written again.

        Raises: as ``train``; CheckpointError when there is no run, or one of another plan or strategy.
        """
        folder = RunFolder(out)
        with folder.locked():
            settings, position = folder.settings, folder.position
            if settings.plan != self.plan:
                raise CheckpointError(f"{out} holds a run of another plan, {settings.plan.name!r}; take another folder")
            if settings.strategy != _described(own):
                told = f"{out} holds a run with {settings.strategy}; resume it with that, not with {_described(own)}"
                raise CheckpointError(told)
            history = folder.history(position)
            folder.move(position.model_copy(update={"gone": {}}))
            if history.rounds:
                self._save_model(folder)  # which a crash may have kept from being written, also after the last round
            if position.purpose is not None:
                self.watcher.resumed(history, position.round)
            return self._go_on(own or strategy_of(self.plan), folder)

    def _go_on(self, strategy: Strategy, folder: RunFolder) -> History:
        position = folder.position
        state, history = folder.state(position), folder.history(position)
        while position.purpose is not None:
            position, state, outcome = self._attempts(strategy, folder, position, state, history)
            state, line = self._outcome(strategy, position, state, outcome)
            position = self._next_turn(position, line, history)
            if self.plan.patience and isinstance(line, RoundRecord) and line.accuracy > max(history.scores):
                position = position.model_copy(update={"best": folder.keep_best(state)})
            position = folder.commit(position, state)
            history.append(line)
            if isinstance(line, RoundRecord):
                self._save_model(folder)
            self._tell(line, position)
            if isinstance(line, SkippedRound) and line.purpose == "train" and self._is_stuck(position, history):
                raise RoundFailed(line.round, line.failures[-1])
        history.plot(folder.out / "rounds.png")
        return history

    def _outcome(
        self, strategy: Strategy, position: Position, state: ServerState, outcome: Opened | SkippedRound
    ) -> tuple[ServerState, Line]:
        """The state after a turn, and its line in the history."""
        if isinstance(outcome, SkippedRound):
            return (self._grown(replace(state, round=state.round + 1)) if outcome.purpose == "train" else state), outcome
        failures = position.failures
        missing = absent(self._planned(position), outcome.order.cohort, failures, position.gone)
        if outcome.order.purpose == "evaluate":
            return state, evaluation_record(self.plan, outcome, failures, missing)
        after = strategy.apply(state, outcome.mean, self.orders.share(outcome.order))
        moved = relative_update(state.model, after.model, list(outcome.mean))
        after = self.wire.after(state, after, outcome.order, outcome.values)
        scored = self.evaluate(after.model, outcome.order.round)
        return self._grown(after), round_record(self.plan, outcome, scored, moved, failures, missing)

    @cached_property
    def wire(self) -> Wire:
        """How the run's messages become small."""
        return Wire(self.plan, self.bundle)

    def _grown(self, state: ServerState) -> ServerState:
        """The state before the next round: where that has more layers, with the first head again, and empty slots."""
        model = grown(self.plan, state.round, state.model, parameters.from_bytes(self.bundle.weights))
        if model is None:
            return state
        return replace(state, model=model, slots={}, since=state.round, wire=still_owed(state.wire, state.model, model))

    def _attempts(
        self, strategy: Strategy, folder: RunFolder, position: Position, state: ServerState, history: History
    ) -> tuple[Position, ServerState, Opened | SkippedRound]:
        """Attempts at one turn until its sum is opened or they are used up; where the run stands, and the outcome.

        Owners send an update again that they have trained (or counts that they have noised), at no cost, unless they had signed
        for it already. The order of an attempt is on disk before anybody gets it.
        """
        purpose: Purpose = position.purpose or "train"
        evidence = Evidence(folder.out / KEPT_IN[purpose] / f"{position.round:03d}")
        planned = tuple(owner for owner in self._planned(position) if owner not in position.gone)
        if len(planned) < self.plan.minimal_cohort:
            return position, state, SkippedRound(round=position.round, purpose=purpose, failures=(position.gone,))
        while True:
            model = self._model(folder, position, state)
            extra = parameters.to_bytes(told) if purpose == "train" and (told := strategy.configure(state)) else None
            order = position.order
            if order is None:
                failed = position.failures if self.when_late != "wait" else ()
                cohort = next_cohort(planned, failed, self.plan.minimal_cohort)
                control = compression = None
                if purpose == "train":
                    control = control_of(self.plan, extra, state.since, cohort, history.rounds)
                    compression = self.wire.compression(state)
                attempt = len(position.failures)
                order = self.orders.make(purpose, position.round, attempt, cohort, model, control, compression)
                position = folder.move(position.model_copy(update={"order": order}))
            try:
                more = (extra, self.wire.kept(state) if purpose == "train" else None)
                blobs = (Delivery(blob) for blob in (self.bundle.vocabulary, *more) if blob is not None)
                return position, state, self._carry(order, (*blobs, *self.wire.deliveries(model)), evidence)
            except RoundFailed as error:
                shutil.rmtree(evidence.folder, ignore_errors=True)  # of no use: it is not the evidence of an opened sum
                position, left = self._noted(position, error)
                self.watcher.round_failed(error, left)
                if not left:
                    return position, state, SkippedRound(round=position.round, purpose=purpose, failures=position.failures)
                if isinstance(strategy, Scaffold) and lost_its_control(error.failures):
                    state = strategy.anew(state)
                    position = folder.commit(position, state)

    def _carry(self, order: Signed, deliveries: Sequence[Delivery], evidence: Evidence) -> Opened:
        """One order, sent again while late owners are waited for. Raises: RoundFailed."""
        deadline = time.monotonic() + (self.wait if self.when_late == "wait" else 0.0)
        while True:
            shutil.rmtree(evidence.folder, ignore_errors=True)
            try:
                orders, tells = self.orders, (self.watcher.step, self.watcher.phase)
                signed = (orders.function, order, deliveries, orders.registry, evidence)
                return run_round(self.desks, *signed, self.timeout, *tells, self.wire.mean)
            except RoundFailed as error:
                left = deadline - time.monotonic()
                if left <= 0 or not may_pass(error.failures):
                    raise
                self.watcher.waiting(error, left)
                time.sleep(min(PAUSE_SECONDS, left))

    def _planned(self, position: Position) -> tuple[str, ...]:
        """Who the turn is for: a round's cohort by the plan, and everybody for an evaluation."""
        return self.plan.cohort(position.round) if position.purpose == "train" else tuple(sorted(self.plan.owners))

    def _model(self, folder: RunFolder, position: Position, state: ServerState) -> bytes:
        """The blob that a turn's owners start from: at first the plan's own, at last the model that counts."""
        if position.round == 0:
            return self.bundle.weights
        is_finished = position.round == self.plan.rounds
        return parameters.to_bytes(folder.model(position) if is_finished else state.model)

    def _noted(self, position: Position, error: RoundFailed) -> tuple[Position, int]:
        """Where the run stands after a lost attempt, on disk with the next order or with the turn; and the attempts left."""
        gone = position.gone | (gone_for_good(error.failures) if self.when_late == "go-on" else {})
        failures = (*position.failures, error.failures)
        gives_up = self.when_late == "skip" or (self.when_late == "wait" and may_pass(error.failures))
        left = 0 if gives_up else ATTEMPTS_PER_ROUND - len(failures)
        return position.model_copy(update={"order": None, "failures": failures, "gone": gone}), left

    def _first_turn(self, round_index: int) -> Purpose | None:
        """What a round begins with; None after the last."""
        if round_index in self.plan.evaluated_rounds:
            return "evaluate"
        return "train" if round_index < self.plan.rounds else None

    def _next_turn(self, position: Position, line: Line, history: History) -> Position:
        """The position after a turn with this line, which is not in the history yet."""
        turn: dict[str, object] = {"purpose": "train" if position.round < self.plan.rounds else None}
        if position.purpose == "train":
            done, rounds = position.round + 1, [*history.rounds, *([line] if isinstance(line, RoundRecord) else [])]
            scores = [history.accuracy_before, *(record.accuracy for record in rounds)]
            updates = [record.relative_update for record in rounds if record.relative_update is not None]
            ended = Stopping.of(self.plan).verdict(done, scores, updates)
            index = done if ended is None else self.plan.rounds
            turn = {"round": index, "purpose": self._first_turn(index), "ended": ended or ""}
        told = {"order": None, "failures": (), "lines": position.lines + 1, "line": line.canonical().decode()}
        return position.model_copy(update=turn | told)

    def _save_model(self, folder: RunFolder) -> None:
        model = folder.model(folder.position)
        save_pretrained(folder.out / "model", self.plan.model, self.bundle.vocabulary, model, self.plan.adapter)

    def _tell(self, line: Line, position: Position) -> None:
        if isinstance(line, RoundRecord):
            self.watcher.round_done(line)
        elif isinstance(line, EvaluationRecord):
            self.watcher.evaluated(line)
        elif line.purpose == "evaluate":
            self.watcher.evaluation_skipped(line.round, line.failures)
        else:
            self.watcher.round_skipped(line.round, line.failures)
        if position.ended and not isinstance(line, EvaluationRecord):
            self.watcher.ended(position.ended)

    def _is_stuck(self, position: Position, history: History) -> bool:
        skipped = [skip.round for skip in history.skipped if skip.purpose == "train"]
        is_last = skipped[-1] == self.plan.rounds - 1
        too_few = len(self.plan.owners) - len(position.gone) < self.plan.minimal_cohort
        return too_few or skipped[-1] - 1 in skipped or (is_last and not history.rounds)


def _described(own: Strategy | None) -> str:
    return "the plan's strategy" if own is None else repr(own)
