"""How well a model guesses hidden tokens, as counts that can be summed over owners before any ratio is formed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertForMaskedLM, BertTokenizer

from fl_privacy.learning.tasks import IGNORED, MaskedBatch, Masking, batches, encode, masked_logits

_BATCH = 64


@dataclass(frozen=True)
class EvaluationCounts:
    """Sums over hidden tokens; add the counts of several parts, then read the ratios."""

    nll: float = 0.0  # summed negative log-likelihood, nats
    top1: int = 0
    top5: int = 0
    positions: int = 0

    def __add__(self, other: EvaluationCounts) -> EvaluationCounts:
        return EvaluationCounts(
            nll=self.nll + other.nll,
            top1=self.top1 + other.top1,
            top5=self.top5 + other.top5,
            positions=self.positions + other.positions,
        )

    @property
    def accuracy(self) -> float:
        """Share of hidden tokens whose best guess is right; nan when nothing was hidden."""
        return self.top1 / self.positions if self.positions else math.nan

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood; a uniform guess gives the vocabulary's size."""
        return math.exp(min(self.nll / self.positions, 700.0)) if self.positions else math.nan


def evaluate(
    model: BertForMaskedLM,
    tokenizer: BertTokenizer,
    texts: Sequence[str],
    max_length: int,
    mask_probability: float,
    seed: int,
    *,
    only_mask: bool = False,
) -> EvaluationCounts:
    """Guess hidden tokens of texts; the same text always hides the same tokens for a seed, whatever it is grouped with.

    Args: only_mask replaces every chosen token by [MASK] instead of the 80/10/10 mix of training.
    Privacy: the counts carry no noise. Use them on public text, or on an owner's own screen; never release them for private
        text.
    """
    shares = {"mask_share": 1.0, "random_share": 0.0} if only_mask else {}
    masking = Masking(tokenizer, mask_probability, **shares)
    rows = encode(tokenizer, texts, max_length)
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    training, counts = model.training, EvaluationCounts()
    model.eval()
    try:
        for part in batches(len(rows), _BATCH):
            chosen = [rows[by_length[place]] for place in part]
            counts += _count(model, masking.batch(chosen, _fixed_draws(chosen, seed)))
    finally:
        model.train(training)
    return counts


def _count(model: BertForMaskedLM, batch: MaskedBatch) -> EvaluationCounts:
    with torch.no_grad():
        hidden = batch.labels != IGNORED
        scores, truth = masked_logits(model, batch)[hidden], batch.labels[hidden]
        if not len(truth):
            return EvaluationCounts()
        nll = torch.nn.functional.cross_entropy(scores.double(), truth, reduction="sum")
        guesses = scores.topk(min(5, scores.shape[1]), dim=1).indices == truth[:, None]
    return EvaluationCounts(nll=float(nll), top1=int(guesses[:, 0].sum()), top5=int(guesses.sum()), positions=int(hidden.sum()))


def _fixed_draws(rows: Sequence[NDArray[np.int32]], seed: int) -> NDArray[np.float64]:
    draws = np.ones((3, len(rows), max(map(len, rows))))
    for index, row in enumerate(rows):
        digest = hashlib.sha256(f"{seed}/".encode() + row.astype("<i4").tobytes()).digest()
        draws[:, index, : len(row)] = np.random.default_rng(int.from_bytes(digest[:16], "big")).random((3, len(row)))
    return draws
