"""TrainingPlan: what is refused, and that its digest is its meaning."""

from __future__ import annotations

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
