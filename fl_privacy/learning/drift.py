"""What FedProx and SCAFFOLD add to an owner's gradient so that it does not drift from the others.

Both terms are functions of the model, which is private already, and of what was known before the round. They are added after
clipping and noise, just before the optimizer's step: so they cost no epsilon, take no room below the clipping bound, and the
noise needed does not depend on them. With AdamW they are part of the gradient, not of the decoupled weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fl_privacy.errors import ModelError, PlanError
from fl_privacy.parameters import Parameters
from fl_privacy.plan import TrainingPlan


def correct_drift(
    optimizer: Optimizer, plan: TrainingPlan, trained: Mapping[str, nn.Parameter], correction: Parameters | None
) -> None:
    """Have every step of ``optimizer`` add the plan's term to the gradients; call it while the tensors are the global model's.

    FedProx: g + mu (y - w), with y the present and w the present round's first values (Li et al. 2020, arXiv 1812.06127).
    SCAFFOLD: g + correction, which is c - c_k (Karimireddy et al. 2020, arXiv 1910.06378); None is zero.
    Args: trained are the tensors by canonical name, on their device. Raises: PlanError, ModelError.
    """
    if correction is not None:
        _check_fits(plan, trained, correction)
        terms = {trained[name]: torch.tensor(array, device=trained[name].device) for name, array in correction.items()}
        optimizer.register_step_pre_hook(_Shift(terms))
    if plan.prox_mu:
        optimizer.register_step_pre_hook(_Pull(plan.prox_mu, trained))


class _Shift:
    def __init__(self, terms: Mapping[nn.Parameter, Tensor]) -> None:
        self._terms = terms

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for tensor, term in self._terms.items():
            tensor.grad = term.clone() if tensor.grad is None else tensor.grad.add_(term)


class _Pull:
    def __init__(self, mu: float, trained: Mapping[str, nn.Parameter]) -> None:
        self._mu, self._anchors = mu, {tensor: tensor.detach().clone() for tensor in trained.values()}

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for tensor, anchor in self._anchors.items():
            pull = (tensor.detach() - anchor).mul_(self._mu)
            tensor.grad = pull if tensor.grad is None else tensor.grad.add_(pull)


def _check_fits(plan: TrainingPlan, trained: Mapping[str, nn.Parameter], correction: Parameters) -> None:
    if plan.strategy != "scaffold":
        raise PlanError(f"strategy: {plan.strategy} has no control variates to correct by")
    shapes = {name: tuple(tensor.shape) for name, tensor in trained.items()}
    if {name: array.shape for name, array in correction.items()} != shapes:
        raise ModelError("the control variates are not of the tensors that the plan trains")
