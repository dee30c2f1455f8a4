"""What each round of a schedule trains, on which model; and that nothing else of the plan changes from round to round."""

from __future__ import annotations

from typing import Any

import pytest

from fl_privacy.layer_schedules import further_pretraining_layers
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_plan import depths_of, evaluated_plan, lone_layer, round_plan
from tests.test_plan import BOTH_HEADS, FEDBT, LABELLED, PROGFED, TO_CLASSIFY, deep, plan

CHANGED = {"model", "task", "trainable"}
SCHEDULE = {"layer_schedule", "pretraining_rounds", "local_depths", "layer_cycle", "growth_stages", "warmup_rounds"}
TWO_STAGES = BOTH_HEADS | FEDBT | {"rounds": 7, "pretraining_rounds": 3, "layer_cycle": 3, "local_depths": (3,)}


def of_four(**changes: Any) -> TrainingPlan:
    return plan(**{"model": deep()} | changes)


def trained(made: TrainingPlan) -> list[str]:
    return [round_plan(made, index).trainable for index in range(made.rounds)]


def depths(made: TrainingPlan) -> list[int]:
    return [round_plan(made, index).model.num_layers for index in range(made.rounds)]


PLANS = [FEDBT, TO_CLASSIFY | FEDBT, TWO_STAGES, PROGFED, PROGFED | {"rounds": 20, "growth_stages": 2, "warmup_rounds": 2}]


def test_a_plan_without_a_schedule_is_every_rounds_plan() -> None:
    made = of_four(trainable="layers:1-2", rounds=3)
    assert all(found == made for index in range(3) for found in (round_plan(made, index), evaluated_plan(made, index)))


@pytest.mark.parametrize("fields", PLANS)
def test_a_rounds_plan_differs_from_the_approved_one_in_model_task_and_trained_layers_only(fields: dict[str, Any]) -> None:
    """Steps, learning rates, noise, clipping and bounds are not a round's to change."""
    made = of_four(**fields)
    for index in range(made.rounds):
        for stage in (round_plan(made, index), evaluated_plan(made, index)):
            differ = {name for name in TrainingPlan.model_fields if getattr(stage, name) != getattr(made, name)}
            assert differ <= CHANGED | SCHEDULE
            assert stage.layer_schedule == "fixed" and round_plan(stage, 0) == stage


@pytest.mark.parametrize("fields", PLANS)
def test_a_rounds_plan_and_the_finished_models_are_ones_that_could_be_proposed(fields: dict[str, Any]) -> None:
    made = of_four(**fields)
    stages = [round_plan(made, index) for index in range(made.rounds)]
    for stage in [*stages, *(evaluated_plan(made, index) for index in range(made.rounds + 1))]:
        assert TrainingPlan.create(**stage.model_dump()) == stage


def test_fb1_stage_1_trains_one_layer_and_the_language_models_head() -> None:
    made = of_four(**FEDBT, rounds=10, local_depths=(4,))
    lone = further_pretraining_layers(10)
    assert lone == (0, 0, 0, 0, 0, 1, 1, 1, 2, 3)
    assert trained(made) == [f"layers:{layer}-{layer}" for layer in lone]
    assert [lone_layer(made, index) for index in range(10)] == list(lone)


def test_fb1_stage_2_trains_the_upper_layers_one_deeper_each_round() -> None:
    made = plan(model=deep(12, **LABELLED), task="classification", rounds=10, layer_schedule="fedbt")
    assert trained(made) == [f"layers:{lowest}-11" for lowest in (11, 10, 9, 8, 7, 6, 11, 10, 9, 8)]
    assert {round_plan(made, index).model for index in range(10)} == {made.model}
    assert {lone_layer(made, index) for index in range(10)} == {None}


def test_fb1_both_stages_follow_each_other_and_the_second_begins_its_own_count() -> None:
    made = plan(**TWO_STAGES)
    assert trained(made) == ["layers:0-0", "layers:0-0", "layers:1-1", "layers:3-3", "layers:2-3", "layers:1-3", "layers:3-3"]
    stages = [round_plan(made, index) for index in range(7)]
    assert [(stage.task, stage.model.head) for stage in stages] == [("mlm", "mlm")] * 3 + [("classification",) * 2] * 4
    assert not any(stage.model.language_head for stage in stages), "a round's model has one head"


def test_what_stage_1_trains_does_not_depend_on_how_deep_an_owners_model_is() -> None:
    made = plan(**TWO_STAGES)
    for depth in (2, 3, 4):
        stage = round_plan(made, 2, depth)
        assert (stage.trainable, stage.model.num_layers) == ("layers:1-1", depth)


def test_stage_1_of_a_gpt2_predicts_next_tokens() -> None:
    fields = {"model": deep(4, "gpt2", **LABELLED, language_head=True), "task": "classification", "pretraining_rounds": 1}
    stage = round_plan(plan(**fields, **FEDBT), 0)
    assert (stage.task, stage.model.head) == ("clm", "clm")


def test_fb6_a_cycle_as_deep_as_the_model_comes_to_all_layers_without_the_embeddings() -> None:
    made = plan(**TO_CLASSIFY, **FEDBT, rounds=8, layer_cycle=4)
    assert trained(made)[3] == trained(made)[7] == "layers:0-3"
    assert round_plan(made, 3) == plan(**TO_CLASSIFY, rounds=8, trainable="layers:0-3")


def test_fb6_a_cycle_of_one_is_the_top_layer_and_the_head_in_every_round() -> None:
    made = plan(**TO_CLASSIFY, **FEDBT, rounds=4, layer_cycle=1)
    assert {round_plan(made, index) for index in range(4)} == {plan(**TO_CLASSIFY, rounds=4, trainable="layers:3-3")}


def test_pg1_one_stage_is_the_plan_without_a_schedule() -> None:
    made = of_four(**PROGFED, growth_stages=1)
    assert {round_plan(made, index) for index in range(8)} == {of_four(rounds=8)}


def test_pg4_a_growing_model_trains_all_that_it_has() -> None:
    made = plan(model=deep(12), rounds=16, layer_schedule="progfed")
    assert depths(made) == list(depths_of(made)) == [3, 3, 6, 6, 9, 9] + [12] * 10
    assert set(trained(made)) == {"all"}


def test_the_first_rounds_of_a_stage_train_what_is_new_but_for_the_first_stage_where_all_is() -> None:
    made = of_four(**PROGFED | {"rounds": 12}, growth_stages=2, warmup_rounds=2)
    assert depths(made) == [2, 2, 2] + [4] * 9
    assert trained(made) == ["all"] * 3 + ["layers:2-3"] * 2 + ["all"] * 7


def test_a_growing_model_is_tried_as_it_is_trained_and_at_the_end_whole() -> None:
    made = of_four(**PROGFED)
    assert [evaluated_plan(made, index).model.num_layers for index in range(9)] == [*depths_of(made), 4]
    assert {evaluated_plan(made, index).trainable for index in range(9)} == {"all"}


def test_a_model_with_both_heads_is_tried_for_its_labels_in_both_stages() -> None:
    tried = {evaluated_plan(plan(**TWO_STAGES), index) for index in range(8)}
    assert len(tried) == 1
    (stage,) = tried
    assert (stage.task, stage.model.head, stage.model.language_head) == ("classification", "classification", False)
