"""The plans that the demo's scientist proposes can be read as they lie there."""

from __future__ import annotations

from pathlib import Path

from domains import generate
from fl_privacy.guard.admission import round_spend
from fl_privacy.learning.local_start import sent_specs
from fl_privacy.parameters import count
from fl_privacy.round_plan import lone_layer
from fl_privacy.scientist.files import read_plan

PLAN, EFFICIENT = (read_plan(generate.FOLDER / name)[0] for name in ("plan.toml", "plan-efficient.toml"))
ROWS = 16_000  # private rows of each owner of the demo


def test_there_are_no_other_plans() -> None:
    assert {path.name for path in Path(generate.FOLDER).glob("*.toml")} == {"plan.toml", "plan-efficient.toml"}


def test_the_efficient_plan_trains_every_layer_in_turn_and_sends_about_half() -> None:
    layers = [lone_layer(EFFICIENT, index) for index in range(EFFICIENT.rounds)]
    assert layers == [0, 0, 1] and max(layer for layer in layers if layer is not None) == EFFICIENT.model.num_layers - 1
    sizes = {count(sent_specs(EFFICIENT, index)) for index in range(EFFICIENT.rounds)}
    assert len(sizes) == 1 and sizes.pop() < 0.55 * count(sent_specs(PLAN, 0))


def test_both_are_for_the_same_owners_model_and_epsilon() -> None:
    for field in ("owners", "model", "target_epsilon", "delta"):
        assert getattr(PLAN, field) == getattr(EFFICIENT, field)
    assert round_spend(EFFICIENT, ROWS).noise_multiplier > 0.3
