"""Token classification: which characters of a text make up an entity, and of which kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from fl_privacy.learning.batches import Features
from fl_privacy.learning.metrics import EntityCounts, entities
from fl_privacy.learning.tasks.base import NOTHING, Task
from fl_privacy.messages import Row
from fl_privacy.model_spec import ModelSpec


class EntityTask(Task):
    """BIO tags on characters; each is predicted at the first token of its character, of several characters in one token at the
    first. A record whose tags are not one for each character, or not the plan's, has nothing to predict.
    """

    nothing: EntityCounts

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int, spec: ModelSpec) -> None:
        super().__init__(tokenizer, max_length)
        self.nothing = EntityCounts(spec.labels)
        self._names, self._tags = spec.tags, {tag: index for index, tag in enumerate(spec.tags)}

    def features(self, row: Row, generator: np.random.Generator) -> Features:
        ids, starts = self.encoder.encode_with_characters(row.text)
        if row.tags is None or not self._fits(row, row.tags):
            return Features(ids=ids, places=NOTHING, labels=NOTHING)
        places, reach = _tokens(starts)
        labels = [self._tags[row.tags[first]] for first in reach[:, 0]]
        return Features(ids=ids, places=places, labels=np.array(labels, dtype=np.int64))

    def per_example_counts(self, rows: Sequence[Row], examples: Sequence[Features], scores: Tensor) -> NDArray[np.float64]:
        told = scores.argmax(dim=-1).cpu().numpy()
        return np.array([self._count(row, own) for row, own in zip(rows, told, strict=True)])

    def _count(self, row: Row, told: NDArray[np.int64]) -> NDArray[np.float64]:
        """Entities are compared by their characters, so that one which was cut off with the end of its text is missed."""
        if row.tags is None or not self._fits(row, row.tags):
            return self.nothing.vector
        _, reach = _tokens(self.encoder.encode_with_characters(row.text)[1])
        guessed = [self._names[tag] for tag in told[: len(reach)]]
        counts = []
        for strict in (True, False):
            true = set(entities(row.tags, strict=strict))
            predicted = {(reach[a, 0], reach[b - 1, 1], kind) for a, b, kind in entities(guessed, strict=strict)}
            counts += [self._by_kind(found) for found in (true & predicted, predicted, true)]
        return np.concatenate(counts)

    def _by_kind(self, found: Iterable[tuple[int, int, str]]) -> NDArray[np.float64]:
        kinds = [kind for _, _, kind in found]
        return np.array([kinds.count(kind) for kind in self.nothing.kinds], dtype=np.float64)

    def _fits(self, row: Row, tags: Sequence[str]) -> bool:
        return len(tags) == len(row.text) and self._tags.keys() >= set(tags)


def _tokens(starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places (M,) of the tokens that begin a character, and (M, 2) the first character of each and the one behind its last.

    Args: starts is the place of each character's first token, as ``TextEncoder`` tells it.
    """
    known = np.flatnonzero(starts >= 0)
    places, index, count = np.unique(starts[known], return_index=True, return_counts=True)
    return places, np.stack([known[index], known[index + count - 1] + 1], axis=1)
