"""What a task makes of one record, and many of them as the tensors of one pass.

Every task is the same to the model: token ids, the places that have something to predict, and what is to be predicted there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_privacy.messages import Row

IGNORED = -100  # label of a place that is only there to fill the batch


class Features(NamedTuple):
    """One record: T tokens, of which M are predicted."""

    ids: NDArray[np.int64]  # (T,), special tokens included, at least one
    places: NDArray[np.int64]  # (M,) positions in ids; a classification predicts at place 0
    labels: NDArray[np.int64]  # (M,) what is right there: a token, a tag or a class


@dataclass(frozen=True, repr=False)
class Batch:
    """B examples, T tokens in the longest, M places in the example with most."""

    input_ids: Tensor  # (B, T) int64
    attention_mask: Tensor  # (B, T) int64, 0 on padding
    places: Tensor  # (B, M) int64
    labels: Tensor  # (B, M) int64, IGNORED where an example has fewer places

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(tensor.to(device) for tensor in (self.input_ids, self.attention_mask, self.places, self.labels)))


def collate(examples: Sequence[Features], pad: int) -> Batch:
    """At least one example, filled up to the longest with the token ``pad``."""
    ids, attended = padded([example.ids for example in examples], pad)
    places, _ = padded([example.places for example in examples], 0)
    labels, _ = padded([example.labels for example in examples], IGNORED)
    return Batch(*map(torch.from_numpy, (ids, attended.astype(np.int64), places, labels)))


def padded(rows: Sequence[NDArray[np.int64]], filler: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows as one (B, W) array of at least one column, filled up with ``filler``, and where it holds a row's own values."""
    lengths = np.array([len(row) for row in rows])
    own = np.arange(max(int(lengths.max()), 1)) < lengths[:, None]
    array = np.full(own.shape, filler, dtype=np.int64)
    array[own] = np.concatenate(rows)
    return array, own


def ranges(count: int, size: int) -> Iterator[range]:
    """Consecutive ranges of at most ``size`` that cover ``range(count)``."""
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def by_length(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Indices of rows from short to long, so that neighbours need little padding; ``rows.lengths`` spares reading them."""
    lengths = getattr(rows, "lengths", None)
    if lengths is None:
        lengths = [len(row.text) for row in rows]
    return np.argsort(np.asarray(lengths), kind="stable")
