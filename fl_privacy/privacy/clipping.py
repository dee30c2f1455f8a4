"""Book-keeping ghost clipping: each example's gradient is measured and clipped in one backward pass, and mostly never made.

Hooks keep the input of every layer with a trained tensor. One backward pass gives the gradients of these layers' outputs, and
skips the gradients of the tensors themselves. Inputs and gradients tell each example's norm, then the clipped sum.

Source: Bu et al. 2023 (Differentially private optimization on large model at small cost), Algorithm 1.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.layer_rules import Rule, rules_of
from fl_privacy.privacy.per_example import Product, Products, Whole, total_of

Gradients = dict[nn.Parameter, Whole | Products]

_ROUNDING = 1e-6  # float32 norms may be too small by this much
_CANCELLED = 1e-2  # a squared norm this much smaller than it could be lost its last digits on the way


@dataclass(frozen=True, repr=False)
class _Use:
    """One call of a layer."""

    layer: nn.Module
    rule: Rule
    inputs: Tensor
    outputs: Tensor
    versions: tuple[int, int]

    def require_unchanged(self) -> None:
        if (self.inputs._version, self.outputs._version) != self.versions:
            raise PrivacyError(
                f"what a {type(self.layer).__name__} took or gave was changed in place: its gradient is not known"
            )


class Tape:
    """What the layers with trained tensors took and gave since the last backward pass."""

    def __init__(self, model: nn.Module) -> None:
        """Raises: PrivacyError when a layer has no rule."""
        self._rules = rules_of(model)
        self._trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
        self._uses: list[_Use] = []
        self.bytes = 0  # that the last backward pass kept until the sum was clipped

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record until the end, also after an error."""
        hooks = [layer.register_forward_hook(self._record) for layer in self._rules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._uses.clear()

    def backward(self, losses: Tensor) -> Gradients:
        """The gradients of B losses, shape (B,), each in its own example, for every trained tensor.

        Raises: PrivacyError unless all that the losses take from a trained tensor passes through layers with one row for each
            example.
        """
        uses, self._uses = self._uses, []
        if not uses or not losses.requires_grad:
            raise _without_gradients(self._trained[0])
        for use in uses:
            use.require_unchanged()
        found = torch.autograd.grad(losses.sum(), [use.outputs for use in uses], allow_unused=True)
        reached = [(use, gradients) for use, gradients in zip(uses, found, strict=True) if gradients is not None]
        kept = [tensor.untyped_storage() for use, gradients in reached for tensor in (use.inputs, gradients)]
        self.bytes = sum({storage.data_ptr(): storage.nbytes() for storage in kept}.values())
        return self._gathered(reached, losses)

    def _record(self, layer: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> None:
        if not torch.is_grad_enabled():
            return
        if len(inputs) != 1 or not isinstance(outputs, Tensor):
            raise PrivacyError(f"a {type(layer).__name__} must be called with one tensor and give one")
        kept = inputs[0].detach()
        self._uses.append(_Use(layer, self._rules[layer], kept, outputs, (kept._version, outputs._version)))

    def _gathered(self, reached: list[tuple[_Use, Tensor]], losses: Tensor) -> Gradients:
        made: defaultdict[nn.Parameter, list[Whole | Product]] = defaultdict(list)
        for use, gradients in reached:
            if len(gradients) != len(losses):
                raise _without_gradients(next(use.layer.parameters(recurse=False)))
            for tensor, part in use.rule(use.layer, use.inputs, gradients):
                made[tensor].append(part)
        in_graph = _uses_in_graph(losses)
        for tensor in self._trained:
            if not made[tensor] or len(made[tensor]) != in_graph[tensor]:
                raise _without_gradients(tensor)
        return {tensor: total_of(made.pop(tensor), tensor.shape) for tensor in self._trained}


def add_clipped(gradients: Gradients, bound: float, totals: Mapping[nn.Parameter, Tensor]) -> None:
    """Add each example's gradient, scaled to a joint norm of at most ``bound``, to ``totals`` in place.

    An example whose gradient is not finite adds nothing.
    Privacy: what one example adds has norm at most ``bound``, up to float32 rounding of the sum.
    """
    pairs = [one.squared_norms() for one in gradients.values()]
    squares, uncancelled = (torch.stack(values).sum(dim=0) for values in zip(*pairs, strict=True))
    # An overflow (which hostile weights can provoke for chosen records) would turn the whole sum into nan: an un-noised
    # answer to "is such a record here?". Such an example contributes zero, which is within the clipping bound.
    finite = squares.isfinite() & uncancelled.isfinite()
    # The norm of a product in which nearly all cancels (hostile weights can see to that) is rounding error. Such a gradient
    # is made, so that what is measured is what is added.
    exact = finite & (squares < _CANCELLED * uncancelled)
    usual = finite & ~exact
    factors = (bound / (squares.sqrt() * (1 + _ROUNDING))).clamp(max=1.0)
    chosen = usual.nonzero().flatten()
    for tensor, one in gradients.items():
        some = one if len(chosen) == len(usual) else one.of(chosen)
        some.add_to(totals[tensor], factors[chosen].to(tensor.dtype))
    for example in exact.nonzero():
        add_clipped({tensor: one.of(example).whole() for tensor, one in gradients.items()}, bound, totals)


def _uses_in_graph(losses: Tensor) -> Counter[nn.Parameter]:
    # How often each tensor enters what the losses were computed from: once for each call of its layers, unless it is also
    # used past a layer, where nothing is recorded.
    found: Counter[nn.Parameter] = Counter()
    seen: set[Node] = set()
    waiting = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if hasattr(node, "variable"):  # one entry for each use, for this is where they are added up
            found[node.variable] += 1
            continue
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return found


def _without_gradients(tensor: Tensor) -> PrivacyError:
    return PrivacyError(
        f"a trained tensor of shape {tuple(tensor.shape)} has no gradient for each example: "
        "the losses do not use it, use it outside of its layer, or mix examples before it"
    )
