"""DP-SGD: samples batches, clips each example's gradient, adds the owner's noise, steps.

Clipping (``clipping``), sampling and noise are ours. Opacus gives the per-example gradients of the small layers
(``layer_rules``) and the accountants (``accounting``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.clipping import Gradients, Tape, add_clipped
from fl_privacy.privacy.randomness import OwnerRandomness
from fl_privacy.privacy.sampling import Units

_LARGEST_PART = 32  # examples in one pass; more are no faster
_MEMORY = 1 << 29  # bytes kept for the clipped sum in one pass


@dataclass(frozen=True)
class DPSettings:
    """The mechanism whose steps an accountant counts.

    Privacy: one step is a Gaussian mechanism with noise ``noise_multiplier * max_grad_norm`` on a sum in which one unit has
        norm at most ``max_grad_norm``, over a Poisson sample at ``sample_rate``; neighbours differ by adding or removing
        one unit: a record, or a subject with all its records (``privacy.sampling``).
    """

    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float
    expected_batch_size: int  # public; the divisor of every noisy sum, whatever the sample's size was

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "max_grad_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise PrivacyError(f"{name} must be a finite number above 0; without it there is no privacy")
        if not 0 < self.sample_rate <= 1:
            raise PrivacyError("sample_rate must be above 0 and at most 1")
        if self.expected_batch_size < 1:
            raise PrivacyError("expected_batch_size must be at least 1")


def train_privately(
    model: nn.Module,
    optimizer: Optimizer,
    settings: DPSettings,
    *,
    rows: int,
    subjects: Sequence[int] | None = None,
    steps: int,
    losses: Callable[[NDArray[np.int64]], Tensor],
    after_step: Callable[[int], None],
    randomness: OwnerRandomness | None = None,
) -> None:
    """Take ``steps`` DP-SGD steps on the parameters of ``optimizer``, in place.

    Args: optimizer must be fresh and hold exactly the model's trainable parameters; rows is the number of private examples;
        subjects, the number of the subject of each row, makes subjects the units that are sampled and protected;
        losses(indices) is one loss for each of the examples, shape (len(indices),), example i's depending on example i only;
        after_step(i) is called after step i.
    Raises: PrivacyError.
    Privacy: (epsilon, delta) of ``steps`` compositions of ``settings``; the number of steps never depends on the data.
    Source: Abadi et al. 2016 (Deep learning with differential privacy), Algorithm 1, with Poisson sampling.
    """
    randomness, units = randomness or OwnerRandomness(), Units(rows, subjects)
    trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    _check(model, optimizer, trained)
    clipped, tape = _NoisySum(optimizer, settings, randomness), Tape(model)
    model.train()
    with tape.recording():
        for step in range(steps):
            # Clipped gradients add up over the parts of one sample in bounded memory; an empty sample still releases noise.
            for indices in _parts(units.sample(settings.sample_rate, randomness), tape):
                clipped.add(_gradients(losses, indices, tape))
            clipped.step()
            after_step(step)


class _NoisySum:
    """The sum of clipped gradients of one sample, and its release through the optimizer."""

    def __init__(self, optimizer: Optimizer, settings: DPSettings, randomness: OwnerRandomness) -> None:
        trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        self._totals = {tensor: torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in trained}
        self._optimizer, self._settings, self._randomness = optimizer, settings, randomness

    def add(self, gradients: Gradients) -> None:
        """Add the clipped gradients of some examples."""
        add_clipped(gradients, self._settings.max_grad_norm, self._totals)

    def step(self) -> None:
        """Add noise, divide by the expected size, take the optimizer's step, start from zero."""
        std = self._settings.noise_multiplier * self._settings.max_grad_norm
        for tensor, total in self._totals.items():
            noise = torch.from_numpy(self._randomness.gaussian(tuple(tensor.shape), std)).to(total.device)
            tensor.grad = (noise.add_(total) / self._settings.expected_batch_size).to(tensor.dtype)
            total.zero_()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def _parts(sample: NDArray[np.int64], tape: Tape) -> Iterator[NDArray[np.int64]]:
    # One example alone tells how many fit: the last, for rows sorted by length the longest.
    if len(sample):
        yield sample[-1:]
        part = max(1, min(_LARGEST_PART, _MEMORY // tape.bytes))
        yield from (sample[start : min(start + part, len(sample) - 1)] for start in range(0, len(sample) - 1, part))


def _gradients(losses: Callable[[NDArray[np.int64]], Tensor], indices: NDArray[np.int64], tape: Tape) -> Gradients:
    values = losses(indices)
    if values.shape != indices.shape:
        raise PrivacyError("losses must give one value for each example, in one dimension")
    return tape.backward(values)


def _check(model: nn.Module, optimizer: Optimizer, trained: list[nn.Parameter]) -> None:
    if optimizer.state:
        raise PrivacyError("the optimizer was used before; DP-SGD needs a fresh one for every round")
    if {id(tensor) for tensor in trained} != {id(tensor) for tensor in model.parameters() if tensor.requires_grad}:
        raise PrivacyError("the optimizer must hold exactly the trainable parameters, or some would be released without noise")
