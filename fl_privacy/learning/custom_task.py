"""A scientist's own task: features and labels of one text, and the loss of one example, written in ``task_language``.

    def features(text, tokenizer):            # or (text, tokenizer, draws)
        return {"input_ids": [...], "labels": [...]}   # of equal length; label -100 where there is nothing to predict

    def loss(scores, labels):                 # (L, vocabulary) float32 and (L,) int64 of the L labelled tokens
        return ...                            # one number

``draws`` are ``max_length`` fresh random numbers in [0, 1), for random masks. Both functions are called for one record at a
time. Sampling, clipping and noise are ``privacy.dp_sgd``'s, which the language cannot name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fl_privacy.errors import PlanError
from fl_privacy.learning.batches import IGNORED, Batch, Features
from fl_privacy.learning.scores import scores
from fl_privacy.learning.task_expressions import Problem
from fl_privacy.learning.task_language import Program, TaskFailed, outline
from fl_privacy.learning.task_values import LONGEST, TaskTokenizer
from fl_privacy.learning.tasks.base import NOTHING, TokenTask
from fl_privacy.messages import Row

FUNCTIONS = {"features": (2, 3), "loss": (2,)}  # and how many parameters each may have


def problems(source: str) -> tuple[Problem, ...]:
    """Why the guard would not run a custom task, by line; empty if it would."""
    parameters, found = outline(source)
    shape = [
        Problem(1, name, f"a custom task has a function {name} with {' or '.join(map(str, counts))} parameters")
        for name, counts in FUNCTIONS.items()
        if parameters.get(name) not in counts
    ]
    return (*found, *(() if found else shape))


def check(source: str) -> None:
    """Raise PlanError, naming the first line at fault, if no guard would run this custom task."""
    for problem in problems(source):
        raise PlanError(f"custom_task, line {problem.line}: {problem.what}: {problem.why}")


class CustomTask(TokenTask):
    """A checked custom task with the tokenizer of its plan. In an evaluation, its own labels are counted as guessed tokens."""

    def __init__(self, source: str, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        """Raises: PlanError that names the first line at fault."""
        check(source)
        super().__init__(tokenizer, max_length)
        self._program = Program(source)
        self._shown = TaskTokenizer(tokenizer, max_length)
        self._draws = outline(source)[0]["features"] == 3

    def features(self, row: Row, generator: np.random.Generator) -> Features:
        """What the task makes of a record's text, or an empty text with nothing to predict if the task fails on it.

        Privacy: a failure may depend on the text. Told to anyone, it would be an answer about a record without noise; as an
            example without a loss it adds zero to the clipped sum, which is within the clipping bound.
        """
        try:
            return self.try_features(row.text, generator.random(self._shown.max_length).tolist())
        except TaskFailed:
            return Features(ids=self.encoder.encode(""), places=NOTHING, labels=NOTHING)

    def try_features(self, text: str, draws: Sequence[float]) -> Features:
        """The same of one *public* text. Raises: TaskFailed."""
        arguments = (text[:LONGEST], self._shown, *([tuple(draws)] if self._draws else []))
        return self._checked(self._program.call("features", *arguments))

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """One value for each example, (B,), with the gradient of the task's loss in the model's parameters.

        By the chain rule: the task gives d loss / d scores of each example alone, and the value is its product with the
        scores. So nothing of the task is part of the graph that reaches the parameters, and its loss cannot mix examples.
        """
        told = scores(model, batch)
        shown, all_labels = told.detach().cpu(), batch.labels.cpu()  # the task runs as it was rehearsed, also for a GPU
        pull = torch.zeros_like(shown)
        for index, labels in enumerate(all_labels):
            labelled = labels != IGNORED
            if labelled.any():
                pull[index, labelled] = self.gradient(shown[index, labelled], labels[labelled])
        return (told * pull.to(told.device)).sum(dim=(1, 2))

    def gradient(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The gradient of one example's loss in its scores, (L, vocabulary); zero if the task fails or it is not finite.

        Privacy: as ``features``. The task sees copies, so it cannot change or keep what other examples use.
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

    def _checked(self, told: object) -> Features:
        if not isinstance(told, dict) or told.keys() != {"input_ids", "labels"}:
            raise TaskFailed(0, "features must be a dict of input_ids and labels")
        ids, labels = told["input_ids"], told["labels"]
        size, longest = self._shown.vocab_size, self._shown.max_length
        if not (isinstance(ids, list) and isinstance(labels, list) and 0 < len(ids) == len(labels) <= longest):
            raise TaskFailed(0, f"input_ids and labels must be lists of equal length, at most {longest}")
        if not all(type(token) is int and 0 <= token < size for token in ids):
            raise TaskFailed(0, "input_ids must be token ids")
        if not all(type(label) is int and (label == IGNORED or 0 <= label < size) for label in labels):
            raise TaskFailed(0, f"labels must be token ids, or {IGNORED}")
        wanted = np.array(labels, dtype=np.int64)
        places = np.flatnonzero(wanted != IGNORED)
        return Features(ids=np.array(ids, dtype=np.int64), places=places, labels=wanted[places])


def rehearse(source: str, tokenizer: PreTrainedTokenizerFast, max_length: int, texts: Sequence[str]) -> None:
    """Try a custom task on public texts, such as mock rows, before it is proposed; scores are random.

    Raises: PlanError that tells the line and the kind of the first failure. In training, nobody is told of failures.
    """
    task, generator = CustomTask(source, tokenizer, max_length), np.random.default_rng(0)
    for text in texts:
        try:
            labels = torch.from_numpy(task.try_features(text, generator.random(max_length).tolist()).labels)
            if len(labels):
                task.try_gradient(torch.randn(len(labels), len(tokenizer)), labels)
        except TaskFailed as failure:
            raise PlanError(f"custom_task fails on a public text: {failure}") from None
