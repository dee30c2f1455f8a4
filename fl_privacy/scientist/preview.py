"""What a plan may cost, before anybody is asked: epsilon by owner, bytes on the wire, seconds where a like run was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from fl_privacy.encryption.evidence import OPENERS
from fl_privacy.encryption.packing import POLYNOMIAL_BYTES, SEED_BYTES, coordinates_per_block, plan_encoding
from fl_privacy.errors import PlanError
from fl_privacy.learning.models import ModelBundle
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import CorpusCard, Encoding, Purpose
from fl_privacy.parameters import count
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.scientist.views import OwnerForecast, Preview, counted

CKKS_BYTES, CKKS_SLOTS = 235_000, 4088  # of one compressed vector, give or take some hundreds; coordinates in it


def preview(
    plan: TrainingPlan,
    bundle: ModelBundle,
    corpora: Mapping[str, Sequence[CorpusCard]],
    ledgers: Mapping[str, LedgerStatement],
    like: Path | None = None,
) -> Preview:
    """The forecast. Args: ``like`` is the folder of an earlier run. Raises: PlanError (a corpus does not suit the plan)."""
    for cards in corpora.values():
        for card in cards:
            plan.check_suits(card)
    sizes = {owner: cards[0].declared_size for owner, cards in corpora.items()}
    turns: list[tuple[Purpose, tuple[str, ...]]] = [("train", plan.cohort(number)) for number in range(plan.rounds)]
    turns += [("evaluate", tuple(sorted(plan.owners)))] * plan.evaluations
    wires = [_wire(plan, bundle, purpose, [sizes[owner] for owner in cohort]) for purpose, cohort in turns]
    return Preview(
        name=plan.name,
        owners=tuple(_forecast(plan, owner, corpora[owner], ledgers.get(owner)) for owner in plan.owners),
        rounds=plan.rounds,
        evaluations=plan.evaluations,
        coordinates=count(order_specs(plan, "train")),
        bytes_up=sum(up for up, _ in wires),
        bytes_down=sum(down for _, down in wires) + _control_bytes(plan),
        seconds=None if like is None else _seconds(plan, like),
    )


def _forecast(plan: TrainingPlan, owner: str, cards: Sequence[CorpusCard], ledger: LedgerStatement | None) -> OwnerForecast:
    return OwnerForecast(
        owner=owner,
        unit=cards[0].unit if cards else "record",
        before=None if ledger is None else counted(ledger),
        plan=plan.target_epsilon,
        budget=None if ledger is None else ledger.epsilon_budget,
        delta=plan.delta if ledger is None else ledger.delta,
        period_days=None if ledger is None else ledger.period_days,
    )


def _wire(plan: TrainingPlan, bundle: ModelBundle, purpose: Purpose, weights: Sequence[int]) -> tuple[int, int]:
    """Bytes of one turn: up ciphertexts and the opened sum; down model and vocabulary to all, the total to its openers."""
    coordinates, owners = count(order_specs(plan, purpose)), len(weights)
    encoding = plan_encoding(plan, weights, purpose)
    if isinstance(encoding, Encoding):
        blocks = math.ceil(coordinates / coordinates_per_block(encoding))
        update, total = (blocks * (POLYNOMIAL_BYTES + SEED_BYTES * seeds) for seeds in (1, owners))
    else:
        update = total = math.ceil(coordinates / CKKS_SLOTS) * CKKS_BYTES
    up = owners * update + 4 * coordinates
    down = owners * (len(bundle.weights) + len(bundle.vocabulary)) + OPENERS * total
    return up, down


def _control_bytes(plan: TrainingPlan) -> int:
    """SCAFFOLD's control variate goes to every owner, but in the first round, where it is zero."""
    if plan.strategy != "scaffold":
        return 0
    return sum(4 * count(order_specs(plan, "train")) * len(plan.cohort(number)) for number in range(1, plan.rounds))


def _seconds(plan: TrainingPlan, like: Path) -> float:
    """By the mean round of an earlier run: training by steps and batch, the rest by coordinates. Raises: PlanError."""
    folder = RunFolder(like)
    measured, rounds = folder.settings.plan, folder.read_history().rounds
    if not rounds:
        raise PlanError(f"{like} has no finished round to measure by")
    work = (plan.local_steps * plan.batch_size) / (measured.local_steps * measured.batch_size)
    size = count(order_specs(plan, "train")) / rounds[0].parameters
    training = sum(record.seconds_training for record in rounds) / len(rounds)
    other = sum(record.seconds_crypto + record.seconds_transport for record in rounds) / len(rounds)
    return plan.rounds * (training * work + other * size)
