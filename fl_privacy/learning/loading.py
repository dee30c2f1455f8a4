"""What a model's folder, or the Hugging Face hub, holds: configuration, vocabulary, safetensors weights. Never pickle."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, BertTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file

from fl_privacy.errors import ModelError

_UNLOADABLE = (OSError, ValueError, RuntimeError, HfHubHTTPError, HFValidationError, SafetensorError, StrictDataclassError)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack")


def has_weights(folder: Path) -> bool:
    """Whether a folder has a file of weights, of any kind."""
    return any(path.suffix in _WEIGHTS for path in folder.iterdir())


def read_folder(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Configuration and vocabulary of a folder without weights. Raises: ModelError."""
    text, file = folder / "vocab.txt", folder / "tokenizer.json"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vocabulary = (file if file.exists() and not text.exists() else text).read_bytes()
    except (OSError, ValueError) as problem:
        raise ModelError(
            f"folder {folder}: a model without weights needs a config.json and a vocab.txt or tokenizer.json ({problem})"
        ) from None
    if not isinstance(config, dict):
        raise ModelError(f"folder {folder}: config.json must be an object with a model_type")
    return config, vocabulary


def read_description(source: str | Path) -> tuple[dict[str, Any], bytes]:
    """Configuration and vocabulary of a folder with weights or of a hub name. Raises: ModelError."""
    with _telling(source):
        config, _ = PreTrainedConfig.get_config_dict(source)
        config = {"model_type": "bert"} | config  # folders from before there were other kinds name none
        return config, _vocabulary(source, config["model_type"])


def read_weights(source: str | Path, kind: type[PreTrainedModel], config: PreTrainedConfig) -> tuple[PreTrainedModel, set[str]]:
    """A model with the tensors that are there, and the names of those that are missing or misshapen. Raises: ModelError."""
    with _telling(source), _without_report(), torch.random.fork_rng(devices=[]):
        model, report = kind.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # they are in the report, by name
            output_loading_info=True,
        )
        return model, {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a head's outputs that a configuration tells, in order; empty if it tells none."""
    names = config.get("id2label")
    if not isinstance(names, Mapping):
        return ()
    ordered = {str(index): name for index, name in names.items()}
    return tuple(str(ordered.get(str(index))) for index in range(len(ordered)))


def _vocabulary(source: str | Path, kind: str) -> bytes:
    if kind == "bert" or _file(source, "vocab.txt"):
        return _as_text(BertTokenizer.from_pretrained(source), source)
    if file := _file(source, "tokenizer.json"):
        return Path(file).read_bytes()
    written: str = AutoTokenizer.from_pretrained(source).backend_tokenizer.to_str()
    return written.encode()


def _file(source: str | Path, name: str) -> str | None:
    found: str | None = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    return found


def _as_text(tokenizer: BertTokenizer, source: str | Path) -> bytes:
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    if [index for _, index in tokens] != list(range(len(tokens))):
        raise ModelError(f"model {str(source)!r}: the token ids of its vocabulary are not 0, 1, 2, ...")
    return "".join(f"{token}\n" for token, _ in tokens).encode()


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep the library's report of missing tensors off the terminal: a missing head is usual, and the caller names the rest."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


@contextmanager
def _telling(source: str | Path) -> Iterator[None]:
    try:
        yield
    except _UNLOADABLE as problem:
        raise ModelError(
            f"model {str(source)!r} cannot be loaded ({type(problem).__name__}: {str(problem).strip().splitlines()[0][:200]}); "
            "give a hub name that this machine can reach, or a folder with config.json, a vocabulary (vocab.txt or "
            "tokenizer.json) and model.safetensors (pickle weights such as pytorch_model.bin are never read)"
        ) from None
