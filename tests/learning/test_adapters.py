"""Adapters: names, first values, what moves, merging, and means over owners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from fl_privacy.errors import ModelError
from fl_privacy.learning.adapters import merged
from fl_privacy.learning.batches import Batch
from fl_privacy.learning.models import build_model, outline, parameters_of, save_pretrained, with_adapters
from fl_privacy.learning.scores import scores
from fl_privacy.learning.trainable import freeze_except, specs_for, trainable_specs
from fl_privacy.model_spec import Head
from fl_privacy.parameters import Parameters, add, from_bytes, scale
from fl_privacy.plan import TrainingPlan
from tests.tiny_families import KINDS, LABELS, VOCABULARIES, batch_of, bundle_of
from tests.tiny_model import tiny_plan

every_kind = pytest.mark.parametrize(("family", "head"), KINDS)
every_adapter = pytest.mark.parametrize("trainable", ["lora", "ffa-lora"])
AUTO: dict[str, Any] = {
    "mlm": AutoModelForMaskedLM,
    "clm": AutoModelForCausalLM,
    "classification": AutoModelForSequenceClassification,
    "ner": AutoModelForTokenClassification,
}


def _plan(family: str, head: Head, trainable: str = "lora") -> TrainingPlan:
    return tiny_plan(bundle_of(family, head), task=head, trainable=trainable, lora_rank=2, lora_alpha=6.0)


def _base(family: str, head: Head) -> Parameters:
    return from_bytes(bundle_of(family, head).weights)


def _moved(plan: TrainingPlan, parameters: Parameters, seed: int) -> Parameters:
    """What an owner could make of the parameters: every trained tensor moved at random."""
    draw = np.random.default_rng(seed)
    names = [spec.name for spec in specs_for(plan)]
    return parameters | {
        name: parameters[name] + draw.normal(scale=0.3, size=parameters[name].shape).astype("f4") for name in names
    }


def _scores(plan: TrainingPlan, parameters: Parameters, family: str) -> torch.Tensor:
    model = build_model(plan.model, VOCABULARIES[family], parameters, plan.adapter)
    with torch.no_grad():
        return scores(model, batch_of(family, plan.model.head))


@every_kind
def test_fresh_adapters_change_no_score_and_have_names_without_wrappers(family: str, head: Head) -> None:
    plan, base = _plan(family, head), _base(family, head)
    started = with_adapters(plan, base)
    added = started.keys() - base.keys()
    assert added and all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in added)
    assert not any("base_layer" in name or "default" in name for name in started)
    assert all(started[name] is base[name] for name in base)
    model = build_model(plan.model, VOCABULARIES[family], started, plan.adapter)
    assert parameters_of(model).keys() == started.keys()
    plain = build_model(plan.model, VOCABULARIES[family], base)
    with torch.no_grad():
        assert torch.equal(scores(model, batch_of(family, head)), scores(plain, batch_of(family, head)))


def test_first_values_are_the_same_for_everyone_and_spread_as_peft_draws_them() -> None:
    plan, base = _plan("bert", "mlm"), _base("bert", "mlm")
    torch.manual_seed(3)
    one = with_adapters(plan, base)
    np.random.seed(4)
    two = with_adapters(plan, base)
    first = [name for name in one if name.endswith("lora_A.weight")]
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert len({one[name].tobytes() for name in first}) == len(first) == 4
    drawn = np.concatenate([one[name].ravel() for name in first])
    assert np.abs(drawn).max() <= 16**-0.5
    assert abs(drawn.std() - 16**-0.5 / 3**0.5) < 0.03
    assert not any(one[name].any() for name in one if name.endswith("lora_B.weight"))
    assert any((with_adapters(plan, base, seed=1)[name] != one[name]).any() for name in first)


def test_a_model_that_has_adapters_keeps_them_and_a_plan_without_adds_none() -> None:
    plan, base = _plan("bert", "mlm"), _base("bert", "mlm")
    later = _moved(plan, with_adapters(plan, base), 0)
    again = with_adapters(plan, later)
    assert all(np.array_equal(again[name], later[name]) for name in later) and again.keys() == later.keys()
    assert with_adapters(_plan("bert", "mlm", "head"), base) == base


@every_kind
@every_adapter
def test_adapters_and_a_head_of_labels_are_trained_and_nothing_else_moves(family: str, head: Head, trainable: str) -> None:
    plan = _plan(family, head, trainable)
    start = with_adapters(plan, _base(family, head))
    model = build_model(plan.model, VOCABULARIES[family], start, plan.adapter)
    specs = trainable_specs(model, trainable)
    assert specs == specs_for(plan)
    freeze_except(model, specs)
    optimizer = torch.optim.SGD([tensor for tensor in model.parameters() if tensor.requires_grad], lr=0.5)
    for _ in range(2):  # in the first step A does not move, since B is zero
        optimizer.zero_grad()
        scores(model, batch_of(family, head)).square().sum(dim=(1, 2)).mean().backward()
        optimizer.step()
    after = parameters_of(model)
    moved = {name for name in after if not np.array_equal(after[name], start[name])}
    assert moved == {spec.name for spec in specs}
    kinds = {"lora": ("lora_A.weight", "lora_B.weight"), "ffa-lora": ("lora_B.weight",)}[trainable]
    others = {name for name in moved if not name.endswith(kinds)}
    assert all(name.startswith(("classifier.", "score.")) or ".pooler." in name for name in others)
    assert bool(others) == (head in LABELS)


@every_kind
def test_a_saved_model_has_its_adapters_merged_and_gives_the_same_scores(family: str, head: Head, tmp_path: Path) -> None:
    plan = _plan(family, head)
    trained = _moved(plan, with_adapters(plan, _base(family, head)), 1)
    save_pretrained(tmp_path, plan.model, VOCABULARIES[family], trained, plan.adapter)
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt")]
    read, batch = AUTO[head].from_pretrained(tmp_path).eval(), batch_of(family, head)
    assert not any("lora" in name for name, _ in read.named_parameters())
    with torch.no_grad():
        assert torch.allclose(scores(read, batch), _scores(plan, trained, family), rtol=1e-3, atol=1e-3)
        assert (scores(read, batch) - _scores(plan, with_adapters(plan, _base(family, head)), family)).abs().max() > 0.1
    if head in LABELS:
        assert tuple(read.config.id2label.values()) == (plan.model.tags if head == "ner" else plan.model.labels)
        assert read.config.label2id == {name: index for index, name in read.config.id2label.items()}
    assert AutoTokenizer.from_pretrained(tmp_path)("病人")["input_ids"]


def _adapted(parameters: Parameters) -> Parameters:
    return {
        name: array for name, array in parameters.items() if name.endswith(("query.weight", "value.weight", "c_attn.weight"))
    }


def _mean(owners: list[Parameters]) -> Parameters:
    total = owners[0]
    for owner in owners[1:]:
        total = add(total, owner)
    return scale(total, 1 / len(owners))


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2"])
@every_adapter
def test_only_with_frozen_a_the_mean_of_effective_weights_is_the_effective_weight_of_the_mean(
    family: str, trainable: str
) -> None:
    plan = _plan(family, "ner", trainable)
    start = with_adapters(plan, _base(family, "ner"))
    owners = [_moved(plan, start, seed) for seed in range(3)]
    adapter = plan.adapter
    assert adapter is not None
    one = _adapted(_mean([merged(plan.model, adapter, owner) for owner in owners]))
    other = _adapted(merged(plan.model, adapter, _mean(owners)))
    assert one
    for name in one:
        assert np.allclose(one[name], other[name], rtol=1e-6, atol=1e-6) == (trainable == "ffa-lora")
        assert not np.allclose(one[name], start[name], atol=0.1)


def test_with_lora_two_owners_who_agree_can_cancel_out_in_the_mean() -> None:
    # One owner has (A, B), the other (-A, -B): both work with W + s B A, but the means of A and of B are zero.
    plan = _plan("bert", "ner")
    one = _moved(plan, with_adapters(plan, _base("bert", "ner")), 0)
    other = one | {name: -array for name, array in one.items() if "lora_" in name}
    adapter = plan.adapter
    assert adapter is not None
    effective, opposite = merged(plan.model, adapter, one), merged(plan.model, adapter, other)
    averaged = merged(plan.model, adapter, _mean([one, other]))
    for name, weight in _adapted(effective).items():
        assert np.array_equal(weight, opposite[name])
        assert np.array_equal(averaged[name], one[name])  # W itself: the gap is all that they have learnt
        assert np.linalg.norm(weight - averaged[name]) > 1.0


@every_kind
def test_merging_is_what_the_adapted_layers_compute(family: str, head: Head) -> None:
    plan = _plan(family, head)
    trained = _moved(plan, with_adapters(plan, _base(family, head)), 2)
    assert plan.adapter is not None
    plain = build_model(plan.model, VOCABULARIES[family], merged(plan.model, plan.adapter, trained))
    with torch.no_grad():
        ours = scores(plain, batch_of(family, head))
    assert torch.allclose(ours, _scores(plan, trained, family), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lacking", ["lora_A.weight", "lora_B.weight"])
def test_incomplete_adapters_are_refused_by_name(lacking: str, tmp_path: Path) -> None:
    plan = _plan("gpt2", "clm")
    started = with_adapters(plan, _base("gpt2", "clm"))
    short = {name: array for name, array in started.items() if not name.endswith(f"h.0.attn.c_attn.{lacking}")}
    with pytest.raises(ModelError, match=rf"h.0.attn.c_attn.{lacking}' is missing"):
        build_model(plan.model, VOCABULARIES["gpt2"], short, plan.adapter)
    with pytest.raises(ModelError, match=rf"h.0.attn.c_attn.{lacking}' is missing"):
        save_pretrained(tmp_path, plan.model, VOCABULARIES["gpt2"], short, plan.adapter)


def test_adapters_that_no_plan_asked_for_are_refused() -> None:
    plan = _plan("bert", "mlm")
    with pytest.raises(ModelError, match="lora_A.weight' does not belong"):
        build_model(plan.model, VOCABULARIES["bert"], with_adapters(plan, _base("bert", "mlm")))
    with pytest.raises(ModelError, match="built without adapters"):
        trainable_specs(outline(plan.model), "lora")


def test_scores_of_a_batch_with_adapters_do_not_depend_on_the_other_examples() -> None:
    plan = _plan("roberta", "ner")
    trained = _moved(plan, with_adapters(plan, _base("roberta", "ner")), 5)
    model, batch = build_model(plan.model, VOCABULARIES["roberta"], trained, plan.adapter), batch_of("roberta", "ner")
    with torch.no_grad():
        first = Batch(*(part[:1] for part in (batch.input_ids, batch.attention_mask, batch.places, batch.labels)))
        assert torch.allclose(scores(model, first)[0], scores(model, batch)[0], rtol=1e-4, atol=1e-5)
