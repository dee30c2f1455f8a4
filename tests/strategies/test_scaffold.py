"""SCAFFOLD against its own identities: quadratics, exact arithmetic but for float32. Owners' variates as a guard makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_privacy.errors import ModelError
from fl_privacy.guard.control_variates import next_control
from fl_privacy.strategies.base import ServerState
from fl_privacy.strategies.fedavg import FedAvg
from fl_privacy.strategies.scaffold import CONTROL, Scaffold
from tests.strategies.quadratics import CENTRE, CURVATURE, OPTIMUM, SIZES, gradient, weighted_mean

EVERYBODY = tuple(range(5))
Gradient = Callable[[int, float], float]


@dataclass
class Run:
    """SCAFFOLD over the five owners. ``rates`` are a round's; ``sign`` -1 adds c_k where it is to be taken off."""

    rates: Sequence[float] = (0.1,) * 10
    damping: float = 1.0
    sign: float = 1.0
    gradient: Gradient = gradient
    own: dict[int, np.ndarray] = field(default_factory=lambda: {owner: np.zeros(1, np.float32) for owner in EVERYBODY})

    def __post_init__(self) -> None:
        self.strategy = Scaffold(lambda round_index: sum(self.rates), self.damping)
        self.state = self.strategy.init({"w": np.zeros(1, np.float32)})

    @property
    def place(self) -> float:
        return float(self.state.model["w"][0])

    @property
    def server(self) -> float:
        return float(self.strategy.configure(self.state).get("w", np.zeros(1))[0])

    @property
    def mean_of_own(self) -> float:
        return float(sum(SIZES[owner] / SIZES.sum() * self.own[owner][0] for owner in EVERYBODY))

    def round(self, cohort: Sequence[int] = EVERYBODY) -> None:
        updates = {}
        for owner in cohort:
            place = self.place
            for rate in self.rates:
                correction = self.server - self.sign * float(self.own[owner][0])
                place -= rate * (self.gradient(owner, place) + correction)
            updates[owner] = place - self.place
        server = self.strategy.configure(self.state).get("w")
        for owner, update in updates.items():
            sent = np.array([update], np.float32)
            self.own[owner] = next_control(self.own[owner], server, sent, sum(self.rates), self.damping)
        self.state = self.strategy.apply(self.state, *weighted_mean(updates))


def fedavg_round(place: float, rates: Sequence[float], cohort: Sequence[int], gradient: Gradient = gradient) -> float:
    updates = {}
    for owner in cohort:
        local = place
        for rate in rates:
            local -= rate * gradient(owner, local)
        updates[owner] = local - place
    mean, _ = weighted_mean(updates)
    return float(FedAvg().apply(ServerState(0, {"w": np.array([place], np.float32)}), mean).model["w"][0])


def test_sc1_identical_data_give_fedavg() -> None:
    """All c_k are equal then, so c - c_k = 0."""

    def same(owner: int, place: float) -> float:
        return gradient(0, place)

    run, place = Run(gradient=same), 0.0
    for _ in range(8):
        run.round()
        place = fedavg_round(place, run.rates, EVERYBODY, same)
        assert run.place == pytest.approx(place, rel=1e-5)


def test_sc2_one_local_step_of_everybody_gives_fedavg_whatever_the_data() -> None:
    """sum_k p_k (c - c_k) = 0: with one step the corrections cancel in the mean."""
    run, place = Run(rates=(0.1,)), 0.0
    for _ in range(20):
        run.round()
        place = fedavg_round(place, run.rates, EVERYBODY)
        assert run.place == pytest.approx(place, rel=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    cohorts=st.lists(st.sets(st.sampled_from(EVERYBODY), min_size=1), min_size=1, max_size=12),
    damping=st.floats(0.05, 1.0),
    rates=st.lists(st.floats(0.001, 0.2), min_size=1, max_size=6),
)
def test_sc3_the_servers_variate_stays_the_weighted_mean_of_the_owners(
    cohorts: list[set[int]], damping: float, rates: list[float]
) -> None:
    run = Run(rates=rates, damping=damping)
    for cohort in cohorts:
        run.round(sorted(cohort))
        largest = max(abs(float(own[0])) for own in run.own.values())
        assert run.server == pytest.approx(run.mean_of_own, abs=1e-5 * max(1.0, largest))


@pytest.mark.parametrize("cohort", [EVERYBODY, (0, 3), (1, 2, 4)])
def test_sc4_the_variate_from_the_mean_update_is_the_one_from_the_owners_differences(cohort: Sequence[int]) -> None:
    run = Run(damping=0.5)
    run.round()
    before, server = dict(run.own), run.server
    run.round(cohort)
    differences = sum(SIZES[owner] / SIZES.sum() * float((run.own[owner] - before[owner])[0]) for owner in cohort)
    assert run.server == pytest.approx(server + differences, rel=1e-5)


def test_without_damping_an_owners_variate_is_the_mean_of_the_rounds_gradients_weighted_by_their_rates() -> None:
    """Option II, with a learning rate that warms up and decays: sum of rates, not steps times the first rate."""
    rates, place = (0.05, 0.1, 0.08, 0.02), 0.0
    run = Run(rates=rates)
    run.round()
    seen = []
    for rate in rates:
        seen.append(gradient(1, place))
        place -= rate * seen[-1]
    assert run.own[1][0] == pytest.approx(np.dot(rates, seen) / sum(rates), rel=1e-5)


@pytest.mark.parametrize("damping", [1.0, 0.5])
@pytest.mark.parametrize("size", [5, 3, 2])
def test_sc5_it_converges_to_the_optimum_where_fedavg_does_not(size: int, damping: float) -> None:
    run, draw, place = Run(damping=damping), np.random.default_rng(1), 0.0
    for _ in range(400):
        cohort = sorted(int(owner) for owner in draw.choice(5, size, replace=False))
        run.round(cohort)
        place = fedavg_round(place, run.rates, EVERYBODY)
    assert run.place == pytest.approx(OPTIMUM, abs=1e-4)
    assert abs(place - OPTIMUM) > 0.1


def test_sc6_at_the_end_an_owners_variate_is_its_gradient_there() -> None:
    run = Run()
    for _ in range(400):
        run.round()
    assert [float(run.own[owner][0]) for owner in EVERYBODY] == pytest.approx(list(CURVATURE * (OPTIMUM - CENTRE)), abs=1e-3)
    assert run.server == pytest.approx(0, abs=1e-4)


def test_sc6_the_other_sign_diverges() -> None:
    run = Run(sign=-1.0)
    for _ in range(60):
        run.round()
    assert abs(run.place) > 1e3 or max(abs(float(own[0])) for own in run.own.values()) > 1e3


def test_owners_get_nothing_while_the_variate_is_zero() -> None:
    run = Run()
    assert run.strategy.configure(run.state) == {}
    run.round()
    assert run.strategy.configure(run.state)["w"].shape == (1,)


def test_started_anew_it_keeps_the_model_and_forgets_the_variate() -> None:
    run = Run()
    run.round()
    anew = Scaffold.anew(run.state)
    assert (anew.model, anew.round, dict(anew.slots), anew.since) == (run.state.model, 1, {}, 1)
    assert run.state.slots[CONTROL] and run.state.since == 0


def test_a_mean_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError):
        Run().strategy.apply(Run().state, {"v": np.zeros(1, np.float32)}, 1.0)
