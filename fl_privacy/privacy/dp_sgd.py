"""DP-SGD: the only door to Opacus. Samples batches, clips each example's gradient, adds the owner's noise, steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.randomness import OwnerRandomness
from fl_privacy.privacy.sampling import Units

_LARGEST_PART = 32  # examples in one pass; more are no faster
_MEMORY = 1 << 27  # bytes of per-example gradients in one pass; larger blocks are mapped anew each time, which is slower


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
    private = _NoisyOptimizer(optimizer, settings, randomness)
    reached = _one_tensor_per_layer(model)
    part = max(1, min(_LARGEST_PART, _MEMORY // (8 * sum(map(Tensor.numel, trained)))))
    model.train()
    with _per_example_gradients(model):
        for step in range(steps):
            sample = units.sample(settings.sample_rate, randomness)
            parts = [sample[start : start + part] for start in range(0, len(sample), part)]
            _noisy_step(private, losses, parts, reached)
            after_step(step)


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimizer with the owner's noise, and with examples dropped whose gradient is not finite."""

    def __init__(self, optimizer: Optimizer, settings: DPSettings, randomness: OwnerRandomness) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=settings.noise_multiplier,
            max_grad_norm=settings.max_grad_norm,
            expected_batch_size=settings.expected_batch_size,
            loss_reduction="mean",
        )
        self._randomness = randomness

    def expect_nothing(self) -> None:
        """Stand for an empty sample: no example, and a step that releases noise only."""
        for tensor in self.params:
            tensor.grad_sample = tensor.new_zeros((0, *tensor.shape))

    def require_per_example_gradients(self, examples: int) -> None:
        """Raise PrivacyError unless every trained tensor has one gradient for each example."""
        for tensor in self.params:
            found = getattr(tensor, "grad_sample", None)
            if not isinstance(found, Tensor) or found.shape != (examples, *tensor.shape):
                raise PrivacyError(
                    f"a trained tensor of shape {tuple(tensor.shape)} has no gradient for each of the {examples} examples: "
                    "the losses do not use it, or mix examples before it"
                )

    def clip_and_accumulate(self) -> None:
        # An overflow (which hostile weights can provoke for chosen records) would turn the whole sum into nan: an un-noised
        # answer to "is such a record here?". Such an example contributes zero, which is within the clipping bound.
        norms = [torch.linalg.vector_norm(sample.flatten(1), dim=1) for sample in self.grad_samples]
        finite = torch.stack(norms).isfinite().all(dim=0)
        if not finite.all():
            for tensor in self.params:
                tensor.grad_sample[~finite] = 0.0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        std = self.noise_multiplier * self.max_grad_norm
        for tensor in self.params:
            noise = torch.from_numpy(self._randomness.gaussian(tuple(tensor.shape), std))
            tensor.grad = (tensor.summed_grad.double() + noise).to(tensor.dtype)


@contextmanager
def _per_example_gradients(model: nn.Module) -> Iterator[None]:
    hooks = GradSampleHooks(model, batch_first=True, loss_reduction="sum", strict=True)
    try:
        with warnings.catch_warnings():
            # An embedding's input is token ids, which have no gradient; its hook fires all the same.
            warnings.filterwarnings("ignore", message="Full backward hook is firing when gradients are computed")
            yield
    finally:
        hooks.cleanup()


def _noisy_step(
    private: _NoisyOptimizer,
    losses: Callable[[NDArray[np.int64]], Tensor],
    parts: list[NDArray[np.int64]],
    reached: list[nn.Parameter],
) -> None:
    # Clipped gradients add up over the parts of one sample in bounded memory; the last part adds the noise and steps.
    private.zero_grad(set_to_none=True)
    for place, indices in enumerate(parts):
        values = losses(indices)
        if values.shape != indices.shape:
            raise PrivacyError(f"losses must give one value for each of {len(indices)} examples, got {tuple(values.shape)}")
        values.sum().backward(inputs=reached)  # type: ignore[no-untyped-call]
        private.require_per_example_gradients(len(indices))
        private.signal_skip_step(place < len(parts) - 1)
        private.step()
        private.zero_grad(set_to_none=True)
    if not parts:  # an empty Poisson sample still releases noise
        private.expect_nothing()
        private.step()


def _one_tensor_per_layer(model: nn.Module) -> list[nn.Parameter]:
    # Opacus' hooks fire in every layer that the backward pass reaches, so the batch's gradient of the large tensors, which
    # nobody needs, is not computed. A layer that was not reached has no per-example gradient, which is refused later.
    layers = [[tensor for tensor in layer.parameters(recurse=False) if tensor.requires_grad] for layer in model.modules()]
    return list({id(least): least for least in (min(own, key=Tensor.numel) for own in layers if own)}.values())


def _check(model: nn.Module, optimizer: Optimizer, trained: list[nn.Parameter]) -> None:
    if optimizer.state:
        raise PrivacyError("the optimizer was used before; DP-SGD needs a fresh one for every round")
    if {id(tensor) for tensor in trained} != {id(tensor) for tensor in model.parameters() if tensor.requires_grad}:
        raise PrivacyError("the optimizer must hold exactly the trainable parameters, or some would be released without noise")
