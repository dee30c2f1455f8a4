"""Evaluation: uniform and perfect models, and that counts do not depend on who holds the rows or what they are grouped with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_privacy.learning import evaluation
from fl_privacy.learning.evaluation import calibration, evaluate, scored
from fl_privacy.learning.metrics import Counts, TokenCounts
from fl_privacy.learning.models import build_model, new_bundle
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.learning.tokenizer import build_vocabulary, tokenizer_of
from fl_privacy.messages import Row
from fl_privacy.parameters import from_bytes
from tests.tiny_families import LABELS, bundle_of
from tests.tiny_model import ROWS, SENTENCES, VOCABULARY, tiny_bundle, tiny_plan, weights_of

TOKENIZER = tokenizer_of(VOCABULARY)
BUNDLE = tiny_bundle()
MODEL = build_model(BUNDLE.spec, VOCABULARY, weights_of(BUNDLE))
PLAN = tiny_plan(BUNDLE, mask_probability=0.15)
TAGS = ("O", "B-人名", "I-人名", "B-地名", "I-地名")
ANNOTATED = tuple(
    Row(
        text=text,
        label=LABELS["classification"][index % 3],
        tags=tuple(TAGS[(index + place) % 5] for place in range(len(text))),
    )
    for index, text in enumerate(SENTENCES)
)


def _counts(rows: Sequence[Row], seed: int = 0, **options: Any) -> Counts:
    return evaluate(PLAN, MODEL, TOKENIZER, rows, seed, **options)


def test_perplexity_of_a_uniform_model_is_the_vocabulary_size() -> None:
    # E3, at the size of bert-base-chinese.
    characters = [chr(0x4E00 + index) for index in range(21128 - 5)]
    vocabulary = build_vocabulary(["".join(characters)], 21128)
    config = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    bundle = new_bundle(config, vocabulary, 0, "uniform")
    zeros = {name: np.zeros_like(array) for name, array in from_bytes(bundle.weights).items()}
    model = build_model(bundle.spec, vocabulary, zeros)
    plan, rows = tiny_plan(bundle, max_length=64, mask_probability=0.5), [Row(text="".join(characters[:60]))] * 3
    counts = evaluate(plan, model, tokenizer_of(vocabulary), rows, seed=0)
    assert counts.summary()["perplexity"] == pytest.approx(21128, rel=1e-9)
    told = calibration(plan, model, tokenizer_of(vocabulary), rows, seed=0).summary()
    assert told["perplexity"] == pytest.approx(21128, rel=1e-9) == told["own_perplexity"]


def test_a_model_that_always_answers_one_token() -> None:
    weights = {name: np.zeros_like(array) for name, array in weights_of(BUNDLE).items()}
    weights["cls.predictions.bias"][TOKENIZER.convert_tokens_to_ids("病")] = 50.0
    model, plan = build_model(BUNDLE.spec, VOCABULARY, weights), tiny_plan(BUNDLE, mask_probability=0.5)
    right, wrong = (evaluate(plan, model, TOKENIZER, [Row(text=text * 30)], seed=1) for text in "病人")
    assert (right.headline, right["top5"], wrong.headline) == (1.0, right["positions"], 0.0)
    assert right.summary()["perplexity"] == pytest.approx(1.0)
    assert (right + wrong).headline == pytest.approx(right["positions"] / (right["positions"] + wrong["positions"]))
    assert calibration(plan, model, TOKENIZER, [Row(text="人" * 30)], 1).summary()["calibration_error"] == pytest.approx(1.0)


@pytest.mark.parametrize(("family", "head"), [("bert", "mlm"), ("gpt2", "clm"), ("bert", "classification"), ("bert", "ner")])
@settings(max_examples=8, deadline=None)
@given(owner=st.lists(st.integers(0, 2), min_size=len(SENTENCES), max_size=len(SENTENCES)))
def test_counts_do_not_depend_on_the_split_over_owners(family: str, head: str, owner: list[int]) -> None:
    # E1, E6: the same record hides the same tokens whoever holds it and whatever it is batched with.
    bundle = bundle_of(family, head)
    plan, tokenizer = tiny_plan(bundle, max_length=48), tokenizer_of(bundle.vocabulary)
    model = build_model(bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    parts = [[row for row, who in zip(ANNOTATED, owner, strict=True) if who == part] for part in range(3)]
    summed = reduce(add, (evaluate(plan, model, tokenizer, part, 0) for part in parts))
    pooled = evaluate(plan, model, tokenizer, ANNOTATED, 0)
    whole = np.array([name != "nll" for name in pooled.names])
    assert np.array_equal(summed.vector[whole], pooled.vector[whole]) and pooled.vector.any()
    assert summed.vector[~whole] == pytest.approx(pooled.vector[~whole], rel=1e-5)  # padding changes the last bits of float32


def test_batches_hold_no_more_scores_than_fit_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _counts(ROWS)
    monkeypatch.setattr(evaluation, "_SCORES", 3 * PLAN.max_length * len(TOKENIZER))
    task = task_of(PLAN, TOKENIZER)
    assert {len(rows) for rows, _, _ in scored(PLAN, task, MODEL, ROWS, 0)} == {3}
    assert _counts(ROWS).summary() == pytest.approx(whole.summary())


def test_masks_are_fixed_by_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = _counts(ROWS)
    torch.manual_seed(6)
    assert _counts(ROWS) == first
    assert _counts(ROWS, seed=1) != first
    assert _counts(ROWS, only_mask=True)["positions"] == first["positions"]
    assert _counts(ROWS, only_mask=True)["nll"] != first["nll"]


def test_evaluation_leaves_the_model_as_it_was() -> None:
    dropping = tiny_bundle(hidden_dropout_prob=0.5)
    model = build_model(dropping.spec, VOCABULARY, weights_of(dropping)).train()
    assert evaluate(PLAN, model, TOKENIZER, ROWS, 0) == _counts(ROWS)  # no dropout while evaluating
    assert model.training
    assert all(tensor.grad is None for tensor in model.parameters())


def test_nothing_to_guess_is_not_a_number() -> None:
    for rows in ((), (Row(text=""), Row(text="鼠"))):
        counts = _counts(rows)
        assert counts == TokenCounts()
        assert all(math.isnan(value) for value in counts.summary().values())
