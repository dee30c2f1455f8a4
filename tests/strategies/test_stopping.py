"""When a run ends, on scripted scores and updates; the predicted noise against a simulation of the optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fl_privacy.strategies.stopping import Stopping, best_model, noise_floor, relative_update
from tests.test_plan import plan

NAN = float("nan")


@pytest.mark.parametrize(
    ("scores", "ends"),
    [
        ([0.1], False),
        ([0.1, 0.2, 0.2, 0.2], True),  # a tie is no gain
        ([0.1, 0.2, 0.2, 0.21], False),
        ([0.5, 0.4, 0.3], True),  # nothing was better than the first model
        ([0.5, 0.4], False),
        ([0.1, NAN, NAN], True),
        ([NAN, 0.1, 0.0], False),
        ([0.1, 0.3, 0.2, 0.4, 0.1], False),
        ([0.1, 0.3, 0.2, 0.4, 0.1, 0.4], True),
    ],
)
def test_f6_a_run_ends_after_so_many_rounds_without_a_better_score(scores: list[float], ends: bool) -> None:
    assert (Stopping(50, patience=2).verdict(len(scores) - 1, scores, []) is not None) == ends
    assert Stopping(50).verdict(len(scores) - 1, scores, []) is None


def test_a_run_ends_when_all_rounds_are_done() -> None:
    assert Stopping(50).verdict(49, [0.1], []) is None
    assert Stopping(50).verdict(50, [0.1], []) == "all 50 rounds are done"


def test_a_run_ends_when_a_round_hardly_moved_the_model() -> None:
    rule = Stopping(50, minimal_update=1e-4)
    assert rule.verdict(2, [], [1e-5, 2e-4]) is None
    assert "0.0001" in (rule.verdict(3, [], [1.0, 1e-4]) or "")
    assert Stopping(50).verdict(3, [], [0.0]) is None


@pytest.mark.parametrize(
    ("scores", "best"), [([0.1], 0), ([0.1, 0.3, 0.3], 1), ([NAN, 0.1, NAN], 1), ([NAN, NAN], 0), ([-2.0, -1.0, -3.0], 1)]
)
def test_the_best_model_is_the_first_with_the_best_score(scores: list[float], best: int) -> None:
    assert best_model(scores) == best


def test_the_relative_update_is_over_trained_tensors_and_never_over_less_than_one() -> None:
    frozen = np.full(9, 100.0, np.float32)
    before = {"w": np.array([3.0, 4.0], np.float32), "frozen": frozen}
    after = {"w": np.array([3.0, 4.5], np.float32), "frozen": frozen}
    assert relative_update(before, after, ["w"]) == pytest.approx(0.1)
    small = {"w": np.array([0.3, 0.4], np.float32)}
    assert relative_update(small, {"w": np.array([0.3, 0.9], np.float32)}, ["w"]) == pytest.approx(0.5)


def test_the_plans_rules_are_taken_over() -> None:
    assert Stopping.of(plan(rounds=7, patience=3, minimal_update=0.01)) == Stopping(7, 3, 0.01)


@pytest.mark.parametrize("steps", [1, 3, 12])
def test_the_noise_floor_is_the_norm_of_a_mean_update_of_pure_noise(steps: int) -> None:
    made = plan(
        optimizer="sgd", rounds=3, local_steps=steps, learning_rate=0.2, weight_decay=0.0, batch_size=4, max_grad_norm=0.5
    )
    sigmas, sizes, coordinates = {"a": 1.0, "b": 2.0, "c": 0.5}, {"a": 100, "b": 50, "c": 10}, 60_000
    mean = np.zeros(coordinates)
    for owner, sigma in sigmas.items():
        mean += sizes[owner] / 160 * noise_update(made, 1, coordinates, sigma)
    told = noise_floor(made, 1, coordinates, sigmas, sizes)
    assert told == pytest.approx(float(np.linalg.norm(mean)), rel=0.01)


def test_the_floor_is_predicted_for_plain_sgd_only() -> None:
    told = ({"a": 1.0, "b": 2.0, "c": 0.5}, {"a": 100, "b": 50, "c": 10})
    assert noise_floor(plan(optimizer="sgd"), 0, 50, *told) is not None
    assert noise_floor(plan(optimizer="adamw"), 0, 50, *told) is None
    assert noise_floor(plan(optimizer="sgd", strategy="fedprox", prox_mu=0.1), 0, 50, *told) is None


def noise_update(made: Any, round_index: int, coordinates: int, sigma: float) -> np.ndarray:
    tensor = torch.nn.Parameter(torch.zeros(coordinates))
    optimizer = torch.optim.SGD([tensor], lr=1.0)
    generator = torch.Generator().manual_seed(int(sigma * 10))
    for rate in made.rates(round_index):
        optimizer.param_groups[0]["lr"] = rate
        tensor.grad = torch.randn(coordinates, generator=generator) * sigma * made.max_grad_norm / made.batch_size
        optimizer.step()
    return tensor.detach().numpy().astype(np.float64)
