"""A tokenizer.json from a stranger: what is read, and what could hang, fail or grow on a text that the stranger chose."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_privacy.errors import ModelError
from fl_privacy.learning import tokenizer_file
from fl_privacy.learning.text_encoder import TextEncoder
from fl_privacy.learning.tokenizer import special_tokens, tokenizer_of, tokens_of
from tests.tiny_families import VOCABULARIES, changed

BYTES, UNIGRAM = VOCABULARIES["gpt2"], VOCABULARIES["albert"]


def _model(vocabulary: bytes, **changes: Any) -> bytes:
    return changed(vocabulary, model=json.loads(vocabulary)["model"] | changes)


def _word_model(kind: str, **changes: Any) -> bytes:
    vocab = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3, "病": 4}
    model = {"type": kind, "vocab": vocab, "unk_token": "<unk>"}
    more = {"max_input_chars_per_word": 100, "continuing_subword_prefix": "##"} if kind == "WordPiece" else {}
    return json.dumps({"version": "1.0", "added_tokens": [], "model": model | more | changes}).encode()


def test_tokens_are_in_the_order_of_their_ids_and_special_ones_are_found() -> None:
    tokens = tokens_of(VOCABULARIES["roberta"])
    assert tokens[:5] == ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] and len(tokens) == 320
    tokenizer = tokenizer_of(VOCABULARIES["roberta"])
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.mask_token_id) == (0, 1, 2, 4)
    assert (len(tokenizer), tokenizer.unk_token_id) == (320, 3)


def test_the_one_special_token_of_gpt2_begins_ends_and_fills_up() -> None:
    tokenizer = tokenizer_of(BYTES)
    assert tokenizer.cls_token == tokenizer.sep_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.mask_token is None
    with pytest.raises(ModelError, match="no pad_token"):
        special_tokens(["<s>", "</s>", "x"])


def test_albert_mixes_the_names_of_special_tokens() -> None:
    assert special_tokens(tokens_of(UNIGRAM)) == {
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "pad_token": "<pad>",
        "mask_token": "[MASK]",
        "unk_token": "<unk>",
    }


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel"])
def test_word_models_are_read(kind: str) -> None:
    tokenizer = tokenizer_of(_word_model(kind))
    assert tokenizer("病", add_special_tokens=False)["input_ids"] == [4]


def test_truncation_and_padding_of_the_file_are_not_taken_over() -> None:
    told = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = tokenizer_of(changed(BYTES, truncation=told))
    assert len(tokenizer("病人")["input_ids"]) > 2


ALWAYS = {"type": "Replace", "pattern": {"String": "a"}, "content": "b"}
HOSTILE = [
    (changed(BYTES, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "normalizer: its type"),
    (changed(BYTES, normalizer=ALWAYS | {"pattern": {"Regex": "(a+)+$"}}), "one of the known regular expressions"),
    (changed(BYTES, normalizer=ALWAYS | {"content": "aa"}), "must not be longer"),
    (changed(BYTES, normalizer=ALWAYS | {"pattern": {"String": ""}}), "a pattern must be"),
    (changed(BYTES, normalizer=ALWAYS | {"pattern": {"String": "a", "Regex": "(a+)+$"}}), "a pattern must be"),
    (changed(BYTES, normalizer={"type": "Prepend", "prepend": "x" * 1000}), "Prepend adds one"),
    (changed(BYTES, normalizer={"type": "Sequence", "normalizers": [{"type": "ByteLevel"}] * 2}), "same thing twice"),
    (changed(BYTES, normalizer={"type": "Sequence", "normalizers": [ALWAYS] * 17}), "at most 16 parts"),
    (changed(BYTES, normalizer={"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": []}]}), "its type"),
    (changed(BYTES, pre_tokenizer={"type": "Split", "pattern": {"Regex": "x*y"}, "behavior": "Isolated"}), "known regular"),
    (
        changed(
            BYTES,
            pre_tokenizer={
                "type": "Sequence",
                "pre_tokenizers": [],
                "pretokenizers": [{"type": "Split", "pattern": {"Regex": "x"}}],
            },
        ),
        "known regular",
    ),
    (changed(BYTES, pre_tokenizer={"add_prefix_space": True}), "pre_tokenizer: its type must be named"),
    (changed(BYTES, decoder={"type": "CTC"}), "decoder: its type"),
    (changed(BYTES, post_processor=["ByteLevel"]), "post_processor: its type"),
    (changed(BYTES, model=None), "no model"),
    (changed(BYTES, more=1), "parts that no tokenizer has"),
    (_model(BYTES, type=None), "model: its type"),
    (_model(BYTES, type=["BPE"]), "a kind that does not belong"),
    (_model(BYTES, dropout=0.5), "dropout"),
    (_model(BYTES, unk_token="nowhere"), "unk_token"),
    (_model(BYTES, end_of_word_suffix="x" * 1000), "end_of_word_suffix"),
    (_model(BYTES, merges=[["no", "such"]]), "cannot be read"),
    (_model(UNIGRAM, unk_id=None), "unk_id"),
    (_model(UNIGRAM, unk_id=10**9), "unk_id"),
    (_model(UNIGRAM, vocab=[["<unk>", float("nan")]]), "a score"),
    (_model(UNIGRAM, vocab=[[["<unk>"], 0.0]]), "a score"),
    (_word_model("WordPiece", max_input_chars_per_word=10**6), "max_input_chars_per_word"),
    (_word_model("WordPiece", unk_token=None), "unk_token"),
    (_word_model("WordLevel", unk_token="nowhere"), "unk_token"),
    (_word_model("WordLevel", vocab={"<unk>": 0, "b": 2}), "ids 0, 1, 2"),
    (_word_model("WordLevel", vocab={"<unk>": 0, "b": "1"}), "vocab must give each token an id"),
    (_word_model("WordLevel", vocab={"<unk>": 0, "b" * 513: 1}), "at most 512 characters"),
    (changed(BYTES, added_tokens=[{"content": "", "id": 320}]), "no empty added one"),
    (changed(BYTES, added_tokens=[{"content": "x"}]), "its content and its id"),
    (changed(BYTES, added_tokens=[{"content": "x", "id": []}]), "its content and its id"),
    (b"{" * 100_000, "not JSON"),
    (b"{\xff}", "not JSON"),
]


@pytest.mark.parametrize(("vocabulary", "told"), HOSTILE, ids=range(len(HOSTILE)))
def test_parts_that_are_not_known_to_end_and_to_succeed_are_refused(vocabulary: bytes, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        tokenizer_of(vocabulary)


def test_a_file_that_is_too_large_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "LARGEST", 1 << 20)
    with pytest.raises(ModelError, match="larger than 1 MiB"):
        tokenizer_of(b"{" + b" " * (1 << 20))


def test_what_is_checked_is_what_is_read() -> None:
    # Python keeps the last of two keys of one name; whatever the library would keep, it gets only what Python kept.
    twice = BYTES.replace(b'"normalizer":null', b'"normalizer":{"type":"Precompiled"},"normalizer":null')
    assert twice != BYTES and tokens_of(twice) == tokens_of(BYTES)


KEYS = st.sampled_from(["type", "vocab", "pattern", "normalizers", "pretokenizers", "content", "id"])
PARTS = st.sampled_from(["model", "normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["BPE", "Sequence", "Replace"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(part=PARTS, value=VALUES)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(part: str, value: Any) -> None:
    with contextlib.suppress(ModelError):
        tokenizer_of(changed(BYTES, **{part: value}))


def test_a_text_cannot_name_a_special_token_that_is_a_word_of_the_model() -> None:
    tokenizer = tokenizer_of(_word_model("WordLevel"))
    assert tokenizer.backend_tokenizer.model.token_to_id("<pad>") == 2
    assert TextEncoder(tokenizer, 8).encode("<pad>").tolist() == [0, 1]
    assert TextEncoder(tokenizer, 8).encode("病").tolist() == [0, 4, 1]
