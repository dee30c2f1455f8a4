"""One owner's part of one round: DP-SGD from the global model, and the difference it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_privacy.errors import ModelError, PlanError, PrivacyError
from fl_privacy.learning.adapters import named_tensors
from fl_privacy.learning.batches import by_length
from fl_privacy.learning.drift import correct_drift
from fl_privacy.learning.models import build_model, with_adapters
from fl_privacy.learning.optimisation import plan_optimizer
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import freeze_except, specs_for
from fl_privacy.messages import PrivacyUnit, Row
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from fl_privacy.privacy.team import Team


def train_update(
    plan: TrainingPlan,
    order_round: int,
    parameters: Parameters,
    vocabulary: bytes,
    rows: Sequence[Row],
    declared_size: int,
    noise_multiplier: float,
    on_step: Callable[[int, int], None],
    *,
    unit: PrivacyUnit = "record",
    correction: Parameters | None = None,
    device: torch.device | None = None,
    team: Team | None = None,
) -> Parameters:
    """Take ``plan.local_steps`` DP-SGD steps on an owner's rows.

    Args: parameters is the whole global model, with the adapters if the plan has them; rows may stay on disk: only those that
        are sampled are read (with ``unit = "subject"`` all of them once, for their subjects); declared_size is the owner's
        public number of units, which sets the sample rate; on_step(done, steps) is called after each step. The optimizer is
        fresh; warm-up and decay count the steps of the whole run. correction is SCAFFOLD's c - c_k (``drift``). device is where
        the model computes, by default the CPU; team, the processes that all make this call at once, with a device each.
    Returns: local - global, float32, the trainable tensors only, not yet weighted.
    Raises: PrivacyError when no noise is asked for, or a row has no subject where those are the units; PlanError, ModelError.
    Privacy: the result satisfies what an accountant says of ``local_steps`` Poisson-subsampled Gaussian steps at
        ``plan.sample_rate(declared_size)`` and ``noise_multiplier``, for adding or removing one row, or with
        ``unit = "subject"`` one subject with all its rows. Rows are used for nothing else; dropout and masks are drawn for each
        example alone. What corrects drift is added to what is private already.
    """
    if plan.layer_schedule != "fixed":
        raise PlanError("layer_schedule: train by the plan of a round (`learning.local_start`), or all layers would be trained")
    settings = DPSettings(
        noise_multiplier=noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        sample_rate=plan.sample_rate(declared_size),
        expected_batch_size=plan.batch_size,
    )
    if not 0 <= order_round < plan.rounds:
        raise PlanError(f"rounds: round {order_round} is outside the plan's {plan.rounds} rounds")
    parameters = with_adapters(plan, parameters)
    model, specs = build_model(plan.model, vocabulary, parameters, plan.adapter), specs_for(plan)
    freeze_except(model, specs)
    model.to(device)
    named = named_tensors(model)
    optimizer, schedule = plan_optimizer(plan, model, order_round * plan.local_steps)
    correct_drift(optimizer, plan, {spec.name: named[spec.name] for spec in specs}, correction)
    task, generator = task_of(plan, tokenizer_of(vocabulary)), np.random.default_rng()
    order = by_length(rows)

    def losses(indices: NDArray[np.int64]) -> Tensor:
        return task.loss(model, task.batch([rows[index] for index in order[indices]], generator).to(model.device))

    def after_step(step: int) -> None:
        schedule.step()
        on_step(step + 1, plan.local_steps)

    with _unseeded(model.device):
        train_privately(
            model,
            optimizer,
            settings,
            rows=len(order),
            subjects=_subjects(rows)[order].tolist() if unit == "subject" else None,
            steps=plan.local_steps,
            losses=losses,
            after_step=after_step,
            team=team,
        )
    return {spec.name: _difference(spec.name, named[spec.name], parameters) for spec in specs}


def _subjects(rows: Sequence[Row]) -> NDArray[np.int64]:
    subjects = [row.subject for row in rows]
    if None in subjects:
        raise PrivacyError("a row has no subject, where whole subjects are to be protected; add the corpus again")
    return np.array(subjects, dtype=np.int64)


@contextmanager
def _unseeded(device: torch.device) -> Iterator[None]:
    # Torch starts every process from the same seed; dropout should differ from round to round. Noise and batches come from
    # the owner's randomness and do not depend on this.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.seed()
        yield


def _difference(name: str, local: Tensor, parameters: Parameters) -> NDArray[np.float32]:
    update: NDArray[np.float32] = local.detach().cpu().numpy() - parameters[name]
    if not np.isfinite(update).all():
        raise ModelError(f"training diverged: tensor {name!r} is not finite; plan a lower learning_rate")
    return update
