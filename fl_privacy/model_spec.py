"""ModelSpec: the model that a plan trains, and what may stand on it.

Everything is public: architecture, labels, digests. ``learning.models`` builds models from it.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import Field, StringConstraints, field_validator, model_validator

from fl_privacy.messages import Digest, Message

ModelType = Literal["bert", "roberta", "albert", "gpt2"]
MODEL_TYPES: tuple[ModelType, ...] = get_args(ModelType)
OUTSIDE = "O"  # the tag of a character that belongs to no entity

# model type -> its configuration's fields for the number of layers and of positions
_SIZES = {
    **dict.fromkeys(("bert", "roberta", "albert"), ("num_hidden_layers", "max_position_embeddings")),
    "gpt2": ("n_layer", "n_positions"),
}

Head = Literal["mlm", "clm", "classification", "ner"]
Label = Annotated[str, StringConstraints(pattern=r"^\S(.{0,62}\S)?$")]


class ModelSpec(Message):
    """The model that a plan trains: architecture in full, vocabulary and first weights by digest.

    ``architecture`` is the Hugging Face configuration as canonical JSON; weights travel as safetensors, never pickle. ``head``
    is what stands on the encoder; ``labels``, the classes or the kinds of entities, are public: no label is read from data.
    With ``language_head`` the weights hold the language model's head too, so that one run can pre-train the encoder further
    before it trains for the labels.
    """

    source: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    architecture: Annotated[str, StringConstraints(max_length=20_000)]
    head: Head = "mlm"
    labels: Annotated[tuple[Label, ...], Field(max_length=1000)] = ()
    language_head: bool = False
    vocabulary: Digest
    weights: Digest

    @field_validator("architecture")
    @classmethod
    def _known_architecture(cls, text: str) -> str:
        try:
            config = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as problem:
            raise ValueError(f"not JSON: {problem}") from None
        if not isinstance(config, dict) or config.get("model_type") not in MODEL_TYPES:
            raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)}")
        for field in _SIZES[config["model_type"]]:
            if type(config.get(field)) is not int or config[field] < 1:
                raise ValueError(f"{field} must be a positive integer")
        return json.dumps(config, sort_keys=True, separators=(",", ":"))

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        least = {"classification": 2, "ner": 1}.get(self.head, 0)
        if len(self.labels) < least or (self.labels and not least):
            wanted = f"at least {least}" if least else "none"
            raise ValueError(f"labels: a {self.head} head has {wanted}, got {len(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: a label appears twice")
        if self.language_head and not least:
            raise ValueError(f"language_head: a {self.head} head is the language model's already")
        return self

    @property
    def config(self) -> dict[str, Any]:
        """The architecture as a mapping."""
        config: dict[str, Any] = json.loads(self.architecture)
        return config

    @property
    def num_layers(self) -> int:
        """Number of encoder (or decoder) layers."""
        return int(self.config[_SIZES[self.config["model_type"]][0]])

    @property
    def language_model(self) -> Self:
        """The language model on the same encoder, with no other head."""
        head = "clm" if self.config["model_type"] == "gpt2" else "mlm"
        return self.model_copy(update={"head": head, "labels": (), "language_head": False})

    def with_layers(self, layers: int) -> Self:
        """The same architecture with so many layers, at least 1; ``weights`` still names those of this one."""
        depth, _ = _SIZES[self.config["model_type"]]
        return self.model_validate(self.model_dump() | {"architecture": json.dumps(self.config | {depth: layers})})

    @property
    def positions(self) -> int:
        """The most tokens that an example may have."""
        config = self.config
        unused = config.get("pad_token_id", 1) + 1 if config["model_type"] == "roberta" else 0  # RoBERTa counts from there
        return int(config[_SIZES[config["model_type"]][1]]) - unused

    @property
    def tags(self) -> tuple[str, ...]:
        """The BIO tags of a ``ner`` head, in the order of its outputs."""
        return (OUTSIDE, *(f"{place}-{label}" for label in self.labels for place in "BI"))

    @property
    def outputs(self) -> int | None:
        """Number of scores of a classification or ner head; None where it is the vocabulary's size."""
        return {"classification": len(self.labels), "ner": len(self.tags)}.get(self.head)


class Adapter(NamedTuple):
    """Low-rank adapters W + (alpha / rank) B A on each layer's query and value (Hu et al. 2022, LoRA); on a GPT-2, whose layers
    have one matrix of query, key and value, on all three.

    With ``frozen_a`` only B is trained, so that the mean of the owners' updates is the update of their mean (Sun et al. 2024,
    FFA-LoRA).
    """

    rank: int
    alpha: float
    frozen_a: bool
