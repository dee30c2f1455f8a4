"""The benchmark of efficient training counts what it says, runs rounds as the product does, and can miss what was published."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_privacy.learning.local_start import own_specs, sent_specs
from fl_privacy.learning.models import ModelBundle, with_adapters
from fl_privacy.learning.pretraining import SIZES
from fl_privacy.messages import Row
from fl_privacy.parameters import count, from_bytes
from fl_privacy.plan import TrainingPlan

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import efficient_bert
import efficient_cost
import efficient_report as report
import full_model
from accuracy_arms import Cell
from accuracy_data import Owners
from accuracy_federation import Site, federate
from efficient_arms import ARMS, cells_of, recipe_of
from efficient_data import rows_by_owner
from efficient_methods import METHODS
from efficient_rounds import Federation

SMALL = efficient_cost.SMALL
LABELS = efficient_cost.LABELS


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return efficient_cost.bundle_of(SMALL, "classification")


@pytest.fixture(scope="module")
def language_model() -> ModelBundle:
    return efficient_cost.bundle_of(SMALL, "mlm")


def bert_base_plan(name: str, bundle: ModelBundle) -> TrainingPlan:
    """The plan of a method at full size, without making its weights."""
    sizes = SIZES["base"] | {"vocab_size": 21128, "max_position_embeddings": 512}
    spec = bundle.spec.model_copy(update={"architecture": json.dumps(bundle.spec.config | sizes)})
    return efficient_cost.plan_of(METHODS[name], efficient_cost.BERT_BASE, spec)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("full", {0: 1}),
        ("fedbt-1", {0: 5, 5: 3, 8: 1, 9: 1}),
        ("fedbt-2", {0: 2, 1: 2, 2: 2, 3: 2, 4: 1, 5: 1}),
        ("progfed", {0: 3, 3: 3, 6: 3, 9: 15}),
    ],
)
def test_rounds_that_are_alike_are_measured_once_and_weighted_by_their_number(
    name: str, kinds: dict[int, int], bundle: ModelBundle, language_model: ModelBundle
) -> None:
    model = language_model if METHODS[name].task == "mlm" else bundle
    plan = efficient_cost.plan_of(METHODS[name], SMALL, model.spec)
    assert efficient_cost.kinds_of(plan) == Counter(kinds)
    assert len({efficient_cost.kind_of(SMALL, plan, index) for index in kinds}) == len(kinds)


def test_what_travels_at_full_size_has_the_published_number_of_parameters(
    bundle: ModelBundle, language_model: ModelBundle
) -> None:
    """FB8: a layer and the language model's head; 3.1 layers of 28.35 MB and pooler and classifier."""
    stage_1, stage_2 = bert_base_plan("fedbt-1", language_model), bert_base_plan("fedbt-2", bundle)
    assert {count(sent_specs(stage_1, index)) for index in range(10)} == {7_701_128}
    head = 768 * 768 + 768 + 768 * 10 + 10
    assert [(count(sent_specs(stage_2, index)) - head) / 7_087_872 for index in range(10)] == [1, 2, 3, 4, 5, 6, 1, 2, 3, 4]
    split = bert_base_plan("split", bundle)
    assert count(sent_specs(split, 0)) == 4 * 7_087_872


def test_flops_are_those_of_all_matrix_products_forward_and_twice_back(
    bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficient_cost, "in_own_process", lambda step, *told, method: full_model._measured(step, *told))
    plan = efficient_cost.plan_of(METHODS["full"], SMALL, bundle.spec)
    cost = efficient_cost.compute_cost(bundle, plan, 0)
    hidden, inner, tokens = 48, 96, 16
    layer = 2 * tokens * (4 * hidden**2 + 2 * hidden * inner) + 4 * tokens**2 * hidden
    assert cost["flops"] == 3 * (12 * layer + 2 * hidden**2 + 2 * hidden * len(LABELS))
    assert cost["plain_seconds"] > 0 and cost["private_seconds"] > 0 and cost["private_bytes"] >= 0


@pytest.mark.parametrize("coordinates", [1, 16_376, 16_377, 40_000])
def test_the_size_by_blocks_is_that_of_a_file_that_was_really_encrypted(
    coordinates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = efficient_cost.encrypted_bytes(coordinates)
    monkeypatch.setattr(efficient_cost, "MEASURED", 0)
    assert efficient_cost.encrypted_bytes(coordinates) == measured


def test_a_random_tenth_makes_the_way_up_shorter_and_leaves_the_way_down(bundle: ModelBundle) -> None:
    full, tenth = (
        efficient_cost.wire_cost(bundle, efficient_cost.plan_of(METHODS[name], SMALL, bundle.spec), 0)
        for name in ("full", "full-random")
    )
    assert tenth["up_float32"] == pytest.approx(0.1 * full["up_float32"], rel=1e-3)
    assert (tenth["down_float32"], tenth["down_int8"]) == (full["down_float32"], full["down_int8"])


def test_costs_are_means_over_rounds_but_memory_is_the_largest() -> None:
    kinds = [({"flops": 1.0, "private_bytes": 5.0}, 3), ({"flops": 5.0, "private_bytes": 2.0}, 1)]
    assert efficient_cost.mean_of(kinds) == {"flops": 2.0, "private_bytes": 5.0}


def test_rounds_are_bit_for_bit_those_of_the_accuracy_benchmark_where_layers_are_fixed(
    bundle: ModelBundle,
) -> None:
    plan, sites = tiny_run(bundle, trainable="layers:11-11")
    federation = Federation(plan, bundle, sites, seed=3, exact=False)
    first = with_adapters(plan, from_bytes(bundle.weights))
    torch.manual_seed(0)  # for dropout
    expected = federate(plan, first, bundle.vocabulary, list(sites.values()), 3)
    torch.manual_seed(0)
    found = federation.train().model
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert any(not np.array_equal(first[name], expected[name]) for name in expected)


def test_own_layers_stay_with_their_owners_and_are_carried(bundle: ModelBundle) -> None:
    plan, sites = tiny_run(bundle, trainable="layers:10-11", local_layers="11-11")
    outcome = Federation(plan, bundle, sites, seed=3, exact=False).train()
    first, names = from_bytes(bundle.weights), {spec.name for spec in own_specs(plan)}
    assert all(set(own) == names for own in outcome.own.values())
    assert all(np.array_equal(outcome.model[name], first[name]) for name in names)
    heads = {own["classifier.weight"].tobytes() for own in outcome.own.values()}
    assert len(heads) == len(sites) and first["classifier.weight"].tobytes() not in heads


def test_what_compression_left_out_comes_later(bundle: ModelBundle) -> None:
    plan, sites = tiny_run(bundle, trainable="head", sent="random", sent_share=0.5, error_feedback=True)
    moved = Federation(plan, bundle, sites, seed=3, exact=False).train().model
    first = from_bytes(bundle.weights)
    changed = [np.count_nonzero(moved[spec.name] != first[spec.name]) for spec in sent_specs(plan, 0)]
    assert count(sent_specs(plan, 0)) * 0.6 < sum(changed) < count(sent_specs(plan, 0)), "three quarters after two halves"


def test_every_test_row_has_one_owner_in_proportion_to_its_class() -> None:
    owners: Owners = {"a": [Row(text="x", label="good")] * 3 + [Row(text="x", label="bad")], "b": [Row(text="x", label="good")]}
    rows = [Row(text=str(index), label="good" if index < 8 else "bad") for index in range(12)]
    dealt = rows_by_owner(rows, owners)
    assert sorted((row.text for own in dealt.values() for row in own), key=int) == [row.text for row in rows]
    assert [Counter(row.label for row in own) for own in dealt.values()] == [{"good": 6, "bad": 4}, {"good": 2}]


def test_every_arm_has_a_recipe_whose_plan_is_valid_and_language_models_are_run_without_dp_only(bundle: ModelBundle) -> None:
    cells = list(cells_of(list(ARMS), (None, 3.0), 1))
    assert len(cells) == len(set(cells))
    assert {cell.arm for cell in cells} == set(ARMS) and {cell.epsilon for cell in cells if cell.task == "mlm"} == {None}
    assert all(recipe_of(cell).strategy == "fedadam" for cell in cells if cell.arm == "lora" and cell.epsilon)
    assert recipe_of(Cell("cls", "lora", None, 0)).learning_rate == ARMS["lora"].rate


COST = {"flops": 1.0, "up_float32": 4.0, "down_float32": 4.0, "up_int8": 1.0, "down_int8": 1.0, "up_encrypted": 2.0}


def scaled(factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in COST.items()}


def test_a_published_share_is_met_or_differently_counted_or_not_met() -> None:
    costs = {"full": scaled(1), "fedbt-2": scaled(0.3), "progfed": scaled(0.3), "split": scaled(0.5)}
    assert [share.verdict for share in report.shares(costs)] == ["met", "differently counted", "met", "met", "not met"]


def test_the_best_candidate_is_the_most_accurate_with_enough_less_traffic_and_goals_can_be_missed() -> None:
    costs = {"full": scaled(1), "lora": scaled(0.01), "fedbt-2": scaled(0.2)}
    cells = [cell("plain", 0.8), cell("full", 0.81), cell("lora", 0.7), cell("fedbt-2", 0.79), cell("centralised", 0.9)]
    rows = report.headline(costs, cells)
    assert [row.title for row in rows[2:]] == [f"{ARMS[name].title}, encrypted" for name in ("fedbt-2", "lora", "full")]
    less, behind = report.goals(rows)
    assert (less["met"], round(less["found"], 2)) == (True, round(8 / 0.6, 2))
    assert (behind["met"], round(behind["found"], 2)) == (False, 1.0)


def test_the_figure_and_the_json_are_made_of_costs_and_cells_alone(tmp_path: Path) -> None:
    costs, cells = {"full": scaled(1), "lora": scaled(0.01)}, [cell("plain", 0.8), cell("lora", 0.7), cell("centralised", 0.9)]
    report.draw(costs, cells, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(json.dumps(report.as_json(costs, cells)))
    assert told.keys() == {"cost", "published", "cells", "headline", "goals"}


def test_without_data_it_says_so_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--part", "accuracy", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["efficient_bert.py", *asked])
    efficient_bert.main()
    assert "skipped" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def cell(arm: str, value: float) -> dict[str, Any]:
    return {"task": "cls", "arm": arm, "epsilon": None, "seed": 0, "headline": value}


def tiny_run(bundle: ModelBundle, **fields: Any) -> tuple[TrainingPlan, dict[str, Site]]:
    """Two rounds of three owners with a class of their own each."""
    owners = ("north", "east", "south")
    plan = TrainingPlan.create(
        name="efficient",
        purpose="Run rounds as the product does.",
        task="classification",
        model=bundle.spec,
        owners=owners,
        rounds=2,
        local_steps=1,
        batch_size=4,
        max_length=16,
        **fields,
    )
    known = bundle.vocabulary.decode().split("\n")[5:]
    rows = {
        owner: [Row(text="".join(known[place : place + 8]), label=LABELS[place])] * 10 for place, owner in enumerate(owners)
    }
    return plan, {owner: Site(some, private=False) for owner, some in rows.items()}
