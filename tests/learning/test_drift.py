"""What FedProx and SCAFFOLD add to an owner's steps: closed forms on quadratics, identities on a model, after the clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fl_privacy.errors import ModelError, PlanError
from fl_privacy.learning.drift import correct_drift
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.trainable import specs_for
from fl_privacy.parameters import Parameters, norm, scale, subtract
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.dp_sgd import DPSettings, train_privately
from tests.tiny_model import ROWS, VOCABULARY, NoNoise, tiny_bundle, tiny_plan, weights_of

WEIGHTS = np.array([0.5, 0.3, 0.2])  # p_k
CURVATURE = np.array([1.0, 3.0, 0.4])  # a_k
CENTRE = np.array([-1.0, 2.0, 5.0])  # b_k
BUNDLE = tiny_bundle()
Numbers = NDArray[np.float64]


def local(first: float, plan: TrainingPlan, steps: int, rate: float) -> Numbers:
    """Each owner's result on F_k(y) = a_k / 2 (y - b_k)^2, by torch's own SGD with the plan's term."""
    tensor = torch.nn.Parameter(torch.full((3,), first, dtype=torch.float64))
    optimizer = torch.optim.SGD([tensor], lr=rate)
    correct_drift(optimizer, plan, {"w": tensor}, None)
    for _ in range(steps):
        tensor.grad = torch.from_numpy(CURVATURE) * (tensor.detach() - torch.from_numpy(CENTRE))
        optimizer.step()
    return tensor.detach().numpy()


def fedprox(mu: float) -> TrainingPlan:
    return tiny_plan(BUNDLE, strategy="fedprox", prox_mu=mu)


def federate(mu: float, steps: int, rate: float, rounds: int) -> float:
    plan, place = fedprox(mu), 0.0
    for _ in range(rounds):
        place += float(WEIGHTS @ (local(place, plan, steps, rate) - place))
    return place


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_p1_fedprox_with_mu_zero_is_fedavg_to_the_bit(optimizer: str) -> None:
    results = [
        reference(tiny_plan(BUNDLE, optimizer=optimizer, **changes))
        for changes in ({}, {"strategy": "fedprox", "prox_mu": 0.0})
    ]
    assert all(np.array_equal(results[0][name], results[1][name]) for name in results[0])


def reference(plan: TrainingPlan, correction: Parameters | None = None, steps: int = 3) -> Parameters:
    return train_without_privacy(
        plan,
        weights_of(BUNDLE),
        VOCABULARY,
        ROWS,
        generator=np.random.default_rng(3),
        steps=steps,
        correction=correction,
    )


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_p2_solved_exactly_an_owner_ends_between_its_own_optimum_and_the_global_model(mu: float) -> None:
    wanted = (CURVATURE * CENTRE + mu * 0.7) / (CURVATURE + mu)
    assert local(0.7, fedprox(mu), 1000, 0.05) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("mu", [0.1, 1.0, 10.0])
def test_p2_the_federations_fixed_point_is_the_proximal_one(mu: float) -> None:
    weight = WEIGHTS * CURVATURE / (CURVATURE + mu)
    assert federate(mu, 150, 0.9 / (3 + mu), 120) == pytest.approx((weight * CENTRE).sum() / weight.sum(), rel=1e-4)


@pytest.mark.parametrize(("mu", "steps"), [(0.5, 1), (0.5, 4), (2.0, 10)])
def test_p3_the_fixed_point_with_some_steps_has_a_closed_form(mu: float, steps: int) -> None:
    weight = WEIGHTS * CURVATURE * (1 - (1 - 0.1 * (CURVATURE + mu)) ** steps) / (CURVATURE + mu)
    assert federate(mu, steps, 0.1, 400) == pytest.approx((weight * CENTRE).sum() / weight.sum(), rel=1e-6)


def test_p4_an_update_gets_shorter_as_mu_grows() -> None:
    plans = [tiny_plan(BUNDLE, optimizer="sgd", learning_rate=0.05, strategy="fedprox", prox_mu=mu) for mu in (0, 0.1, 1, 5)]
    lengths = [norm(subtract(reference(plan, steps=4), weights_of(BUNDLE))) for plan in plans]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < lengths[0]
    moves = [abs(float(local(0.0, fedprox(mu), 10, 0.1)[1])) for mu in (0, 0.1, 1, 5)]
    assert moves == sorted(moves, reverse=True) and moves[-1] < moves[0]


def test_a_correction_moves_every_step_of_sgd_by_the_rate_times_itself() -> None:
    plan = tiny_plan(BUNDLE, strategy="scaffold", optimizer="sgd", learning_rate=0.25, schedule="constant")
    correction = some(plan)
    without, corrected = reference(plan, steps=1), reference(plan, correction, steps=1)
    for name, array in correction.items():
        assert corrected[name] == pytest.approx(without[name] - 0.25 * array, abs=1e-5)


def some(plan: TrainingPlan, size: float = 0.1) -> Parameters:
    """A correction of the trained tensors."""
    draw = np.random.default_rng(8)
    return {spec.name: (size * draw.normal(size=spec.shape)).astype(np.float32) for spec in specs_for(plan)}


@pytest.mark.parametrize("strategy", ["fedprox", "scaffold"])
def test_the_terms_are_added_after_clipping(strategy: str) -> None:
    """Far larger than the clipping bound, and with gradients of zero: the step is still the whole term."""
    plan = tiny_plan(BUNDLE, strategy=strategy, optimizer="sgd")
    model = torch.nn.Linear(3, 1, bias=False)
    model.weight = torch.nn.Parameter(torch.zeros(1, 3))
    tensor = model.weight
    optimizer = torch.optim.SGD([tensor], lr=1.0)
    shift = {"w": np.full((1, 3), 50.0, np.float32)} if strategy == "scaffold" else None
    correct_drift(optimizer, plan, {"w": tensor}, shift)
    if strategy == "fedprox":
        with torch.no_grad():
            tensor += 100.0
    before = tensor.detach().clone()
    train_privately(
        model,
        optimizer,
        DPSettings(noise_multiplier=1.0, max_grad_norm=1e-6, sample_rate=0.5, expected_batch_size=1),
        rows=4,
        steps=1,
        losses=lambda indices: model(torch.ones(len(indices), 3)).squeeze(1),
        after_step=lambda step: None,
        randomness=NoNoise(),
    )
    moved = before - tensor.detach()
    wanted = 50.0 if strategy == "scaffold" else plan.prox_mu * 100.0
    assert moved.numpy() == pytest.approx(np.full((1, 3), wanted), abs=1e-4)


@pytest.mark.parametrize("changes", [{"strategy": "fedprox", "prox_mu": 5.0, "optimizer": "adamw"}, {"strategy": "fedprox"}])
def test_an_owners_update_is_trained_with_the_proximal_term(changes: dict[str, Any]) -> None:
    plan = tiny_plan(BUNDLE, **changes)
    update = train_update(plan, 0, weights_of(BUNDLE), VOCABULARY, ROWS, 80, 1.0, lambda done, steps: None)
    assert all(array.any() for array in update.values())


def test_an_owners_update_is_trained_with_the_correction() -> None:
    """The correction is far larger than gradients and noise: the update is about minus the sum of rates times it."""
    plan = tiny_plan(BUNDLE, strategy="scaffold", optimizer="sgd", learning_rate=1e-3, weight_decay=0.0)
    correction = some(plan, 1000.0)
    update = train_update(
        plan, 0, weights_of(BUNDLE), VOCABULARY, ROWS, 80, 1.0, lambda done, steps: None, correction=correction
    )
    expected = scale(correction, -sum(plan.rates(0)))
    assert norm(subtract(update, expected)) < 0.01 * norm(expected)


def test_a_correction_that_does_not_fit_is_refused() -> None:
    plan = tiny_plan(BUNDLE, strategy="scaffold", optimizer="sgd")
    with pytest.raises(PlanError, match="fedavg has no control variates"):
        reference(tiny_plan(BUNDLE), some(plan))
    with pytest.raises(ModelError, match="not of the tensors"):
        reference(plan, {"w": np.zeros(3, np.float32)})
