"""Evaluation counts: uniform and perfect models, invariance to how the texts are split."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_privacy.learning.evaluation import EvaluationCounts, evaluate
from fl_privacy.learning.models import build_model, new_bundle
from fl_privacy.learning.tokenizer import build_vocabulary, tokenizer_of
from fl_privacy.parameters import from_bytes
from tests.tiny_model import SENTENCES, VOCABULARY, tiny_bundle, weights_of

TOKENIZER = tokenizer_of(VOCABULARY)
BUNDLE = tiny_bundle()
MODEL = build_model(BUNDLE.spec, VOCABULARY, weights_of(BUNDLE))


def _counts(texts: tuple[str, ...], seed: int = 0, **options: bool) -> EvaluationCounts:
    return evaluate(MODEL, TOKENIZER, texts, 40, 0.15, seed, **options)


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size() -> None:
    # E3, at the size of bert-base-chinese.
    characters = [chr(0x4E00 + index) for index in range(21128 - 5)]
    vocabulary = build_vocabulary(["".join(characters)], 21128)
    config = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    bundle = new_bundle(config, vocabulary, 0, "uniform")
    zeros = {name: np.zeros_like(array) for name, array in from_bytes(bundle.weights).items()}
    model = build_model(bundle.spec, vocabulary, zeros)
    counts = evaluate(model, tokenizer_of(vocabulary), ["".join(characters[:60])] * 3, 64, 0.5, seed=0)
    assert counts.perplexity == pytest.approx(21128, rel=1e-6)


def test_a_model_that_always_answers_one_token() -> None:
    weights = {name: np.zeros_like(array) for name, array in weights_of(BUNDLE).items()}
    token = TOKENIZER.convert_tokens_to_ids("病")
    weights["cls.predictions.bias"][token] = 50.0
    model = build_model(BUNDLE.spec, VOCABULARY, weights)
    right = evaluate(model, TOKENIZER, ["病" * 30], 40, 0.5, seed=1)
    wrong = evaluate(model, TOKENIZER, ["人" * 30], 40, 0.5, seed=1)
    assert (right.accuracy, right.top5, wrong.accuracy) == (1.0, right.positions, 0.0)
    assert right.perplexity == pytest.approx(1.0)
    assert (right + wrong).accuracy == pytest.approx(right.positions / (right.positions + wrong.positions))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=len(SENTENCES), max_size=len(SENTENCES)))
def test_counts_do_not_depend_on_the_split_over_owners(owner: list[int]) -> None:
    # E6: the same text hides the same tokens whoever holds it and whatever it is batched with.
    parts = [tuple(text for text, who in zip(SENTENCES, owner, strict=True) if who == part) for part in range(3)]
    summed = sum((_counts(part) for part in parts), EvaluationCounts())
    pooled = _counts(SENTENCES)
    assert (summed.top1, summed.top5, summed.positions) == (pooled.top1, pooled.top5, pooled.positions)
    assert summed.nll == pytest.approx(pooled.nll, rel=1e-5)


def test_masks_are_fixed_by_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = _counts(SENTENCES)
    torch.manual_seed(6)
    assert _counts(SENTENCES) == first
    assert _counts(SENTENCES, seed=1) != first
    assert _counts(SENTENCES, only_mask=True).positions == first.positions
    assert _counts(SENTENCES, only_mask=True).nll != first.nll


def test_evaluation_leaves_the_model_as_it_was() -> None:
    dropping = tiny_bundle(hidden_dropout_prob=0.5)
    model = build_model(dropping.spec, VOCABULARY, weights_of(dropping)).train()
    assert evaluate(model, TOKENIZER, SENTENCES, 40, 0.15, 0) == _counts(SENTENCES)  # no dropout while evaluating
    assert model.training
    assert all(tensor.grad is None for tensor in model.parameters())


def test_nothing_to_guess_is_not_a_number() -> None:
    for texts in ((), ("", "鼠")):
        counts = _counts(texts)
        assert counts == EvaluationCounts()
        assert math.isnan(counts.accuracy)
        assert math.isnan(counts.perplexity)
