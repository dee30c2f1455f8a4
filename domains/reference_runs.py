"""What federated training is compared with: each owner alone, and everything in one place.

Nobody could run these in earnest, for they need every owner's corpus on one machine; the demo generated the corpora itself.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from rich.progress import Progress

from fl_privacy import parameters
from fl_privacy.display import console
from fl_privacy.guard.admission import round_spend
from fl_privacy.guard.corpus import round_down
from fl_privacy.learning.evaluation import EvaluationCounts, evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, build_model
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.federation import VALIDATION_SEED


def reference_accuracies(
    plan: TrainingPlan, bundle: ModelBundle, corpora: Mapping[str, Sequence[str]], validation: Sequence[str]
) -> dict[str, float]:
    """Top-1 on ``validation`` of the public base, of owners training alone (mean over owners), and of pooled training.

    Privacy: 'local_only' uses the same DP-SGD as the federated run; 'centralised' gives no privacy at all.
    """
    base = parameters.from_bytes(bundle.weights)
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=context) as pool,
        Progress(console=console, transient=True) as bars,
    ):
        alone = [pool.submit(_alone, plan, bundle, list(rows), list(validation)) for rows in corpora.values()]
        pooled = pool.submit(_pooled, plan, bundle, [row for rows in corpora.values() for row in rows], list(validation))
        task = bars.add_task("reference runs", total=len(alone) + 1)
        for _ in as_completed([*alone, pooled]):
            bars.advance(task)
    return {
        "public_base": _counts(plan, bundle, base, validation).accuracy,
        "local_only": sum(run.result() for run in alone) / len(alone),
        "centralised": pooled.result(),
    }


def _alone(plan: TrainingPlan, bundle: ModelBundle, rows: list[str], validation: list[str]) -> float:
    model, size = parameters.from_bytes(bundle.weights), round_down(len(rows))
    sigma = round_spend(plan, size).noise_multiplier
    for index in range(plan.rounds):
        update = train_update(plan, index, model, bundle.vocabulary, rows, size, sigma, lambda step, steps: None)
        model = model | parameters.add({name: model[name] for name in update}, update)
    return _counts(plan, bundle, model, validation).accuracy


def _pooled(plan: TrainingPlan, bundle: ModelBundle, rows: list[str], validation: list[str]) -> float:
    model = parameters.from_bytes(bundle.weights)
    trained = train_without_privacy(plan, model, bundle.vocabulary, rows, generator=np.random.default_rng(0))
    return _counts(plan, bundle, trained, validation).accuracy


def _counts(plan: TrainingPlan, bundle: ModelBundle, model: Parameters, validation: Sequence[str]) -> EvaluationCounts:
    built = build_model(plan.model, bundle.vocabulary, model)
    return evaluate(built, tokenizer_of(bundle.vocabulary), validation, plan.max_length, plan.mask_probability, VALIDATION_SEED)
