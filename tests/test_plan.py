"""TrainingPlan: what is refused, and that its digest is its meaning."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.errors import PlanError
from fl_privacy.model_spec import ModelSpec
from fl_privacy.plan import TrainingPlan

MODEL = ModelSpec(
    source="tiny",
    architecture='{"model_type": "bert", "num_hidden_layers": 2, "max_position_embeddings": 64}',
    vocabulary="0" * 64,
    weights="1" * 64,
)


def plan(**changes: Any) -> TrainingPlan:
    fields: dict[str, Any] = {"name": "a-plan", "purpose": "to test plans", "model": MODEL, "owners": ("a", "b", "c")}
    return TrainingPlan.create(**fields | changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"owners": ("a", "b")}, "owners: 2 named, minimal_cohort is 3"),
        ({"owners": ("a", "b", "a")}, "owners: a name appears twice"),
        ({"owners": ("a", "b", "../c")}, "owners"),
        ({"minimal_cohort": 2}, "minimal_cohort"),
        ({"rounds": 0}, "rounds"),
        ({"local_steps": 0}, "local_steps"),
        ({"batch_size": 0}, "batch_size"),
        ({"target_epsilon": 0.0}, "target_epsilon"),
        ({"target_epsilon": float("inf")}, "target_epsilon"),
        ({"target_epsilon": float("nan")}, "target_epsilon"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 0.5}, "delta"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"mask_probability": 0.0}, "mask_probability"),
        ({"max_length": 65}, "max_length: 65 is more than the model's 64 positions"),
        ({"max_length": 4}, "max_length"),
        ({"trainable": "layers:1-2"}, "trainable: layers:1-2 is not a range"),
        ({"trainable": "layers:1-0"}, "trainable: layers:1-0 is not a range"),
        ({"trainable": "everything"}, "trainable"),
        ({"warmup_steps": 100}, "warmup_steps: 100 leaves none of the 100 steps"),
        ({"task": "ner"}, "task"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"update_bits": 32}, "update_bits"),
        ({"name": "Has Spaces"}, "name"),
        ({"purpose": "short"}, "purpose"),
        ({"surprise": 1}, "surprise"),
        ({"model": {"source": "x"}}, "model"),
        ({"strategy": "fedsgd"}, "strategy"),
        ({"strategy": "scaffold"}, 'strategy: scaffold needs optimizer = "sgd"; an update by AdamW is no mean of gradients'),
        ({"strategy": "scaffold", "optimizer": "sgd", "scaffold_damping": 0.0}, "scaffold_damping: with 0"),
        ({"strategy": "scaffold", "optimizer": "sgd", "scaffold_damping": 1.5}, "scaffold_damping"),
        ({"scaffold_damping": 0.5}, "scaffold_damping: fedavg does not use it; it is for scaffold"),
        ({"prox_mu": 0.1}, "prox_mu: fedavg does not use it; it is for fedprox"),
        ({"strategy": "fedprox", "prox_mu": -0.1}, "prox_mu"),
        ({"strategy": "fedprox", "server_momentum": 0.9}, "server_momentum: fedprox does not use it; it is for fedavgm"),
        ({"strategy": "fedavgm", "server_momentum": 1.0}, "server_momentum"),
        ({"strategy": "fedavgm", "server_beta2": 0.9}, "server_beta2: fedavgm does not use it; it is for fedadam, fedyogi"),
        ({"strategy": "fedadam", "server_tau": 0.0}, "server_tau: fedadam divides by it"),
        ({"patience": -1}, "patience"),
        ({"minimal_update": 1.0}, "minimal_update"),
    ],
)
def test_a_bad_field_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        plan(**changes)


@pytest.mark.parametrize(
    "architecture", ["not json", "[]", '{"model_type": "t5", "num_hidden_layers": 1}', '{"model_type": "bert"}']
)
def test_an_unknown_architecture_is_refused(architecture: str) -> None:
    with pytest.raises(PlanError, match="architecture"):
        plan(model=MODEL.model_dump() | {"architecture": architecture})


def test_a_batch_larger_than_the_corpus_is_refused() -> None:
    with pytest.raises(PlanError, match="batch_size: 512 is more than the corpus's declared size 100"):
        plan().sample_rate(100)


def test_toml_reads_back_to_the_same_digest() -> None:
    original = plan(trainable="layers:0-1", learning_rate=0.1 + 0.2)
    assert TrainingPlan.from_toml(original.to_toml()).digest() == original.digest()


def test_text_that_is_not_toml_is_refused() -> None:
    with pytest.raises(PlanError, match="not a TOML file"):
        TrainingPlan.from_toml("rounds = = 3")


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rounds": st.integers(1, 1000),
            "retries": st.integers(0, 100),
            "batch_size": st.integers(1, 65536),
            "learning_rate": st.floats(1e-8, 10),
            "target_epsilon": st.floats(1e-3, 50),
            "purpose": st.text(st.characters(exclude_categories=("Cs",)), min_size=10, max_size=50),
        },
    )
)
def test_equal_plans_have_equal_digests_and_a_changed_plan_another(changes: dict[str, Any]) -> None:
    one, two = plan(**changes), plan(**changes)
    assert one.digest() == two.digest()
    assert one == TrainingPlan.parse(one.canonical())
    changed = plan(**changes | {"weight_decay": 0.5})
    assert changed.digest() != one.digest()


def test_a_plan_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        plan().rounds = 7  # type: ignore[misc]


def test_scaffold_refuses_random_cohorts() -> None:
    fields: dict[str, Any] = {"strategy": "scaffold", "optimizer": "sgd", "owners": tuple("abcdefgh"), "cohort_size": 4}
    with pytest.raises(PlanError, match="strategy: scaffold carries an owner's earlier updates into later sums"):
        plan(**fields, selection="random", rounds=2)
    assert plan(**fields, selection="groups", rounds=2).cohort(1) == ("e", "f", "g", "h")


@pytest.mark.parametrize(
    ("strategy", "constants"),
    [
        ("fedavg", (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)),
        ("fedprox", (1.0, 0.01, 0.0, 0.0, 0.0, 0.0)),
        ("scaffold", (1.0, 0.0, 0.5, 0.0, 0.0, 0.0)),
        ("fedavgm", (1.0, 0.0, 0.0, 0.9, 0.0, 0.0)),
        ("fedadam", (0.01, 0.0, 0.0, 0.9, 0.99, 1e-3)),
        ("fedyogi", (0.01, 0.0, 0.0, 0.9, 0.99, 1e-3)),
    ],
)
def test_a_strategys_constants_have_its_own_defaults(strategy: str, constants: tuple[float, ...]) -> None:
    names = ("server_lr", "prox_mu", "scaffold_damping", "server_momentum", "server_beta2", "server_tau")
    made = plan(strategy=strategy, optimizer="sgd")
    assert tuple(getattr(made, name) for name in names) == constants
    assert TrainingPlan.from_toml(made.to_toml()).digest() == made.digest()


def test_the_noise_is_calibrated_for_every_attempt_that_may_run() -> None:
    assert plan(rounds=5, retries=2, local_steps=10).paid_steps == 70


@pytest.mark.parametrize(
    ("changes", "rounds"),
    [
        ({"rounds": 5}, ()),
        ({"rounds": 5, "holdout": 0.1}, (5,)),
        ({"rounds": 5, "holdout": 0.1, "evaluate_every": 2}, (0, 2, 4, 5)),
        ({"rounds": 4, "holdout": 0.1, "evaluate_every": 2}, (0, 2, 4)),
        ({"rounds": 2, "holdout": 0.1, "evaluate_every": 9}, (0, 2)),
    ],
)
def test_the_first_every_so_many_and_the_finished_model_are_evaluated(changes: dict[str, Any], rounds: tuple[int, ...]) -> None:
    made = plan(**changes, retries=1)
    assert made.evaluated_rounds == rounds and made.evaluations == len(rounds)
    assert made.paid_orders == changes["rounds"] + 1 + len(rounds)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"evaluate_every": 1}, "evaluate_every: there is nothing to evaluate on"),
        ({"holdout": 0.51}, "holdout"),
        ({"holdout": -0.1}, "holdout"),
        ({"evaluation_noise": 0.0}, "evaluation_noise"),
        ({"evaluation_bound": 0.0}, "evaluation_bound"),
        ({"max_length": 7}, "max_length"),  # of which the default of evaluation_bound is made
    ],
)
def test_a_bad_evaluation_is_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        plan(**changes)


def test_the_sample_rate_is_over_what_is_trained_on() -> None:
    made = plan(holdout=0.25, batch_size=75)
    assert made.sample_rate(200) == 0.5
    assert plan(batch_size=75).sample_rate(200) == 0.375
    assert made.sample_rate(100) == 1.0
    with pytest.raises(PlanError, match="batch_size: 75 is more than the corpus's declared size 99 less a holdout of 25%"):
        made.sample_rate(99)


def test_the_bound_of_an_evaluation_is_written_into_the_plan_and_fits_the_task() -> None:
    made = plan(max_length=64, mask_probability=0.15)
    assert made.evaluation_bound == 15.36 and "evaluation_bound = 15.36" in made.to_toml()
    assert plan(max_length=32).evaluation_bound == 7.68
    assert plan(evaluation_bound=3).evaluation_bound == 3.0


def deep(layers: int = 4, model_type: str = "bert", **changes: Any) -> ModelSpec:
    """A model with so many layers."""
    config = {"model_type": model_type, "num_hidden_layers": layers, "n_layer": layers}
    config |= {"max_position_embeddings": 64, "n_positions": 64}
    return ModelSpec.model_validate(MODEL.model_dump() | {"architecture": json.dumps(config)} | changes)


LABELLED: dict[str, Any] = {"head": "classification", "labels": ("good", "bad")}
TO_CLASSIFY: dict[str, Any] = {"model": deep(**LABELLED), "task": "classification"}
BOTH_HEADS: dict[str, Any] = {"model": deep(**LABELLED, language_head=True), "task": "classification"}
FEDBT: dict[str, Any] = {"layer_schedule": "fedbt"}
PROGFED: dict[str, Any] = {"layer_schedule": "progfed", "rounds": 8}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"layer_schedule": "cyclic"}, "layer_schedule"),
        ({"pretraining_rounds": 1}, "pretraining_rounds: layer_schedule 'fixed' does not use it; it is for fedbt"),
        ({"local_depths": (4,)}, "local_depths: layer_schedule 'fixed' does not use it; it is for fedbt"),
        ({"layer_cycle": 2}, "layer_cycle: layer_schedule 'fixed' does not use it; it is for fedbt"),
        (FEDBT | {"growth_stages": 2}, "growth_stages: layer_schedule 'fedbt' does not use it; it is for progfed"),
        ({"warmup_rounds": 1}, "warmup_rounds: layer_schedule 'fixed' does not use it; it is for progfed"),
        (FEDBT | {"local_layers": "3-3"}, 'local_layers: they go with layer_schedule = "fixed" only'),
        ({"local_layers": "3"}, "local_layers"),
        ({"local_layers": "3-4"}, "local_layers: 3-4 is not a range within the model's 4 layers"),
        ({"local_layers": "3-2"}, "local_layers: 3-2 is not a range within the model's 4 layers"),
        ({"local_layers": "2-3", "trainable": "layers:1-2"}, "local_layers: 2-3 are not all among the layers that"),
        ({"local_layers": "2-3", "trainable": "layers:2-3"}, "local_layers: nothing that is trained would be sent"),
        ({"local_layers": "0-3", "trainable": "layers:0-3"}, "local_layers: nothing that is trained would be sent"),
        ({"local_layers": "3-3", "trainable": "head"}, "trainable: 'head' goes with fixed layers only"),
        ({"local_layers": "3-3", "trainable": "lora"}, "trainable: 'lora' goes with fixed layers only"),
        ({"local_layers": "3-3", "patience": 1}, "local_layers: with them goes no patience"),
        ({"local_layers": "3-3", "strategy": "scaffold", "optimizer": "sgd"}, "local_layers: .*and no scaffold"),
        ({"local_layers": "3-3", "model": deep(model_type="albert")}, "layer_schedule, local_layers: the layers of an ALBERT"),
        (FEDBT | {"model": deep(model_type="albert")}, "layer_schedule, local_layers: the layers of an ALBERT"),
        (PROGFED | {"task": "clm", "model": deep(4, "gpt2", head="clm")}, "and ner, not for clm"),
        ({"local_layers": "3-3", "task": "custom", "custom_task": "pass"}, "classification and ner, not for custom"),
        (FEDBT | {"trainable": "layers:0-1"}, "trainable: 'layers:0-1' goes with fixed layers only"),
        (PROGFED | {"trainable": "lora"}, "trainable: 'lora' goes with fixed layers only"),
        (FEDBT | {"pretraining_rounds": 2}, "pretraining_rounds: without labels all rounds are stage 1"),
        (FEDBT | {"layer_cycle": 2}, "layer_cycle: it is for stage 2, of a plan with labels"),
        (TO_CLASSIFY | FEDBT | {"layer_cycle": 5}, "layer_cycle: .*at most the model's 4 layers"),
        (TO_CLASSIFY | FEDBT | {"local_depths": (3,)}, "local_depths: they are for stage 1, which this plan has no"),
        (TO_CLASSIFY | FEDBT | {"pretraining_rounds": 2}, "pretraining_rounds: they go with a model that"),
        (BOTH_HEADS | FEDBT, "pretraining_rounds: they go with a model that has the language-model head"),
        (BOTH_HEADS | FEDBT | {"pretraining_rounds": 5}, "pretraining_rounds: 5 leave none of the 5 rounds"),
        (BOTH_HEADS | FEDBT | {"pretraining_rounds": 2, "patience": 1}, "patience, minimal_update: the run could"),
        (FEDBT | {"local_depths": (3, 4)}, "local_depths: one for all or one for each of the 3 owners, not 2"),
        (FEDBT | {"local_depths": (2,)}, "local_depths: 5 rounds of stage 1 reach layer 2, so .* need at least 3 layers"),
        (FEDBT | {"local_depths": (4, 5, 4)}, "and have at most the model's 4"),
        (FEDBT | {"rounds": 16}, "16 rounds of stage 1 reach layer 4, so local models need at least 5"),
        (FEDBT | {"local_depths": (0,)}, "local_depths"),
        (PROGFED | {"growth_stages": 5}, "growth_stages: 5 is more than the model's 4 layers"),
        (PROGFED | {"rounds": 7}, "growth_stages: of 7 rounds a stage has 0, which must be more"),
        (PROGFED | {"warmup_rounds": 1}, "a stage has 1, which must be more than warmup_rounds, 1"),
        (PROGFED | {"patience": 2}, "patience, minimal_update: the run could end before"),
        (PROGFED | {"minimal_update": 1e-4}, "patience, minimal_update: the run could end before"),
    ],
)
def test_layers_that_cannot_be_trained_as_asked_are_refused_by_name(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        plan(**{"model": deep()} | changes)


@pytest.mark.parametrize(("layers", "cycle", "stages"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (5, 2, 4), (12, 6, 4), (24, 12, 4)])
def test_half_of_the_layers_are_a_cycle_and_a_model_grows_in_four_stages_unless_it_has_fewer_layers(
    layers: int, cycle: int, stages: int
) -> None:
    """As published: c = 6 of 12 layers, S = 4."""
    labelled = deep(layers, **LABELLED)
    assert plan(model=labelled, task="classification", layer_schedule="fedbt").cycle == cycle
    assert plan(model=deep(layers), layer_schedule="progfed", rounds=8).stages == stages
    assert plan(model=labelled, task="classification", layer_schedule="fedbt", layer_cycle=1).cycle == 1
    assert plan(model=deep(layers), layer_schedule="progfed", rounds=8, growth_stages=1).stages == 1


def test_a_plan_of_stages_reads_back_to_the_same_digest() -> None:
    made = plan(**BOTH_HEADS, layer_schedule="fedbt", pretraining_rounds=2, local_depths=(2, 3, 4), layer_cycle=3)
    assert TrainingPlan.from_toml(made.to_toml()).digest() == made.digest()
