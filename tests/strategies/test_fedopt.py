"""Server optimizers against FedAvg and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan
from fl_privacy.strategies.base import ServerState, Strategy
from fl_privacy.strategies.fedavg import FedAvg
from fl_privacy.strategies.fedopt import MOMENTUM, SECOND_MOMENT, FedAdam, FedAvgM, FedYogi
from fl_privacy.strategies.registry import strategy_of
from fl_privacy.strategies.scaffold import Scaffold
from tests.test_plan import plan

DRAW = np.random.default_rng(5)
MODEL = {"w": DRAW.normal(size=7).astype(np.float32), "frozen": DRAW.normal(size=3).astype(np.float32)}
MEANS = [{"w": (DRAW.normal(size=7) * 0.01).astype(np.float32)} for _ in range(5)]
ALL: list[Strategy] = [FedAvg(), FedAvgM(), FedAdam(), FedYogi(), Scaffold(lambda round_index: 0.5)]


def after(strategy: Strategy, means: list[Parameters] = MEANS) -> ServerState:
    state = strategy.init(MODEL)
    for mean in means:
        state = strategy.apply(state, mean, 1.0)
    return state


@pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: type(strategy).__name__)
def test_every_strategy_moves_the_trained_tensors_only_and_is_a_function_of_its_state(strategy: Strategy) -> None:
    state = after(strategy)
    assert state.round == len(MEANS) and state.model.keys() == MODEL.keys()
    assert state.model["frozen"] is MODEL["frozen"] and not np.array_equal(state.model["w"], MODEL["w"])
    assert all(array.dtype == np.float32 for slot in (state.model, *state.slots.values()) for array in slot.values())
    halfway = after(strategy, MEANS[:2])
    kept = ServerState(halfway.round, dict(halfway.model), dict(halfway.slots), halfway.since)
    for mean in MEANS[2:]:
        kept = strategy.apply(kept, mean, 1.0)
    assert np.array_equal(kept.model["w"], state.model["w"])


@pytest.mark.parametrize("strategy", ALL, ids=lambda strategy: type(strategy).__name__)
def test_no_strategy_changes_its_arguments(strategy: Strategy) -> None:
    first = {name: array.copy() for name, array in MODEL.items()}
    state = after(strategy, MEANS[:1])
    slots = {name: {key: array.copy() for key, array in slot.items()} for name, slot in state.slots.items()}
    strategy.apply(state, MEANS[1], 1.0)
    assert all(np.array_equal(MODEL[name], array) for name, array in first.items())
    assert all(np.array_equal(state.slots[name]["w"], slot["w"]) for name, slot in slots.items())


WITH_SLOTS = [strategy for strategy in ALL if not isinstance(strategy, FedAvg)]


@pytest.mark.parametrize("strategy", WITH_SLOTS, ids=lambda strategy: type(strategy).__name__)
def test_a_tensor_that_a_round_does_not_train_keeps_its_slots_to_the_bit_and_goes_on_as_if_no_round_had_passed(
    strategy: Strategy,
) -> None:
    """Rounds that train other layers are no rounds without gradient: a moment does not decay, nothing is started from zero."""
    model = {"w": MODEL["w"], "v": MODEL["w"] + 1}
    mean = [{"w": MEANS[0]["w"]}, {"v": MEANS[1]["w"]}, {"v": MEANS[2]["w"]}, {"w": MEANS[3]["w"]}]
    state = strategy.apply(strategy.init(model), mean[0], 1.0)
    before = {slot: named["w"] for slot, named in state.slots.items()}
    assert before and all("v" not in named for named in state.slots.values())
    for update in mean[1:3]:
        state = strategy.apply(state, update, 1.0)
        assert all(state.slots[slot]["w"] is array for slot, array in before.items())
    alone = strategy.apply(strategy.apply(strategy.init({"w": model["w"]}), mean[0], 1.0), mean[3], 1.0)
    state = strategy.apply(state, mean[3], 1.0)
    assert np.array_equal(state.model["w"], alone.model["w"])
    assert all(np.array_equal(state.slots[slot]["w"], alone.slots[slot]["w"]) for slot in before)


def test_o1_without_momentum_fedavgm_is_fedavg_to_the_bit() -> None:
    assert np.array_equal(after(FedAvgM(beta=0.0)).model["w"], after(FedAvg()).model["w"])


def test_o2_fedadam_with_a_large_tau_and_no_momentum_is_fedavg() -> None:
    """m = D; v is b2 tau^2 after the first round, so that the step is divided by (1 + sqrt(b2)) tau, with b2 = 0 by tau."""
    tau = 1e4
    moved = after(FedAdam(beta1=0.0, beta2=0.99, tau=tau, server_lr=(1 + 0.99**0.5) * tau), MEANS[:1]).model["w"]
    assert moved == pytest.approx(after(FedAvg(), MEANS[:1]).model["w"], rel=1e-6)
    without_v = FedAdam(beta1=0.0, beta2=0.0, tau=tau, server_lr=tau)
    assert after(without_v).model["w"] == pytest.approx(after(FedAvg()).model["w"], rel=1e-5)


def test_o3_without_any_memory_a_step_of_fedadam_is_the_sign_of_the_mean() -> None:
    step = after(FedAdam(beta1=0.0, beta2=0.0, tau=1e-12, server_lr=0.25), MEANS[:1]).model["w"] - MODEL["w"]
    assert step == pytest.approx(0.25 * np.sign(MEANS[0]["w"]), rel=1e-5)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8), st.floats(0.5, 0.999), st.floats(1e-3, 1))
def test_o4_yogis_second_moment_stays_positive_and_moves_by_exactly_the_square(
    means: list[float], beta2: float, tau: float
) -> None:
    strategy, before = FedYogi(beta2=beta2, tau=tau), tau**2
    state = strategy.init({"w": np.zeros(1, np.float32)})
    for mean in means:
        state = strategy.apply(state, {"w": np.array([mean], np.float32)}, 1.0)
        now = float(state.slots[SECOND_MOMENT]["w"][0])
        assert now > 0
        if abs(before - mean**2) > 1e-6:
            wanted = before - (1 - beta2) * mean**2 * np.sign(before - mean**2)
            assert now == pytest.approx(wanted, rel=1e-5, abs=1e-7)
        before = now


def test_o5_after_the_updates_have_ended_momentum_carries_on_by_a_geometric_series() -> None:
    strategy, beta = FedAvgM(beta=0.9, server_lr=0.5), 0.9
    state = after(strategy)
    place, momentum = state.model["w"].copy(), state.slots[MOMENTUM]["w"].copy()
    for _ in range(400):
        state = strategy.apply(state, {"w": np.zeros(7, np.float32)}, 1.0)
    assert state.model["w"] - place == pytest.approx(0.5 * beta / (1 - beta) * momentum, rel=1e-3)


@pytest.mark.parametrize("strategy", [FedAdam(), FedYogi()], ids=["FedAdam", "FedYogi"])
def test_o5_after_the_updates_have_ended_adaptive_steps_converge(strategy: Strategy) -> None:
    state, path = after(strategy), []
    for _ in range(300):
        state = strategy.apply(state, {"w": np.zeros(7, np.float32)}, 1.0)
        path.append(state.model["w"])
    assert np.abs(path[-1] - path[-100]).max() <= 1e-6


def test_the_first_moments_are_the_papers() -> None:
    """m = (1 - b1) D, v = b2 tau^2 + (1 - b2) D^2, no bias correction."""
    state = after(FedAdam(0.9, 0.99, 1e-3), MEANS[:1])
    mean = MEANS[0]["w"].astype(np.float64)
    assert state.slots[MOMENTUM]["w"] == pytest.approx(0.1 * mean, rel=1e-5)
    assert state.slots[SECOND_MOMENT]["w"] == pytest.approx(0.99e-6 + 0.01 * mean**2, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, FedAvg(1.0)),
        ({"server_lr": 0.5}, FedAvg(0.5)),
        ({"strategy": "fedprox"}, FedAvg(1.0)),
        ({"strategy": "fedavgm"}, FedAvgM(0.9, 1.0)),
        ({"strategy": "fedadam"}, FedAdam(0.9, 0.99, 1e-3, 0.01)),
        ({"strategy": "fedyogi", "server_tau": 0.1, "server_momentum": 0.0}, FedYogi(0.0, 0.99, 0.1, 0.01)),
    ],
)
def test_a_plan_names_its_strategy(changes: dict[str, object], wanted: Strategy) -> None:
    assert strategy_of(plan(**changes)) == wanted


def test_scaffolds_sum_of_rates_follows_the_plans_schedule() -> None:
    made: TrainingPlan = plan(strategy="scaffold", optimizer="sgd", rounds=2, local_steps=2, warmup_steps=2, learning_rate=0.4)
    strategy = strategy_of(made)
    assert isinstance(strategy, Scaffold)
    assert [strategy.rate_sum(0), strategy.rate_sum(1)] == pytest.approx([0.2 + 0.4, 0.4 + 0.2])
