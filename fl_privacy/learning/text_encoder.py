"""Private texts to token ids: any text gives some, whatever the tokenizer, and no text forges a special token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

Ids = NDArray[np.int64]


class TextEncoder:
    """A tokenizer as training uses it: the first token, as much of the text as fits, the last token.

    Special tokens that are spelled out in a text are read as plain characters, so that no record can forge a mask or padding.

    Privacy: a text that the tokenizer fails on gives the first and last token alone. Whether it fails may depend on the text;
        told to anyone, it would be an answer about a record without noise.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
        """Args: max_length is the most tokens of one text, first and last included; at least 2."""
        self._backend = _plain(tokenizer)
        self._first, self._last = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._special = frozenset({self._first, self._last, tokenizer.pad_token_id, tokenizer.mask_token_id} - {None})
        self._room = max_length - 2

    def encode(self, text: str) -> Ids:
        """Token ids of a text, shape (T,), 2 <= T <= max_length."""
        return self._framed([token for token, _ in self._tokens(text)])

    def encode_with_characters(self, text: str) -> tuple[Ids, Ids]:
        """The same ids, and for each character of the text the place in them of its first token, shape (characters,).

        The place is -1 for a character that has no token, such as a space, or whose first token was cut off.
        """
        tokens, starts = self._tokens(text), np.full(len(text), -1, dtype=np.int64)
        for place in range(len(tokens), 0, -1):  # a character's first token is written last
            start, end = tokens[place - 1][1]
            starts[start:end] = place
        return self._framed([token for token, _ in tokens]), starts

    def _tokens(self, text: str) -> list[tuple[int, tuple[int, int]]]:
        """As many tokens as there is room for, each with the range of characters that it stands for."""
        try:
            # A lone surrogate, which the library refuses, is replaced by one other character.
            found = self._backend.encode(text.encode("utf-8", "replace").decode(), add_special_tokens=False)
        except BaseException as problem:
            if isinstance(problem, Exception) or type(problem).__name__ == "PanicException":  # Rust's, which is no Exception
                return []
            raise
        tokens = zip(found.ids, found.offsets, strict=True)
        return [token for token in tokens if token[0] not in self._special][: self._room]

    def _framed(self, tokens: list[int]) -> Ids:
        return np.array([self._first, *tokens, self._last], dtype=np.int64)


def _plain(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A copy of the tokenizer's own, which neither adds nor finds special tokens."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.post_processor = None
    backend.encode_special_tokens = True
    return backend
