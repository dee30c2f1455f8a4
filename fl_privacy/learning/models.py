"""Models as values: architecture, vocabulary and weights in, a trainable model out, and back to files.

Weights are only ever read as safetensors: a pickle file can run code while it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from fl_privacy.errors import ModelError
from fl_privacy.learning import loading
from fl_privacy.learning.adapters import initial, inject, merged, named_tensors
from fl_privacy.learning.families import FAMILIES, REFUSED, architecture, configuration, output_names
from fl_privacy.learning.tokenizer import special_tokens, tokenizer_of, tokens_of
from fl_privacy.learning.tokenizer_file import is_tokenizer_file
from fl_privacy.messages import first_problem
from fl_privacy.model_spec import Adapter, Head, ModelSpec
from fl_privacy.parameters import Parameters, Vector, to_bytes
from fl_privacy.plan import TrainingPlan

logging.disable_progress_bar()  # a bar for writing three megabytes; ours show what takes time

_NOT_YET = "0" * 64  # the digest of weights that are still to be made


@dataclass(frozen=True, repr=False)
class ModelBundle:
    """A model to propose in a plan: its description, and the two blobs that the description names by sha256."""

    spec: ModelSpec
    vocabulary: bytes  # vocab.txt or tokenizer.json
    weights: bytes  # safetensors, float32


def new_bundle(
    config: Mapping[str, Any],
    vocabulary: bytes,
    seed: int,
    source: str,
    head: Head | None = None,
    labels: Sequence[str] = (),
    language_head: bool = False,
) -> ModelBundle:
    """A model with fresh weights; the same arguments give the same bytes.

    Args: config holds Hugging Face configuration fields, of a BERT unless ``model_type`` says otherwise; the vocabulary's size
        and special tokens are taken from ``vocabulary``. head is by default the one that scores tokens (mlm, clm); labels are
        the classes of a classification or the kinds of entities of a ner head, beside which ``language_head`` asks for the one
        that scores tokens.
    Raises: ModelError.
    """
    tokens = tokens_of(vocabulary)
    fields = {"model_type": "bert"} | dict(config) | {"vocab_size": len(tokens)} | _special_ids(tokens)
    spec = _describe(fields, vocabulary, source, head, labels, language_head)
    return _bundle(spec, vocabulary, _joined(parameters_of(_made(one, seed=seed)) for one in _by_head(spec)))


def load_bundle(
    source: str | Path,
    seed: int = 0,
    head: Head | None = None,
    labels: Sequence[str] = (),
    language_head: bool = False,
) -> ModelBundle:
    """Read a model from the Hugging Face hub or from a folder.

    A classification or ner head that is not there, or is for other labels, is made from ``seed``; one whose ``id2label`` are
    these labels (tags, for ner) in this order is kept. A language model's head must be there.

    Args: source is a hub name (such as ``google-bert/bert-base-chinese``) or a folder with ``config.json``, a vocabulary and
        ``model.safetensors``. A folder without any weights gives fresh weights from ``seed``. head, labels, language_head: as
        ``new_bundle``.
    Raises: ModelError that names the source and says what to do.
    """
    folder = Path(source)
    if folder.is_dir() and not loading.has_weights(folder):
        config, vocabulary = loading.read_folder(folder)
        return new_bundle(config, vocabulary, seed, folder.resolve().name, head, labels, language_head)
    name = folder.resolve().name if folder.is_dir() else str(source)
    fields, vocabulary = loading.read_description(source)
    if fields.get("model_type") == "gpt2":  # whose configuration names no padding
        fields = fields | _special_ids(tokens_of(vocabulary))
    spec = _describe(fields, vocabulary, name, head, labels, language_head)
    named = loading.labels_of(fields) == output_names(spec)
    return _bundle(spec, vocabulary, _joined(_read(source, one, named, seed) for one in _by_head(spec)))


def build_model(spec: ModelSpec, vocabulary: bytes, parameters: Parameters, adapter: Adapter | None = None) -> PreTrainedModel:
    """The model of a plan with given weights, in evaluation mode.

    Args: parameters holds every tensor once under its canonical name (``parameters_of``), those of the adapters too if there
        are any (``with_adapters``); a language model's output layer shares the word embedding and is no tensor of its own. Of
        two heads (``language_head``) the model carries that of the labels.
    Raises: ModelError that names the tensor, or tells that the vocabulary is not the plan's.
    """
    if hashlib.sha256(vocabulary).hexdigest() != spec.vocabulary:
        raise ModelError(f"the vocabulary is not the one of {spec.source!r}: its sha256 differs from the plan's")
    _check_vocabulary(spec, vocabulary)
    arrays = _all_checked(spec, parameters, adapter)
    model = _made(spec, adapter)  # the first random weights are overwritten below
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            tensor.copy_(torch.from_numpy(arrays[name]))
    return model.eval()


def parameters_of(model: nn.Module) -> Parameters:
    """All tensors of a model as float32 copies, shared ones once, under their canonical names."""
    return {name: tensor.detach().cpu().numpy().astype(np.float32, copy=True) for name, tensor in named_tensors(model).items()}


def with_adapters(plan: TrainingPlan, parameters: Parameters, seed: int = 0) -> Parameters:
    """A plan's first global model: the base, and the adapters' first values if the plan has any, which change no score.

    Parameters that have the adapters already are given back as they are. Everyone who knows the plan gets the same bits.

    Raises: ModelError on an architecture that cannot be trained.
    """
    if plan.adapter is None:
        return parameters
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(outline(plan.model, plan.adapter)).items()}
    return initial(shapes, seed) | parameters


def save_pretrained(
    folder: str | Path, spec: ModelSpec, vocabulary: bytes, parameters: Parameters, adapter: Adapter | None = None
) -> None:
    """Write a folder that the library's ``Auto`` classes read back: the same scores, safetensors only, adapters merged.

    Of two heads (``language_head``) that of the labels is written. Raises: ModelError as ``build_model``.
    """
    if adapter is not None:
        parameters = merged(spec, adapter, _all_checked(spec, parameters, adapter))
    build_model(spec, vocabulary, parameters).save_pretrained(folder)
    tokenizer_of(vocabulary).save_pretrained(folder)
    (Path(folder) / ("tokenizer.json" if is_tokenizer_file(vocabulary) else "vocab.txt")).write_bytes(vocabulary)


@lru_cache(maxsize=8)
def outline(spec: ModelSpec, adapter: Adapter | None = None) -> PreTrainedModel:
    """The architecture of a plan on torch's ``meta`` device: names and shapes, no memory for weights. Raises: ModelError."""
    with torch.device("meta"):
        return _made(spec, adapter)


def _made(spec: ModelSpec, adapter: Adapter | None = None, seed: int = 0) -> PreTrainedModel:
    config = configuration(spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FAMILIES[spec.config["model_type"]].models[spec.head](config)
        if adapter is not None:
            inject(model, adapter)
    return model


def _by_head(spec: ModelSpec) -> tuple[ModelSpec, ...]:
    """For each head that the weights hold, the model with it; the plan's own last."""
    return (spec.language_model, spec) if spec.language_head else (spec,)


def _joined(models: Iterable[Parameters]) -> Parameters:
    return {name: array for parameters in models for name, array in parameters.items()}


def _read(source: str | Path, spec: ModelSpec, named: bool, seed: int) -> Parameters:
    """A source's weights under one head; one for labels that is not there, or not ``named`` for these, is from ``seed``."""
    family = FAMILIES[spec.config["model_type"]]
    model, unread = loading.read_weights(source, family.models[spec.head], configuration(spec))
    parameters, own = parameters_of(model), family.heads[spec.head]
    if spec.labels:
        others = set() if named else _under(parameters, own[-1:])
        fresh = parameters_of(_made(spec, seed=seed))
        parameters |= {name: fresh[name] for name in _under(unread, own) | others}
        unread -= _under(unread, own)
    if unread:
        raise ModelError(
            f"model {str(source)!r} is no whole {spec.config['model_type']} {spec.head} model: "
            f"tensor {min(unread)!r} is missing or of another shape"
        )
    return parameters


def _describe(
    fields: Mapping[str, Any], vocabulary: bytes, source: str, head: Head | None, labels: Sequence[str], language_head: bool
) -> ModelSpec:
    """A model's description, all but the weights, with every field that is read. Raises: ModelError."""
    kind: Any = fields.get("model_type")
    if kind not in FAMILIES:
        raise ModelError(f"model {source!r}: model_type must be one of {', '.join(FAMILIES)}, not {str(kind)[:40]!r}")
    family = FAMILIES[kind]
    read = {name: value for name, value in fields.items() if name in (*family.fields, *REFUSED)}
    try:
        spec = ModelSpec(
            source=source,
            architecture=json.dumps(family.config().to_dict() | read),
            head=head or family.language_model,
            labels=tuple(labels),
            language_head=language_head,
            vocabulary=hashlib.sha256(vocabulary).hexdigest(),
            weights=_NOT_YET,
        )
        told = ModelSpec.model_validate(spec.model_dump() | {"architecture": json.dumps(architecture(configuration(spec)))})
    except ValidationError as problem:
        raise ModelError(f"model {source!r}: {first_problem(problem)}") from None
    _check_vocabulary(told, vocabulary)
    return told


def _bundle(spec: ModelSpec, vocabulary: bytes, parameters: Parameters) -> ModelBundle:
    weights = to_bytes(_all_checked(spec, parameters))
    return ModelBundle(spec.model_copy(update={"weights": hashlib.sha256(weights).hexdigest()}), vocabulary, weights)


def _special_ids(tokens: Sequence[str]) -> dict[str, int]:
    special = special_tokens(tokens)
    parts = (("pad_token_id", "pad_token"), ("bos_token_id", "cls_token"), ("eos_token_id", "sep_token"))
    return {field: tokens.index(special[part]) for field, part in parts}


def _check_vocabulary(spec: ModelSpec, vocabulary: bytes) -> None:
    tokens, config = tokens_of(vocabulary), configuration(spec)
    special = special_tokens(tokens)
    if len(tokens) > config.vocab_size:
        raise ModelError(f"the vocabulary has {len(tokens)} tokens, the architecture of {spec.source!r} {config.vocab_size}")
    if special["pad_token"] != tokens[min(config.pad_token_id, len(tokens) - 1)]:
        raise ModelError(
            f"the padding of {spec.source!r} is token {config.pad_token_id}, not its vocabulary's {special['pad_token']}"
        )
    if spec.head == "mlm" and "mask_token" not in special:
        raise ModelError(f"the vocabulary of {spec.source!r} has no mask token, which an mlm head needs")


def _all_checked(spec: ModelSpec, parameters: Parameters, adapter: Adapter | None = None) -> Parameters:
    """Every tensor of a model, before memory is taken for it. Raises: ModelError that names the tensor."""
    outlines = [outline(one, adapter) for one in _by_head(spec)]
    shapes = {name: tuple(tensor.shape) for one in outlines for name, tensor in named_tensors(one).items()}
    if unknown := sorted(parameters.keys() - shapes.keys()):
        raise ModelError(f"tensor {unknown[0]!r} does not belong to the architecture of {spec.source!r}")
    return {name: _checked(name, parameters, shape) for name, shape in shapes.items()}


def _checked(name: str, parameters: Parameters, shape: tuple[int, ...]) -> Vector:
    if name not in parameters:
        raise ModelError(f"tensor {name!r} is missing")
    if parameters[name].shape != shape:
        raise ModelError(f"tensor {name!r} has shape {parameters[name].shape}, expected {shape}")
    if not np.isfinite(parameters[name]).all():
        raise ModelError(f"tensor {name!r} holds a value that is not finite")
    return np.ascontiguousarray(parameters[name], dtype=np.float32)


def _under(names: Iterable[str], prefixes: tuple[str, ...]) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}
