"""From the whole global model to what one owner trains in a round, and which of that leaves it."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from fl_privacy.learning.adapters import named_tensors
from fl_privacy.learning.local_start import evaluated_start, grown, local_start, own_specs, sent_specs
from fl_privacy.learning.local_training import train_update
from fl_privacy.learning.models import ModelBundle, new_bundle, outline
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.learning.trainable import specs_for
from fl_privacy.messages import Row, TensorSpec
from fl_privacy.model_spec import Head
from fl_privacy.parameters import Parameters, specs_of, to_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy import dp_sgd
from fl_privacy.privacy.randomness import OwnerRandomness
from tests.tiny_families import CONFIGS, LABELS, VOCABULARIES
from tests.tiny_model import SENTENCES, NoNoise, tiny_plan, weights_of

LAYER = "bert.encoder.layer."
ORDER, OTHER = "0" * 64, "1" * 64
FEDBT: dict[str, Any] = {"layer_schedule": "fedbt"}
GROWING: dict[str, Any] = {"layer_schedule": "progfed", "rounds": 8, "growth_stages": 2, "warmup_rounds": 1}


def a_bundle(head: Head = "mlm", family: str = "bert", layers: int = 5, **options: Any) -> ModelBundle:
    depth = "n_layer" if family == "gpt2" else "num_hidden_layers"
    config = CONFIGS[family] | {"model_type": family, depth: layers}
    return new_bundle(config, VOCABULARIES[family], 0, "deep", head, LABELS.get(head, ()), **options)


BUNDLE, TO_CLASSIFY, BOTH = a_bundle(), a_bundle("classification"), a_bundle("classification", language_head=True)


class Seeded(OwnerRandomness):
    """The same noise and samples in every process."""

    def __init__(self) -> None:
        super().__init__()
        self.draw = np.random.default_rng(4)

    def gaussian(self, shape: tuple[int, ...], std: float) -> np.ndarray[Any, np.dtype[np.float64]]:
        return self.draw.normal(0, std, shape)

    def poisson_sample(self, count: int, rate: float) -> np.ndarray[Any, np.dtype[np.int64]]:
        return np.flatnonzero(self.draw.random(count) < rate)


def rows_for(bundle: ModelBundle) -> list[Row]:
    labels = bundle.spec.labels
    return [Row(text=text, label=labels[number % len(labels)] if labels else None) for number, text in enumerate(SENTENCES)]


def update_of(plan: TrainingPlan, bundle: ModelBundle, round_index: int, start: Parameters | None = None) -> Parameters:
    """What the clinic trains from the given whole model, by default the first one."""
    first = weights_of(bundle) if start is None else start
    stage, parameters = local_start(plan, round_index, first, "clinic", ORDER)
    return train_update(stage, round_index, parameters, bundle.vocabulary, rows_for(bundle), 80, 1.0, lambda *_: None)


def copied(plan: TrainingPlan, round_index: int, owner: str, order: str) -> tuple[int, ...]:
    """Of which layer each of an owner's layers is a copy, read from the values."""
    marked = {name: np.full_like(array, _layer(name)) for name, array in weights_of(BUNDLE).items()}
    stage, start = local_start(plan, round_index, marked, owner, order)
    name = LAYER + "{}.output.dense.weight"
    return tuple(int(start[name.format(index)].flat[0]) for index in range(stage.model.num_layers))


def _layer(name: str) -> int:
    return int(name.removeprefix(LAYER).split(".")[0]) if name.startswith(LAYER) else -1


def test_without_a_schedule_everybody_starts_from_the_whole_model() -> None:
    plan, first = tiny_plan(BUNDLE, trainable="head"), weights_of(BUNDLE)
    for stage, start in (local_start(plan, 1, first, "desk", ORDER), evaluated_start(plan, 1, first)):
        assert stage is plan and start is first


def test_owners_and_orders_draw_other_upper_layers_and_the_same_ones_when_they_draw_again() -> None:
    plan = tiny_plan(BUNDLE, **FEDBT, rounds=8, local_depths=(4,))
    orders = [f"{number:064x}" for number in range(40)]
    drawn = {(owner, order): copied(plan, 0, owner, order) for owner in plan.owners for order in orders}
    assert drawn == {key: copied(plan, 0, *key) for key in drawn}
    assert all(layers[0] == 0 and list(layers) == sorted(layers) and min(layers[1:]) >= 1 for layers in drawn.values())
    by_owner = [tuple(drawn[owner, order] for order in orders) for owner in plan.owners]
    assert len(set(by_owner)) == 3 and all(len(set(own)) > 10 for own in by_owner)


def test_up_to_the_trained_layer_every_layer_is_its_own() -> None:
    plan = tiny_plan(BUNDLE, **FEDBT, rounds=8, local_depths=(4,))
    for order in (ORDER, OTHER):
        assert copied(plan, 7, "clinic", order)[:4] == (0, 1, 2, 3)
        assert copied(plan, 6, "clinic", order)[:3] == (0, 1, 2)


def test_an_owner_with_room_for_all_layers_draws_none() -> None:
    plan = tiny_plan(BUNDLE, **FEDBT, local_depths=(2, 5, 3))
    for order in (ORDER, OTHER):
        assert copied(plan, 0, "school", order) == (0, 1, 2, 3, 4)
        assert [len(copied(plan, 0, owner, order)) for owner in plan.owners] == [2, 5, 3]


EVERY = [
    (BUNDLE, FEDBT | {"rounds": 3, "local_depths": (2, 3, 4)}, 2),
    (TO_CLASSIFY, FEDBT | {"rounds": 3}, 1),
    (BOTH, FEDBT | {"rounds": 3, "pretraining_rounds": 1}, 0),
    (BOTH, FEDBT | {"rounds": 3, "pretraining_rounds": 1}, 1),
    (BUNDLE, GROWING, 1),
    (BUNDLE, GROWING, 2),
    (BUNDLE, GROWING, 3),
    (TO_CLASSIFY, {"local_layers": "3-4"}, 0),
    (TO_CLASSIFY, {"local_layers": "3-4", "trainable": "layers:2-4"}, 0),
    (a_bundle("classification", "gpt2", language_head=True), FEDBT | {"rounds": 3, "pretraining_rounds": 1}, 0),
    (a_bundle("classification", "gpt2", language_head=True), FEDBT | {"rounds": 3, "pretraining_rounds": 1}, 2),
    (a_bundle("ner", "roberta"), {"local_layers": "4-4"}, 0),
]


@pytest.mark.parametrize(("bundle", "fields", "round_index"), EVERY)
def test_an_update_is_of_what_is_sent_and_of_what_an_owner_keeps_and_of_nothing_else(
    bundle: ModelBundle, fields: dict[str, Any], round_index: int
) -> None:
    plan = tiny_plan(bundle, **fields, local_steps=1)
    sent, own = sent_specs(plan, round_index), own_specs(plan)
    rows = [row.model_copy(update={"tags": ("O",) * len(row.text)}) for row in rows_for(bundle)]
    stage, start = local_start(plan, round_index, weights_of(bundle), "clinic", ORDER)
    update = train_update(stage, round_index, start, bundle.vocabulary, rows, 80, 1.0, lambda *_: None)
    assert set(specs_of(update)) == set(sent) | set(own) and not set(sent) & set(own)
    assert order_specs(plan, "train", round_index) == sent and list(sent) == sorted(sent, key=lambda spec: spec.name)
    assert all(array.any() for array in update.values()), "the noise reaches everything that is trained"


@pytest.mark.parametrize(("bundle", "fields", "round_index"), EVERY)
def test_what_is_trained_starts_from_the_global_values_of_the_same_name(
    bundle: ModelBundle, fields: dict[str, Any], round_index: int
) -> None:
    """So that an update needs no renaming, and a sum of updates is one of the same tensors."""
    plan, first = tiny_plan(bundle, **fields), weights_of(bundle)
    stage, start = local_start(plan, round_index, first, "clinic", ORDER)
    assert all(np.array_equal(start[spec.name], first[spec.name]) for spec in specs_for(stage))
    assert start.keys() == named_tensors(outline(stage.model)).keys() or stage is plan


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_sgd, "OwnerRandomness", Seeded)


@pytest.mark.usefixtures("seeded")
def test_fb6_a_cycle_as_deep_as_the_model_is_plain_training_of_all_layers_bit_for_bit() -> None:
    schedule, plain = ({"rounds": 5, "layer_cycle": 5} | FEDBT, {"rounds": 5, "trainable": "layers:0-4"})
    first, second = (update_of(tiny_plan(TO_CLASSIFY, **fields), TO_CLASSIFY, 4) for fields in (schedule, plain))
    assert to_bytes(first) == to_bytes(second)


@pytest.mark.usefixtures("seeded")
def test_pg1_one_stage_is_plain_training_bit_for_bit() -> None:
    schedule: dict[str, Any] = {"layer_schedule": "progfed", "growth_stages": 1}
    growing, plain = tiny_plan(TO_CLASSIFY, rounds=8, **schedule), tiny_plan(TO_CLASSIFY, rounds=8)
    first = weights_of(TO_CLASSIFY)
    for index in (0, 5):
        assert order_specs(growing, "train", index) == order_specs(plain, "train", index)
        starts = [local_start(plan, index, first, "desk", ORDER)[1] for plan in (growing, plain)]
        assert to_bytes(starts[0]) == to_bytes(starts[1])
    assert all(grown(growing, index, first, {}) is None for index in range(9))
    assert to_bytes(update_of(growing, TO_CLASSIFY, 5)) == to_bytes(update_of(plain, TO_CLASSIFY, 5))


def test_nothing_of_an_owners_own_is_plain_averaging() -> None:
    """SB1."""
    plan = tiny_plan(TO_CLASSIFY, local_layers="")
    assert own_specs(plan) == () and plan == tiny_plan(TO_CLASSIFY)
    assert sent_specs(plan, 0) == specs_for(plan)


@pytest.mark.usefixtures("seeded")
def test_what_an_owner_keeps_is_trained_as_if_everything_were_sent() -> None:
    """FedSplitBERT trains both parts together: what stays makes no difference to the step, only to who gets it."""
    split, plain = tiny_plan(TO_CLASSIFY, local_layers="3-4"), tiny_plan(TO_CLASSIFY)
    assert to_bytes(update_of(split, TO_CLASSIFY, 1)) == to_bytes(update_of(plain, TO_CLASSIFY, 1))


def test_where_nothing_shared_moves_an_owners_part_goes_on_as_if_it_were_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB2, as far as a plan can come to it: no gradient is clipped and the sums bring no change, so the owner is alone."""
    monkeypatch.setattr(dp_sgd, "OwnerRandomness", NoNoise)
    fields: dict[str, Any] = {"rounds": 3, "optimizer": "sgd", "learning_rate": 0.1, "local_steps": 1, "max_grad_norm": 1000.0}
    split = tiny_plan(TO_CLASSIFY, **fields, local_layers="4-4", trainable="layers:3-4")
    alone = tiny_plan(TO_CLASSIFY, **fields, trainable="layers:4-4")
    own = {spec.name for spec in own_specs(split)}
    assert own == {spec.name for spec in specs_for(alone)}
    models = {plan: weights_of(TO_CLASSIFY) for plan in (split, alone)}
    for index, (plan, model) in product(range(3), models.items()):
        update = update_of(plan, TO_CLASSIFY, index, model)
        model |= {name: model[name] + update[name] for name in own}
    moved = {name for name in own if not np.array_equal(models[split][name], weights_of(TO_CLASSIFY)[name])}
    assert all(models[split][name] == pytest.approx(models[alone][name], abs=1e-5) for name in own) and moved == own


def test_a_model_that_grows_gets_its_first_head_again_and_keeps_all_else() -> None:
    """PG3."""
    plan, first = tiny_plan(BUNDLE, **GROWING), weights_of(BUNDLE)
    late = {name: array + np.float32(1) for name, array in first.items()}
    found = [grown(plan, index, late, first) for index in range(9)]
    assert [index for index, model in enumerate(found) if model is not None] == [2]
    assert found[2] is not None
    back = {name for name in first if np.array_equal(found[2][name], first[name])}
    assert back == {spec.name for spec in _head_of(plan)} and back
    assert all(np.array_equal(found[2][name], late[name]) for name in first.keys() - back)


def _head_of(plan: TrainingPlan) -> tuple[TensorSpec, ...]:
    return specs_for(plan.model_copy(update={"layer_schedule": "fixed", "trainable": "head"}))


def test_a_model_that_still_grows_is_tried_without_the_layers_to_come() -> None:
    plan, first = tiny_plan(BUNDLE, **GROWING), weights_of(BUNDLE)
    for index, depth in ((0, 3), (1, 3), (2, 5), (8, 5)):
        stage, start = evaluated_start(plan, index, first)
        assert stage.model.num_layers == depth
        assert {_layer(name) for name in start} == set(range(-1, depth))


def test_a_model_with_both_heads_is_tried_with_the_one_for_its_labels() -> None:
    plan = tiny_plan(BOTH, **FEDBT, rounds=3, pretraining_rounds=1)
    stage, start = evaluated_start(plan, 0, weights_of(BOTH))
    assert start.keys() == weights_of(TO_CLASSIFY).keys() and stage.task == "classification"
