"""The learning-rate schedule counts the steps of the whole run; weight decay spares biases and layer norms."""

from __future__ import annotations

import pytest

from fl_privacy.learning.models import build_model
from fl_privacy.learning.optimisation import plan_optimizer
from fl_privacy.learning.trainable import freeze_except, trainable_specs
from tests.tiny_model import VOCABULARY, tiny_bundle, tiny_plan, weights_of

BUNDLE = tiny_bundle()


def test_warm_up_then_linear_decay() -> None:
    plan = tiny_plan(BUNDLE, rounds=5, local_steps=2, warmup_steps=4)
    told = [plan.rate_factor(step) for step in range(10)]
    assert told == pytest.approx([0.25, 0.5, 0.75, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_constant_after_warm_up() -> None:
    plan = tiny_plan(BUNDLE, rounds=2, local_steps=3, warmup_steps=2, schedule="constant")
    assert [plan.rate_factor(step) for step in range(6)] == [0.5, 1, 1, 1, 1, 1]
    assert tiny_plan(BUNDLE, schedule="constant").rate_factor(0) == 1


def test_a_round_continues_the_schedule() -> None:
    # A schedule that starts anew each round would never leave the warm-up.
    plan = tiny_plan(BUNDLE, rounds=4, local_steps=3, warmup_steps=5, optimizer="sgd", learning_rate=0.5)
    model = build_model(BUNDLE.spec, VOCABULARY, weights_of(BUNDLE))
    rates = []
    for round_index in range(4):
        optimizer, schedule = plan_optimizer(plan, model, round_index * plan.local_steps)
        for _ in range(plan.local_steps):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    assert rates == pytest.approx([0.5 * plan.rate_factor(step) for step in range(12)])


def test_weight_decay_acts_on_trained_matrices_only() -> None:
    model = build_model(BUNDLE.spec, VOCABULARY, weights_of(BUNDLE))
    freeze_except(model, trainable_specs(model, "head"))
    optimizer, _ = plan_optimizer(tiny_plan(BUNDLE, weight_decay=0.1), model, 0)
    decay = {id(tensor): group["weight_decay"] for group in optimizer.param_groups for tensor in group["params"]}
    told = {name: decay[id(tensor)] for name, tensor in model.named_parameters() if id(tensor) in decay}
    assert told == {
        "cls.predictions.bias": 0.0,
        "cls.predictions.transform.LayerNorm.bias": 0.0,
        "cls.predictions.transform.LayerNorm.weight": 0.0,
        "cls.predictions.transform.dense.bias": 0.0,
        "cls.predictions.transform.dense.weight": 0.1,
    }
