"""The character-level vocabulary and the BERT tokenizer on it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_privacy.errors import ModelError
from fl_privacy.learning.tokenizer import SPECIAL_TOKENS, build_vocabulary, tokenizer_of, tokens_of
from tests.tiny_model import SENTENCES, VOCABULARY


def test_most_frequent_characters_come_first_and_ties_by_code_point() -> None:
    vocabulary = build_vocabulary(["今今今b a", "a今天明"], size=9)
    assert tokens_of(vocabulary) == [*SPECIAL_TOKENS, "今", "a", "b", "天"]


def test_vocabulary_does_not_depend_on_the_order_of_the_texts() -> None:
    assert build_vocabulary(reversed(SENTENCES), 120) == VOCABULARY
    assert len(tokens_of(build_vocabulary(SENTENCES, 20))) == 20


def test_chinese_by_character_and_latin_by_letter() -> None:
    tokenizer = tokenizer_of(build_vocabulary(["病人服药12mg"], 50))
    assert tokenizer.tokenize("病人 12MG 鼠") == ["病", "人", "1", "##2", "##m", "##g", "[UNK]"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), max_size=5).map("".join))
def test_what_was_counted_is_never_unknown(text: str) -> None:
    tokenizer = tokenizer_of(VOCABULARY)
    assert tokenizer.unk_token_id not in tokenizer(text)["input_ids"]


def test_upper_case_is_kept_only_by_a_vocabulary_that_has_it() -> None:
    cased = "\n".join([*SPECIAL_TOKENS, "A", "a"]).encode()
    assert tokenizer_of(cased).tokenize("A a") == ["A", "a"]
    assert tokenizer_of("\n".join([*SPECIAL_TOKENS, "a"]).encode()).tokenize("A a") == ["a", "a"]


@pytest.mark.parametrize(
    ("vocabulary", "told"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nx\n", r"lacks \[MASK\]"),
        ("\n".join([*SPECIAL_TOKENS, "x", "x"]).encode(), "repeated"),
        ("\n".join([*SPECIAL_TOKENS, "", "x"]).encode(), "empty"),
    ],
)
def test_a_broken_vocabulary_is_refused(vocabulary: bytes, told: str) -> None:
    with pytest.raises(ModelError, match=told):
        tokenizer_of(vocabulary)


def test_a_vocabulary_needs_room_for_characters() -> None:
    with pytest.raises(ModelError, match="holds no character"):
        build_vocabulary(SENTENCES, 5)
