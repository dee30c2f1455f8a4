"""A whole run of an approved plan: rounds in turn, attempts at each, and what is left behind."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fl_privacy import parameters
from fl_privacy.encryption.evidence import Evidence
from fl_privacy.encryption.packing import failure_log2, plan_encoding
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import RoundFailed
from fl_privacy.learning.evaluation import EvaluationCounts
from fl_privacy.learning.models import ModelBundle, save_pretrained
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import RoundOrder, Signed
from fl_privacy.parameters import Parameters
from fl_privacy.plan import ATTEMPTS_PER_ROUND, TrainingPlan
from fl_privacy.scientist.desk import Desk
from fl_privacy.scientist.history import History, OwnerSpend, RoundRecord, SkippedRound, Watcher
from fl_privacy.scientist.rounds import Opened, run_round
from fl_privacy.strategies.base import ServerState, Strategy


@dataclass(frozen=True)
class TrainingRun:
    """A plan, all that its orders need, and who hears of it.

    ``function`` and ``code`` are the approved code's name and digest, ``key`` is the public name of the owners' HE key,
    ``sizes`` are the declared corpus sizes by owner, ``timeout`` is in seconds for an owner's part of an attempt.
    """

    plan: TrainingPlan
    bundle: ModelBundle
    function: str
    code: str
    registry: Registry
    key: str
    sizes: Mapping[str, int]
    desks: Mapping[str, Desk]
    sign: Callable[[RoundOrder], Signed]
    evaluate: Callable[[Parameters], EvaluationCounts]
    watcher: Watcher
    timeout: float

    def train(self, strategy: Strategy, out: Path) -> History:
        """Carry all rounds through; ``out`` gets ``history.jsonl``, ``rounds.png``, ``model/`` and ``rounds/`` with evidence.

        Raises: RoundFailed when two rounds in a row were skipped, or the last one and nothing was trained.
        """
        state = strategy.init(parameters.from_bytes(self.bundle.weights))
        history = History(out / "history.jsonl", self.evaluate(state.model).accuracy)
        shutil.rmtree(out / "rounds", ignore_errors=True)  # the evidence of an earlier run would not fit this history
        while state.round < self.plan.rounds:
            opened = self._round(state, Evidence(out / "rounds" / f"{state.round:03d}"))
            if isinstance(opened, Opened):
                state = strategy.apply(state, opened.mean)
                record = _record(state.round - 1, opened, self.evaluate(state.model))
                history.append(record)
                save_pretrained(out / "model", self.plan.model, self.bundle.vocabulary, state.model)
                self.watcher.round_done(record)
            else:
                history.skip(opened)
                self.watcher.round_skipped(opened.round, opened.failures)
                if self._is_stuck(history):
                    raise RoundFailed(opened.round, opened.failures[-1])
                state = replace(state, round=state.round + 1)
        history.plot(out / "rounds.png")
        return history

    def _round(self, state: ServerState, evidence: Evidence) -> Opened | SkippedRound:
        """Attempts at one round until its sum is opened or they are used up.

        A later attempt leaves out who failed, if enough are left; else it waits for all. Owners send an update again that they
        have trained, at no cost, unless they had signed for it already.
        """
        blob = self.bundle.weights if state.round == 0 else parameters.to_bytes(state.model)
        cohort = everybody = tuple(sorted(self.plan.owners))
        failures: list[dict[str, str]] = []
        for attempt in range(ATTEMPTS_PER_ROUND):
            shutil.rmtree(evidence.folder, ignore_errors=True)
            order = self.sign(self._order(state.round, attempt, cohort, hashlib.sha256(blob).hexdigest()))
            blobs = (self.bundle.vocabulary, blob)
            try:
                return run_round(
                    self.desks, self.function, order, blobs, self.registry, evidence, self.timeout, self.watcher.step
                )
            except RoundFailed as error:
                failures.append(error.failures)
                self.watcher.round_failed(error, ATTEMPTS_PER_ROUND - attempt - 1)
                left = tuple(owner for owner in cohort if owner not in error.failures)
                cohort = left if len(left) >= self.plan.minimal_cohort else everybody
        shutil.rmtree(evidence.folder, ignore_errors=True)  # of no use: it is not the evidence of an opened sum
        return SkippedRound(round=state.round, failures=tuple(failures))

    def _order(self, round_index: int, attempt: int, cohort: tuple[str, ...], model: str) -> RoundOrder:
        weights = tuple(self.sizes[owner] for owner in cohort)
        return RoundOrder(
            plan=self.plan.digest(),
            code=self.code,
            registry=self.registry.digest(),
            key=self.key,
            round=round_index,
            attempt=attempt,
            model=model,
            tensors=specs_for(self.plan.model, self.plan.trainable),
            cohort=cohort,
            weights=weights,
            encoding=plan_encoding(self.plan, weights),
        )

    def _is_stuck(self, history: History) -> bool:
        skipped = [skip.round for skip in history.skipped]
        return skipped[-1] - 1 in skipped or (skipped[-1] == self.plan.rounds - 1 and not history.rounds)


def _record(round_index: int, opened: Opened, counts: EvaluationCounts) -> RoundRecord:
    order = opened.order
    return RoundRecord(
        round=round_index,
        attempt=order.attempt,
        order=order.digest(),
        cohort=order.cohort,
        openers=opened.openers,
        failure_log2=failure_log2(order) if order.encoding.scheme == "bfv" else None,
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
        parameters=parameters.count(order.tensors),
        ciphertext_bytes=opened.ciphertext_bytes,
        bytes_up=opened.bytes_up,
        bytes_down=opened.bytes_down,
        seconds_training=opened.seconds_training,
        seconds_crypto=opened.seconds_crypto,
        seconds_transport=max(0.0, opened.seconds_total - opened.seconds_training - opened.seconds_crypto),
    )
