"""Private texts to ids: whatever the text, there are some, and each character's first token is where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fl_privacy.learning.text_encoder import TextEncoder
from fl_privacy.learning.tokenizer import tokenizer_of
from tests.tiny_families import VOCABULARIES
from tests.tiny_model import SENTENCES

TOKENIZERS = {family: tokenizer_of(vocabulary) for family, vocabulary in VOCABULARIES.items()}
ENCODERS = {family: TextEncoder(tokenizer, 24) for family, tokenizer in TOKENIZERS.items()}
every_family = pytest.mark.parametrize("family", TOKENIZERS)
FORGED = ("[MASK]", "[PAD]", "[CLS]", "[SEP]", "<mask>", "<pad>", "<s>", "</s>", "<|endoftext|>")
texts = st.text(st.characters(), max_size=40) | st.lists(st.sampled_from([*SENTENCES, *FORGED, " ", "\ud800"]), max_size=4).map(
    "".join
)


@every_family
@settings(deadline=None)
@given(text=texts)
@example("\x00\ud800\udfff")
@example("﷽" * 30)
@example("́" * 50)
def test_any_text_has_ids_that_no_special_token_is_among(family: str, text: str) -> None:
    ids, tokenizer = ENCODERS[family].encode(text), TOKENIZERS[family]
    special = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id}
    assert ids.dtype == np.int64 and 2 <= len(ids) <= 24
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert special.isdisjoint(ids[1:-1].tolist())
    assert ((ids >= 0) & (ids < len(tokenizer))).all()


@every_family
@settings(deadline=None)
@given(text=texts)
def test_characters_point_at_their_first_token(family: str, text: str) -> None:
    ids, starts = ENCODERS[family].encode_with_characters(text)
    assert ids.tolist() == ENCODERS[family].encode(text).tolist()
    assert starts.shape == (len(text),)
    told = starts[starts >= 0]
    assert ((told >= 1) & (told <= len(ids) - 2)).all()
    if family in ("roberta", "gpt2"):  # the others may reorder what they normalise
        assert (np.diff(told) >= 0).all()


@every_family
def test_ids_are_those_of_the_librarys_own_tokenizer(family: str) -> None:
    tokenizer, encoder = TOKENIZERS[family], TextEncoder(TOKENIZERS[family], 512)
    for text in SENTENCES:
        theirs = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert encoder.encode(text).tolist() == [tokenizer.cls_token_id, *theirs, tokenizer.sep_token_id]


@every_family
def test_longer_texts_are_cut_and_their_last_characters_have_no_place(family: str) -> None:
    text = "病人今天上午头痛发热" * 5
    ids, starts = TextEncoder(TOKENIZERS[family], 10).encode_with_characters(text)
    assert len(ids) == 10
    assert (starts[:2] > 0).all() and starts[0] <= 2 and (starts[40:] == -1).all()
    whole = TextEncoder(TOKENIZERS[family], 512).encode(text)
    assert ids[:-1].tolist() == whole[:9].tolist()


def test_the_first_of_several_tokens_and_the_one_token_of_several_characters() -> None:
    ids, starts = ENCODERS["bert"].encode_with_characters("病 [MASK]12次鼠")
    tokens = TOKENIZERS["bert"].convert_ids_to_tokens(ids)
    assert [tokens[place] if place >= 0 else None for place in starts] == [
        "病",
        None,
        *(["[UNK]"] * 6),
        *(["[UNK]"] * 2),  # 12 is one word; the vocabulary has no 1
        "次",
        "[UNK]",
    ]
    ids, starts = ENCODERS["gpt2"].encode_with_characters("鼠a")  # three bytes, then one
    assert starts.tolist() == [1, 4] and len(ids) == 6


class _Failing:
    def encode(self, *_: object, **__: object) -> None:
        raise self.problem

    def __init__(self, problem: BaseException) -> None:
        self.problem = problem


def test_a_text_that_the_tokenizer_fails_on_is_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, panic = TextEncoder(TOKENIZERS["bert"], 24), type("PanicException", (BaseException,), {})
    for problem in (ValueError("text"), panic("text")):
        monkeypatch.setattr(encoder, "_backend", _Failing(problem))
        ids, starts = encoder.encode_with_characters("病人")
        assert (ids.tolist(), starts.tolist()) == (encoder.encode("").tolist(), [-1, -1])
    monkeypatch.setattr(encoder, "_backend", _Failing(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        encoder.encode("病人")
