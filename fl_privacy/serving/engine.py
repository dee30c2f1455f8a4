"""An exported model at work: ONNX Runtime and numpy, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_privacy.errors import ExportError
from fl_privacy.serving.answers import Classified, Entities, Filled, classified, entities_of, filled
from fl_privacy.serving.export_format import INT8, MODEL, TOKENIZER, read_export, require_packages
from fl_privacy.serving.texts import Ids, TextReader, Tokens

Scores = NDArray[np.float32]

BUCKETS = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens that a batch is filled up to
_MOST_SCORES = 1 << 26  # of one pass: 256 MB


class Graph:
    """A model.onnx in a session of its own."""

    def __init__(self, file: Path, inputs: Sequence[str], padding: int, threads: int = 1) -> None:
        """Args: ``inputs`` that the model has, ``padding`` the token that fills up. Raises: ExportError."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3  # errors; the warnings are about single nodes
        self._inputs, self._padding = tuple(inputs), padding
        try:
            self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as problem:  # noqa: BLE001 - the library's errors have no other common base
            raise ExportError(f"{file} cannot be run: {str(problem)[:200]}") from None

    def scores(self, texts: Sequence[Ids], length: int) -> Scores:
        """Scores (B, length, C), or (B, C) of a classification, of at least one text's token ids, filled up to ``length``."""
        ids = np.full((len(texts), length), self._padding, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)], mask[row, : len(text)] = text, 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        told: Scores = self._session.run(["logits"], {name: given[name] for name in self._inputs})[0]
        return told


class Engine:
    """An export that answers texts; safe to use from several threads.

    ``answer`` is ``read``, ``score`` and ``told`` in one, which a server does at different times: it scores several texts in
    one pass. A text's answer does not depend on the texts that it is scored with, but for rounding; in 8 bits the rounding is
    coarse, since ONNX Runtime chooses one scale for a whole batch's activations.
    """

    def __init__(self, folder: Path, threads: int = 1, *, int8: bool = False) -> None:
        """Args: threads that one pass computes with. Raises: ExportError, ExtraMissing."""
        require_packages()
        self.export = read_export(folder)
        if int8 and self.export.int8 is None:
            raise ExportError(f"{folder} holds no 8-bit model; export it with --int8")
        self.reader = TextReader(folder / TOKENIZER, self.export)
        self.graph = Graph(folder / (INT8 if int8 else MODEL), self.export.inputs, self.export.tokens.padding, threads)

    def answer(self, text: str, top_k: int = 5) -> Filled | Classified | Entities:
        """What the model makes of one text. Raises: InputRefused."""
        tokens = self.read(text)
        return self.told(text, tokens, self.score([tokens])[0], top_k)

    def read(self, text: str) -> Tokens:
        """The text as the model gets it. Raises: InputRefused."""
        return self.reader.read(text)

    def score(self, texts: Sequence[Tokens]) -> list[Scores]:
        """For each text its scores (M, C): of each of its places, or, for classify, M = 1."""
        found: list[Scores] = [np.zeros((0, 0), dtype=np.float32)] * len(texts)
        for bucket, members in self._by_bucket(texts).items():
            rows = self._rows(bucket)
            for start in range(0, len(members), rows):
                part = members[start : start + rows]
                for member, told in zip(part, self.graph.scores([texts[member].ids for member in part], bucket), strict=True):
                    found[member] = told[texts[member].places] if told.ndim == 2 else told[None]
        return found

    def told(self, text: str, tokens: Tokens, scores: Scores, top_k: int = 5) -> Filled | Classified | Entities:
        """A text's scores as the answer to it: at most ``top_k`` guesses a mask, or classes."""
        if self.export.task == "fill-mask":
            return filled(tokens, scores, top_k, self.reader)
        if self.export.task == "classify":
            return classified(scores[0], self.export.outputs, top_k)
        return entities_of(text, tokens, scores, self.export.outputs)

    def _by_bucket(self, texts: Sequence[Tokens]) -> dict[int, list[int]]:
        buckets: dict[int, list[int]] = {}
        for member, tokens in enumerate(texts):
            length = next((bucket for bucket in BUCKETS if bucket >= len(tokens.ids)), self.export.max_length)
            buckets.setdefault(min(length, self.export.max_length), []).append(member)
        return buckets

    def _rows(self, length: int) -> int:
        places = 1 if self.export.task == "classify" else length
        return max(1, _MOST_SCORES // (places * self.export.scores))
