"""The BERT tokenizer, and a character-level vocabulary for it made from public text.

A vocabulary is the bytes of a ``vocab.txt``: one token a line, the line number is the token's id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizer

from fl_privacy.errors import ModelError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_vocabulary(texts: Iterable[str], size: int) -> bytes:
    """A character-level vocabulary: the special tokens, then pieces by falling frequency (ties by code point).

    A Chinese character is a piece of its own; a Latin word or a number is spelled as ``a ##b ##c``, as WordPiece reads it.

    Args: texts must be public, since the vocabulary tells which characters occur in them; size is the largest number of
        tokens, special tokens included.
    Raises: ModelError when ``size`` leaves no room for a character.
    """
    if size <= len(SPECIAL_TOKENS):
        raise ModelError(f"a vocabulary of {size} tokens holds no character; ask for more than {len(SPECIAL_TOKENS)}")
    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    pieces: Counter[str] = Counter()
    for word, times in words.items():
        for place, character in enumerate(word):
            pieces[character if place == 0 else f"##{character}"] += times
    ranked = sorted(pieces, key=lambda piece: (-pieces[piece], piece))
    return "".join(f"{token}\n" for token in (*SPECIAL_TOKENS, *ranked[: size - len(SPECIAL_TOKENS)])).encode()


def tokens_of(vocabulary: bytes) -> list[str]:
    """The tokens of a vocabulary in the order of their ids.

    Raises: ModelError when the bytes are not UTF-8, a token is empty or appears twice, or a special token is missing.
    """
    try:
        tokens = vocabulary.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as problem:
        raise ModelError(f"the vocabulary is not UTF-8 text (byte {problem.start}); expected a BERT vocab.txt") from None
    tokens = [token.removesuffix("\r") for token in tokens]
    if missing := sorted(set(SPECIAL_TOKENS) - set(tokens)):
        raise ModelError(f"the vocabulary lacks {', '.join(missing)}; expected a BERT vocab.txt")
    if "" in tokens or len(set(tokens)) != len(tokens):
        raise ModelError("the vocabulary has an empty or repeated token; each line must hold one token of its own")
    return tokens


def tokenizer_of(vocabulary: bytes) -> BertTokenizer:
    """The BERT tokenizer (Rust, batched) of a vocabulary.

    Text is lower-cased unless the vocabulary has a token with an upper-case Latin letter.

    Raises: ModelError as ``tokens_of``.
    """
    tokens = tokens_of(vocabulary)
    cased = any("A" <= letter <= "Z" for token in tokens if token not in SPECIAL_TOKENS for letter in token)
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=not cased)
