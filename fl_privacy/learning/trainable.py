"""Which tensors a plan trains: all, the head, a range of layers with the head, or adapters with a head of labels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from fl_privacy.errors import ModelError
from fl_privacy.learning.adapters import A, B, named_tensors
from fl_privacy.learning.families import Family, family_of, head_of
from fl_privacy.learning.models import outline
from fl_privacy.messages import TensorSpec
from fl_privacy.model_spec import Head
from fl_privacy.plan import TrainingPlan

_ADAPTERS = {"lora": (A, B), "ffa-lora": (B,)}


def trainable_specs(model: PreTrainedModel, trainable: str) -> tuple[TensorSpec, ...]:
    """The tensors that a setting trains, sorted by canonical name.

    Args: trainable is ``all``; ``head``; ``layers:a-b``, layers a to b, both included, and the head; or ``lora`` or
        ``ffa-lora``, the adapters (A and B, or only B) and a classification or ner head. The output layer of a language
        model is the word embedding, so it is part of ``all`` only; the rest of an mlm head is not.
    Raises: ModelError when the setting is unknown, or names what the model does not have.
    """
    named = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    chosen = _chosen(named, trainable, family_of(model), head_of(model))
    return tuple(TensorSpec(name=name, shape=named[name]) for name in sorted(chosen))


def specs_for(plan: TrainingPlan) -> tuple[TensorSpec, ...]:
    """The same from a plan alone, without weights. Raises: ModelError."""
    return trainable_specs(outline(plan.model, plan.adapter), plan.trainable)


def freeze_except(model: nn.Module, specs: Sequence[TensorSpec]) -> None:
    """Let only the listed tensors be trained; all others get no gradient and no noise."""
    names = {spec.name for spec in specs}
    for name, tensor in named_tensors(model).items():
        tensor.requires_grad_(name in names)


def _chosen(named: dict[str, tuple[int, ...]], trainable: str, family: Family, head: Head) -> set[str]:
    if trainable == "all":
        return set(named)
    if trainable in _ADAPTERS:
        adapters = {name for name in named if name.endswith(_ADAPTERS[trainable])}
        if not adapters:
            raise ModelError(f"trainable {trainable!r}: the model was built without adapters")
        return adapters | (set() if head == family.language_model else _under(named, family.heads[head], trainable))
    if trainable == "head":
        if not family.heads[head]:
            raise ModelError(f"trainable 'head': a {head} model has none of its own, its output layer is the word embedding")
        return _under(named, family.heads[head], trainable)
    return _under(named, (*family.heads[head], *_layers(trainable, family)), trainable)


def _under(named: dict[str, tuple[int, ...]], prefixes: tuple[str, ...], trainable: str) -> set[str]:
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in named):
            raise ModelError(f"trainable {trainable!r}: the model has no tensor under {prefix!r}")
    return {name for name in named if name.startswith(prefixes)}


def _layers(trainable: str, family: Family) -> tuple[str, ...]:
    first, dash, last = trainable.removeprefix("layers:").partition("-")
    if not (trainable.startswith("layers:") and dash and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise ModelError(f"trainable {trainable!r} is none of all, head, layers:a-b, lora, ffa-lora")
    if not family.layers:
        raise ModelError(f"trainable {trainable!r}: the layers of an ALBERT are one set of weights")
    return tuple(f"{family.layers}{index}." for index in range(int(first), int(last) + 1))
