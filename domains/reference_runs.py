"""What federated training is compared with: each owner alone, and everything in one place.

Nobody could run these in earnest, for they need every owner's corpus on one machine; the demo generated the corpora itself.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fl_privacy import parameters
from fl_privacy.display import console
from fl_privacy.guard.admission import round_spend
from fl_privacy.guard.corpus import round_down
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, build_model
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.federation import VALIDATION_SEED

Part = Callable[[TrainingPlan, ModelBundle, list[Row], int, Parameters], Parameters]


def reference_accuracies(
    plan: TrainingPlan, bundle: ModelBundle, corpora: Mapping[str, Sequence[Row]], validation: Sequence[Row]
) -> dict[str, float]:
    """Accuracy on ``validation`` of the public base, of owners training alone (mean over owners), and of pooled training.

    Privacy: 'local_only' uses the same DP-SGD as the federated run; 'centralised' gives no privacy at all.
    """
    runs: dict[str, tuple[Part, list[Row], int]] = {
        f"{name} alone": (_alone, list(rows), plan.rounds) for name, rows in corpora.items()
    }
    runs["centralised"] = (
        _pooled,
        [row for rows in corpora.values() for row in rows],
        1,
    )  # no rounds: one optimizer throughout
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    workers = ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))
    with workers, ThreadPoolExecutor(len(runs)) as drivers, Progress(*columns, console=console, transient=True) as bars:

        def drive(name: str) -> Parameters:
            part, rows, parts = runs[name]
            task, model = bars.add_task(name, total=parts), parameters.from_bytes(bundle.weights)
            for index in range(parts):
                model = workers.submit(part, plan, bundle, rows, index, model).result()
                bars.advance(task)
            return model

        models = dict(zip(runs, drivers.map(drive, runs), strict=True))
    found = {name: _accuracy(plan, bundle, model, validation) for name, model in models.items()}
    return {
        "public_base": _accuracy(plan, bundle, parameters.from_bytes(bundle.weights), validation),
        "local_only": sum(found[f"{name} alone"] for name in corpora) / len(corpora),
        "centralised": found["centralised"],
    }


def _alone(plan: TrainingPlan, bundle: ModelBundle, rows: list[Row], index: int, model: Parameters) -> Parameters:
    size = round_down(len(rows))
    sigma = round_spend(plan, size).noise_multiplier
    update = train_update(plan, index, model, bundle.vocabulary, rows, size, sigma, lambda step, steps: None)
    return model | parameters.add({name: model[name] for name in update}, update)


def _pooled(plan: TrainingPlan, bundle: ModelBundle, rows: list[Row], index: int, model: Parameters) -> Parameters:
    return train_without_privacy(plan, model, bundle.vocabulary, rows, generator=np.random.default_rng(index))


def _accuracy(plan: TrainingPlan, bundle: ModelBundle, model: Parameters, validation: Sequence[Row]) -> float:
    built = build_model(plan.model, bundle.vocabulary, model)
    return evaluate(plan, built, tokenizer_of(bundle.vocabulary), validation, VALIDATION_SEED).headline
