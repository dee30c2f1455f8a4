"""FedAvg against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from fl_privacy import parameters
from fl_privacy.errors import ModelError
from fl_privacy.strategies.fedavg import FedAvg

WEIGHTS = np.array([0.5, 0.3, 0.2])  # p_k
CURVATURE = np.array([1.0, 3.0, 0.4])  # a_k
OPTIMUM = np.array([-1.0, 2.0, 5.0])  # b_k


def federate(local_steps: int, rate: float, rounds: int) -> float:
    """FedAvg on F_k(w) = a_k / 2 (w - b_k)^2 with T gradient steps at each owner; returns w."""
    strategy = FedAvg()
    state = strategy.init({"w": np.zeros(1, np.float32)})
    for _ in range(rounds):
        start = state.model["w"].astype(np.float64)
        local = np.repeat(start, 3)
        for _ in range(local_steps):
            local = local - rate * CURVATURE * (local - OPTIMUM)
        mean = float((WEIGHTS * (local - start)).sum())
        state = strategy.apply(state, {"w": np.array([mean], np.float32)})
    return float(state.model["w"][0])


def fixed_point(local_steps: int, rate: float) -> float:
    """sum p f b / sum p f with f_k = 1 - (1 - eta a_k)^T: set sum_k p_k (y_k - w) = 0, where y_k - b_k = (1 - f_k)(w - b_k)."""
    f = 1 - (1 - rate * CURVATURE) ** local_steps
    return float((WEIGHTS * f * OPTIMUM).sum() / (WEIGHTS * f).sum())


def test_f3_one_local_step_finds_the_optimum_of_the_pooled_problem() -> None:
    optimum = float((WEIGHTS * CURVATURE * OPTIMUM).sum() / (WEIGHTS * CURVATURE).sum())
    assert federate(1, 0.1, 400) == pytest.approx(optimum, abs=1e-5)
    assert fixed_point(1, 0.1) == pytest.approx(optimum)


def test_f3_more_local_steps_drift_to_another_point() -> None:
    assert federate(10, 0.1, 400) == pytest.approx(fixed_point(10, 0.1), abs=1e-5)
    assert abs(fixed_point(10, 0.1) - fixed_point(1, 0.1)) > 0.1, "a simulator that lands on the optimum here is fake"


def test_f5_an_owner_without_weight_changes_nothing() -> None:
    with_zero = 0.0 * 100.0 + 0.6 * 1.0 + 0.4 * 2.0
    strategy = FedAvg()
    state = strategy.apply(strategy.init({"w": np.ones(1, np.float32)}), {"w": np.array([with_zero], np.float32)})
    assert state.model["w"][0] == pytest.approx(1 + 0.6 + 0.8)


def test_g5_tensors_that_were_not_trained_are_carried_over_bit_for_bit() -> None:
    frozen = np.random.default_rng(0).normal(size=5).astype(np.float32)
    strategy = FedAvg(server_lr=0.5)
    state = strategy.init({"frozen": frozen, "w": np.zeros(2, np.float32)})
    after = strategy.apply(state, {"w": np.array([2.0, 4.0], np.float32)})
    assert after.model["frozen"].tobytes() == frozen.tobytes()
    np.testing.assert_array_equal(after.model["w"], [1.0, 2.0])
    assert (state.round, after.round) == (0, 1)
    np.testing.assert_array_equal(state.model["w"], [0.0, 0.0])


@pytest.mark.parametrize("mean", [{"other": np.zeros(2, np.float32)}, {"w": np.zeros(3, np.float32)}])
def test_a_mean_that_does_not_fit_is_refused(mean: parameters.Parameters) -> None:
    strategy = FedAvg()
    with pytest.raises(ModelError):
        strategy.apply(strategy.init({"w": np.zeros(2, np.float32)}), mean)


def federate_data(owners: list[np.ndarray], local_steps: int = 5, rate: float = 0.2, rounds: int = 10) -> list[float]:
    """FedAvg on mean squared distance to each owner's points, full batches, weights n_k / n; returns w after each round."""
    strategy, path = FedAvg(), []
    state = strategy.init({"w": np.zeros(1, np.float32)})
    size = sum(map(len, owners))
    for _ in range(rounds):
        start, mean = float(state.model["w"][0]), 0.0
        for points in owners:
            local = start
            for _ in range(local_steps):
                local -= rate * float((local - points).mean())
            mean += len(points) / size * (local - start)
        state = strategy.apply(state, {"w": np.array([mean], np.float32)})
        path.append(float(state.model["w"][0]))
    return path


def test_f4_duplicated_data_give_the_same_trajectory() -> None:
    draw = np.random.default_rng(3)
    owners = [draw.normal(center, 1, size) for center, size in ((0, 4), (3, 7), (-2, 12))]
    assert federate_data([np.concatenate([points, points]) for points in owners]) == pytest.approx(federate_data(owners))
    tripled_once = [np.tile(owners[0], 3), *owners[1:]]
    assert federate_data(tripled_once) != pytest.approx(federate_data(owners)), "weights must follow the sizes"
