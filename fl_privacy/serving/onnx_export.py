"""A trained model as an ONNX file that is shown to give the same scores, with its tokenizer, its card, and their digests."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from fl_privacy.durable_files import write_atomically
from fl_privacy.errors import ExportError
from fl_privacy.learning.evaluation import scored
from fl_privacy.learning.families import output_names
from fl_privacy.learning.models import build_model
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.learning.text_encoder import TextEncoder
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.learning.tokenizer_file import is_tokenizer_file
from fl_privacy.model_spec import Head
from fl_privacy.serving.engine import Graph
from fl_privacy.serving.export_format import (
    CARD,
    DESCRIPTION,
    INT8,
    MODEL,
    Export,
    Quantised,
    SpecialTokens,
    Task,
    require_packages,
    sha256_of,
)
from fl_privacy.serving.model_card import model_card
from fl_privacy.serving.sources import Source, TrainedRun, read_source
from fl_privacy.serving.texts import Ids

TOLERANCE = 1e-3  # of a score; float32 in another order of operations moves one by some 1e-6 to 1e-4
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_TASKS: dict[Head, Task] = {"mlm": "fill-mask", "classification": "classify", "ner": "ner"}
_OPSET = 18
_CHECKED_ROWS = 24
_SEED = 0  # of the made-up texts, and of the masks in the 8-bit comparison


def export_model(source: Path, out: Path, *, int8: bool = False) -> Export:
    """Export a finished run's model, or a saved one, into a new folder, which appears when all of it is there.

    Args: source is the folder of a run or of a saved model; ``int8`` adds ``model.int8.onnx``, weights in 8 bits.
    Raises: ExportError when the model cannot be served, when ``out`` is in use, or when an ONNX score differs from PyTorch's by
        more than ``TOLERANCE``; ExtraMissing; CheckpointError, ModelError when the source cannot be read.
    Privacy: the export holds the model and numbers of the run's history, nothing else; all of it is post-processing.
    """
    require_packages()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ExportError(f"{out} is no empty folder; give another")
    whole = read_source(source)
    if whole.spec.head not in _TASKS:
        raise ExportError(f"{source}: a {whole.spec.head} head guesses the next token, which is not served; the others are")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # what an earlier export that was ended has left
    partial.mkdir(parents=True)
    try:
        told = _write(whole, partial, int8)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return told


def _write(source: Source, folder: Path, int8: bool) -> Export:
    model = build_model(source.spec, source.vocabulary, source.parameters)
    tokenizer = tokenizer_of(source.vocabulary)
    tokenizer.save_pretrained(folder)
    if not is_tokenizer_file(source.vocabulary):
        (folder / "vocab.txt").write_bytes(source.vocabulary)
    inputs = INPUTS if source.token_types else INPUTS[:2]
    _write_graph(model, inputs, folder / MODEL)
    padding = int(tokenizer.pad_token_id)
    texts = _texts(source, tokenizer)
    largest = _largest_difference(model, Graph(folder / MODEL, inputs, padding), texts, padding)
    if not largest <= TOLERANCE:
        raise ExportError(f"the ONNX model's scores differ from PyTorch's by {largest:.2g}, more than {TOLERANCE:g}")
    quantised = None
    if int8:
        _quantise(folder / MODEL, folder / INT8)
        quantised = _agreement(source.run, model, tokenizer, Graph(folder / INT8, inputs, padding))
    outputs = output_names(source.spec)
    told = Export(
        task=_TASKS[source.spec.head],
        source=source.name,
        model_type=source.spec.config["model_type"],
        inputs=inputs,
        outputs=outputs,
        scores=len(outputs) or int(model.config.vocab_size),
        max_length=source.spec.positions,
        tokens=_special(tokenizer),
        tolerance=TOLERANCE,
        largest_difference=largest,
        checked_lengths=tuple(sorted({len(text) for text in texts})),
        int8=quantised,
        files={},
    )
    (folder / CARD).write_text(model_card(told, source.spec, source.run), encoding="utf-8")
    told = told.model_copy(update={"files": {path.name: sha256_of(path) for path in sorted(folder.iterdir())}})
    write_atomically(folder / DESCRIPTION, told.canonical() + b"\n", mode=0o644)
    return told


class _Logits(nn.Module):
    """A model's pass as one function of tensors, as an exporter wants it."""

    def __init__(self, model: PreTrainedModel, names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(names)

    def forward(self, *tensors: Tensor) -> Tensor:
        given = dict(zip(self.names, tensors, strict=True))
        logits: Tensor = self.model(**given, **_no_cache(self.model)).logits
        return logits


def _no_cache(model: PreTrainedModel) -> dict[str, bool]:
    return {"use_cache": False} if model.config.model_type == "gpt2" else {}


def _write_graph(model: PreTrainedModel, inputs: Sequence[str], file: Path) -> None:
    """Args: the exporter sees a batch of (2, 5); both sizes are left open in the file."""
    ids = torch.full((2, 5), 3, dtype=torch.int64)
    example = (ids, torch.ones_like(ids), torch.zeros_like(ids))[: len(inputs)]
    is_open = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _quiet():
        torch.onnx.export(
            _Logits(model, inputs),
            example,
            str(file),
            input_names=list(inputs),
            output_names=["logits"],
            dynamic_shapes=(tuple(is_open for _ in example),),
            dynamo=True,
            opset_version=_OPSET,
            external_data=False,
            verbose=False,
        )


def _quantise(file: Path, into: Path) -> None:
    """Weights of MatMul and Gemm in 8 bits, one scale for each output; activations get theirs when the model runs."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(file, into, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8)


def _texts(source: Source, tokenizer: PreTrainedTokenizerFast) -> list[Ids]:
    """Token ids of validation rows of many lengths, and of made-up texts up to the longest that the model takes."""
    longest, draw = source.spec.positions, np.random.default_rng(_SEED)
    texts = [draw.integers(len(tokenizer), size=length) for length in sorted({3, max(3, longest // 2), longest})]
    texts = [np.where(text == tokenizer.pad_token_id, tokenizer.cls_token_id, text) for text in texts]
    if source.run and source.run.validation:
        encoder = TextEncoder(tokenizer, longest)
        rows = sorted((encoder.encode(row.text) for row in source.run.validation), key=len)
        texts += [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, _CHECKED_ROWS).astype(int))]
    return sorted(texts, key=len)


def _largest_difference(model: PreTrainedModel, graph: Graph, texts: Sequence[Ids], padding: int) -> float:
    """Over all scores of all tokens but padding; each text goes by itself, and beside another of another length."""
    pairs = [[text] for text in texts] + [list(pair) for pair in zip(texts, reversed(texts), strict=True)]
    return max(_difference(model, graph, pair, padding) for pair in pairs)


def _difference(model: PreTrainedModel, graph: Graph, texts: Sequence[Ids], padding: int) -> float:
    length = max(map(len, texts))
    found = graph.scores(texts, length)
    ids = torch.full((len(texts), length), padding, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(texts):
        ids[row, : len(text)], mask[row, : len(text)] = torch.from_numpy(text), 1
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask, **_no_cache(model)).logits.numpy()
    if found.shape != expected.shape:
        raise ExportError(f"the ONNX model's scores have the shape {found.shape}, PyTorch's {expected.shape}")
    apart = np.abs(found - expected)
    return float(apart.max() if apart.ndim == 2 else apart[mask.numpy().astype(bool)].max())


def _agreement(run: TrainedRun | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, graph: Graph) -> Quantised:
    """In how many of the task's predictions on validation rows the 8-bit model's best guess is PyTorch's."""
    predictions = equal = 0
    if run is not None:
        for _, examples, told in scored(run.plan, task_of(run.plan, tokenizer), model, run.validation, _SEED):
            for example, expected in zip(examples, told.numpy(), strict=True):
                found = graph.scores([example.ids], len(example.ids))[0]
                found = found[example.places] if found.ndim == 2 else np.repeat(found[None], len(example.places), axis=0)
                predictions += len(found)
                equal += int((found.argmax(axis=1) == expected[: len(found)].argmax(axis=1)).sum())
    return Quantised(predictions=predictions, equal=equal)


def _special(tokenizer: PreTrainedTokenizerFast) -> SpecialTokens:
    return SpecialTokens(
        first=tokenizer.cls_token_id,
        last=tokenizer.sep_token_id,
        padding=tokenizer.pad_token_id,
        mask=tokenizer.mask_token_id,
        mask_text=tokenizer.mask_token or "",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks on packages that are not needed off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
