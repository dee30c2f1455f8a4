"""Models as values: architecture, vocabulary and weights in, a BERT masked language model out, and back to files.

Weights are only ever read as safetensors: a pickle file can run code while it is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.utils import logging

from fl_privacy.errors import ModelError
from fl_privacy.learning.tokenizer import tokenizer_of, tokens_of
from fl_privacy.parameters import Parameters, to_bytes
from fl_privacy.plan import ModelSpec

# The only configuration fields that are read. Others could load code from a hub (attn_implementation, auto_map) or change
# how often a layer runs in one pass (chunk_size_feed_forward, is_decoder), which breaks per-example gradients.
ARCHITECTURE = (
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
ACTIVATIONS = ("gelu", "gelu_new", "relu")
_UNLOADABLE = (OSError, ValueError, RuntimeError, HfHubHTTPError, HFValidationError, SafetensorError, StrictDataclassError)

logging.disable_progress_bar()  # a bar for writing three megabytes; ours show what takes time


@dataclass(frozen=True, repr=False)
class ModelBundle:
    """A model to propose in a plan: its description, and the two blobs that the description names by sha256."""

    spec: ModelSpec
    vocabulary: bytes  # vocab.txt
    weights: bytes  # safetensors, float32


def new_bundle(config: Mapping[str, Any], vocabulary: bytes, seed: int, source: str) -> ModelBundle:
    """A model with fresh weights; the same arguments give the same bytes.

    Args: config holds Hugging Face BERT configuration fields; the vocabulary size is taken from ``vocabulary``.
    Raises: ModelError.
    """
    tokens = tokens_of(vocabulary)
    fields = dict(config) | {"vocab_size": len(tokens), "pad_token_id": tokens.index("[PAD]")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForMaskedLM(_config(fields, source))
    return _bundle(model, vocabulary, source)


def load_bundle(source: str | Path, seed: int = 0) -> ModelBundle:
    """Read a model from the Hugging Face hub or from a folder.

    Args: source is a hub name (such as ``google-bert/bert-base-chinese``) or a folder with ``config.json``, a vocabulary and
        ``model.safetensors``. A folder without any weights gives fresh weights from ``seed``.
    Raises: ModelError that names the source and says what to do.
    """
    folder, name = Path(source), str(source)
    if folder.is_dir():
        name = folder.resolve().name
        if not _weight_files(folder):
            return _fresh_from_folder(folder, seed)
    try:
        config = BertConfig.from_pretrained(source)
        model, report = BertForMaskedLM.from_pretrained(
            source,
            config=_config(config.to_dict(), name),
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are in the report, by name
            output_loading_info=True,
        )
        vocabulary = _vocabulary_of(BertTokenizer.from_pretrained(source), name)
    except _UNLOADABLE as problem:
        raise ModelError(
            f"model {str(source)!r} cannot be loaded ({type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}); "
            "give a hub name that this machine can reach, or a folder with config.json, vocab.txt and model.safetensors "
            "(pickle weights such as pytorch_model.bin are never read)"
        ) from None
    if wrong := sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}):
        raise ModelError(
            f"model {str(source)!r} is no whole BERT masked language model: tensor {wrong[0]!r} is missing or of another shape"
        )
    return _bundle(model, vocabulary, name)


def build_model(spec: ModelSpec, vocabulary: bytes, parameters: Parameters) -> BertForMaskedLM:
    """The model of a plan with given weights, in evaluation mode.

    Args: parameters holds every tensor once under its canonical name (``parameters_of``); the output layer shares the word
        embedding and is no tensor of its own.
    Raises: ModelError that names the tensor, or tells that the vocabulary is not the plan's.
    """
    if hashlib.sha256(vocabulary).hexdigest() != spec.vocabulary:
        raise ModelError(f"the vocabulary is not the one of {spec.source!r}: its sha256 differs from the plan's")
    with torch.random.fork_rng(devices=[]):  # the first random weights are overwritten below
        model = BertForMaskedLM(config_of(spec))
    if (tokens := len(tokens_of(vocabulary))) != model.config.vocab_size:
        raise ModelError(f"the vocabulary has {tokens} tokens, the architecture of {spec.source!r} {model.config.vocab_size}")
    wanted = dict(model.named_parameters())
    if unknown := sorted(parameters.keys() - wanted.keys()):
        raise ModelError(f"tensor {unknown[0]!r} does not belong to the architecture of {spec.source!r}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(torch.from_numpy(_checked(name, parameters, tuple(tensor.shape))))
    return model.eval()


def parameters_of(model: BertForMaskedLM) -> Parameters:
    """All tensors of a model as float32 copies, shared ones once, under their canonical names."""
    return {name: tensor.detach().numpy().astype(np.float32, copy=True) for name, tensor in model.named_parameters()}


def save_pretrained(folder: str | Path, spec: ModelSpec, vocabulary: bytes, parameters: Parameters) -> None:
    """Write a folder that ``AutoModelForMaskedLM`` and ``AutoTokenizer`` read back: the same logits, safetensors only.

    Raises: ModelError as ``build_model``.
    """
    build_model(spec, vocabulary, parameters).save_pretrained(folder)
    tokenizer_of(vocabulary).save_pretrained(folder)
    (Path(folder) / "vocab.txt").write_bytes(vocabulary)


def config_of(spec: ModelSpec) -> BertConfig:
    """The configuration that a plan's architecture describes. Raises: ModelError on a field that is not allowed."""
    return _config(spec.config, spec.source)


@lru_cache(maxsize=8)
def outline(spec: ModelSpec) -> BertForMaskedLM:
    """The architecture of a plan on torch's ``meta`` device: names and shapes, no memory for weights. Raises: ModelError."""
    with torch.device("meta"):
        return BertForMaskedLM(config_of(spec))


def _config(fields: Mapping[str, Any], source: str) -> BertConfig:
    told = {name: fields[name] for name in ARCHITECTURE if name in fields}
    if fields.get("is_decoder") or fields.get("add_cross_attention") or fields.get("tie_word_embeddings") is False:
        raise ModelError(f"model {source!r}: only an encoder whose output layer shares the word embedding can be trained")
    if told.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise ModelError(f"model {source!r}: hidden_act must be one of {', '.join(ACTIVATIONS)}")
    try:
        config = BertConfig(**told)
    except (StrictDataclassError, ValueError, TypeError) as problem:
        raise ModelError(f"model {source!r}: {str(problem).strip().splitlines()[0][:200]}") from None
    if config.hidden_size % config.num_attention_heads:
        raise ModelError(f"model {source!r}: hidden_size is not a multiple of num_attention_heads")
    return config


def _bundle(model: BertForMaskedLM, vocabulary: bytes, source: str) -> ModelBundle:
    parameters, config = parameters_of(model), model.config.to_dict()
    for name, array in parameters.items():
        _checked(name, parameters, array.shape)
    weights = to_bytes(parameters)
    told = {name: config[name] for name in ARCHITECTURE} | {"model_type": "bert"}
    spec = ModelSpec(
        source=source,
        architecture=json.dumps(told),
        vocabulary=hashlib.sha256(vocabulary).hexdigest(),
        weights=hashlib.sha256(weights).hexdigest(),
    )
    return ModelBundle(spec=spec, vocabulary=vocabulary, weights=weights)


def _weight_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")]


def _fresh_from_folder(folder: Path, seed: int) -> ModelBundle:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vocabulary = (folder / "vocab.txt").read_bytes()
    except (OSError, ValueError) as problem:
        raise ModelError(f"folder {folder}: a model without weights needs a config.json and a vocab.txt ({problem})") from None
    if not isinstance(config, dict) or config.get("model_type", "bert") != "bert":
        raise ModelError(f"folder {folder}: config.json must describe a model_type of 'bert'")
    return new_bundle(config, vocabulary, seed, folder.resolve().name)


def _vocabulary_of(tokenizer: BertTokenizer, source: str) -> bytes:
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if [index for _, index in tokens] != list(range(len(tokens))):
        raise ModelError(f"model {source!r}: the token ids of its vocabulary are not 0, 1, 2, ...")
    return "".join(f"{token}\n" for token, _ in tokens).encode()


def _checked(name: str, parameters: Parameters, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    if name not in parameters:
        raise ModelError(f"tensor {name!r} is missing")
    if parameters[name].shape != shape:
        raise ModelError(f"tensor {name!r} has shape {parameters[name].shape}, expected {shape}")
    if not np.isfinite(parameters[name]).all():
        raise ModelError(f"tensor {name!r} holds a value that is not finite")
    return np.ascontiguousarray(parameters[name], dtype=np.float32)
