"""Sequence classification: one class for each text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fl_privacy.learning.batches import Features
from fl_privacy.learning.metrics import ClassificationCounts
from fl_privacy.learning.tasks.base import NOTHING, Task, nll, own_scores
from fl_privacy.messages import Row


class ClassificationTask(Task):
    """The classes are those that the plan declares; a record of another class, or of none, has nothing to predict."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int, labels: Sequence[str]) -> None:
        super().__init__(tokenizer, max_length)
        self.nothing = ClassificationCounts(labels)
        self._classes = {label: np.array([index]) for index, label in enumerate(labels)}

    def features(self, row: Row, generator: np.random.Generator) -> Features:
        labels = NOTHING if row.label is None else self._classes.get(row.label, NOTHING)
        return Features(ids=self.encoder.encode(row.text), places=np.zeros_like(labels), labels=labels)

    def per_example_counts(self, rows: Sequence[Row], examples: Sequence[Features], scores: Tensor) -> NDArray[np.float64]:
        counts = np.zeros((len(examples), len(self.count_names)))
        for example, told, own in zip(examples, scores, counts, strict=True):
            if len(example.labels):
                told, truth = own_scores(example, told)
                own[int(truth) * len(self._classes) + int(told.argmax())] = 1
                own[-1] = nll(told, truth)
        return counts
