"""Which tensors a plan trains: all, the head, or a range of encoder layers with the head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import BertForMaskedLM

from fl_privacy.errors import ModelError
from fl_privacy.learning.models import outline
from fl_privacy.messages import TensorSpec
from fl_privacy.plan import ModelSpec

HEAD = "cls.predictions."  # dense, LayerNorm and bias; the output layer's weight is the word embedding, part of "all" only


def trainable_specs(model: nn.Module, trainable: str) -> tuple[TensorSpec, ...]:
    """The tensors that a setting trains, sorted by name.

    Args: trainable is ``all``, ``head`` or ``layers:a-b`` (encoder layers a to b, both included, and the head).
    Raises: ModelError when the setting is unknown or names layers that the model does not have.
    """
    prefixes = _prefixes(trainable)
    named = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in named):
            raise ModelError(f"trainable {trainable!r}: the model has no tensor under {prefix!r}")
    return tuple(TensorSpec(name=name, shape=named[name]) for name in sorted(named) if name.startswith(prefixes))


def specs_for(spec: ModelSpec, trainable: str) -> tuple[TensorSpec, ...]:
    """The same from a plan's architecture alone, without weights. Raises: ModelError."""
    return trainable_specs(outline(spec), trainable)


def freeze_except(model: BertForMaskedLM, specs: Sequence[TensorSpec]) -> None:
    """Let only the listed tensors be trained; all others get no gradient and no noise."""
    names = {spec.name for spec in specs}
    for name, tensor in model.named_parameters():
        tensor.requires_grad_(name in names)


def _prefixes(trainable: str) -> tuple[str, ...]:
    if trainable == "all":
        return ("",)
    if trainable == "head":
        return (HEAD,)
    first, dash, last = trainable.removeprefix("layers:").partition("-")
    if not (trainable.startswith("layers:") and dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ModelError(f"trainable {trainable!r} is none of all, head, layers:a-b")
    return (HEAD, *(f"bert.encoder.layer.{index}." for index in range(int(first), int(last) + 1)))
