"""Texts to token ids as in training, without torch, and with masks where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from fl_privacy.errors import ExportError, InputRefused
from fl_privacy.serving.export_format import Export

Ids = NDArray[np.int64]

MOST_MASKS = 32  # of one text: each has a score for every token of the vocabulary


@dataclass(frozen=True, repr=False)
class Tokens:
    """One text for the model. Nothing of it shows in a repr.

    ``ids`` (T,) are framed by the first and last token; ``characters`` (T, 2) are the ranges of the text that the tokens stand
    for, (0, 0) for the frame; ``places`` (M,) are those whose scores are wanted, none where the model has one score a text.
    """

    ids: Ids
    characters: Ids
    places: Ids


class TextReader:
    """An export's tokenizer. Special tokens spelled out in a text are plain characters, but for masks where those are read."""

    def __init__(self, file: Path, export: Export) -> None:
        """Raises: ExportError when the file is no tokenizer."""
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as problem:  # noqa: BLE001 - the library raises plain Exception
            raise ExportError(f"{file} cannot be read: {str(problem)[:200]}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special, self._most = export.tokens, export.max_length
        self._reads_masks = export.task == "fill-mask"
        self._task = export.task
        self._tokenizer.encode_special_tokens = not self._reads_masks
        self._left_out = {self._special.first, self._special.last, self._special.padding}
        if not self._reads_masks and self._special.mask is not None:
            self._left_out.add(self._special.mask)

    def read(self, text: str) -> Tokens:
        """Tokens of a text. Raises: InputRefused when it is empty, too long, cannot be read, or has no mask or too many."""
        if not text.strip():
            raise InputRefused("the text is empty")
        tokens = [(token, span) for token, span in self._encoded(text) if token not in self._left_out]
        if not tokens:
            raise InputRefused("the text has no character that the model's tokenizer reads")
        if len(tokens) + 2 > self._most:
            raise InputRefused(
                f"the text is too long: {len(tokens) + 2} tokens, first and last included; the model takes {self._most}"
            )
        special = self._special
        ids = np.array([special.first, *(token for token, _ in tokens), special.last], dtype=np.int64)
        characters = np.array([(0, 0), *(span for _, span in tokens), (0, 0)], dtype=np.int64)
        return Tokens(ids, characters, self._places(ids, characters, len(text)))

    def token(self, index: int) -> str:
        """The text of a token, as the tokenizer writes it out."""
        piece: str | None = self._tokenizer.id_to_token(index)
        return self._tokenizer.decode([index], skip_special_tokens=False) or piece or ""

    def _places(self, ids: Ids, characters: Ids, length: int) -> Ids:
        if self._task == "classify":
            return np.zeros(0, dtype=np.int64)
        if self._task == "ner":
            return beginnings(characters, length)[0]
        masks = np.flatnonzero(ids == self._special.mask)
        if not len(masks):
            raise InputRefused(f"the text has no {self._special.mask_text}: put one where a token is to be guessed")
        if len(masks) > MOST_MASKS:
            raise InputRefused(f"the text has {len(masks)} masks; at most {MOST_MASKS} are filled at a time")
        return masks

    def _encoded(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        try:
            found = self._tokenizer.encode(text, add_special_tokens=False)
        except BaseException as problem:
            if isinstance(problem, Exception) or type(problem).__name__ == "PanicException":  # Rust's, which is no Exception
                raise InputRefused("the model's tokenizer cannot read this text") from None
            raise
        return list(zip(found.ids, found.offsets, strict=True))


def beginnings(characters: Ids, length: int) -> tuple[Ids, Ids]:
    """Places (M,) of the tokens that begin a character, and (M, 2) the first of those characters and the one behind the last.

    A character's tag is read at its first token (as ``learning.tasks.ner`` trains it). Args: characters as in ``Tokens``.
    """
    starts = np.full(length, -1, dtype=np.int64)
    for place in range(len(characters) - 2, 0, -1):  # a character's first token is written last
        start, end = characters[place]
        starts[start:end] = place
    known = np.flatnonzero(starts >= 0)
    places, index, count = np.unique(starts[known], return_index=True, return_counts=True)
    return places, np.stack([known[index], known[index + count - 1] + 1], axis=1)
