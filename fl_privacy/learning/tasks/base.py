"""What a task is: features of a record, a loss, and counts for evaluation.

Everything is made of one record when it is asked for, so that rows may stay on disk.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fl_privacy.learning.batches import Batch, Features, collate
from fl_privacy.learning.losses import per_example_loss
from fl_privacy.learning.metrics import Counts, TokenCounts
from fl_privacy.learning.text_encoder import TextEncoder
from fl_privacy.messages import Row

NOTHING = np.zeros(0, dtype=np.int64)


class Task(ABC):
    """One kind of learning from records. It neither trains nor chooses records, and has no say in clipping or noise."""

    nothing: Counts  # the counts of no record at all

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        """Args: max_length is the most tokens of an example; longer records are cut."""
        self.tokenizer = tokenizer
        self.encoder = TextEncoder(tokenizer, max_length)
        self.pad = int(tokenizer.pad_token_id)

    @abstractmethod
    def features(self, row: Row, generator: np.random.Generator) -> Features:
        """What the model gets of one record, and what it has to predict; without places where the record does not fit.

        Privacy: never raises on a record. An error would tell about it without noise; an example without places adds zero.
        """

    @abstractmethod
    def per_example_counts(self, rows: Sequence[Row], examples: Sequence[Features], scores: Tensor) -> NDArray[np.float64]:
        """Counts of each record by itself, (B, len(count_names)), in the order of ``count_names``.

        Args: examples are the rows' features, and scores (B, M, C) is what the model makes of them.
        Privacy: exact counts of single records; add noise before anyone else sees them or their sum.
        """

    def counts(self, rows: Sequence[Row], examples: Sequence[Features], scores: Tensor) -> Counts:
        """The sum of ``per_example_counts``."""
        return self.nothing.from_vector(self.per_example_counts(rows, examples, scores).sum(axis=0))

    @property
    def count_names(self) -> tuple[str, ...]:
        """What the entries of a counts vector count."""
        return self.nothing.names

    def batch(self, rows: Sequence[Row], generator: np.random.Generator) -> Batch:
        """Features of at least one record as the tensors of one pass."""
        return collate([self.features(row, generator) for row in rows], self.pad)

    def loss(self, model: PreTrainedModel, batch: Batch) -> Tensor:
        """One loss for each example, (B,), each depending on its own example only."""
        return per_example_loss(model, batch)


class TokenTask(Task):
    """A task whose labels are tokens of the vocabulary."""

    nothing = TokenCounts()

    def per_example_counts(self, rows: Sequence[Row], examples: Sequence[Features], scores: Tensor) -> NDArray[np.float64]:
        return np.array([_count_tokens(*own_scores(example, told)) for example, told in zip(examples, scores, strict=True)])

    @cached_property
    def special(self) -> NDArray[np.bool_]:
        """Which tokens of the vocabulary are special."""
        special = np.zeros(len(self.tokenizer), dtype=np.bool_)
        special[self.tokenizer.all_special_ids] = True
        return special


def own_scores(example: Features, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores (M, C) in float64 at an example's own M places, out of what its batch got, and what is right there (M,)."""
    return scores[: len(example.labels)].double(), torch.from_numpy(example.labels).to(scores.device)


def nll(scores: Tensor, truth: Tensor) -> float:
    """Summed negative log-likelihood in nats."""
    return float(functional.cross_entropy(scores, truth, reduction="sum"))


def _count_tokens(scores: Tensor, truth: Tensor) -> tuple[float, ...]:
    hits = scores.topk(min(5, scores.shape[1]), dim=1).indices == truth[:, None]
    return nll(scores, truth), float(hits[:, :1].sum()), float(hits.sum()), len(truth)
