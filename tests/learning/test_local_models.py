"""The small models that FedBT and ProgFed train: what they are made of, what they train, and what is sent of it."""

from __future__ import annotations

import json
from copy import deepcopy
from functools import lru_cache
from itertools import combinations, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fl_privacy.errors import ModelError
from fl_privacy.layer_schedules import drawn_layers, fine_tuning_layers, growing_depths
from fl_privacy.learning.adapters import named_tensors
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.local_models import local_parameters
from fl_privacy.learning.losses import per_example_loss
from fl_privacy.learning.models import ModelBundle, build_model, new_bundle, outline
from fl_privacy.learning.reference_training import train_without_privacy
from fl_privacy.learning.scores import scores
from fl_privacy.learning.trainable import freeze_except, trainable_specs
from fl_privacy.messages import Row
from fl_privacy.model_spec import Head, ModelSpec
from fl_privacy.parameters import Parameters, count, from_bytes
from tests.tiny_families import CONFIGS, KINDS, LABELS, VOCABULARIES, batch_of
from tests.tiny_model import SENTENCES, tiny_plan

LAYERS = 5
LAYERED = [(family, head) for family, head in KINDS if FAMILIES[family].layers]
every_kind = pytest.mark.parametrize(("family", "head"), LAYERED)
every_language_model = pytest.mark.parametrize(("family", "head"), [("bert", "mlm"), ("roberta", "mlm"), ("gpt2", "clm")])
ROWS = tuple(Row(text=text) for text in SENTENCES)

LAYER = 7_087_872
BASES: dict[str, dict[str, Any]] = {
    "bert-chinese": {"model_type": "bert", "vocab_size": 21_128},
    "bert-english": {"model_type": "bert", "vocab_size": 30_522},
    "roberta": {"model_type": "roberta", "vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1},
    "gpt2": {"model_type": "gpt2", "vocab_size": 50_257, "pad_token_id": 50_256},
}


@lru_cache
def deep(family: str, head: Head) -> ModelBundle:
    """A tiny model with enough layers to leave some out."""
    depth = "n_layer" if family == "gpt2" else "num_hidden_layers"
    config = CONFIGS[family] | {"model_type": family, depth: LAYERS}
    return new_bundle(config, VOCABULARIES[family], 0, f"deep-{family}", head, LABELS.get(head, ()))


def whole(family: str, head: Head) -> Parameters:
    return from_bytes(deep(family, head).weights)


def local_model(family: str, head: Head, sources: tuple[int, ...]) -> PreTrainedModel:
    spec = deep(family, head).spec.with_layers(len(sources))
    return build_model(spec, VOCABULARIES[family], local_parameters(spec, whole(family, head), sources))


def global_model(family: str, head: Head) -> PreTrainedModel:
    return build_model(deep(family, head).spec, VOCABULARIES[family], whole(family, head))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    found = model.get_submodule(FAMILIES[model.config.model_type].layers.removesuffix("."))
    assert isinstance(found, nn.ModuleList)
    return found


def base(name: str, head: Head = "mlm") -> ModelSpec:
    """The published architectures of base size; they are only ever outlined."""
    config = {"num_hidden_layers": 12, "n_layer": 12, "max_position_embeddings": 512, "n_positions": 1024} | BASES[name]
    kind = "clm" if head == "mlm" and name == "gpt2" else head
    return ModelSpec(
        source=name,
        architecture=json.dumps(config),
        head=kind,
        labels=LABELS.get(kind, ()),
        vocabulary="1" * 64,
        weights="2" * 64,
    )


def trained(spec: ModelSpec, setting: str) -> int:
    """Coordinates that a setting trains and sends."""
    return count(trainable_specs(outline(spec), setting))


@every_kind
def test_fb3_a_model_of_all_layers_in_their_order_gives_the_very_scores_of_the_global_one(family: str, head: Head) -> None:
    local, batch = local_model(family, head, tuple(range(LAYERS))), batch_of(family, head)
    assert deep(family, head).spec.with_layers(LAYERS) == deep(family, head).spec
    with torch.no_grad():
        assert torch.equal(scores(local, batch), scores(global_model(family, head), batch))


@every_kind
@pytest.mark.parametrize("sources", [(0, 1, 3), (0, 2, 2, 4), (0,)])
def test_a_local_model_is_the_global_one_with_other_layers_put_in(family: str, head: Head, sources: tuple[int, ...]) -> None:
    model, batch = global_model(family, head), batch_of(family, head)
    layers = layers_of(model)
    chosen = [deepcopy(layers[source]) for source in sources]
    del layers[:]
    layers.extend(chosen)
    with torch.no_grad():
        told, local = scores(model, batch), scores(local_model(family, head, sources), batch)
    assert torch.equal(told, local)
    with torch.no_grad():
        assert not torch.equal(local, scores(global_model(family, head), batch))


@every_kind
def test_fb4_tensors_are_equal_to_their_sources_and_share_no_memory(family: str, head: Head) -> None:
    sources, pool = (0, 2, 2, 4), whole(family, head)
    prefix = FAMILIES[family].layers
    found = local_parameters(deep(family, head).spec.with_layers(len(sources)), pool, sources)
    assert not any(np.may_share_memory(*pair) for pair in product(found.values(), pool.values()))
    assert not any(np.may_share_memory(*pair) for pair in combinations(found.values(), 2))
    for name, array in found.items():
        place, _, rest = name.removeprefix(prefix).partition(".")
        assert np.array_equal(array, pool[f"{prefix}{sources[int(place)]}.{rest}" if name.startswith(prefix) else name])
    assert {name.removeprefix(prefix).partition(".")[0] for name in found if name.startswith(prefix)} == set("0123")
    assert {name for name in pool if not name.startswith(prefix)} == {name for name in found if not name.startswith(prefix)}


@every_language_model
def test_fb4_fb7_training_one_slot_changes_it_and_the_head_and_nothing_of_the_pool(family: str, head: Head) -> None:
    sources, pool = (0, 1, 1, 4), whole(family, head)
    spec = deep(family, head).spec.with_layers(len(sources))
    start = local_parameters(spec, pool, sources)
    plan = tiny_plan(ModelBundle(spec, VOCABULARIES[family], b""), trainable="layers:1-1", learning_rate=0.01)
    after = train_without_privacy(plan, start, VOCABULARIES[family], ROWS, generator=np.random.default_rng(0))
    changed = {name for name in after if not np.array_equal(after[name], start[name])}
    heads, slot = FAMILIES[family].heads[head], f"{FAMILIES[family].layers}1."
    assert any(name.startswith(slot) for name in changed)
    assert all(name.startswith((slot, *heads)) for name in changed)
    assert all(np.array_equal(array, pool[name]) for name, array in whole(family, head).items())
    twin = f"{FAMILIES[family].layers}2."
    assert not any(name.startswith(twin) for name in changed), "a copy of the trained layer in another slot stays"


def gradients(model: PreTrainedModel, family: str, head: Head, setting: str) -> dict[str, Tensor]:
    freeze_except(model, trainable_specs(model, setting))
    per_example_loss(model, batch_of(family, head)).sum().backward()
    return {name: tensor.grad for name, tensor in named_tensors(model).items() if tensor.grad is not None}


@every_language_model
@pytest.mark.parametrize("slot", [0, 2])
def test_fb5_stage_1_moves_one_layer_and_the_head_though_all_deeper_layers_are_frozen(
    family: str, head: Head, slot: int
) -> None:
    model = local_model(family, head, drawn_layers(b"order/clinic", slot, 4, LAYERS))
    found = gradients(model, family, head, f"layers:{slot}-{slot}")
    own = tuple(name for name in found if name.startswith(f"{FAMILIES[family].layers}{slot}."))
    assert found.keys() == {spec.name for spec in trainable_specs(model, f"layers:{slot}-{slot}")}
    assert own and all(name.startswith(FAMILIES[family].heads[head]) for name in found.keys() - set(own))
    assert all(found[name].abs().max() > 1e-6 for name in own if found[name].ndim == 2)


@every_kind
def test_fb5_stage_2_moves_nothing_below_its_lowest_layer_and_computes_no_gradient_there(family: str, head: Head) -> None:
    lowest = fine_tuning_layers(3, LAYERS, 2)[1]
    model = global_model(family, head)
    reached: list[bool] = []
    layers_of(model)[lowest].register_forward_pre_hook(lambda _, inputs: reached.append(inputs[0].requires_grad))
    found = gradients(model, family, head, f"layers:{lowest}-{LAYERS - 1}")
    upper = tuple(f"{FAMILIES[family].layers}{layer}." for layer in range(lowest, LAYERS))
    assert all(name.startswith((*upper, *FAMILIES[family].heads[head])) for name in found)
    assert all(any(name.startswith(layer) for name in found) for layer in upper)
    assert reached == [False]


@pytest.mark.parametrize(
    ("name", "head"), [("bert-chinese", 613_256), ("bert-english", 622_650), ("roberta", 642_393), ("gpt2", 0)]
)
def test_fb8_stage_1_sends_one_layer_and_the_language_head_without_the_tied_decoder(name: str, head: int) -> None:
    spec = base(name)
    assert trained(spec, "layers:3-3") == LAYER + head
    assert {trained(spec.with_layers(depth), "layers:3-3") for depth in (4, 6, 12)} == {LAYER + head}
    words = outline(spec).get_input_embeddings().weight
    assert words.shape not in {told.shape for told in trainable_specs(outline(spec), "layers:3-3")}


def test_fb8_stage_1_of_a_chinese_bert_base_sends_7701128_coordinates_of_102290312() -> None:
    assert trained(base("bert-chinese"), "layers:0-0") == 7_701_128
    assert trained(base("bert-chinese"), "all") == 102_290_312
    assert trained(base("bert-english"), "layers:0-0") == 7_710_522


@pytest.mark.parametrize("name", list(BASES))
@pytest.mark.parametrize(("rounds", "mean"), [(10, 3.1), (6, 3.5)])
def test_fb8_stage_2_sends_so_many_layers_on_average_and_the_head(name: str, rounds: int, mean: float) -> None:
    spec = base(name, "ner")
    sent = [trained(spec, f"layers:{lowest}-11") for lowest in fine_tuning_layers(rounds, 12, 6)]
    head = (768 + 1) * len(spec.tags)
    assert sum(sent) / rounds == pytest.approx(mean * LAYER + head, abs=0.5)


def test_fb8_a_classification_head_of_bert_is_the_pooler_too() -> None:
    assert trained(base("bert-chinese", "classification"), "layers:11-11") == LAYER + 590_592 + 769 * 3


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_fb9_another_head_changes_the_scores_and_the_decoder_stays_the_word_embedding(family: str) -> None:
    model, batch = local_model(family, "mlm", (0, 2, 3)), batch_of(family, "mlm")
    words = model.get_input_embeddings().weight
    with torch.no_grad():
        before = scores(model, batch)
        for spec in trainable_specs(model, "head"):
            named_tensors(model)[spec.name].add_(0.1)
        assert not torch.allclose(scores(model, batch), before)
    assert model.get_output_embeddings().weight is words
    assert model.get_output_embeddings().weight.data_ptr() == words.data_ptr()


@pytest.mark.parametrize("slot", [0, 2])
def test_fb10_one_owner_with_the_whole_depth_trains_as_if_the_other_layers_were_frozen(slot: int) -> None:
    local, plain = local_model("bert", "mlm", tuple(range(LAYERS))), global_model("bert", "mlm")
    freeze_except(local, trainable_specs(local, f"layers:{slot}-{slot}"))
    moved = [tensor for tensor in local.parameters() if tensor.requires_grad]
    chosen = [*layers_of(plain)[slot].parameters(), *plain.cls.predictions.transform.parameters(), plain.cls.predictions.bias]
    assert len(moved) == len(chosen)
    for model, tensors in ((local, moved), (plain, chosen)):  # the plain one has gradients everywhere, and moves only these
        optimizer = torch.optim.AdamW(tensors, lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            per_example_loss(model, batch_of("bert", "mlm")).mean().backward()
            optimizer.step()
    before, after, expected = (named_tensors(model) for model in (global_model("bert", "mlm"), local, plain))
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert not torch.equal(after["cls.predictions.bias"], before["cls.predictions.bias"])


@pytest.mark.parametrize(("name", "size"), [("bert-chinese", 59_763_080), ("bert-english", 66_987_066)])
def test_fb11_half_of_the_layers_are_so_many_parameters(name: str, size: int) -> None:
    assert trained(base(name).with_layers(6), "all") == size


@pytest.mark.parametrize("name", list(BASES))
@pytest.mark.parametrize("head", ["mlm", "classification", "ner"])
def test_pg2_a_growing_model_has_more_parameters_in_each_stage_and_is_the_whole_one_at_the_end(name: str, head: Head) -> None:
    spec = base(name, head)
    stages = [spec.with_layers(depth) for depth in sorted(set(growing_depths(8, 12, 4)))]
    sizes = [trained(stage, "all") for stage in stages]
    assert [later - earlier for earlier, later in zip(sizes, sizes[1:], strict=False)] == [3 * LAYER] * 3
    assert stages[-1] == spec


@every_kind
def test_pg3_a_model_that_grows_keeps_what_was_trained_and_gets_the_next_layers_as_they_were(family: str, head: Head) -> None:
    spec, pool = deep(family, head).spec, whole(family, head)
    small, large = spec.with_layers(2), spec.with_layers(4)
    first = local_parameters(small, pool, range(2))
    pool |= {name: array + np.float32(1) for name, array in first.items()}  # as if a stage had trained them all
    grown = local_parameters(large, pool, range(4))
    old = whole(family, head)
    for name, array in grown.items():
        assert np.array_equal(array, first[name] + np.float32(1) if name in first else old[name])
    new = grown.keys() - first.keys()
    assert all(name.startswith((f"{FAMILIES[family].layers}2.", f"{FAMILIES[family].layers}3.")) for name in new) and new
    build_model(large, VOCABULARIES[family], grown)


def test_layers_of_an_albert_cannot_be_left_out() -> None:
    spec = new_bundle(CONFIGS["albert"] | {"model_type": "albert"}, VOCABULARIES["albert"], 0, "shared").spec
    with pytest.raises(ModelError, match="'shared': the layers of an ALBERT are one set of weights"):
        local_parameters(spec, {}, range(3))


@every_kind
def test_another_depth_changes_nothing_else_of_the_description(family: str, head: Head) -> None:
    spec = deep(family, head).spec
    other = spec.with_layers(2)
    assert other.num_layers == 2 and other.with_layers(LAYERS) == spec
    assert {field for field in spec.config if spec.config[field] != other.config[field]} <= {"n_layer", "num_hidden_layers"}


def test_sources_that_do_not_fit_are_refused() -> None:
    spec, pool = deep("bert", "mlm").spec.with_layers(3), whole("bert", "mlm")
    for sources in ((0, 1), (0, 1, 2, 3)):
        with pytest.raises(ModelError, match=f"3 layers needs as many layers to copy, not {len(sources)}"):
            local_parameters(spec, pool, sources)
    with pytest.raises(ModelError, match=r"'bert.encoder.layer.5.attention.output.LayerNorm.bias' is missing"):
        local_parameters(spec, pool, (0, 1, 5))
