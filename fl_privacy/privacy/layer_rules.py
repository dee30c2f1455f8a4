"""From a layer's inputs and the gradients of its outputs to what each of its tensors' per-example gradients are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.per_example import Product, Whole

Made = Iterator[tuple[nn.Parameter, Whole | Product]]
Rule = Callable[[Any, Tensor, Tensor], Made]  # of a layer, its inputs and the gradients of its outputs, both (B, ...)


def rules_of(model: nn.Module) -> dict[nn.Module, Rule]:
    """The rule of every layer that holds a trained tensor.

    Layers with matrices have rules of their own, all others those that Opacus registers (normalisations, convolutions).
    Raises: PrivacyError that names a layer without a rule, or one that mixes examples.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            raise PrivacyError(f"layer {name!r} is a {_kind(layer)}: it mixes examples, so clipping would not bound one")
    layers = {name: layer for name, layer in model.named_modules() if _trained(layer)}
    rules = {layer: rule for name, layer in layers.items() if (rule := _rule(name, layer))}
    ruled = {id(tensor) for layer in rules for tensor in _trained(layer)}
    for name, layer in layers.items():
        # A second name of another layer's tensor (the bias of a masked language model's head) needs no rule.
        if layer not in rules and any(id(tensor) not in ruled for tensor in _trained(layer)):
            raise PrivacyError(f"layer {name!r} is a {_kind(layer)}: no rule tells its gradient for each example")
    return rules


def _trained(layer: nn.Module) -> list[nn.Parameter]:
    return [tensor for tensor in layer.parameters(recurse=False) if tensor.requires_grad]


def _kind(layer: nn.Module) -> str:
    return type(layer).__name__


def _rule(name: str, layer: Any) -> Rule | None:
    kind = type(layer)
    if kind is nn.Embedding and (layer.scale_grad_by_freq or layer.max_norm is not None or layer.sparse):
        raise PrivacyError(f"layer {name!r}: an Embedding with scale_grad_by_freq, max_norm or sparse has no rule")
    # by name, for the models' library is not this room's to import
    own = _RULES.get(f"{kind.__module__}.{kind.__qualname__}")
    return own or (_by_opacus if kind in GradSampleModule.GRAD_SAMPLERS else None)


def _linear(layer: Any, inputs: Tensor, gradients: Tensor) -> Made:
    yield from _matrix(layer, _tokens(gradients), _tokens(inputs), gradients)


def _conv1d(layer: Any, inputs: Tensor, gradients: Tensor) -> Made:
    # GPT-2's linear layer, whose matrix is transposed
    yield from _matrix(layer, _tokens(inputs), _tokens(gradients), gradients)


def _matrix(layer: Any, left: Tensor, right: Tensor, gradients: Tensor) -> Made:
    if layer.weight.requires_grad:
        yield layer.weight, Product(left, right)
    if layer.bias is not None and layer.bias.requires_grad:
        yield layer.bias, Whole(_tokens(gradients).sum(dim=1))


def _embedding(layer: Any, inputs: Tensor, gradients: Tensor) -> Made:
    ids, right = inputs.flatten(1), gradients.flatten(1, -2)
    if layer.padding_idx is not None:
        right = right * (ids != layer.padding_idx)[:, :, None]
    yield layer.weight, Product(ids, right)


def _by_opacus(layer: Any, inputs: Tensor, gradients: Tensor) -> Made:
    for tensor, made in GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, [inputs], gradients).items():
        yield tensor, Whole(made)


def _tokens(values: Tensor) -> Tensor:
    # (B, ..., features) as (B, T, features)
    return values.flatten(1, -2) if values.dim() > 2 else values[:, None, :]


_RULES: dict[str, Rule] = {
    "torch.nn.modules.linear.Linear": _linear,
    "torch.nn.modules.sparse.Embedding": _embedding,
    "transformers.pytorch_utils.Conv1D": _conv1d,
}
