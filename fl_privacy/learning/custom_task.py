"""A scientist's own task: features and labels of one text, and the loss of one example, written in ``task_language``.

    def features(text, tokenizer):            # or (text, tokenizer, draws)
        return {"input_ids": [...], "labels": [...]}   # of equal length; label -100 where there is nothing to predict

    def loss(scores, labels):                 # (L, vocabulary) float32 and (L,) int64 of the L labelled tokens
        return ...                            # one number

``draws`` are ``max_length`` fresh random numbers in [0, 1), for random masks. Both functions are called for one record at a
time. Sampling, clipping and noise are ``privacy.dp_sgd``'s, which the language cannot name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BertForMaskedLM, BertTokenizer

from fl_privacy.errors import PlanError
from fl_privacy.learning.task_expressions import Problem
from fl_privacy.learning.task_language import Program, TaskFailed, outline
from fl_privacy.learning.task_values import LONGEST, TaskTokenizer
from fl_privacy.learning.tasks import IGNORED, MaskedBatch, gather, masked_logits, padded

FUNCTIONS = {"features": (2, 3), "loss": (2,)}  # and how many parameters each may have


class Example(NamedTuple):
    """What ``features`` made of one record; both arrays have one entry a token."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]


def problems(source: str) -> tuple[Problem, ...]:
    """Why the guard would not run a custom task, by line; empty if it would."""
    parameters, found = outline(source)
    shape = [
        Problem(1, name, f"a custom task has a function {name} with {' or '.join(map(str, counts))} parameters")
        for name, counts in FUNCTIONS.items()
        if parameters.get(name) not in counts
    ]
    return (*found, *(() if found else shape))


class CustomTask:
    """A checked custom task with the tokenizer of its plan."""

    def __init__(self, source: str, tokenizer: BertTokenizer, max_length: int) -> None:
        """Raises: PlanError that names the first line at fault."""
        for problem in problems(source):
            raise PlanError(f"custom_task, line {problem.line}: {problem.what}: {problem.why}")
        self._program = Program(source)
        self._tokenizer = TaskTokenizer(tokenizer, max_length)
        self._draws = outline(source)[0]["features"] == 3
        self._empty = Example(
            np.array([tokenizer.cls_token_id, tokenizer.sep_token_id], np.int32), np.full(2, IGNORED, np.int32)
        )

    def example(self, text: str, draws: Sequence[float]) -> Example:
        """Features of one text, or those of an empty text with nothing to predict if the task fails on it.

        Privacy: a failure may depend on the text. Told to anyone, it would be an answer about a record without noise; as an
            example without a loss it adds zero to the clipped sum, which is within the clipping bound.
        """
        try:
            return self.try_example(text, draws)
        except TaskFailed:
            return self._empty

    def try_example(self, text: str, draws: Sequence[float]) -> Example:
        """Features of one *public* text. Raises: TaskFailed."""
        arguments = (text[:LONGEST], self._tokenizer, *([tuple(draws)] if self._draws else []))
        return self._checked(self._program.call("features", *arguments))

    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The gradient of one example's loss in its scores, (L, vocabulary); zero if the task fails or it is not finite.

        Privacy: as ``example``. The task sees copies, so it cannot change or keep what other examples use.
        """
        try:
            return self.try_gradient(scores, labels)
        except TaskFailed:
            return torch.zeros_like(scores)

    def try_gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The same for a *public* example. Raises: TaskFailed."""
        own = scores.detach().clone().requires_grad_()
        value = self._program.call("loss", own, labels.clone())
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise TaskFailed(0, "loss must be one number computed from the scores")
        try:
            (gradient,) = torch.autograd.grad(value.sum(), own)
        except Exception as problem:  # noqa: BLE001 - it may depend on the example, so it must not stop the worker
            raise TaskFailed(0, type(problem).__name__) from None
        if not torch.stack([value.detach().sum(), gradient.sum()]).isfinite().all():
            raise TaskFailed(0, "the loss or its gradient is not finite")
        return gradient

    def _checked(self, told: object) -> Example:
        if not isinstance(told, dict) or told.keys() != {"input_ids", "labels"}:
            raise TaskFailed(0, "features must be a dict of input_ids and labels")
        ids, labels = told["input_ids"], told["labels"]
        size, longest = self._tokenizer.vocab_size, self._tokenizer.max_length
        if not (isinstance(ids, list) and isinstance(labels, list) and 0 < len(ids) == len(labels) <= longest):
            raise TaskFailed(0, f"input_ids and labels must be lists of equal length, at most {longest}")
        if not all(type(token) is int and 0 <= token < size for token in ids):
            raise TaskFailed(0, "input_ids must be token ids")
        if not all(type(label) is int and (label == IGNORED or 0 <= label < size) for label in labels):
            raise TaskFailed(0, f"labels must be token ids, or {IGNORED}")
        return Example(np.array(ids, np.int32), np.array(labels, np.int32))


def custom_losses(
    model: BertForMaskedLM, task: CustomTask, texts: Sequence[str], pad: int, max_length: int
) -> Callable[[NDArray[np.int64]], Tensor]:
    """``losses`` for ``train_privately``: one value for each text, whose gradient is that of the task's loss.

    Features are made anew whenever a text is sampled, and only then.
    """
    generator = np.random.default_rng()

    def losses(indices: NDArray[np.int64]) -> Tensor:
        examples = [task.example(texts[index], generator.random(max_length).tolist()) for index in indices]
        return per_example_custom_loss(model, task, batch_of(examples, pad))

    return losses


def batch_of(examples: Sequence[Example], pad: int) -> MaskedBatch:
    """Examples of at least one record, filled up to the longest."""
    ids, attended = padded([example.ids for example in examples], pad)
    labels, _ = padded([example.labels for example in examples], IGNORED)
    places, wanted = gather(labels, labels != IGNORED)
    return MaskedBatch(*map(torch.from_numpy, (ids, attended.astype(np.int64), places, wanted)))


def per_example_custom_loss(model: BertForMaskedLM, task: CustomTask, batch: MaskedBatch) -> Tensor:
    """One value for each example, shape (B,), with the gradient of the task's loss in the model's parameters.

    By the chain rule: the task gives d loss / d scores of each example alone, and the value is its product with the scores. So
    nothing of the task is part of the graph that reaches the parameters, and its loss cannot mix examples.
    """
    scores = masked_logits(model, batch)
    pull = torch.zeros_like(scores)
    for index, labels in enumerate(batch.labels):
        labelled = labels != IGNORED
        if labelled.any():
            pull[index, labelled] = task.gradient(scores[index, labelled], labels[labelled])
    return (scores * pull).sum(dim=(1, 2))


def rehearse(source: str, tokenizer: BertTokenizer, max_length: int, texts: Sequence[str]) -> None:
    """Try a custom task on public texts, such as mock rows, before it is proposed; scores are random.

    Raises: PlanError that tells the line and the kind of the first failure. In training, nobody is told of failures.
    """
    task, generator = CustomTask(source, tokenizer, max_length), np.random.default_rng(0)
    for text in texts:
        try:
            example = task.try_example(text, generator.random(max_length).tolist())
            labels = torch.from_numpy(example.labels[example.labels != IGNORED].astype(np.int64))
            if len(labels):
                task.try_gradient(torch.randn(len(labels), len(tokenizer)), labels)
        except TaskFailed as failure:
            raise PlanError(f"custom_task fails on a public text: {failure}") from None
