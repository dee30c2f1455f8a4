"""Clipping on every family, head and trainable part: norms and sums are those of one example at a time, by plain autograd."""

from __future__ import annotations

import pytest
import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from fl_privacy.learning.adapters import initial, named_tensors
from fl_privacy.learning.batches import IGNORED, Batch
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.losses import per_example_loss
from fl_privacy.learning.models import build_model, outline
from fl_privacy.learning.trainable import freeze_except, trainable_specs
from fl_privacy.model_spec import Adapter, Head
from fl_privacy.parameters import from_bytes
from fl_privacy.privacy.layer_rules import rules_of
from tests.privacy.oracle import Sums, one_at_a_time, ours, require_equal, trained_of
from tests.tiny_families import KINDS, batch_of, bundle_of


def _settings(family: str, head: Head) -> list[str]:
    """What a plan can train."""
    own_head = ["head"] if FAMILIES[family].heads[head] else []
    layers = ["layers:0-0", "layers:1-1"] if FAMILIES[family].layers else []
    return ["all", *own_head, *layers, "lora", "ffa-lora"]


CASES = [(family, head, trainable) for family, head in KINDS for trainable in _settings(family, head)]
every_case = pytest.mark.parametrize(("family", "head", "trainable"), CASES)


def build(family: str, head: Head, trainable: str, dropout: float = 0.0) -> PreTrainedModel:
    """A tiny model of which a part is trained; adapters that work, for with B at zero A has no gradient."""
    bundle = bundle_of(family, head)
    adapter = Adapter(rank=2, alpha=4.0, frozen_a=trainable == "ffa-lora") if "lora" in trainable else None
    parameters = from_bytes(bundle.weights)
    if adapter:
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(outline(bundle.spec, adapter)).items()}
        parameters = initial(shapes, 0) | parameters
    model = build_model(bundle.spec, bundle.vocabulary, parameters, adapter)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(tensor, std=0.2, generator=generator)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = dropout
    freeze_except(model, trainable_specs(model, trainable))
    return model.train()


def _alone(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """Each example's loss by itself, without padding, through the library's whole model."""
    losses = []
    for ids, attended, places, labels in zip(
        batch.input_ids, batch.attention_mask.bool(), batch.places, batch.labels, strict=True
    ):
        logits = model(input_ids=ids[attended][None]).logits[0]
        own = labels != IGNORED
        losses.append(functional.cross_entropy(logits[None] if logits.ndim == 1 else logits[places[own]], labels[own]))
    return losses


@every_case
def test_norms_and_sums_are_those_of_one_example_at_a_time(family: str, head: Head, trainable: str) -> None:
    model, batch = build(family, head, trainable).double(), batch_of(family, head)
    losses = _alone(model, batch)
    for bound in (0.3, 1e6):
        expected = one_at_a_time(model, losses, bound)
        require_equal(ours(model, lambda: per_example_loss(model, batch), bound), expected)
        assert expected.norms.min() > 0.01, "a gradient of zero would prove nothing"


@every_case
def test_float32_loses_nothing_that_counts(family: str, head: Head, trainable: str) -> None:
    model, batch = build(family, head, trainable), batch_of(family, head)
    found = ours(model, lambda: per_example_loss(model, batch), 0.3)
    exact = build(family, head, trainable).double()
    norms, sums = one_at_a_time(exact, _alone(exact, batch), 0.3)
    require_equal(found, Sums(norms, dict(zip(trained_of(model), sums.values(), strict=True))))


@every_case
def test_dropout_is_in_the_gradients_as_it_was_drawn(family: str, head: Head, trainable: str) -> None:
    model, batch = build(family, head, trainable, dropout=0.3).double(), batch_of(family, head)

    def seeded() -> Tensor:
        torch.manual_seed(5)
        return per_example_loss(model, batch)

    expected = one_at_a_time(model, list(seeded()), 0.3)  # one pass for all examples, so that both sides drop the same
    require_equal(ours(model, seeded, 0.3), expected)
    undropped = ours(model.eval(), seeded, 0.3).norms
    assert (undropped / expected.norms - 1).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # an embedding's input, token ids, has no gradient
@every_case
def test_opacus_agrees(family: str, head: Head, trainable: str) -> None:
    if family == "roberta" and trainable == "all":
        pytest.skip("Opacus gives the position of padding a gradient, which torch holds at zero")
    model, batch = build(family, head, trainable).double(), batch_of(family, head)
    found = ours(model, lambda: per_example_loss(model, batch), 0.3)
    if head == "mlm":  # its second name makes Opacus take the whole head, with the word embedding, as one layer
        model.get_submodule(FAMILIES[family].language_head)._parameters.pop("bias")
    hooks = GradSampleHooks(model, loss_reduction="sum")
    per_example_loss(model, batch).sum().backward()
    hooks.remove_hooks()
    gradients = {tensor: tensor.grad_sample for tensor in trained_of(model)}
    norms = torch.stack([one.flatten(1).norm(dim=1) for one in gradients.values()]).norm(dim=0)
    factors = (0.3 / norms).clamp(max=1.0)
    require_equal(found, Sums(norms, {tensor: torch.einsum("b,b...->...", factors, one) for tensor, one in gradients.items()}))


@pytest.mark.parametrize(("family", "head"), KINDS)
def test_every_tensor_of_a_family_lies_in_a_layer_with_a_rule(family: str, head: Head) -> None:
    model = build(family, head, "all")
    held = {id(tensor) for layer in rules_of(model) for tensor in layer.parameters(recurse=False)}
    assert held == {id(tensor) for tensor in model.parameters()}
