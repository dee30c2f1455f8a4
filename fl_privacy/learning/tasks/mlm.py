"""Masked language modelling: guess the tokens that are hidden."""

from __future__ import annotations

import numpy as np
from transformers import PreTrainedTokenizerFast

from fl_privacy.errors import ModelError
from fl_privacy.learning.batches import Features
from fl_privacy.learning.tasks.base import TokenTask
from fl_privacy.messages import Row


class MaskedLanguageTask(TokenTask):
    """Dynamic masking: each ordinary token is chosen with ``probability``; of the chosen, ``mask_share`` become the mask token,
    ``random_share`` a random ordinary token, and the rest stay. Special tokens are never chosen.

    Source: Devlin et al. 2019 (BERT), section 3.1; drawn anew for each use as in Liu et al. 2019 (RoBERTa), section 4.1.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        probability: float,
        *,
        mask_share: float = 0.8,
        random_share: float = 0.1,
    ) -> None:
        """Raises: ModelError when the vocabulary has no mask token."""
        super().__init__(tokenizer, max_length)
        if tokenizer.mask_token_id is None:
            raise ModelError("the vocabulary has no mask token, which masked language modelling needs")
        self._probability, self._mask_share, self._shown_share = probability, mask_share, mask_share + random_share
        self._ordinary = np.flatnonzero(~self.special)

    def features(self, row: Row, generator: np.random.Generator) -> Features:
        ids = self.encoder.encode(row.text)
        choice, fate, replacement = generator.random((3, len(ids)))
        chosen = (choice < self._probability) & ~self.special[ids]
        shown = ids.copy()
        shown[chosen & (fate < self._mask_share)] = self.tokenizer.mask_token_id
        random = chosen & (fate >= self._mask_share) & (fate < self._shown_share)
        shown[random] = self._ordinary[(replacement[random] * len(self._ordinary)).astype(np.int64)]
        return Features(ids=shown, places=np.flatnonzero(chosen), labels=ids[chosen])
