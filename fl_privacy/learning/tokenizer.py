"""Vocabularies and their tokenizers, and a character-level vocabulary made from public text.

A vocabulary is the bytes of a ``vocab.txt`` of BERT's kind: one token a line, the line number is the token's id; or those of a
``tokenizer.json`` (``tokenizer_file``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from transformers import BertTokenizer, PreTrainedTokenizerFast

from fl_privacy.errors import ModelError
from fl_privacy.learning.tokenizer_file import is_tokenizer_file, read_tokenizer

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# what plays a special token's part, by preference: BERT's and ALBERT's, RoBERTa's, GPT-2's
_PARTS = {
    "cls_token": ("[CLS]", "<s>", "<|endoftext|>"),
    "sep_token": ("[SEP]", "</s>", "<|endoftext|>"),
    "pad_token": ("[PAD]", "<pad>", "<|endoftext|>"),
    "mask_token": ("[MASK]", "<mask>"),
    "unk_token": ("[UNK]", "<unk>", "<|endoftext|>"),
}


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

    Raises: ModelError when the bytes are not UTF-8, a token is empty or appears twice, a special token is missing, or a
        tokenizer.json cannot be used.
    """
    if is_tokenizer_file(vocabulary):
        known = read_tokenizer(vocabulary).get_vocab(with_added_tokens=True)
        return sorted(known, key=known.__getitem__)
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


def special_tokens(tokens: Iterable[str]) -> dict[str, str]:
    """Which token plays which part, of those that are there: ``cls_token`` and ``sep_token`` begin and end every text.

    GPT-2 has one special token, which begins, ends and fills up. Raises: ModelError when ``cls_token``, ``sep_token`` or
    ``pad_token`` is missing; ``mask_token`` and ``unk_token`` may be.
    """
    there = set(tokens)
    found = {part: next((name for name in names if name in there), None) for part, names in _PARTS.items()}
    if missing := [part for part in ("cls_token", "sep_token", "pad_token") if found[part] is None]:
        raise ModelError(f"the vocabulary has no {missing[0]}; expected one of {', '.join(_PARTS[missing[0]])}")
    return {part: name for part, name in found.items() if name is not None}


def tokenizer_of(vocabulary: bytes) -> PreTrainedTokenizerFast:
    """The tokenizer (Rust) of a vocabulary, with its special tokens.

    With a vocab.txt, text is lower-cased unless the vocabulary has a token with an upper-case Latin letter.

    Raises: ModelError as ``tokens_of`` and ``special_tokens``.
    """
    if is_tokenizer_file(vocabulary):
        backend = read_tokenizer(vocabulary)
        return PreTrainedTokenizerFast(tokenizer_object=backend, **special_tokens(backend.get_vocab(with_added_tokens=True)))
    tokens = tokens_of(vocabulary)
    cased = any("A" <= letter <= "Z" for token in tokens if token not in SPECIAL_TOKENS for letter in token)
    return BertTokenizer(vocab={token: index for index, token in enumerate(tokens)}, do_lower_case=not cased)
