"""Which tensors each setting trains."""

from __future__ import annotations

import pytest

from fl_privacy.errors import ModelError
from fl_privacy.learning.models import build_model, outline
from fl_privacy.learning.trainable import freeze_except, specs_for, trainable_specs
from fl_privacy.parameters import specs_of
from tests.tiny_model import VOCABULARY, tiny_bundle, tiny_plan, weights_of

HEAD = {
    "cls.predictions.bias",
    "cls.predictions.transform.LayerNorm.bias",
    "cls.predictions.transform.LayerNorm.weight",
    "cls.predictions.transform.dense.bias",
    "cls.predictions.transform.dense.weight",
}


@pytest.mark.parametrize("trainable", ["all", "head", "layers:0-0", "layers:1-1", "layers:0-1"])
def test_architecture_alone_tells_the_same_as_the_model(trainable: str) -> None:
    bundle = tiny_bundle()
    model = build_model(bundle.spec, VOCABULARY, weights_of(bundle))
    specs = trainable_specs(model, trainable)
    assert specs == trainable_specs(outline(bundle.spec), trainable) == specs_for(tiny_plan(bundle, trainable=trainable))
    assert [spec.name for spec in specs] == sorted({spec.name for spec in specs})
    freeze_except(model, specs)
    assert {name for name, tensor in model.named_parameters() if tensor.requires_grad} == {spec.name for spec in specs}


def test_all_is_every_tensor_of_the_weights() -> None:
    bundle = tiny_bundle()
    assert trainable_specs(outline(bundle.spec), "all") == specs_of(weights_of(bundle))


def test_head_and_layers() -> None:
    spec = tiny_bundle(num_hidden_layers=12).spec
    assert {found.name for found in trainable_specs(outline(spec), "head")} == HEAD
    names = {found.name for found in trainable_specs(outline(spec), "layers:1-10")} - HEAD
    assert {int(name.split(".")[3]) for name in names} == set(range(1, 11))
    assert len(names) == 10 * 16
    one = {found.name for found in trainable_specs(outline(spec), "layers:1-1")} - HEAD
    assert all(name.startswith("bert.encoder.layer.1.") for name in one)  # and not layers 10 and 11
    assert len(one) == 16


@pytest.mark.parametrize("trainable", ["layers:1-2", "layers:1-0", "layers:x-1", "layers:1", "everything", ""])
def test_an_impossible_setting_is_refused(trainable: str) -> None:
    with pytest.raises(ModelError, match=f"trainable '{trainable}'"):
        trainable_specs(outline(tiny_bundle().spec), trainable)
