"""The loss of every built-in task."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from fl_privacy.learning.batches import IGNORED, Batch
from fl_privacy.learning.scores import scores


def per_example_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy (nats) over each example's own places, shape (B,); zero where it has none.

    Privacy: a mean over the *batch's* places (as in the library's ``.loss``) would let one record change the weight of all
        others, and clipping would no longer bound what one record does.
    """
    told = scores(model, batch).transpose(1, 2)
    losses = functional.cross_entropy(told, batch.labels, ignore_index=IGNORED, reduction="none")
    return losses.sum(dim=1) / (batch.labels != IGNORED).sum(dim=1).clamp(min=1)
