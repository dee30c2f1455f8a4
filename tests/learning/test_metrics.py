"""Counts: closed forms, seqeval's known answers, and that sums are not means of ratios."""

from __future__ import annotations

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl_privacy.learning.fairness import fairness
from fl_privacy.learning.metrics import CalibrationCounts, ClassificationCounts, Counts, EntityCounts, TokenCounts, entities

KINDS = ("PER", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
EMPTY: tuple[Counts, ...] = (TokenCounts(), ClassificationCounts("abc"), EntityCounts(KINDS), CalibrationCounts())


def entity_counts(true: list[str], predicted: list[str]) -> EntityCounts:
    vector = []
    for strict in (True, False):
        found, told = set(entities(true, strict=strict)), set(entities(predicted, strict=strict))
        vector += [[one[2] for one in part].count(kind) for part in (found & told, told, found) for kind in KINDS]
    return EntityCounts(KINDS, vector)


# What seqeval 1.2.2 says of these: f1_score(true, predicted), and with mode="strict", scheme=IOB2.
SEQEVAL = [
    ("B-PER I-PER O", "I-PER I-PER O", 1.0, 0.0),
    ("B-PER I-PER O B-LOC", "B-PER I-LOC O B-LOC", 0.4, 0.5),
    ("O O O", "O O O", 0.0, 0.0),
    ("B-PER B-PER I-PER", "B-PER I-PER I-PER", 0.0, 0.0),
    ("B-PER I-PER O", "B-PER I-PER O", 1.0, 1.0),
    ("B-PER I-PER I-PER", "B-PER I-PER O", 0.0, 0.0),
    ("B-LOC O B-PER", "I-LOC O B-PER", 1.0, 2 / 3),
]


@pytest.mark.parametrize(("true", "predicted", "default", "strict"), SEQEVAL)
def test_entities_are_scored_as_seqeval_scores_them(true: str, predicted: str, default: float, strict: float) -> None:
    # E4
    counts = entity_counts(true.split(), predicted.split())
    assert counts.f1("default") == pytest.approx(default)
    assert counts.f1("strict") == counts.headline == pytest.approx(strict)


def test_precision_and_recall_behind_the_lenient_score() -> None:
    counts = entity_counts(["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "I-LOC", "O", "B-LOC"])
    table = {name: counts[name] for name in counts.names if name.startswith("default")}
    found, predicted, true = (sum(v for n, v in table.items() if column in n) for column in EntityCounts.COLUMNS)
    assert (found / predicted, found / true) == (1 / 3, 1 / 2)
    assert counts.f1("default", "LOC") == 2 / 3
    assert counts.f1("default", "PER") == 0.0


@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_copied_tags_find_every_entity_and_strict_reading_never_finds_more_places(tags: list[str]) -> None:
    # E5
    counts = entity_counts(tags, tags)
    for reading, strict in (("strict", True), ("default", False)):
        assert counts.f1(reading) == (1.0 if list(entities(tags, strict=strict)) else 0.0)
    covered = [{p for a, b, _ in entities(tags, strict=strict) for p in range(a, b)} for strict in (True, False)]
    assert covered[0] <= covered[1] == {place for place, tag in enumerate(tags) if tag != "O"}


def test_ratios_of_tokens() -> None:
    counts = TokenCounts([math.log(7) * 10, 4, 6, 10])
    assert counts.summary() == pytest.approx({"accuracy": 0.4, "top5_accuracy": 0.6, "perplexity": 7.0})
    assert counts.headline == 0.4
    assert TokenCounts([1e9, 0, 0, 1]).perplexity < math.inf


def test_macro_f1_is_over_all_declared_classes_and_one_that_never_occurs_counts_as_zero() -> None:
    counts = ClassificationCounts("abc", [8, 2, 0, 1, 9, 0, 0, 0, 0, 30.0])
    f1 = (2 * 8 / (10 + 9), 2 * 9 / (10 + 11), 0.0)
    assert counts.summary() == pytest.approx({"accuracy": 0.85, "macro_f1": sum(f1) / 3, "nll": 1.5})
    assert counts["a as b"] == 2 and counts["b as a"] == 1
    assert counts.confusion.sum(axis=1).tolist() == [10, 10, 0]  # true by row


def test_macro_f1_of_the_sum_is_not_the_mean_of_macro_f1() -> None:
    # E2: each owner has one class only and knows no other.
    owners = [ClassificationCounts("ab", [9, 1, 0, 0, 0]), ClassificationCounts("ab", [0, 0, 9, 1, 0])]
    together = owners[0] + owners[1]
    assert together.macro_f1 == pytest.approx((18 / 28 + 2 / 12) / 2)
    assert abs(together.macro_f1 - np.mean([one.macro_f1 for one in owners])) > 0.05


def test_counts_of_other_names_cannot_be_added_or_made() -> None:
    with pytest.raises(TypeError, match="same names"):
        ClassificationCounts("ab") + ClassificationCounts("ac")
    with pytest.raises(TypeError, match="same names"):
        ClassificationCounts("ab") + TokenCounts()
    with pytest.raises(ValueError, match="4 counts expected"):
        TokenCounts([1, 2, 3])


@pytest.mark.parametrize("empty", EMPTY, ids=lambda counts: type(counts).__name__)
def test_a_vector_is_all_there_is_to_counts(empty: Counts) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.integers(0, 50, (3, len(empty.names)))
    summed = reduce(add, (empty.from_vector(vector) for vector in vectors), empty)
    assert summed == empty.from_vector(vectors.sum(axis=0)) != empty
    assert summed.vector.dtype == np.float64
    assert {name: summed[name] for name in summed.names} == dict(zip(summed.names, vectors.sum(axis=0), strict=True))
    with pytest.raises(ValueError, match="read-only"):
        summed.vector[0] = 1
    assert list(summed.summary())[0] in ("accuracy", "f1_strict", "calibration_error")


@pytest.mark.parametrize("empty", EMPTY, ids=lambda counts: type(counts).__name__)
@given(data=st.data())
def test_noisy_counts_have_a_summary_too(empty: Counts, data: st.DataObject) -> None:
    # Counts that were released with noise can be negative.
    noisy = empty.from_vector(data.draw(arrays(np.float64, len(empty.names), elements=st.floats(-100, 100, width=32))))
    assert all(isinstance(value, float) and not math.isinf(value) for value in noisy.summary().values())


def test_confidence_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    # 10 predictions at 0.75 of which 7.5 % ... eight at 0.75, six right: no error; entropy equals likelihood.
    probabilities = np.tile([0.75, 0.25], (8, 1))
    good = CalibrationCounts.of(probabilities, np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    assert good.summary()["calibration_error"] == pytest.approx(0.0)
    assert good.summary()["perplexity"] == pytest.approx(good.summary()["own_perplexity"])
    assert good.headline == pytest.approx(1.0)
    bad = CalibrationCounts.of(probabilities, np.ones(8, dtype=np.int64))
    assert bad.summary()["calibration_error"] == pytest.approx(0.75)
    assert bad.summary()["perplexity"] > bad.summary()["own_perplexity"]
    assert (good + bad).summary()["calibration_error"] == pytest.approx(0.375)  # of the sum: 16 at 0.75, six right


def test_a_certain_model_is_calibrated_exactly_when_it_is_right() -> None:
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert CalibrationCounts.of(certain, np.array([0, 1])).summary() == {
        "calibration_error": 0.0,
        "perplexity": 1.0,
        "own_perplexity": 1.0,
    }
    assert CalibrationCounts.of(certain, np.array([1, 0])).summary()["calibration_error"] == 1.0


def test_fairness_over_owners() -> None:
    measured = {f"owner{number}": number / 10 for number in range(11)}
    told = fairness(measured)
    assert told == pytest.approx((0.0, 0.1, np.sqrt(0.1), 1.0, None))
    alone = dict.fromkeys(measured, 0.45)
    assert fairness(measured, alone).benefit_rate == pytest.approx(6 / 11)
    assert fairness(measured, measured).benefit_rate == 0.0  # as good is no benefit
    assert fairness({"only": 0.5}).gap == 0.0


def test_fairness_needs_the_same_owners_twice() -> None:
    with pytest.raises(ValueError, match=r"\['b'\]"):
        fairness({"a": 1.0}, {"a": 1.0, "b": 0.0})
    with pytest.raises(ValueError, match="at least one"):
        fairness({})
