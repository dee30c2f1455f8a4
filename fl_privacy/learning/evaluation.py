"""How well a model does a plan's task, as counts that can be summed over owners before any ratio is formed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fl_privacy.learning.batches import Features, by_length, collate, ranges
from fl_privacy.learning.metrics import CalibrationCounts, Counts
from fl_privacy.learning.scores import scores
from fl_privacy.learning.tasks.base import Task, own_scores
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.messages import Row
from fl_privacy.plan import TrainingPlan

_LARGEST_BATCH = 64
_SCORES = 1 << 26  # of one batch: 256 MB


def evaluate(
    plan: TrainingPlan,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Row],
    seed: int,
    *,
    only_mask: bool = False,
) -> Counts:
    """Counts of the plan's task on rows; the same record always hides the same tokens for a seed, whatever it is grouped with.

    Args: only_mask as in ``task_of``.
    Privacy: the counts carry no noise. Use them on public text, or on an owner's own screen; never release them for private
        rows.
    """
    task, counts = task_of(plan, tokenizer, only_mask=only_mask), None
    for part, examples, told in scored(plan, task, model, rows, seed):
        found = task.counts(part, examples, told)
        counts = found if counts is None else counts + found
    return task.nothing if counts is None else counts


def calibration(
    plan: TrainingPlan, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Row], seed: int
) -> CalibrationCounts:
    """How far the model's probabilities can be believed, over all that it predicts in rows. Privacy: as ``evaluate``."""
    task, counts = task_of(plan, tokenizer), CalibrationCounts()
    for _, examples, told in scored(plan, task, model, rows, seed):
        for example, given in zip(examples, told, strict=True):
            own, truth = own_scores(example, given)
            counts += CalibrationCounts.of(own.softmax(dim=1).cpu().numpy(), truth.cpu().numpy())
    return counts


def scored(
    plan: TrainingPlan, task: Task, model: PreTrainedModel, rows: Sequence[Row], seed: int
) -> Iterator[tuple[list[Row], list[Features], Tensor]]:
    """Rows in batches of similar length, their features, and the model's scores (B, M, C), without dropout or gradients.

    The model computes where it is; the scores are on the CPU. The model is as it was before when the last batch has been taken.
    """
    training, order = model.training, by_length(rows)
    size = max(1, min(_LARGEST_BATCH, _SCORES // (plan.max_length * (plan.model.outputs or len(task.tokenizer)))))
    model.eval()
    try:
        for part in ranges(len(order), size):
            chosen = [rows[order[place]] for place in part]
            examples = [task.features(row, _fixed_generator(row, seed)) for row in chosen]
            with torch.no_grad():
                told = scores(model, collate(examples, task.pad).to(model.device))
            yield chosen, examples, told.cpu()
    finally:
        model.train(training)


def _fixed_generator(row: Row, seed: int) -> np.random.Generator:
    digest = hashlib.sha256(f"{seed}/{row.text}".encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
