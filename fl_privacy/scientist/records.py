"""From an opened sum to its line in the history."""

from __future__ import annotations

import math

from fl_privacy import parameters
from fl_privacy.encryption.packing import failure_log2
from fl_privacy.learning.metrics import Counts
from fl_privacy.learning.private_counts import read_sum
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.history import EvaluationRecord, OwnerSpend, RoundRecord
from fl_privacy.scientist.rounds import Opened
from fl_privacy.strategies.stopping import noise_floor


def round_record(
    plan: TrainingPlan,
    opened: Opened,
    counts: Counts,
    moved: float,
    failures: tuple[dict[str, str], ...],
    absent: dict[str, str],
) -> RoundRecord:
    """A round that was opened: its costs, and the scores of the model after it, which it has ``moved`` by so much."""
    order = opened.order
    return RoundRecord(
        round=order.round,
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
        relative_update=moved,
        noise_floor=_noise_floor(plan, opened),
        absent=absent,
        failures=failures,
    )


def evaluation_record(
    plan: TrainingPlan, opened: Opened, failures: tuple[dict[str, str], ...], absent: dict[str, str]
) -> EvaluationRecord:
    """An evaluation that was opened: noised counts of the whole cohort, and what they make."""
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
        is_final=order.round == plan.rounds,
        absent=absent,
        failures=failures,
    )


def _noise_floor(plan: TrainingPlan, opened: Opened) -> float | None:
    """By the noise multipliers in the receipts; None where an owner's receipt has none."""
    order = opened.order
    told = {receipt.owner: receipt.noise_multiplier for receipt in opened.receipts}
    known = {owner: multiplier for owner, multiplier in told.items() if multiplier is not None}
    if len(known) < len(order.cohort):
        return None
    sizes = dict(zip(order.cohort, order.weights, strict=True))
    return noise_floor(plan, order.round, parameters.count(order.tensors), known, sizes)


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
