"""What a plan may cost, before anybody is asked: epsilon by owner, bytes, computing and noise; seconds by a like run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from fl_privacy.compression.order_codec import sent_count
from fl_privacy.compute_costs import compute_share, everything_trained, round_operations
from fl_privacy.errors import PlanError
from fl_privacy.learning.models import ModelBundle
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.learning.trainable import specs_for
from fl_privacy.ledger_statement import LedgerStatement
from fl_privacy.messages import CorpusCard
from fl_privacy.parameters import count
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_plan import round_plan
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.scientist.traffic import Turn, turns_of
from fl_privacy.scientist.views import OwnerForecast, Preview, RoundForecast, counted


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
    turns = turns_of(plan, bundle, {owner: cards[0].declared_size for owner, cards in corpora.items()})
    by_round = tuple(_round(plan, turn) for turn in turns if turn.purpose == "train")
    return Preview(
        name=plan.name,
        owners=tuple(_forecast(plan, owner, corpora[owner], ledgers.get(owner)) for owner in plan.owners),
        by_round=by_round,
        evaluations=plan.evaluations,
        bytes_up=sum(turn.bytes_up for turn in turns),
        bytes_down=sum(turn.bytes_down for turn in turns),
        seconds=None if like is None else _seconds(plan, by_round, like),
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


def _round(plan: TrainingPlan, turn: Turn) -> RoundForecast:
    return RoundForecast(
        round=turn.round,
        trained=_trained(plan, turn.round),
        owners=turn.owners,
        coordinates=turn.coordinates,
        bytes_up=turn.bytes_up,
        bytes_down=turn.bytes_down,
        compute=compute_share(plan, turn.round),
        noise=_noise(plan, turn),
    )


def _noise(plan: TrainingPlan, turn: Turn) -> float:
    """The norm of the noise in a round's mean update over what it is when all is trained and sent, at one noise multiplier.

    Noise is alike in all coordinates, so the norm goes with the root of their number. Of a part that is sent without error
    feedback each coordinate stands for size / sent of them, its noise, too; with it, what is not sent now comes later.
    """
    size, everything = count(order_specs(plan, "train", turn.round)), _coordinates(everything_trained(plan, turn.round))
    stretched = 1.0 if plan.error_feedback else size / turn.coordinates
    return math.sqrt(size * stretched / everything)


@lru_cache(maxsize=64)
def _coordinates(plan: TrainingPlan) -> int:
    return count(specs_for(plan))


def _trained(plan: TrainingPlan, round_index: int) -> str:
    """What a round trains, in words."""
    stage = round_plan(plan, round_index)
    head = f" and the {stage.model.head} head" if stage.model.head != "clm" else ""
    if stage.adapter is not None:
        told = f"adapters of rank {stage.adapter.rank}" + (head if stage.model.labels else "")
    elif stage.layers is not None:
        first, last = stage.layers
        told = (f"layer {first}" if first == last else f"layers {first}-{last}") + head
    elif stage.trainable == "head":
        told = head.removeprefix(" and ")
    else:
        told = f"all of {stage.model.num_layers} layers"
    return f"{told}; sent without layers {plan.local_layers} and the head" if plan.local_layers else told


def _seconds(plan: TrainingPlan, by_round: Sequence[RoundForecast], like: Path) -> float:
    """By an earlier run: training by operations, for examples of one length, the rest by coordinates. Raises: PlanError."""
    folder = RunFolder(like)
    measured, records = folder.settings.plan, folder.read_history().rounds
    if not records:
        raise PlanError(f"{like} has no finished round to measure by")
    tokens = min(plan.max_length, measured.max_length)
    work, done = (
        sum(one.local_steps * one.batch_size * round_operations(one, index, tokens) for index in rounds)
        for one, rounds in ((plan, range(plan.rounds)), (measured, [record.round for record in records]))
    )
    sent = sum(forecast.coordinates for forecast in by_round) / sum(sent_count(measured, one.parameters) for one in records)
    training = sum(record.seconds_training for record in records)
    return training * work / done + sum(record.seconds_crypto + record.seconds_transport for record in records) * sent
