"""One owner's part of one round: DP-SGD from the global model, and the difference it makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForMaskedLM

from fl_privacy.errors import ModelError, PlanError
from fl_privacy.learning.custom_task import CustomTask, custom_losses
from fl_privacy.learning.models import build_model
from fl_privacy.learning.optimisation import plan_optimizer
from fl_privacy.learning.tasks import Masking, encode, per_example_loss
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.trainable import freeze_except, trainable_specs
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately


def train_update(
    plan: TrainingPlan,
    order_round: int,
    parameters: Parameters,
    vocabulary: bytes,
    texts: Sequence[str],
    declared_size: int,
    noise_multiplier: float,
    on_step: Callable[[int, int], None],
    subjects: Sequence[int] | None = None,
) -> Parameters:
    """Take ``plan.local_steps`` DP-SGD steps on an owner's texts.

    Args: parameters is the whole global model; declared_size is the owner's public corpus size, which sets the sample rate;
        on_step(done, steps) is called after each step; subjects, the number of each text's subject, makes subjects the
        units: declared_size counts them then. The optimizer is fresh; warm-up and decay count the steps of the whole run.
    Returns: local - global, float32, the trainable tensors only, not yet weighted.
    Raises: PrivacyError when no noise is asked for, PlanError, ModelError.
    Privacy: the result satisfies what an accountant says of ``local_steps`` Poisson-subsampled Gaussian steps at
        ``plan.sample_rate(declared_size)`` and ``noise_multiplier``, for adding or removing one text, or
        with ``subjects`` one subject with all its texts. Texts are used for nothing else; dropout and masks are drawn for
        each example alone.
    """
    settings = DPSettings(
        noise_multiplier=noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        sample_rate=plan.sample_rate(declared_size),
        expected_batch_size=plan.batch_size,
    )
    if not 0 <= order_round < plan.rounds:
        raise PlanError(f"rounds: round {order_round} is outside the plan's {plan.rounds} rounds")
    model = build_model(plan.model, vocabulary, parameters)
    specs = trainable_specs(model, plan.trainable)
    freeze_except(model, specs)
    trained = {name: tensor for name, tensor in model.named_parameters() if tensor.requires_grad}
    optimizer, schedule = plan_optimizer(plan, model, order_round * plan.local_steps)
    losses, order = _losses(model, plan, vocabulary, texts)
    owners = None if subjects is None else [subjects[index] for index in order]

    def after_step(step: int) -> None:
        schedule.step()
        on_step(step + 1, plan.local_steps)

    with _unseeded(), _without_bias_alias(model):
        train_privately(
            model,
            optimizer,
            settings,
            rows=len(order),
            subjects=owners,
            steps=plan.local_steps,
            losses=losses,
            after_step=after_step,
        )
    return {spec.name: _difference(spec.name, trained[spec.name], parameters) for spec in specs}


def _losses(
    model: BertForMaskedLM, plan: TrainingPlan, vocabulary: bytes, texts: Sequence[str]
) -> tuple[Callable[[NDArray[np.int64]], Tensor], list[int]]:
    """The losses of rows sorted by length, so that neighbours in a sample need little padding, and that order of ``texts``."""
    tokenizer = tokenizer_of(vocabulary)
    if plan.task == "custom":
        task, order = CustomTask(plan.custom_task, tokenizer, plan.max_length), _by_length(texts)
        sorted_texts = [texts[index] for index in order]
        return custom_losses(model, task, sorted_texts, tokenizer.pad_token_id, plan.max_length), order
    encoded = encode(tokenizer, texts, plan.max_length)
    order = _by_length(encoded)
    rows = [encoded[index] for index in order]
    masking, generator = Masking(tokenizer, plan.mask_probability), np.random.default_rng()

    def losses(indices: NDArray[np.int64]) -> Tensor:
        return per_example_loss(model, masking.random_batch([rows[index] for index in indices], generator))

    return losses, order


def _by_length(rows: Sequence[Sized]) -> list[int]:
    return sorted(range(len(rows)), key=lambda index: len(rows[index]))


@contextmanager
def _unseeded() -> Iterator[None]:
    # Torch starts every process from the same seed; dropout should differ from round to round. Noise and batches come from
    # the owner's randomness and do not depend on this.
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        yield


@contextmanager
def _without_bias_alias(model: BertForMaskedLM) -> Iterator[None]:
    # The head holds the output layer's bias a second time. As a layer with a parameter of its own, Opacus would treat the
    # whole head as one block, which cannot be separated from the shared embedding.
    head = model.cls.predictions
    alias = head._parameters.pop("bias")
    try:
        yield
    finally:
        head.register_parameter("bias", alias)


def _difference(name: str, local: Tensor, parameters: Parameters) -> NDArray[np.float32]:
    update: NDArray[np.float32] = local.detach().numpy() - parameters[name]
    if not np.isfinite(update).all():
        raise ModelError(f"training diverged: tensor {name!r} is not finite; plan a lower learning_rate")
    return update
