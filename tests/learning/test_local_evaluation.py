"""One owner's evaluation: the counts are the ordinary ones, one unit moves them by its bound, and an opened sum reads back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fl_privacy.errors import PrivacyError
from fl_privacy.learning import local_evaluation
from fl_privacy.learning.evaluation import evaluate
from fl_privacy.learning.local_evaluation import SEED, STEPS, evaluate_privately
from fl_privacy.learning.metrics import ClassificationCounts, TokenCounts
from fl_privacy.learning.models import ModelBundle, build_model
from fl_privacy.learning.private_counts import COUNTS, NATS, PrivateCounts, no_counts, order_specs, read_sum, units_of
from fl_privacy.learning.tasks.registry import task_of
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import PrivacyUnit, Row
from fl_privacy.model_spec import Head
from fl_privacy.plan import TrainingPlan
from tests.tiny_model import SENTENCES, VOCABULARY, NoNoise, tiny_bundle, tiny_plan, weights_of

LABELS: dict[Head, tuple[str, ...]] = {"classification": ("体育", "财经", "其他"), "ner": ("人名", "地名")}
HEADS: tuple[Head, ...] = ("mlm", "classification", "ner")
TAGS = ("O", "B-人名", "I-人名", "B-地名", "I-地名")
SIZE, NO_BOUND = 100, 1e6
ROWS = [
    Row(
        text=text,
        label=LABELS["classification"][index % 3],
        tags=tuple(TAGS[(index + place) % 5] for place in range(len(text))),
        subject=index % 7,
    )
    for index, text in enumerate(SENTENCES[:20])
]
TASK = """
def features(text, tokenizer):
    ids = tokenizer.encode(text)
    return {"input_ids": ids, "labels": ids}

def loss(scores, labels):
    return scores.sum()
"""


def bundle_with(head: Head) -> ModelBundle:
    return tiny_bundle(0, head, LABELS.get(head, ()))


def plan_of(head: Head, **changes: Any) -> TrainingPlan:
    fields: dict[str, Any] = {"holdout": 0.2, "evaluation_bound": NO_BOUND}
    return tiny_plan(bundle_with(head), **fields | changes)


def exact(plan: TrainingPlan, rows: Sequence[Row], unit: PrivacyUnit = "record", **changes: Any) -> NDArray[np.float64]:
    """The clipped counts without noise, in the units of the release."""
    weights = weights_of(bundle_with(plan.model.head))
    told = changes.pop("on_step", lambda *_: None)
    found = evaluate_privately(plan, weights | changes, VOCABULARY, rows, SIZE, 1.0, told, unit=unit, randomness=NoNoise())
    return found[COUNTS].astype(np.float64) * plan.holdout * SIZE


@pytest.mark.parametrize("head", HEADS)
def test_counts_within_the_bound_are_those_of_an_ordinary_evaluation(head: Head) -> None:
    plan = plan_of(head)
    model = build_model(plan.model, VOCABULARY, weights_of(bundle_with(head)))
    ordinary = evaluate(plan, model, tokenizer_of(VOCABULARY), ROWS, SEED)
    assert exact(plan, ROWS) * units_of(ordinary) == pytest.approx(ordinary.vector, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("unit", ["record", "subject"])
def test_one_unit_more_moves_the_counts_by_the_bound_at_most(head: Head, unit: PrivacyUnit) -> None:
    plan = plan_of(head, evaluation_bound=0.8)
    norms = []
    for left_out in range(5):
        of_unit = [row for row in ROWS if row.subject == left_out] if unit == "subject" else [ROWS[left_out]]
        moved = exact(plan, ROWS, unit) - exact(plan, [row for row in ROWS if row not in of_unit], unit)
        norms.append(float(np.linalg.norm(moved)))
    assert 0 < max(norms) <= 0.8 * (1 + 1e-4)


def test_the_counts_of_a_record_do_not_depend_on_its_neighbours_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hostile weights could make rounding matter; so the model sees one record at a time."""
    seen: list[int] = []
    honest = local_evaluation.scored

    def watched(plan: Any, task: Any, model: Any, rows: Sequence[Row], seed: int) -> Any:
        seen.append(len(rows))
        return honest(plan, task, model, rows, seed)

    monkeypatch.setattr(local_evaluation, "scored", watched)
    exact(plan_of("mlm"), ROWS)
    assert seen == [1] * len(ROWS)


def test_a_model_that_overflows_on_every_record_gives_noise_only() -> None:
    plan = plan_of("mlm")
    name = "bert.embeddings.LayerNorm.weight"
    broken = np.full_like(weights_of(bundle_with("mlm"))[name], 3e38)
    assert exact(plan, ROWS, **{name: broken}).tolist() == [0.0] * 4


def test_without_a_held_out_record_noise_is_still_released() -> None:
    plan = plan_of("classification", evaluation_bound=2.0)
    bundle = bundle_with("classification")
    found = evaluate_privately(plan, weights_of(bundle), VOCABULARY, [], SIZE, 3.0, lambda *_: None)[COUNTS]
    assert found.shape == (10,) and found.dtype == np.float32 and (found != 0).all()


def test_noise_cannot_be_left_out() -> None:
    plan = plan_of("mlm")
    with pytest.raises(PrivacyError, match="noise_multiplier"):
        evaluate_privately(plan, weights_of(bundle_with("mlm")), VOCABULARY, ROWS, SIZE, 0.0, lambda *_: None)


@pytest.mark.parametrize("count", [3, 20])
def test_progress_tells_tenths_and_not_how_many_rows_there_are(count: int) -> None:
    told: list[tuple[int, int]] = []
    exact(plan_of("classification"), ROWS[:count], on_step=lambda *step: told.append(step))
    assert {of for _, of in told} == {STEPS} and told[-1] == (STEPS, STEPS)
    assert [step for step, _ in told] == sorted({step for step, _ in told})


@pytest.mark.parametrize("head", HEADS)
def test_an_orders_tensor_has_one_place_for_each_count_of_the_task(head: Head) -> None:
    plan = plan_of(head)
    names = task_of(plan, tokenizer_of(VOCABULARY)).count_names
    assert no_counts(plan).names == names
    (spec,) = order_specs(plan, "evaluate")
    assert (spec.name, spec.shape) == (COUNTS, (len(names),))
    assert COUNTS not in {trained.name for trained in order_specs(plan, "train")}


def test_a_custom_task_counts_tokens() -> None:
    plan = plan_of("mlm", task="custom", custom_task=TASK)
    assert no_counts(plan).names == task_of(plan, tokenizer_of(VOCABULARY)).count_names == TokenCounts.NAMES
    assert exact(plan, ROWS)[3] == pytest.approx(sum(len(row.text) + 2 for row in ROWS))


def test_the_mean_of_owners_that_are_weighted_by_size_reads_back_as_their_sum() -> None:
    plan = plan_of("mlm", evaluation_noise=3.0, evaluation_bound=20.0)
    sizes = (100, 300, 600)
    sums = [np.array([40.0, 3, 7, 12]), np.array([400.0, 30, 70, 120]), np.array([900.0, 50, 150, 260])]
    sent = [own / units_of(TokenCounts()) / (plan.holdout * size) for own, size in zip(sums, sizes, strict=True)]
    mean = sum((size / 1000 * own for own, size in zip(sent, sizes, strict=True)), np.zeros(4))
    found = read_sum(plan, {COUNTS: mean.astype(np.float32)}, sizes)
    assert found.counts.vector == pytest.approx(sum(sums), rel=1e-6)
    assert found.deviations.tolist() == pytest.approx([60 * math.sqrt(3) * scale for scale in (NATS, 1, 1, 1)])


def test_the_headlines_deviation_is_that_of_a_ratio_of_noised_counts() -> None:
    """Of hits / all, both with noise s: s sqrt(1 + accuracy^2) / all, to first order."""
    found = PrivateCounts(TokenCounts([5e4, 6e3, 8e3, 1e4]), np.full(4, 50.0))
    assert found.headline_deviation == pytest.approx(50 * math.sqrt(1 + 0.6**2) / 1e4, rel=0.1)


def test_counts_that_noise_drowns_have_no_finite_deviation() -> None:
    assert PrivateCounts(TokenCounts([1, 1, 1, 2]), np.full(4, 50.0)).headline_deviation == math.inf
    negative = PrivateCounts(ClassificationCounts(("a", "b"), [-3, 1, 0, -2, 1]), np.full(5, 0.1))
    assert negative.headline_deviation == math.inf
