"""What a run was worth to each owner: measured on its own mock rows, shown with the spread over owners."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fl_privacy import display
from fl_privacy.learning.evaluation import calibration, evaluate
from fl_privacy.learning.metrics import CalibrationCounts
from fl_privacy.learning.models import build_model, save_pretrained, with_adapters
from fl_privacy.learning.owner_scores import OwnerScores, scores_by_owner
from fl_privacy.learning.tokenizer import tokenizer_of
from fl_privacy.messages import CorpusCard, Row
from fl_privacy.scientist.by_owner import FILE, measure_by_owner, mock_rows_by_owner
from fl_privacy.scientist.federation import VALIDATION_SEED
from tests.tiny_model import ROWS, VOCABULARY, tiny_bundle, tiny_plan, weights_of

BUNDLE = tiny_bundle()
TOKENIZER = tokenizer_of(VOCABULARY)
OWN = {"clinic": ROWS[:20], "school": ROWS[20:40], "desk": ROWS[40:60]}
CONFIDENT = CalibrationCounts.of(np.array([[0.75, 0.25]] * 4), np.array([0, 0, 1, 1]))


def cards(rows: dict[str, tuple[Row, ...]]) -> dict[str, list[CorpusCard]]:
    usual = {"title": "t", "description": "d", "corpus": "0" * 64, "declared_size": 100}
    return {owner: [CorpusCard(owner=owner, mock_rows=own, **usual)] for owner, own in rows.items()}


def shown(scores: dict[str, OwnerScores]) -> str:
    with display.console.capture() as capture:
        display.console.print(display.by_owner(scores))
    return capture.get()


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_base_and_trained_model_are_measured_on_each_owner_s_own_rows(trainable: str, tmp_path: Path) -> None:
    plan = tiny_plan(BUNDLE, trainable=trainable)
    rng = np.random.default_rng(0)
    trained = {
        name: array + rng.normal(0, 0.3, array.shape).astype(np.float32)
        for name, array in with_adapters(plan, weights_of(BUNDLE)).items()
    }
    save_pretrained(tmp_path / "model", plan.model, VOCABULARY, trained, plan.adapter)
    found = measure_by_owner(plan, BUNDLE, cards(OWN) | cards({"stranger": ROWS[:1]}), tmp_path)
    assert list(found) == ["base", "federated"]
    for parameters, scores in zip((with_adapters(plan, weights_of(BUNDLE)), trained), found.values(), strict=True):
        model = build_model(plan.model, VOCABULARY, parameters, plan.adapter)
        expected = {owner: evaluate(plan, model, TOKENIZER, own, VALIDATION_SEED).headline for owner, own in OWN.items()}
        assert scores.headlines == pytest.approx(expected)
    written = json.loads((tmp_path / FILE).read_text())
    assert written["federated"]["scores"] == found["federated"].headlines
    assert written["base"]["fairness"]["gap"] == pytest.approx(np.ptp(list(found["base"].headlines.values())))
    assert written["base"]["calibration"] == found["base"].calibration.summary()


def test_calibration_is_that_of_all_owners_rows_together() -> None:
    plan, model = tiny_plan(BUNDLE), build_model(BUNDLE.spec, VOCABULARY, weights_of(BUNDLE))
    found = scores_by_owner(plan, dict.fromkeys(OWN, model), TOKENIZER, OWN, 1).calibration
    pooled = calibration(plan, model, TOKENIZER, ROWS[:60], 1)
    assert found.vector == pytest.approx(pooled.vector, rel=1e-5)
    assert found.predictions == pooled.predictions == evaluate(plan, model, TOKENIZER, ROWS[:60], 1)["positions"]


def test_each_owner_can_be_served_by_a_model_of_its_own() -> None:
    plan = tiny_plan(BUNDLE)
    models = {owner: build_model(BUNDLE.spec, VOCABULARY, weights_of(tiny_bundle(seed=seed))) for seed, owner in enumerate(OWN)}
    found = scores_by_owner(plan, models, TOKENIZER, OWN, 1)
    for owner, model in models.items():
        assert found.headlines[owner] == evaluate(plan, model, TOKENIZER, OWN[owner], 1).headline


def test_an_owner_whose_rows_hold_nothing_to_predict_is_named_and_not_counted_as_zero() -> None:
    plan, model = tiny_plan(BUNDLE), build_model(BUNDLE.spec, VOCABULARY, weights_of(BUNDLE))
    rows = mock_rows_by_owner(plan, cards(OWN | {"desk": ()}))
    found = scores_by_owner(plan, dict.fromkeys(rows, model), TOKENIZER, rows, 1)
    assert set(found.headlines) == {"clinic", "school"} and found.uncounted == ("desk",)
    assert "Nothing that the task predicts is in the mock rows of desk." in shown({"base": found})
    nobody = OwnerScores({}, ("clinic", "desk"), CalibrationCounts())
    assert shown({"base": nobody}).startswith("No scores by owner. Nothing that the task predicts")


def test_the_table_tells_the_lowest_score_the_gap_and_who_is_better_off_than_alone() -> None:
    base = OwnerScores({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}, (), CONFIDENT)
    alone = OwnerScores({"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, (), CONFIDENT)
    federated = OwnerScores({"a": 0.45, "b": 0.5, "c": 0.6, "d": 0.7}, (), CONFIDENT)
    lines = {line.split("│")[1].strip(): [*map(str.strip, line.split("│")[2:-1])] for line in drawn(base, alone, federated)}
    assert lines["a"] == ["10.00%", "50.00%", "45.00%"]
    assert lines["lowest"] == ["10.00%", "50.00%", "45.00%"]
    assert lines["gap between highest and lowest"] == ["30.00%", "0.00%", "25.00%"]
    assert lines["share of owners better off than alone"] == ["0%", "", "50%"]  # as good is not better
    assert lines["calibration error"] == ["25.00%"] * 3
    assert lines["perplexity that the model expects"] == ["1.75"] * 3
    assert "better off" not in shown({"base": base, "federated": federated})


def drawn(base: OwnerScores, alone: OwnerScores, federated: OwnerScores) -> list[str]:
    return [line for line in shown({"base": base, "alone": alone, "federated": federated}).splitlines() if "│" in line]
