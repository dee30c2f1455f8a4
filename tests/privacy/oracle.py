"""What clipping must equal: autograd, one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fl_privacy.privacy.clipping import Tape, add_clipped

Totals = dict[nn.Parameter, Tensor]


class Sums(NamedTuple):
    """Of one batch."""

    norms: Tensor  # (B,) of the unclipped gradients
    totals: Totals  # clipped sums


def trained_of(model: nn.Module) -> list[nn.Parameter]:
    """The tensors that are trained, each once."""
    return [tensor for tensor in model.parameters() if tensor.requires_grad]


def ours(model: nn.Module, losses: Callable[[], Tensor], bound: float) -> Sums:
    """What the engine makes of one pass."""
    tape = Tape(model)
    with tape.recording():
        gradients = tape.backward(losses())
    totals = {tensor: torch.zeros_like(tensor) for tensor in trained_of(model)}
    add_clipped(gradients, bound, totals)
    return Sums(torch.stack([one.squared_norms()[0] for one in gradients.values()]).sum(dim=0).sqrt(), totals)


def one_at_a_time(model: nn.Module, losses: Sequence[Tensor], bound: float) -> Sums:
    """The same from the gradient of each loss by itself, added in float64."""
    tensors = trained_of(model)
    totals = {tensor: torch.zeros_like(tensor, dtype=torch.float64) for tensor in tensors}
    norms = []
    for loss in losses:
        found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True, materialize_grads=True)
        norms.append(torch.cat([gradient.flatten().double() for gradient in found]).norm())
        for tensor, gradient in zip(tensors, found, strict=True):
            totals[tensor] += gradient.double() * min(1.0, bound / max(float(norms[-1]), 1e-300))
    return Sums(torch.stack(norms), totals)


def size(totals: Totals) -> float:
    """The joint norm."""
    return float(torch.stack([total.double().norm() for total in totals.values()]).norm())


def difference(one: Totals, other: Totals) -> Totals:
    """one - other, tensor by tensor."""
    return {tensor: one[tensor].double() - other[tensor].double() for tensor in one}


def require_equal(found: Sums, expected: Sums, relative: float = 1e-5) -> None:
    """Norms and the sum agree."""
    torch.testing.assert_close(found.norms.double(), expected.norms.double(), rtol=relative, atol=1e-12)
    assert size(difference(found.totals, expected.totals)) <= relative * size(expected.totals) + 1e-12
