"""The comparison of strategies gives all of them the same training, and SCAFFOLD the control variates that owners have."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.learning.models import ModelBundle
from fl_privacy.parameters import Parameters, count, flatten, from_bytes, norm, specs_of, subtract, unflatten
from fl_privacy.plan import TrainingPlan
from fl_privacy.strategies.registry import strategy_of
from tests.builders import text_rows, tiny_bundle, tiny_plan

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import strategies
from accuracy_arms import Cell, Setting
from accuracy_cells import Job
from accuracy_data import QUICK
from accuracy_federation import Controls, Site, federate, in_fixed_point, mean_update, sent, weights

SIZES = (100, 200, 400)
SIX = tuple(TrainingPlan.model_fields["strategy"].annotation.__args__)  # type: ignore[union-attr]
ITS_OWN = {"strategy", "server_lr", "prox_mu"}


def test_every_strategy_of_a_plan_is_compared() -> None:
    assert tuple(strategies.SERVER_RATES) == SIX


@pytest.mark.parametrize("epsilon", strategies.EPSILONS)
def test_strategies_differ_by_their_own_constants_only(epsilon: float | None) -> None:
    common = [
        {field: value for field, value in strategies.recipe_of(strategy, epsilon)._asdict().items() if field not in ITS_OWN}
        for strategy in SIX
    ]
    assert common == common[:1] * len(SIX)
    assert common[0]["optimizer"] == "sgd"


def test_every_strategy_is_run_for_every_epsilon_and_kept_by_itself(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    jobs = [
        Job(cell, Setting(tmp_path, tmp_path, QUICK, "test", strategies.recipe_of(strategy, cell.epsilon)))
        for strategy, cell in strategies.cells_of(SIX, strategies.EPSILONS, 2)
    ]
    assert len({job.key for job in jobs}) == len(jobs) == len(SIX) * 2 * 2
    assert {job.cell for job in jobs} == {Cell("cls", "federated", value, seed) for value in (None, 8.0) for seed in (0, 1)}


def test_the_servers_control_variate_is_the_weighted_mean_of_the_owners() -> None:
    """Which holds for what was sent, and not for what was trained: the two differ by the rounding."""
    plan, generator = a_plan("scaffold", tiny_bundle(), rounds=4), np.random.default_rng(3)
    model = from_bytes(tiny_bundle().weights)
    specs, strategy, controls = specs_of(model), strategy_of(plan), Controls(plan, len(SIZES))
    state, encoding = strategy.init(model), plan_encoding(plan, SIZES)
    for number in range(plan.rounds):
        server = strategy.configure(state)
        updates = [generator.normal(0, 0.02, count(specs)).astype(np.float32) for _ in SIZES]
        fields = in_fixed_point(updates, SIZES, encoding, generator)
        controls.advance(number, server, [sent(*told, encoding) for told in zip(fields, weights(SIZES), strict=True)])
        state = strategy.apply(state, unflatten(mean_update(fields, encoding), specs), 1.0)
        found = flatten(strategy.configure(state), specs)
        mean = sum(weight * own for weight, own in zip(weights(SIZES), controls.own, strict=True))
        np.testing.assert_allclose(mean, found, atol=1e-5 * np.abs(found).max())
        terms = [flatten(controls.term(place, strategy.configure(state)), specs) for place in range(len(SIZES))]
        np.testing.assert_allclose(terms, [found - own for own in controls.own])


def test_scaffold_begins_as_fedavg_and_then_corrects() -> None:
    bundle = tiny_bundle()
    first, later = ({name: trained(name, bundle, rounds) for name in ("fedavg", "scaffold")} for rounds in (1, 2))
    assert distance(first["fedavg"], first["scaffold"]) == 0
    assert distance(later["fedavg"], later["scaffold"]) > 0.01 * distance(later["fedavg"], from_bytes(bundle.weights))


def test_without_data_it_says_so_and_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FL_PRIVACY_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["strategies.py", "--quick", "--json", "out.json"])
    strategies.main()
    assert "skipped: no data folder" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_table_and_figure_show_every_strategy_and_both_counts_of_epsilon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [_cell(strategy, value, seed) for strategy in SIX for value in (None, 8.0) for seed in (0, 1)]
    strategies.show(cells, Console(width=140))
    shown = capsys.readouterr().out
    assert all(strategy in shown for strategy in SIX)
    assert (shown.count("7.999"), shown.count("8.125")) == (len(SIX), len(SIX))
    assert "more than their target by either count: 12 of 12" in " ".join(shown.split())
    strategies.draw(cells, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def a_plan(strategy: str, bundle: ModelBundle, rounds: int) -> TrainingPlan:
    """SGD of the tiny model, by a strategy."""
    fields = {"optimizer": "sgd", "learning_rate": 0.5, "update_range": 1.0, "update_bits": 12, "schedule": "constant"}
    return tiny_plan(bundle, strategy=strategy, rounds=rounds, **fields)


def trained(strategy: str, bundle: ModelBundle, rounds: int) -> Parameters:
    """What owners with different rows make of the tiny model, without privacy."""
    sites = [Site(text_rows(size, seed=size), private=False) for size in SIZES]
    torch.manual_seed(0)
    return federate(a_plan(strategy, bundle, rounds), from_bytes(bundle.weights), bundle.vocabulary, sites, seed=1)


def distance(left: Parameters, right: Parameters) -> float:
    return norm(subtract(left, right))


def _cell(strategy: str, epsilon: float | None, seed: int) -> dict[str, Any]:
    counts = {"epsilon_ledger": epsilon and 7.999, "epsilon_recounted": epsilon and 8.125}
    where = {"task": "cls", "arm": "federated", "strategy": strategy, "epsilon": epsilon, "seed": seed}
    return where | counts | {"headline": 0.5 + 0.1 * seed}
