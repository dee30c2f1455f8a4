"""The benchmark of the secure sum measures what it says, and its word ``exact`` can turn out false."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from fl_privacy.learning.trainable import trainable_specs
from fl_privacy.parameters import Vector, count

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import full_model
import secure_sum
import secure_sum_report
from benchmark_cohort import BenchmarkCohort, bert_base, make_cohort, one_tensor, whole_blocks
from ckks_baseline import CkksBaseline

PROMISED = {"bytes_per_parameter", "encrypt_ratio_to_ckks", "add_ratio_to_ckks", "exact"}


def silent(_: str) -> None:
    """Takes the place of the progress bar."""


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return secure_sum.measure(secure_sum.HEADLINE, whole_blocks(secure_sum.HEADLINE, 1), 1, silent)


def test_the_results_hold_every_promised_key_and_can_be_written(measured: dict[str, Any]) -> None:
    results = secure_sum.summary([measured], [], None)
    assert results.keys() >= PROMISED | {"machine", "versions", "baseline", "cohorts", "sizes", "full", "goals"}
    assert results["exact"] is True
    assert json.loads(json.dumps(results))["cohorts"][0]["owners"] == secure_sum.HEADLINE
    for system in ("milliseconds", "ckks_milliseconds"):
        for samples in measured[system].values():
            assert samples["min"] <= samples["median"] <= samples["max"] and len(samples["values"]) == 1


def test_a_goal_is_met_only_when_the_result_is_within_it(measured: dict[str, Any]) -> None:
    assert secure_sum.goals(measured).keys() == secure_sum.GOALS.keys()
    for far, met in ((1e9, True), (1e-9, False)):
        ckks = {step: {"median": far} for step in measured["ckks_milliseconds"]}
        goals = secure_sum.goals(measured | {"ckks_milliseconds": ckks})
        assert [goals[name]["met"] for name in ("encrypt_ratio_to_ckks", "add_ratio_to_ckks")] == [met, met]


@pytest.mark.parametrize("size", [3, 100])
def test_sums_of_the_smallest_and_the_largest_cohort_are_exact(size: int) -> None:
    assert secure_sum.measure(size, 1000, 1, silent)["exact"] is True


def test_one_coordinate_that_is_off_by_one_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = BenchmarkCohort.update

    def disturbed(cohort: BenchmarkCohort, index: int) -> Vector:
        update = honest(cohort, index)
        if index == 1:
            unit = sum(cohort.order.weights) / cohort.order.weights[index]
            update[500] += unit if update[500] < 0 else -unit
        return update

    monkeypatch.setattr(BenchmarkCohort, "update", disturbed)
    found = secure_sum.measure(3, 1000, 1, silent)
    assert found["exact"] is False


@pytest.mark.parametrize("inexact", ["cohort", "size", "full"])
def test_one_inexact_sum_makes_the_whole_run_inexact(measured: dict[str, Any], inexact: str) -> None:
    parts = {name: measured | {"exact": name != inexact} for name in ("cohort", "size", "full")}
    assert secure_sum.summary([parts["cohort"]], [parts["size"]], parts["full"])["exact"] is False


@pytest.mark.parametrize("change", [lambda sums: sums[:-1], lambda sums: sums + np.float32(1), lambda sums: sums[::-1]])
def test_another_vector_is_not_the_plain_sum(change: Callable[[Vector], Vector], tmp_path: Path) -> None:
    cohort = make_cohort(3, one_tensor(1000), tmp_path)
    sums = np.concatenate(list(cohort.expected())).astype(np.float32)
    assert cohort.is_exact(sums) and not cohort.is_exact(change(sums))


@pytest.mark.parametrize("size", [3, 5, 16, 100])
def test_weighted_updates_are_whole_numbers_that_use_the_whole_range(size: int, tmp_path: Path) -> None:
    cohort = make_cohort(size, one_tensor(2000), tmp_path)
    order, draws = cohort.order, [np.concatenate(list(cohort.grid(index))) for index in range(size)]
    for weight, index in zip(order.weights, range(size), strict=True):
        weighted = cohort.update(index) * np.float32(weight / sum(order.weights))
        assert np.array_equal(weighted, draws[index]) and np.abs(weighted).max() == order.encoding.value_range


def test_the_full_model_is_bert_base_as_the_product_trains_it() -> None:
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig(vocab_size=21128))
    assert bert_base() == trainable_specs(model, "all") and count(bert_base()) == 102_290_312


def test_a_full_run_checks_its_sum_and_tells_every_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(full_model, "in_own_process", full_model._measured)
    told: list[str] = []
    full = full_model.measure_full(one_tensor(30_000), tmp_path, told.append)
    assert full["exact"] is True and len(full["steps"]) == len(told) == full_model.STEPS
    assert full["bytes"]["up"] == (tmp_path / "owner-000.bin").stat().st_size


def test_peak_memory_is_of_the_step_alone() -> None:
    """The allocation of this process, before, is not in it; the step's own is, although it is freed."""
    held = np.ones(200 << 17)
    cost = full_model.in_own_process(np.ones, 64 << 17)
    assert held.nbytes == 200 << 20 and 60 << 20 < cost.peak_bytes - cost.idle_bytes < 100 << 20


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_baseline_adds_what_it_encrypts(symmetric: bool) -> None:
    baseline, updates = CkksBaseline(symmetric), np.random.default_rng(0).normal(size=(3, 5000)).astype(np.float32)
    total = baseline.add([baseline.encrypt(update) for update in updates])
    assert np.allclose(baseline.open([vector.serialize() for vector in total]), updates.sum(axis=0), atol=1e-5)


def test_the_figure_is_drawn(measured: dict[str, Any], tmp_path: Path) -> None:
    results = secure_sum.summary([measured, measured | {"owners": 100}], [measured], None)
    secure_sum_report.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
