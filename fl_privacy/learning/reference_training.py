"""Training WITHOUT ANY PRIVACY, on rows that lie in one place: the reference that a private run is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from fl_privacy.learning.adapters import named_tensors
from fl_privacy.learning.batches import by_length, ranges
from fl_privacy.learning.checkpoint import Checkpoint
from fl_privacy.learning.drift import correct_drift
from fl_privacy.learning.models import build_model, parameters_of, with_adapters
from fl_privacy.learning.optimisation import plan_optimizer
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import freeze_except, specs_for
from fl_privacy.messages import Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan

_PART = 64  # examples in one pass


def train_without_privacy(
    plan: TrainingPlan,
    parameters: Parameters,
    vocabulary: bytes,
    rows: Sequence[Row],
    *,
    generator: np.random.Generator,
    first_step: int = 0,
    steps: int | None = None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
    checkpoint: Checkpoint | None = None,
    correction: Parameters | None = None,
    device: torch.device | None = None,
) -> Parameters:
    """The plan's task with its optimizer and schedule, but NO clipping, NO noise, and NO PRIVACY AT ALL.

    For public text and for experiments on data that may be pooled. No guard imports this module.

    Args: each step takes ``plan.batch_size`` different rows (all, if there are fewer); generator draws batches and masks;
        steps defaults to the rest of the run after ``first_step``; on_step(done, steps) is called after each step;
        a run that was stopped goes on from its checkpoint; the terms of ``drift`` are as in a federated round that starts from
        ``parameters``, correction being SCAFFOLD's c - c_k; device is where the model computes, by default the CPU.
    Returns: the whole model's parameters.
    Raises: PlanError that names the line of a custom task no guard would run; ModelError.
    Privacy: none. The result can hold the rows word for word.
    """
    model = build_model(plan.model, vocabulary, with_adapters(plan, parameters), plan.adapter)
    model.to(device)
    specs, named = specs_for(plan), named_tensors(model)
    freeze_except(model, specs)
    optimizer, schedule = plan_optimizer(plan, model, first_step)
    correct_drift(optimizer, plan, {spec.name: named[spec.name] for spec in specs}, correction)
    task = task_of(plan, tokenizer_of(vocabulary))
    steps = plan.total_steps - first_step if steps is None else steps
    done = checkpoint.restore(model, optimizer, schedule, generator) if checkpoint else 0
    size = min(plan.batch_size, len(rows))
    model.train()
    for step in range(done, steps):
        optimizer.zero_grad()
        sample = [rows[index] for index in generator.permutation(len(rows))[:size]]
        order = by_length(sample)
        for part in ranges(size, _PART):
            batch = task.batch([sample[order[place]] for place in part], generator).to(model.device)
            (task.loss(model, batch).sum() / size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        on_step(step + 1, steps)
        if checkpoint:
            checkpoint.keep(step + 1, model, optimizer, schedule, generator)
    return parameters_of(model)
