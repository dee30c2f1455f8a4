"""A whole run of an approved plan: rounds in turn, attempts at each, and what is left behind."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fl_privacy import parameters
from fl_privacy.encryption.evidence import Evidence
from fl_privacy.encryption.packing import failure_log2, plan_encoding
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import RoundFailed
from fl_privacy.learning.metrics import Counts
from fl_privacy.learning.models import ModelBundle, save_pretrained, with_adapters
from fl_privacy.learning.private_counts import order_specs, read_sum
from fl_privacy.messages import Purpose, RoundOrder, Signed
from fl_privacy.parameters import Parameters
from fl_privacy.plan import ATTEMPTS_PER_ROUND, TrainingPlan
from fl_privacy.scientist.desk import Desk
from fl_privacy.scientist.history import EvaluationRecord, History, OwnerSpend, RoundRecord, SkippedRound, Watcher
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
    evaluate: Callable[[Parameters], Counts]
    watcher: Watcher
    timeout: float

    def train(self, strategy: Strategy, out: Path) -> History:
        """Carry all rounds and planned evaluations through.

        ``out`` gets ``history.jsonl``, ``rounds.png``, ``model/``, and ``rounds/`` and ``evaluations/`` with evidence.
        Raises: RoundFailed when two rounds in a row were skipped, or the last one and nothing was trained.
        """
        state = strategy.init(with_adapters(self.plan, parameters.from_bytes(self.bundle.weights)))
        history = History(out / "history.jsonl", self.evaluate(state.model).headline)
        for kept in ("rounds", "evaluations"):  # the evidence of an earlier run would not fit this history
            shutil.rmtree(out / kept, ignore_errors=True)
        while state.round < self.plan.rounds:
            self._evaluate_privately(state, history, out)
            opened = self._attempts(state, "train", Evidence(out / "rounds" / f"{state.round:03d}"))
            if isinstance(opened, Opened):
                state = strategy.apply(state, opened.mean)
                record = _record(state.round - 1, opened, self.evaluate(state.model))
                history.append(record)
                save_pretrained(out / "model", self.plan.model, self.bundle.vocabulary, state.model, self.plan.adapter)
                self.watcher.round_done(record)
            else:
                history.skip(opened)
                self.watcher.round_skipped(opened.round, opened.failures)
                if self._is_stuck(history):
                    raise RoundFailed(opened.round, opened.failures[-1])
                state = replace(state, round=state.round + 1)
        self._evaluate_privately(state, history, out)
        history.plot(out / "rounds.png")
        return history

    def _evaluate_privately(self, state: ServerState, history: History, out: Path) -> None:
        """Evaluate the present model on the owners' held-out rows, if that is planned. One that fails ends nothing."""
        if state.round not in self.plan.evaluated_rounds:
            return
        opened = self._attempts(state, "evaluate", Evidence(out / "evaluations" / f"{state.round:03d}"))
        if isinstance(opened, Opened):
            record = _evaluation_record(self.plan, opened)
            history.append_evaluation(record)
            self.watcher.evaluated(record)
        else:
            history.skip(opened)
            self.watcher.evaluation_skipped(opened.round, opened.failures)

    def _attempts(self, state: ServerState, purpose: Purpose, evidence: Evidence) -> Opened | SkippedRound:
        """Attempts at one round, or at the evaluation before it, until its sum is opened or they are used up.

        A later attempt leaves out who failed, if enough are left; else it waits for all. Owners send an update again that they
        have trained (or counts that they have noised), at no cost, unless they had signed for it already.
        """
        blob = self.bundle.weights if state.round == 0 else parameters.to_bytes(state.model)
        cohort = everybody = tuple(sorted(self.plan.owners))
        failures: list[dict[str, str]] = []
        for attempt in range(ATTEMPTS_PER_ROUND):
            shutil.rmtree(evidence.folder, ignore_errors=True)
            order = self.sign(self._order(purpose, state.round, attempt, cohort, hashlib.sha256(blob).hexdigest()))
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
        return SkippedRound(round=state.round, purpose=purpose, failures=tuple(failures))

    def _order(self, purpose: Purpose, round_index: int, attempt: int, cohort: tuple[str, ...], model: str) -> RoundOrder:
        weights = tuple(self.sizes[owner] for owner in cohort)
        return RoundOrder(
            purpose=purpose,
            plan=self.plan.digest(),
            code=self.code,
            registry=self.registry.digest(),
            key=self.key,
            round=round_index,
            attempt=attempt,
            model=model,
            tensors=order_specs(self.plan, purpose),
            cohort=cohort,
            weights=weights,
            encoding=plan_encoding(self.plan, weights, purpose),
        )

    def _is_stuck(self, history: History) -> bool:
        skipped = [skip.round for skip in history.skipped if skip.purpose == "train"]
        return skipped[-1] - 1 in skipped or (skipped[-1] == self.plan.rounds - 1 and not history.rounds)


def _record(round_index: int, opened: Opened, counts: Counts) -> RoundRecord:
    order = opened.order
    return RoundRecord(
        round=round_index,
        attempt=order.attempt,
        order=order.digest(),
        cohort=order.cohort,
        openers=opened.openers,
        failure_log2=failure_log2(order) if order.encoding.scheme == "bfv" else None,
        accuracy=counts.headline,
        perplexity=counts.summary().get("perplexity"),
        update_norm=parameters.norm(opened.mean),
        spends=_spends(opened),
        parameters=parameters.count(order.tensors),
        ciphertext_bytes=opened.ciphertext_bytes,
        bytes_up=opened.bytes_up,
        bytes_down=opened.bytes_down,
        seconds_training=opened.seconds_training,
        seconds_crypto=opened.seconds_crypto,
        seconds_transport=max(0.0, opened.seconds_total - opened.seconds_training - opened.seconds_crypto),
    )


def _evaluation_record(plan: TrainingPlan, opened: Opened) -> EvaluationRecord:
    order = opened.order
    found = read_sum(plan, opened.mean, order.weights)
    return EvaluationRecord(
        round=order.round,
        attempt=order.attempt,
        order=order.digest(),
        cohort=order.cohort,
        openers=opened.openers,
        counts=dict(zip(found.counts.names, found.counts.vector.tolist(), strict=True)),
        deviations=dict(zip(found.counts.names, found.deviations.tolist(), strict=True)),
        metrics={name: _finite(value) for name, value in found.counts.summary().items()},
        headline=_finite(found.counts.headline),
        headline_deviation=_finite(found.headline_deviation),
        spends=_spends(opened),
        bytes_up=opened.bytes_up,
        bytes_down=opened.bytes_down,
        seconds=opened.seconds_total,
    )


def _spends(opened: Opened) -> dict[str, OwnerSpend]:
    """Each owner's ledger by its receipt."""
    return {
        receipt.owner: OwnerSpend(
            epsilon=receipt.epsilon_spent,
            budget=receipt.epsilon_budget,
            delta=receipt.delta,
            ledger_head=receipt.ledger_head,
            period_days=receipt.period_days,
            epsilon_in_period=receipt.epsilon_in_period,
        )
        for receipt in opened.receipts
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
