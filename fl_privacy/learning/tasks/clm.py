"""Causal language modelling: guess every next token."""

from __future__ import annotations

import numpy as np

from fl_privacy.learning.batches import Features
from fl_privacy.learning.tasks.base import TokenTask
from fl_privacy.messages import Row


class CausalLanguageTask(TokenTask):
    """The model sees the tokens up to a place and predicts the one behind it."""

    def features(self, row: Row, generator: np.random.Generator) -> Features:
        ids = self.encoder.encode(row.text)
        return Features(ids=ids, places=np.arange(len(ids) - 1), labels=ids[1:])
