"""One pass over a batch in which every example stands alone, as per-example gradients need it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from fl_privacy.learning.batches import Batch
from fl_privacy.learning.families import family_of, head_of


def scores(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Scores (B, M, C) at the places of a batch: the numbers that the library's own pass over the whole model gives there.

    C is the vocabulary's size (mlm, clm), the number of tags (ner) or of labels (classification, where M is 1 and the place
    is the model's own: the first token, for GPT-2 the last). A clm's scores at place p are for the token at p + 1.
    The head runs at the places only: all others have no loss, so leaving them out changes no gradient.
    """
    family, head, encoded = family_of(model), head_of(model), _encode(model, batch)
    if head == "classification":
        return _class_scores(model, batch, encoded)
    hidden = _gather(encoded.last_hidden_state, batch.places)
    if head == "ner":
        found: Tensor = model.classifier(model.dropout(hidden))
    else:
        found = model.get_submodule(family.language_head)(hidden)
    return found


def positions(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Position ids (B, T), a row of its own for each example; one that is broadcast has per-example gradients of wrong shape.

    RoBERTa counts tokens from ``pad_token_id + 1`` and gives every padding token ``pad_token_id``.
    """
    if family_of(model).padded_positions:
        padding: int = model.config.pad_token_id
        kept = (input_ids != padding).long()
        return kept.cumsum(dim=1) * kept + padding
    return torch.arange(input_ids.shape[1], device=input_ids.device).repeat(input_ids.shape[0], 1)


def _encode(model: PreTrainedModel, batch: Batch) -> Any:
    more: dict[str, Any] = {"use_cache": False}
    if family_of(model).token_types:
        more = {"token_type_ids": torch.zeros_like(batch.input_ids)}
    return model.base_model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions(model, batch.input_ids), **more
    )


def _class_scores(model: PreTrainedModel, batch: Batch, encoded: Any) -> Tensor:
    """Scores (B, 1, classes)."""
    pooled = family_of(model).pooled
    if pooled == "last":
        kept = batch.input_ids != model.config.pad_token_id
        last = (kept * torch.arange(kept.shape[1], device=kept.device)).argmax(dim=1, keepdim=True)
        found: Tensor = model.score(_gather(encoded.last_hidden_state, last))
        return found
    if pooled == "first":
        found = model.classifier(encoded.last_hidden_state)  # which takes the first token itself
    else:
        found = model.classifier(model.dropout(encoded.pooler_output))
    return found.unsqueeze(1)


def _gather(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.gather(1, places.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
