"""Reading a ``tokenizer.json`` from a stranger: known parts with known costs only.

What a tokenizer does to a private text must tell nothing but token ids. A regular expression of the sender's own can take
hours on a text that the sender chose, a word model without an unknown token fails on some texts, and a chain of replacements
can make a text grow without bound. So each part is on a list, with its sizes bounded; what was checked is written out anew
and only that is given to the library, so that no second reading of the same bytes can differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer

from fl_privacy.errors import ModelError

LARGEST = 32 << 20  # bytes
MOST_TOKENS = 1 << 20
LONGEST_TOKEN = 512  # characters
LONGEST_AFFIX = 16  # characters that mark the inner pieces of a word
LONGEST_WORD = 200  # characters that WordPiece tries to split, in time that grows with the square
MOST_PARTS = 16  # in a sequence of normalizers, say
MOST_ADDED = 4096  # tokens that are found in a text before it is split

# The patterns of widely used files: ALBERT's run of spaces, and GPT-2's words.
PATTERNS = (
    " {2,}",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
)
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "normalizer": (
        *("BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Prepend", "Replace", "Sequence"),
        *("Strip", "StripAccents"),
    ),
    "pre_tokenizer": (
        *("BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "Metaspace", "Punctuation", "Sequence", "Split"),
        *("UnicodeScripts", "Whitespace", "WhitespaceSplit"),
    ),
    "post_processor": ("BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing"),
    "decoder": ("BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Replace", "Sequence", "Strip", "WordPiece"),
}
_SEQUENCES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def is_tokenizer_file(vocabulary: bytes) -> bool:
    """Whether a vocabulary is a tokenizer.json rather than a vocab.txt."""
    return vocabulary.startswith(b"{")


def read_tokenizer(vocabulary: bytes) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without truncation and padding.

    Raises: ModelError that names the part which is not known, too large, or can fail on a text.
    """
    fields = _parsed(vocabulary)
    try:
        tokens = _checked(fields)
    except TypeError:
        raise _bad("holds a value of a kind that does not belong there") from None
    try:
        tokenizer = Tokenizer.from_str(json.dumps(fields | {"truncation": None, "padding": None}))
    except Exception as problem:  # noqa: BLE001 - the library raises plain Exception
        raise _bad(f"cannot be read ({str(problem)[:200]})") from None
    if tokenizer.get_vocab(with_added_tokens=True) != tokens:
        raise _bad("gives its tokens other ids than it lists")
    return tokenizer


def _parsed(vocabulary: bytes) -> dict[str, Any]:
    if len(vocabulary) > LARGEST:
        raise _bad(f"is larger than {LARGEST >> 20} MiB")
    try:
        fields = json.loads(vocabulary)
    except (ValueError, RecursionError) as problem:
        raise _bad(f"is not JSON ({str(problem)[:100]})") from None
    known = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"}
    if not isinstance(fields, dict) or fields.keys() - known - {"model"}:
        raise _bad("has parts that no tokenizer has")
    return fields


def _checked(fields: Mapping[str, Any]) -> dict[str, int]:
    """The tokens of a file whose parts are all known, with their ids. Raises: ModelError, TypeError."""
    _check_model(fields.get("model"))
    for name, known in _KNOWN.items():
        _check_part(name, fields.get(name), known)
    return _tokens(fields)


def _tokens(fields: Mapping[str, Any]) -> dict[str, int]:
    vocab, added = fields["model"]["vocab"], fields.get("added_tokens") or []
    own = vocab if isinstance(vocab, dict) else {token: index for index, (token, _) in enumerate(vocab)}
    if not isinstance(added, list) or len(added) > MOST_ADDED:
        raise _bad(f"must have a list of at most {MOST_ADDED} added tokens")
    for entry in added:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
            raise _bad("added_tokens: each must have its content and its id")
    tokens = own | {entry["content"]: entry["id"] for entry in added}
    if len(own) != len(vocab) or len(tokens) > MOST_TOKENS or set(tokens.values()) != set(range(len(tokens))):
        raise _bad(f"must give at most {MOST_TOKENS} different tokens the ids 0, 1, 2, ...")
    if max(map(len, tokens)) > LONGEST_TOKEN or any(not entry["content"] for entry in added):
        raise _bad(f"must have tokens of at most {LONGEST_TOKEN} characters, and no empty added one")
    return tokens


def _check_model(model: Any) -> None:
    if not isinstance(model, dict):
        raise _bad("has no model")
    check = _MODELS.get(model.get("type", ""))
    if check is None:
        raise _bad(f"model: its type must be named, one of {', '.join(_MODELS)}")
    check(model)


def _check_words(model: Mapping[str, Any]) -> None:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
        raise _bad("model: vocab must give each token an id")
    for affix in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(model.get(affix) or "") > LONGEST_AFFIX:
            raise _bad(f"model: {affix} must have at most {LONGEST_AFFIX} characters")
    if model["type"] != "BPE" and model.get("unk_token") not in vocab:
        raise _bad("model: unk_token must be a token, or the model fails on texts with other words")
    if model["type"] == "WordPiece":
        longest = model.get("max_input_chars_per_word")
        if type(longest) is not int or not 0 < longest <= LONGEST_WORD:
            raise _bad(f"model: max_input_chars_per_word must be between 1 and {LONGEST_WORD}")


def _check_bpe(model: Mapping[str, Any]) -> None:
    _check_words(model)
    if model.get("dropout"):
        raise _bad("model: dropout would give a text other tokens each time; it must be null")
    if model.get("unk_token") is not None and model["unk_token"] not in model["vocab"]:
        raise _bad("model: unk_token must be a token")


def _check_unigram(model: Mapping[str, Any]) -> None:
    vocab, unknown = model.get("vocab"), model.get("unk_id")
    if not isinstance(vocab, list) or not all(
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and type(entry[1]) in (int, float)
        and abs(entry[1]) <= 1e6
        for entry in vocab
    ):
        raise _bad("model: vocab must give each token a score between -1e6 and 1e6")
    if type(unknown) is not int or not 0 <= unknown < len(vocab):
        raise _bad("model: unk_id must be a token, or the model fails on texts with other characters")


_MODELS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "WordPiece": _check_words,
    "WordLevel": _check_words,
    "BPE": _check_bpe,
    "Unigram": _check_unigram,
}


def _check_part(name: str, part: Any, known: tuple[str, ...]) -> None:
    if part is None:
        return
    if not isinstance(part, dict) or part.get("type") not in known:
        raise _bad(f"{name}: its type must be named, one of {', '.join(known)}")
    if part["type"] == "Sequence":
        _check_sequence(name, part.get(_SEQUENCES[name]), tuple(kind for kind in known if kind != "Sequence"))
    if "pattern" in part:
        _check_pattern(name, part)
    if part["type"] == "Prepend" and len(part.get("prepend") or "") > 1:
        raise _bad(f"{name}: Prepend adds one character at most")


def _check_sequence(name: str, parts: Any, known: tuple[str, ...]) -> None:
    if not isinstance(parts, list) or len(parts) > MOST_PARTS:
        raise _bad(f"{name}: a sequence must be a list of at most {MOST_PARTS} parts")
    for part in parts:
        _check_part(name, part, known)
    kinds = [part["type"] for part in parts if part["type"] not in ("Replace", "Split")]
    if len(set(kinds)) != len(kinds):  # each may make a text a few times longer, ByteLevel for one
        raise _bad(f"{name}: a sequence must not do the same thing twice")


def _check_pattern(name: str, part: Mapping[str, Any]) -> None:
    """A pattern is a plain string or one of PATTERNS, and what replaces it is no longer than what it finds."""
    match part["pattern"]:
        case {"String": str(plain), **rest} if not rest and 0 < len(plain) <= LONGEST_TOKEN:
            shortest = len(plain)
        case {"Regex": str(regex), **rest} if not rest and regex in PATTERNS:
            shortest = 1
        case _:
            raise _bad(f"{name}: a pattern must be a plain string or one of the known regular expressions")
    if len(part.get("content") or "") > shortest:
        raise _bad(f"{name}: a replacement must not be longer than what it replaces")


def _bad(what: str) -> ModelError:
    return ModelError(f"tokenizer.json: {what}")
