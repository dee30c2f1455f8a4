"""The forecast of operations against counted ones: real models, plain steps, every family, head and way of training."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from fl_privacy.compute_costs import (
    Operations,
    compute_share,
    everything_trained,
    expected_places,
    round_operations,
    step_operations,
)
from fl_privacy.errors import ModelError
from fl_privacy.learning.batches import Batch
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.local_start import sent_specs
from fl_privacy.learning.losses import per_example_loss
from fl_privacy.learning.models import build_model, outline, with_adapters
from fl_privacy.learning.trainable import freeze_except, specs_for
from fl_privacy.model_spec import ModelSpec
from fl_privacy.parameters import count, from_bytes
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_plan import round_plan
from tests.tiny_families import KINDS, LABELS, bundle_of

EXAMPLES, TOKENS, PLACES = 2, 40, 6
BASES: dict[str, dict[str, Any]] = {
    "bert": {"vocab_size": 30_522},
    "roberta": {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1},
    "albert": {"vocab_size": 30_000, "embedding_size": 128, "hidden_size": 768, "intermediate_size": 3072},
    "gpt2": {"vocab_size": 50_257, "pad_token_id": 50_256},
}


def plan_for(spec: ModelSpec, **changes: Any) -> TrainingPlan:
    return TrainingPlan.create(
        **{
            "name": "costs",
            "purpose": "to count operations",
            "task": spec.head,
            "model": spec,
            "owners": ("clinic", "school", "desk"),
            "rounds": 8,
            "max_length": TOKENS,
        }
        | changes
    )


def counted(plan: TrainingPlan, tokens: int, places: int) -> Operations:
    """Of one example, in a real pass over the model of a round, whose tensors have shapes and no numbers."""
    return counted_in(deepcopy(outline(plan.model, plan.adapter)), plan, tokens, places)


def counted_in(model: PreTrainedModel, plan: TrainingPlan, tokens: int, places: int) -> Operations:
    model.set_attn_implementation("eager")  # products that are counted one by one
    freeze_except(model, specs_for(plan))
    zeros = partial(torch.zeros, dtype=torch.int64, device=model.device)
    # encoders look whether a mask of paddings hides anything, which one without numbers does not tell
    mask: Any = zeros((EXAMPLES, tokens)) + 1 if plan.model.config["model_type"] == "gpt2" else None
    batch = Batch(zeros((EXAMPLES, tokens)), mask, zeros((EXAMPLES, places)), zeros((EXAMPLES, places)))
    with FlopCounterMode(display=False) as counter:
        loss = per_example_loss(model, batch).sum()
        forward = counter.get_total_flops()
        loss.backward()
    return Operations(forward // EXAMPLES, (counter.get_total_flops() - forward) // EXAMPLES)


def places_of(plan: TrainingPlan) -> int:
    return 1 if plan.task == "classification" else PLACES


def settings(family: str, head: str, layers: int) -> list[str]:
    trained = ["all", "lora", "ffa-lora"] + (["head"] if FAMILIES[family].heads[head] else [])  # type: ignore[index]
    if FAMILIES[family].layers:
        trained += [f"layers:{first}-{last}" for first, last in ((0, 0), (layers - 1, layers - 1), (0, layers - 1))]
    return trained


@pytest.mark.parametrize(("family", "head"), KINDS)
def test_the_forecast_is_what_a_step_of_a_small_model_takes(family: str, head: Any) -> None:
    bundle = bundle_of(family, head)
    for trainable in settings(family, head, 2):
        plan = plan_for(bundle.spec, trainable=trainable, lora_rank=3)
        parameters = with_adapters(plan, from_bytes(bundle.weights))
        model = build_model(plan.model, bundle.vocabulary, parameters, plan.adapter)
        told = step_operations(plan, TOKENS, places_of(plan)).whole
        assert told == counted_in(model, plan, TOKENS, places_of(plan)), trainable


@lru_cache
def base(family: str, head: Any, **changes: Any) -> ModelSpec:
    """A base of the published size, without weights."""
    fields = FAMILIES[family].config(**BASES[family]).to_dict()
    fields = {name: fields[name] for name in FAMILIES[family].fields if fields.get(name) is not None}
    labels = LABELS.get(head, ())
    told = {"architecture": json.dumps(fields | {"model_type": family}), "head": head, "labels": labels}
    return ModelSpec(**told | {"source": f"{family}-base", "vocabulary": "0" * 64, "weights": "0" * 64} | changes)


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "mlm"), ("roberta", "classification"), ("albert", "mlm"), ("gpt2", "clm")]
)
def test_the_forecast_is_what_a_step_of_a_base_takes(family: str, head: Any) -> None:
    """At published widths; layers are alike, so a few of them do."""
    spec = base(family, head).with_layers(3)
    for trainable in ("all", "ffa-lora", *(["layers:1-1"] if FAMILIES[family].layers else [])):
        plan = plan_for(spec, trainable=trainable, max_length=128)
        assert step_operations(plan, 128, places_of(plan)).whole == counted(plan, 128, places_of(plan)), trainable


METHODS: dict[str, dict[str, Any]] = {
    "FedBT, stage 1": {"head": "mlm", "layer_schedule": "fedbt", "local_depths": (6,), "rounds": 3},
    "FedBT, stage 1, depths by owner": {"head": "mlm", "layer_schedule": "fedbt", "local_depths": (2, 3, 4), "rounds": 3},
    "FedBT, stage 2": {"head": "ner", "layer_schedule": "fedbt", "rounds": 5, "layer_cycle": 3},
    "FedBT, both stages": {
        "head": "classification",
        "language_head": True,
        "layer_schedule": "fedbt",
        "rounds": 4,
        "pretraining_rounds": 2,
        "layer_cycle": 2,
        "local_depths": (3,),
    },
    "ProgFed": {"head": "classification", "layer_schedule": "progfed", "warmup_rounds": 1, "rounds": 12, "growth_stages": 3},
    "FedSplitBERT": {"head": "classification", "local_layers": "3-5"},
}


def method(name: str) -> TrainingPlan:
    """On the six lower layers of a BERT-base."""
    changes = METHODS[name] | {"max_length": 128}
    own = {"language_head": changes.pop("language_head", False)}
    return plan_for(base("bert", changes.pop("head"), **own).with_layers(6), **changes)


@pytest.mark.parametrize("name", METHODS)
def test_the_forecast_of_every_method_is_what_its_rounds_take(name: str) -> None:
    """Rounds of a kind are counted once, on the models that owners would have."""
    plan, found = method(name), dict[tuple[str, str, str], Operations]()
    for index in range(plan.rounds):
        each = []
        for owner in range(3):
            stage = round_plan(plan, index, plan.depth_at(owner, 6))
            kind, places = (stage.model.architecture, stage.model.head, stage.trainable), expected_places(stage, 128)
            if kind not in found:
                found[kind] = counted(stage, 128, places)
                assert step_operations(stage, 128, places).whole == found[kind]
            each.append(found[kind].total)
        assert round_operations(plan, index) == pytest.approx(sum(each) / 3)


def test_training_everything_costs_everything() -> None:
    plan = plan_for(base("bert", "mlm"))
    assert [compute_share(plan, index) for index in range(plan.rounds)] == [1.0] * 8
    assert compute_share(method("FedSplitBERT"), 0) == 1.0, "what stays with an owner is trained like the rest"


def test_a_step_takes_two_operations_for_each_weight_and_token_forward_and_twice_that_backward() -> None:
    """The rule of thumb of 6 operations, for long chains of matrices: attention's scores and the head are what differs."""
    step = step_operations(plan_for(base("bert", "ner")), 128, 126)
    layer = step.layers[0]
    weights = 12 * 768 * 768
    assert layer.forward == 2 * 128 * weights + 2 * 2 * 128 * 128 * 768
    assert layer.backward == 2 * layer.forward
    assert step.embeddings == Operations(0, 0)


def test_below_the_lowest_trained_layer_nothing_runs_backward() -> None:
    step = step_operations(plan_for(base("bert", "classification"), trainable="layers:7-9"), 128, 1)
    assert [layer.backward > 0 for layer in step.layers] == [False] * 7 + [True] * 5
    frozen, trained, lowest = step.layers[11], step.layers[8], step.layers[7]
    assert frozen.backward < lowest.backward < trained.backward == 2 * trained.forward
    assert trained.backward - lowest.backward == 3 * 2 * 128 * 768 * 768, "no gradient leaves the lowest layer's projections"
    assert trained.backward - frozen.backward == 12 * 2 * 128 * 768 * 768, "a frozen one has none of its own"


@given(st.integers(0, 11), st.integers(0, 11), st.integers(8, 512))
def test_more_trained_layers_never_cost_less(first: int, second: int, tokens: int) -> None:
    low, high = sorted((first, second))
    spec = base("bert", "classification")
    plans = [plan_for(spec, trainable=told) for told in ("head", f"layers:{high}-11", f"layers:{low}-11", "all")]
    totals = [step_operations(plan, tokens, 1).whole.total for plan in plans]
    assert all(fewer <= more for fewer, more in pairwise(totals))


def test_an_architecture_that_does_not_tell_a_size_is_named() -> None:
    spec = base("bert", "mlm")
    config = {name: value for name, value in spec.config.items() if name != "intermediate_size"}
    bare = spec.model_copy(update={"architecture": json.dumps(config)})
    with pytest.raises(ModelError, match="bert-base.*intermediate_size"):
        compute_share(plan_for(bare), 0)


def test_places_are_those_that_a_task_predicts() -> None:
    for head, places in {"mlm": 6, "classification": 1, "ner": 38}.items():
        assert expected_places(plan_for(base("bert", head)), TOKENS) == places
    assert expected_places(plan_for(base("gpt2", "clm")), TOKENS) == 39


def mean_shares(plan: TrainingPlan) -> tuple[float, float]:
    """Of all rounds: operations, and coordinates that are sent, over those of training everything."""
    rounds = range(plan.rounds)
    sent = [count(sent_specs(plan, index)) / count(specs_for(everything_trained(plan, index))) for index in rounds]
    return sum(compute_share(plan, index) for index in rounds) / plan.rounds, sum(sent) / plan.rounds


def test_further_pretraining_costs_about_what_was_published() -> None:
    """FB8. Published for stage 1 (local models of 6 layers): 34.31 % compute, 7.04 % traffic; ours, in 10 rounds of 128 tokens:
    34.86 % and 7.04 %.

    The payload is theirs to the byte. Of compute only shares are published, not how they were counted. Both of their figures,
    this and stage 2's, come out of our products (34.31 and 48.26) if a backward pass is charged 2.21 times its forward one
    rather than twice, as by what we leave out.
    """
    plan = plan_for(base("bert", "mlm"), layer_schedule="fedbt", local_depths=(6,), rounds=10, max_length=128)
    compute, sent = mean_shares(plan)
    assert (round(compute, 4), round(sent, 4)) == (0.3486, 0.0704)
    assert sent == pytest.approx(7_710_522 / 109_514_298, rel=1e-12)
    assert compute == pytest.approx(0.3431, rel=0.05)


def test_fine_tuning_costs_about_what_was_published() -> None:
    """FB8. Published for stage 2: 48.26 % compute, 20.19 % traffic; ours, in 10 rounds of 128 tokens with a head for two kinds
    of entities: 49.88 % and 20.18 %. A cycle of 6 rounds, which 10 are not a multiple of, takes 52.10 % and 22.78 %.
    """
    plan = plan_for(base("bert", "ner"), layer_schedule="fedbt", rounds=10, max_length=128)
    compute, sent = mean_shares(plan)
    assert (round(compute, 4), round(sent, 4)) == (0.4988, 0.2018)
    assert compute == pytest.approx(0.4826, rel=0.05) and sent == pytest.approx(0.2019, rel=0.005)
    compute, sent = mean_shares(plan.model_copy(update={"rounds": 6}))
    assert (round(compute, 4), round(sent, 4)) == (0.521, 0.2278)


def test_both_published_shares_come_from_one_price_of_a_backward_pass() -> None:
    published = {"mlm": (0.3431, {"local_depths": (6,)}), "ner": (0.4826, {})}
    for head, (share, changes) in published.items():
        plan = plan_for(base("bert", head), layer_schedule="fedbt", rounds=10, max_length=128, **changes)
        own, whole = [], priced(everything_trained(plan, 0))
        for index in range(plan.rounds):
            own.append(priced(round_plan(plan, index, plan.depth_at(0, 12))))
        assert sum(own) / len(own) / whole == pytest.approx(share, abs=0.0001)


def priced(plan: TrainingPlan, backward: float = 2.207) -> float:
    """Operations if a whole backward pass took so many times the forward one."""
    step = step_operations(plan, 128, expected_places(plan, 128)).whole
    return step.forward + backward / 2 * step.backward
