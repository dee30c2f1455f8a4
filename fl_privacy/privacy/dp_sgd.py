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
from fl_privacy.privacy.team import Team

_LARGEST_PART = 32  # examples in one pass; more are no faster
_MEMORY = 1 << 29  # bytes kept for the clipped sum in one pass
_NOBODY: NDArray[np.int64] = np.zeros(0, dtype=np.int64)


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
    team: Team | None = None,
) -> None:
    """Take ``steps`` DP-SGD steps on the parameters of ``optimizer``, in place.

    Args: optimizer must be fresh and hold exactly the model's trainable parameters; rows is the number of private examples;
        subjects, the number of the subject of each row, makes subjects the units that are sampled and protected;
        losses(indices) is one loss for each of the examples, shape (len(indices),), example i's depending on example i only;
        after_step(i) is called after step i; team is the processes that all make this call at once, each with a copy of the
        model: each takes a part of every sample, and all end with the same bits.
    Raises: PrivacyError; OrderFailed when another process of the team ends.
    Privacy: (epsilon, delta) of ``steps`` compositions of ``settings``; the number of steps never depends on the data.
    Source: Abadi et al. 2016 (Deep learning with differential privacy), Algorithm 1, with Poisson sampling.
        In a team, one process draws the one sample, and adds noise once to the sum of all clipped gradients: the mechanism of
        one process, so the accountant's too. Opacus' ``DistributedDPOptimizer`` does the same (noise at rank 0 only, then a
        sum), but on per-example gradients, which are not made here, and with a sample drawn by each process.
    """
    randomness, units, team = randomness or OwnerRandomness(), Units(rows, subjects), team or Team()
    trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    _check(model, optimizer, trained)
    clipped, tape = _NoisySum(optimizer, settings, randomness, team), Tape(model)
    model.train()
    with tape.recording():
        for step in range(steps):
            # Clipped gradients add up over the parts of one sample in bounded memory; an empty sample still releases noise.
            sample = units.sample(settings.sample_rate, randomness) if team.leads else _NOBODY
            for indices in _parts(team.share_of(sample, rows), tape):
                clipped.add(_gradients(losses, indices, tape))
            clipped.step()
            after_step(step)


class _NoisySum:
    """The sum of clipped gradients of one sample, and its release through the optimizer."""

    def __init__(self, optimizer: Optimizer, settings: DPSettings, randomness: OwnerRandomness, team: Team) -> None:
        trained = [tensor for group in optimizer.param_groups for tensor in group["params"]]
        self._totals = {tensor: torch.zeros_like(tensor, memory_format=torch.contiguous_format) for tensor in trained}
        self._optimizer, self._settings, self._randomness, self._team = optimizer, settings, randomness, team

    def add(self, gradients: Gradients) -> None:
        """Add the clipped gradients of some examples."""
        add_clipped(gradients, self._settings.max_grad_norm, self._totals)

    def step(self) -> None:
        """Release the team's sum, take the optimizer's step, start from zero."""
        for tensor, total in self._totals.items():
            tensor.grad = self._released(total).to(tensor.device)
            total.zero_()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _released(self, total: Tensor) -> Tensor:
        """The sum over the team with noise, divided by the expected size: the same for all, on the CPU, not in place."""
        released = self._team.summed(total.cpu())
        if self._team.leads:
            std = self._settings.noise_multiplier * self._settings.max_grad_norm
            noise = torch.from_numpy(self._randomness.gaussian(tuple(total.shape), std))
            released = (noise.add_(released) / self._settings.expected_batch_size).to(total.dtype)
        return self._team.from_leader(released)


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
