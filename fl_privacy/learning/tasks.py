"""Masked language modelling: texts to token ids, random masks, padded batches, and one loss for each example."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import BertForMaskedLM, BertTokenizer

IGNORED = -100  # label of a place that is only there to fill the batch
_CHUNK = 8192  # texts given to the tokenizer at once


@dataclass(frozen=True, repr=False)
class EncodedTexts(Sequence[NDArray[np.int32]]):
    """Token ids of many texts in one flat array; item i is the ids of text i, special tokens included."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]  # (texts + 1,)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:  # type: ignore[override]
        return self.tokens[self.starts[index] : self.starts[index + 1]]


def encode(tokenizer: BertTokenizer, texts: Sequence[str], max_length: int) -> EncodedTexts:
    """Token ids of each text with [CLS] and [SEP]; longer texts are cut to ``max_length`` tokens in all.

    Special tokens that are spelled out in a text are read as plain characters, so that no record can forge a [MASK] or [PAD].
    """
    rows: list[NDArray[np.int32]] = []
    for start in range(0, len(texts), _CHUNK):
        batch = tokenizer(
            # A lone surrogate would stop the tokenizer, and so tell without noise that such a text is there.
            [text.encode("utf-8", "replace").decode() for text in texts[start : start + _CHUNK]],
            truncation=True,
            max_length=max_length,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        rows.extend(np.asarray(ids, dtype=np.int32) for ids in batch["input_ids"])
    starts = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=starts[1:])
    return EncodedTexts(tokens=np.concatenate(rows) if rows else np.zeros(0, dtype=np.int32), starts=starts)


@dataclass(frozen=True, repr=False)
class MaskedBatch:
    """Examples with some tokens hidden. B examples, T tokens in the longest, M hidden ones in the example with most."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 0 on padding
    places: Tensor  # (B, M) int64: positions of the hidden tokens
    labels: Tensor  # (B, M) int64: the hidden tokens; IGNORED where an example has fewer than M


@dataclass(frozen=True)
class Masking:
    """Dynamic masking: each ordinary token is chosen with ``probability``; of the chosen, ``mask_share`` become [MASK],
    ``random_share`` a random ordinary token, and the rest stay. [CLS], [SEP], [UNK] and padding are never chosen.

    Source: Devlin et al. 2019 (BERT), section 3.1; drawn anew for each use as in Liu et al. 2019 (RoBERTa), section 4.1.
    """

    tokenizer: BertTokenizer
    probability: float = 0.15
    mask_share: float = 0.8
    random_share: float = 0.1

    @cached_property
    def _ordinary(self) -> NDArray[np.int64]:
        return np.setdiff1d(np.arange(len(self.tokenizer)), self.tokenizer.all_special_ids)

    def batch(self, rows: Sequence[NDArray[np.int32]], draws: NDArray[np.float64]) -> MaskedBatch:
        """Hide tokens and pad to the longest row.

        Args: rows are the token ids of at least one example; draws is (3, B, T) uniform on [0, 1): which tokens are chosen,
            what becomes of them, and which random token.
        """
        ids, attended = padded(rows, self.tokenizer.pad_token_id)
        special = np.isin(ids, self.tokenizer.all_special_ids)
        chosen = (draws[0] < self.probability) & attended & ~special
        hidden = ids.copy()
        hidden[chosen & (draws[1] < self.mask_share)] = self.tokenizer.mask_token_id
        replaced = chosen & (draws[1] >= self.mask_share) & (draws[1] < self.mask_share + self.random_share)
        hidden[replaced] = self._ordinary[(draws[2][replaced] * len(self._ordinary)).astype(np.int64)]
        places, labels = gather(ids, chosen)
        return MaskedBatch(*map(torch.from_numpy, (hidden, attended.astype(np.int64), places, labels)))

    def random_batch(self, rows: Sequence[NDArray[np.int32]], generator: np.random.Generator) -> MaskedBatch:
        """``batch`` with fresh draws."""
        return self.batch(rows, generator.random((3, len(rows), max(map(len, rows)))))


def masked_logits(model: BertForMaskedLM, batch: MaskedBatch) -> Tensor:
    """Scores (B, M, vocabulary) of the hidden tokens only; the same numbers that the whole model gives at those places.

    The scores of all other places have no loss, so leaving them out changes no gradient; it saves most of the output layer.
    ``position_ids`` and ``token_type_ids`` have a row for each example, since a row that is broadcast over the batch gives
    per-example gradients of the wrong shape.
    """
    positions = torch.arange(batch.input_ids.shape[1]).repeat(batch.input_ids.shape[0], 1)
    hidden = model.bert(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=positions,
        token_type_ids=torch.zeros_like(batch.input_ids),
    ).last_hidden_state
    chosen = hidden.gather(1, batch.places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    scores: Tensor = model.cls(chosen)
    return scores


def per_example_loss(model: BertForMaskedLM, batch: MaskedBatch) -> Tensor:
    """Mean cross-entropy (nats) over each example's own hidden tokens, shape (B,); zero where none is hidden.

    Privacy: a mean over the *batch's* tokens (as in the library's ``.loss``) would let one record change the weight of all
        others, and clipping would no longer bound what one record does.
    """
    scores = masked_logits(model, batch)
    losses = functional.cross_entropy(scores.transpose(1, 2), batch.labels, ignore_index=IGNORED, reduction="none")
    hidden = (batch.labels != IGNORED).sum(dim=1).clamp(min=1)
    return losses.sum(dim=1) / hidden


def batches(count: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size`` that cover ``range(count)``."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def padded(rows: Sequence[NDArray[np.int32]], filler: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows as one (B, T) array, filled up with ``filler``, and where it holds a row's own values."""
    lengths = np.array([len(row) for row in rows])
    attended = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(attended.shape, filler, dtype=np.int64)
    ids[attended] = np.concatenate(rows)
    return ids, attended


def gather(ids: NDArray[np.int64], chosen: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions and values of the chosen entries of (B, T) ids, each (B, M); values are IGNORED where a row has fewer."""
    counts = chosen.sum(axis=1)
    filled = np.arange(max(int(counts.max()), 1)) < counts[:, None]
    places = np.zeros(filled.shape, dtype=np.int64)
    labels = np.full(filled.shape, IGNORED, dtype=np.int64)
    places[filled] = np.nonzero(chosen)[1]
    labels[filled] = ids[chosen]
    return places, labels
