"""What federated training is compared with: each owner alone, and everything in one place.

Nobody could run these in earnest, for they need every owner's corpus on one machine; the demo generated the corpora itself.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fl_privacy import parameters
from fl_privacy.display import console
from fl_privacy.guard.admission import round_spend
from fl_privacy.guard.corpus import round_down
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, build_model, with_adapters
from fl_privacy.learning.owner_scores import OwnerScores, scores_by_owner
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.federation import VALIDATION_SEED

CENTRALISED = "centralised"  # and the other runs by owner
Part = Callable[[TrainingPlan, ModelBundle, list[Row], int, Parameters], Parameters]


class References(NamedTuple):
    """What the reference runs come to."""

    accuracy: dict[str, float]  # on all validation rows, by kind of run: public_base, local_only (mean of owners), centralised
    alone: OwnerScores  # each owner's own model, on its own validation rows


def reference_runs(
    plan: TrainingPlan, bundle: ModelBundle, corpora: Mapping[str, Sequence[Row]], validation: Mapping[str, Sequence[Row]]
) -> References:
    """Train each owner alone, and all rows in one place; measure on validation rows by owner.

    Privacy: an owner alone uses the same DP-SGD as the federated run; 'centralised' gives no privacy at all.
    """
    base = with_adapters(plan, parameters.from_bytes(bundle.weights))
    trained = {"public_base": base} | _train(plan, bundle, base, corpora)
    models = {name: build_model(plan.model, bundle.vocabulary, model, plan.adapter) for name, model in trained.items()}
    tokenizer, rows = tokenizer_of(bundle.vocabulary), [row for own in validation.values() for row in own]
    score = {name: evaluate(plan, model, tokenizer, rows, VALIDATION_SEED).headline for name, model in models.items()}
    return References(
        accuracy={
            "public_base": score["public_base"],
            "local_only": sum(score[owner] for owner in corpora) / len(corpora),
            CENTRALISED: score[CENTRALISED],
        },
        alone=scores_by_owner(plan, models, tokenizer, validation, VALIDATION_SEED),
    )


def _train(
    plan: TrainingPlan, bundle: ModelBundle, base: Parameters, corpora: Mapping[str, Sequence[Row]]
) -> dict[str, Parameters]:
    """All runs side by side, as many at once as there are cores."""
    runs: dict[str, tuple[Part, list[Row], int]] = {owner: (_alone, list(rows), plan.rounds) for owner, rows in corpora.items()}
    pooled = [row for rows in corpora.values() for row in rows]
    runs[CENTRALISED] = (_pooled, pooled, 1)  # no rounds: one optimizer throughout
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    workers = ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))
    with workers, ThreadPoolExecutor(len(runs)) as drivers, Progress(*columns, console=console, transient=True) as bars:

        def drive(name: str) -> Parameters:
            part, rows, parts = runs[name]
            task, model = bars.add_task(name if name == CENTRALISED else f"{name} alone", total=parts), base
            for index in range(parts):
                model = workers.submit(part, plan, bundle, rows, index, model).result()
                bars.advance(task)
            return model

        return dict(zip(runs, drivers.map(drive, runs), strict=True))


def _alone(plan: TrainingPlan, bundle: ModelBundle, rows: list[Row], index: int, model: Parameters) -> Parameters:
    size = round_down(len(rows))
    sigma = round_spend(plan, size).noise_multiplier
    update = train_update(plan, index, model, bundle.vocabulary, rows, size, sigma, lambda step, steps: None)
    return model | parameters.add({name: model[name] for name in update}, update)


def _pooled(plan: TrainingPlan, bundle: ModelBundle, rows: list[Row], index: int, model: Parameters) -> Parameters:
    return train_without_privacy(plan, model, bundle.vocabulary, rows, generator=np.random.default_rng(index))
