"""Masked language modelling: encoding, masks, batches, and the loss of each example by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from fl_privacy.learning.models import build_model
from fl_privacy.learning.tasks import IGNORED, MaskedBatch, Masking, encode, masked_logits, per_example_loss
from fl_privacy.learning.tokenizer import tokenizer_of
from tests.tiny_model import SENTENCES, VOCABULARY, tiny_bundle, weights_of

TOKENIZER = tokenizer_of(VOCABULARY)


def test_encoding_cuts_and_marks_both_ends() -> None:
    rows = encode(TOKENIZER, ["病人" * 30, "", SENTENCES[0]], max_length=12)
    assert [len(row) for row in rows] == [12, 2, min(len(SENTENCES[0]) + 2, 12)]
    assert all(row[0] == TOKENIZER.cls_token_id and row[-1] == TOKENIZER.sep_token_id for row in rows)
    assert rows[2].tolist() == TOKENIZER(SENTENCES[0], truncation=True, max_length=12)["input_ids"]


def test_encoding_of_many_texts_equals_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fl_privacy.learning.tasks._CHUNK", 7)
    together = encode(TOKENIZER, SENTENCES, 40)
    assert len(together) == len(SENTENCES)
    for row, text in zip(together, SENTENCES, strict=True):
        assert np.array_equal(row, encode(TOKENIZER, [text], 40)[0])
    assert len(encode(TOKENIZER, [], 40)) == 0


def test_a_text_cannot_forge_special_tokens() -> None:
    row = encode(TOKENIZER, ["病[MASK][PAD]人"], 40)[0]
    inside = row[1:-1]
    assert not np.isin(inside, [TOKENIZER.mask_token_id, TOKENIZER.pad_token_id, TOKENIZER.cls_token_id]).any()


def test_a_text_that_is_no_unicode_stops_nothing() -> None:
    assert encode(TOKENIZER, ["病\ud800人"], 40)[0].tolist() == encode(TOKENIZER, ["病?人"], 40)[0].tolist()


def test_masks_are_15_percent_and_80_10_10() -> None:
    row = encode(TOKENIZER, ["".join(SENTENCES)[:198]], 200)[0]
    rows = [row] * 500
    batch = Masking(TOKENIZER, probability=0.15).random_batch(rows, np.random.default_rng(0))
    ordinary = int((~np.isin(row, TOKENIZER.all_special_ids)).sum()) * len(rows)
    hidden = batch.labels != IGNORED
    count = int(hidden.sum())
    assert count / ordinary == pytest.approx(0.15, abs=0.005)
    shown = batch.input_ids.gather(1, batch.places)[hidden]
    masked = (shown == TOKENIZER.mask_token_id).sum() / count
    kept = (shown == batch.labels[hidden]).sum() / count
    assert float(masked) == pytest.approx(0.8, abs=0.02)
    assert float(kept) == pytest.approx(0.1 + 0.1 / (len(TOKENIZER) - 5), abs=0.015)  # a random token can be the same one
    random = shown[(shown != TOKENIZER.mask_token_id) & (shown != batch.labels[hidden])]
    assert len(random.unique()) > 0.9 * (len(TOKENIZER) - 5)
    assert not torch.isin(random, torch.tensor(TOKENIZER.all_special_ids)).any()


@settings(deadline=None)
@given(st.lists(st.sampled_from([*SENTENCES, "", "鼠"]), min_size=1, max_size=6), st.integers(0, 2**32))
def test_a_batch_hides_only_ordinary_tokens_and_loses_nothing(texts: list[str], seed: int) -> None:
    rows = encode(TOKENIZER, texts, 20)
    batch = Masking(TOKENIZER, probability=0.5).random_batch(list(rows), np.random.default_rng(seed))
    for index, row in enumerate(rows):
        hidden = batch.labels[index] != IGNORED
        places = batch.places[index][hidden].tolist()
        assert batch.attention_mask[index].tolist() == [1] * len(row) + [0] * (batch.input_ids.shape[1] - len(row))
        restored = batch.input_ids[index].clone()
        restored[places] = batch.labels[index][hidden]
        assert restored[: len(row)].tolist() == row.tolist()
        assert (batch.input_ids[index, len(row) :] == TOKENIZER.pad_token_id).all()
        assert not np.isin(row[places], TOKENIZER.all_special_ids).any()


def _batch(texts: list[str], seed: int = 0) -> MaskedBatch:
    rows = encode(TOKENIZER, texts, 40)
    return Masking(TOKENIZER, probability=0.3).random_batch(list(rows), np.random.default_rng(seed))


def test_scores_at_hidden_places_are_the_whole_models() -> None:
    bundle = tiny_bundle()
    model = build_model(bundle.spec, VOCABULARY, weights_of(bundle))
    batch = _batch([SENTENCES[0], SENTENCES[5], "病人"])
    with torch.no_grad():
        whole = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        ours = masked_logits(model, batch)
    expected = whole.gather(1, batch.places.unsqueeze(-1).expand(-1, -1, whole.shape[-1]))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(SENTENCES), min_size=2, max_size=5), st.integers(0, 100))
def test_a_loss_depends_on_its_own_example_only(texts: list[str], seed: int) -> None:
    # With the library's .loss (a mean over the batch's tokens) the first example's share changes with its neighbours.
    bundle = tiny_bundle()
    model = build_model(bundle.spec, VOCABULARY, weights_of(bundle))
    batch = _batch(texts, seed)
    with torch.no_grad():
        together = per_example_loss(model, batch)
        for index in range(len(texts)):
            size, hidden = int(batch.attention_mask[index].sum()), batch.labels[index] != IGNORED
            logits = model(input_ids=batch.input_ids[index : index + 1, :size]).logits[0]
            alone = functional.cross_entropy(logits[batch.places[index][hidden]], batch.labels[index][hidden])
            expected = alone if hidden.any() else torch.tensor(0.0)
            torch.testing.assert_close(together[index], expected, rtol=1e-4, atol=1e-5)


def test_an_example_without_hidden_tokens_has_no_loss_and_no_gradient() -> None:
    bundle = tiny_bundle()
    model = build_model(bundle.spec, VOCABULARY, weights_of(bundle))
    losses = per_example_loss(model, _batch(["", "鼠"]))
    losses.sum().backward()
    assert losses.tolist() == [0.0, 0.0]
    assert all(not tensor.grad.any() for tensor in model.parameters() if tensor.grad is not None)
