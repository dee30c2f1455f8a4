"""Training WITHOUT ANY PRIVACY, on texts that lie in one place: the reference that a private run is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fl_privacy.errors import PlanError
from fl_privacy.learning.models import build_model, parameters_of
from fl_privacy.learning.optimisation import plan_optimizer
from fl_privacy.learning.tasks import Masking, batches, encode, per_example_loss
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import freeze_except, trainable_specs
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan

_PART = 64  # examples in one pass


def train_without_privacy(
    plan: TrainingPlan,
    parameters: Parameters,
    vocabulary: bytes,
    texts: Sequence[str],
    *,
    generator: np.random.Generator,
    first_step: int = 0,
    steps: int | None = None,
    on_step: Callable[[int, int], None] = lambda done, steps: None,
) -> Parameters:
    """Masked language modelling with the plan's optimizer and schedule, but NO clipping, NO noise, and NO PRIVACY AT ALL.

    For public text and for experiments on data that may be pooled. No guard imports this module.

    Args: each step takes ``plan.batch_size`` different texts (all, if there are fewer); generator draws batches and masks;
        steps defaults to the rest of the run after ``first_step``; on_step(done, steps) is called after each step.
    Returns: the whole model's parameters.
    Raises: ModelError; PlanError when the plan has a custom task.
    Privacy: none. The result can hold the texts word for word.
    """
    if plan.task != "mlm":
        raise PlanError(f"task: the reference run knows masked language modelling only, not {plan.task!r}")
    model = build_model(plan.model, vocabulary, parameters)
    freeze_except(model, trainable_specs(model, plan.trainable))
    optimizer, schedule = plan_optimizer(plan, model, first_step)
    tokenizer = tokenizer_of(vocabulary)
    masking, rows = Masking(tokenizer, plan.mask_probability), encode(tokenizer, texts, plan.max_length)
    steps = plan.total_steps - first_step if steps is None else steps
    size = min(plan.batch_size, len(rows))
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        sample = sorted(generator.permutation(len(rows))[:size], key=lambda index: len(rows[index]))
        for part in batches(size, _PART):
            batch = masking.random_batch([rows[sample[place]] for place in part], generator)
            (per_example_loss(model, batch).sum() / size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        on_step(step + 1, steps)
    return parameters_of(model)
