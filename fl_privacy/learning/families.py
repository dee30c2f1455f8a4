"""The kinds of models that can be trained, and what differs between them.

A family says which configuration fields are read, which class carries which head, and where in it the parts lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForSequenceClassification,
    AlbertForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)

from fl_privacy.errors import ModelError
from fl_privacy.model_spec import Head, ModelSpec

ACTIVATIONS = ("gelu", "gelu_new", "relu")
MOST_LAYERS = 128
WIDEST = 1 << 20  # of any other size in a configuration; the vocabulary's is the largest
_DEPTHS = ("n_layer", "num_hidden_layers", "num_hidden_groups", "inner_group_num")
_SIZES = (
    *("embedding_size", "hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads"),
    *("type_vocab_size", "vocab_size", "n_embd", "n_head", "n_inner", "n_positions"),
)

# The only configuration fields that are read. Others could load code from a hub (attn_implementation, auto_map) or change
# how often a layer runs in one pass (chunk_size_feed_forward, is_decoder), which breaks per-example gradients.
_ENCODER = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "pad_token_id",
    "type_vocab_size",
    "vocab_size",
)
_GPT2 = (
    "activation_function",
    "attn_pdrop",
    "bos_token_id",
    "classifier_dropout",
    "embd_pdrop",
    "eos_token_id",
    "initializer_range",
    "layer_norm_epsilon",
    "n_embd",
    "n_head",
    "n_inner",
    "n_layer",
    "n_positions",
    "pad_token_id",
    "resid_pdrop",
    "scale_attn_by_inverse_layer_idx",
    "scale_attn_weights",
    "vocab_size",
)
REFUSED = {"is_decoder": False, "add_cross_attention": False, "tie_word_embeddings": True}  # if told otherwise


@dataclass(frozen=True)
class Family:
    """One kind of model. Prefixes are those of tensor names."""

    config: type[PreTrainedConfig]
    fields: tuple[str, ...]  # of the configuration, as far as they are read
    models: Mapping[Head, type[PreTrainedModel]]
    heads: Mapping[Head, tuple[str, ...]]  # prefixes of a head's own tensors, those that depend on the labels last
    language_head: str  # the module that makes scores of tokens from hidden states
    layers: str  # prefix of the layers' tensors, before the layer's number
    pooled: Literal["pooler", "first", "last"]  # what a classification is read from: a pooler's output, or which token
    adapted: tuple[str, ...] = ("query", "value")  # modules that get adapters
    transposed: bool = False  # the adapted modules' weights are (in, out), as in transformers' Conv1D
    token_types: bool = True
    padded_positions: bool = False  # positions are counted from pad_token_id + 1, which is the position of padding

    @property
    def language_model(self) -> Head:
        """The head that makes scores of tokens."""
        return "mlm" if "mlm" in self.models else "clm"


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "bert": Family(
            config=BertConfig,
            fields=(*_ENCODER, "classifier_dropout"),
            models={
                "mlm": BertForMaskedLM,
                "classification": BertForSequenceClassification,
                "ner": BertForTokenClassification,
            },
            heads={
                "mlm": ("cls.predictions.",),
                "classification": ("bert.pooler.", "classifier."),
                "ner": ("classifier.",),
            },
            language_head="cls.predictions",
            layers="bert.encoder.layer.",
            pooled="pooler",
        ),
        "roberta": Family(
            config=RobertaConfig,
            fields=(*_ENCODER, "classifier_dropout", "bos_token_id", "eos_token_id"),
            models={
                "mlm": RobertaForMaskedLM,
                "classification": RobertaForSequenceClassification,
                "ner": RobertaForTokenClassification,
            },
            heads={"mlm": ("lm_head.",), "classification": ("classifier.",), "ner": ("classifier.",)},
            language_head="lm_head",
            layers="roberta.encoder.layer.",
            pooled="first",
            padded_positions=True,
        ),
        "albert": Family(
            config=AlbertConfig,
            fields=(
                *_ENCODER,
                "classifier_dropout_prob",
                "embedding_size",
                "inner_group_num",
                "num_hidden_groups",
                "bos_token_id",
                "eos_token_id",
            ),
            models={
                "mlm": AlbertForMaskedLM,
                "classification": AlbertForSequenceClassification,
                "ner": AlbertForTokenClassification,
            },
            heads={
                "mlm": ("predictions.",),
                "classification": ("albert.pooler.", "classifier."),
                "ner": ("classifier.",),
            },
            language_head="predictions",
            layers="",  # its layers are one set of weights, which is no range of layers
            pooled="pooler",
        ),
        "gpt2": Family(
            config=GPT2Config,
            fields=_GPT2,
            models={"clm": GPT2LMHeadModel, "classification": GPT2ForSequenceClassification, "ner": GPT2ForTokenClassification},
            heads={"clm": (), "classification": ("score.",), "ner": ("classifier.",)},  # clm: scores are by the word embedding
            language_head="lm_head",
            layers="transformer.h.",
            pooled="last",
            adapted=("c_attn",),  # query, key and value in one module
            transposed=True,
            token_types=False,  # a token type would be looked up among the words
        ),
    }
)


def family_of(model: PreTrainedModel) -> Family:
    """The family of a model that ``build_model`` or ``outline`` made."""
    return FAMILIES[model.config.model_type]


def head_of(model: PreTrainedModel) -> Head:
    """The head that a model of a family carries."""
    return next(head for head, kind in family_of(model).models.items() if type(model) is kind)


def configuration(spec: ModelSpec) -> PreTrainedConfig:
    """The configuration that a plan's architecture describes, with the names of the head's outputs.

    Raises: ModelError on a head that the family does not have, or a field that is out of range or cannot be trained.
    """
    fields = spec.config
    family = FAMILIES[fields["model_type"]]
    if spec.head not in family.models:
        raise ModelError(
            f"model {spec.source!r}: a {fields['model_type']} has no {spec.head} head; it has {', '.join(family.models)}"
        )
    if any(fields.get(name, plain) != plain for name, plain in REFUSED.items()):
        raise ModelError(f"model {spec.source!r}: only an encoder whose output layer shares the word embedding can be trained")
    told = {name: fields[name] for name in family.fields if fields.get(name) is not None}
    for name in ("hidden_act", "activation_function"):
        if told.get(name, "gelu") not in ACTIVATIONS:
            raise ModelError(f"model {spec.source!r}: {name} must be one of {', '.join(ACTIVATIONS)}")
    for name, value in told.items():
        least, most = _range(name)
        if isinstance(value, (int, float)) and not least <= value <= most:
            raise ModelError(f"model {spec.source!r}: {name} must be between {least} and {most}")
    try:
        config = family.config(**told, **_outputs(spec))
    except (StrictDataclassError, ValueError, TypeError) as problem:
        raise ModelError(f"model {spec.source!r}: {str(problem).strip().splitlines()[0][:200]}") from None
    _check(config, spec.source)
    return config


def architecture(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of a configuration that a plan holds: those that are read, each with a value, and the kind of model."""
    fields = {name: getattr(config, name, None) for name in FAMILIES[config.model_type].fields}
    return {"model_type": config.model_type} | {name: value for name, value in fields.items() if value is not None}


def output_names(spec: ModelSpec) -> tuple[str, ...]:
    """What the outputs of a classification or ner head stand for, in order; empty for a head over the vocabulary."""
    return spec.tags if spec.head == "ner" else spec.labels


def _range(name: str) -> tuple[int, int]:
    if name in _DEPTHS:
        return 1, MOST_LAYERS
    if name in _SIZES:
        return 1, WIDEST
    return 0, WIDEST if name.endswith("_token_id") else 1  # all else are shares and small numbers


def _outputs(spec: ModelSpec) -> dict[str, Any]:
    names = output_names(spec)
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}} if names else {}


def _check(config: PreTrainedConfig, source: str) -> None:
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise ModelError(f"model {source!r}: hidden_size is not a multiple of num_attention_heads")
    if config.pad_token_id is None or config.pad_token_id >= config.vocab_size:
        raise ModelError(f"model {source!r}: pad_token_id must be one of the {config.vocab_size} tokens")
