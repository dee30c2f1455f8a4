"""The card tells the run's numbers, and promises nothing where it knows of no run."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.serving.export_format import CARD, read_export
from fl_privacy.serving.model_card import model_card
from fl_privacy.serving.sources import read_source
from tests.serving.conftest import Exported
from tests.serving.extra import need_extra
from tests.serving.runs import finished_run

need_extra()


@pytest.fixture
def card(exported_run: tuple[TrainingPlan, Path, Path]) -> str:
    return (exported_run[2] / CARD).read_text(encoding="utf-8")


def test_a_card_has_the_ledger_of_every_owner_by_its_last_receipt(card: str) -> None:
    for owner in ("bank", "clinic", "school"):
        assert f"| {owner} | 3.50 | 8.50 | 1e-05 | `{'ab' * 32}` |" in card


def test_a_card_has_the_score_before_and_after_and_the_rounds(card: str) -> None:
    assert "| before the run | 31.25% |" in card and "| this model | 42.00% |" in card
    assert "2 opened, 1 skipped, 3 planned" in card


def test_a_card_promises_the_plans_epsilon_and_says_what_it_does_not_cover(
    card: str, exported_run: tuple[TrainingPlan, Path, Path]
) -> None:
    plan = exported_run[0]
    assert f"epsilon {plan.target_epsilon:g} and delta {plan.delta:g}" in card and f"accountant: {plan.accountant}" in card
    assert RunFolder(exported_run[1]).read_history().federation_claim in card
    assert "Not covered by epsilon:" in card and plan.digest() in card


def test_a_card_has_the_measured_differences(card: str, exported_run: tuple[TrainingPlan, Path, Path]) -> None:
    export = read_export(exported_run[2])
    assert export.int8 is not None and export.int8.share is not None
    assert f"by at most {export.largest_difference:.2g}" in card
    assert f"{export.int8.share:.2%} of {export.int8.predictions} predictions" in card


def test_a_card_of_a_model_without_its_run_promises_nothing(exported: Exported) -> None:
    card = (exported("bert", "classification") / CARD).read_text(encoding="utf-8")
    assert "without its run" in card
    assert "epsilon" not in card and "differential" not in card


def test_a_purpose_cannot_forge_parts_of_a_card(tmp_path: Path, exported: Exported) -> None:
    finished_run(tmp_path, purpose=None)
    run = read_source(tmp_path).run
    assert run is not None
    plan = run.plan.model_copy(update={"purpose": "good\n## Privacy\n| bank | 0.01 | <script> \u202e"})
    told = model_card(read_export(exported("bert", "mlm")), plan.model, type(run)(**(vars(run) | {"plan": plan})))
    assert told.count("\n## Privacy") == 1
    assert "<script>" not in told and "\u202e" not in told
