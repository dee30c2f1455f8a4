"""The plan's optimizer and learning-rate schedule, the same with and without privacy."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fl_privacy.plan import TrainingPlan


def rate_factor(plan: TrainingPlan, step: int) -> float:
    """Factor on the learning rate at a step of the whole run (0 to total_steps - 1), always above zero.

    Rises linearly over ``warmup_steps``, then stays (``constant``) or falls linearly to zero at ``total_steps`` (``linear``).
    """
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return 1.0
    return max(plan.total_steps - step, 0) / (plan.total_steps - plan.warmup_steps)


def plan_optimizer(plan: TrainingPlan, model: nn.Module, first_step: int) -> tuple[Optimizer, LambdaLR]:
    """A fresh optimizer over the model's trainable tensors, and the schedule from ``first_step`` of the whole run on.

    Weight decay acts on matrices only, not on biases and layer norms.
    """
    trained = [tensor for tensor in model.parameters() if tensor.requires_grad]
    groups = [
        {"params": [tensor for tensor in trained if tensor.ndim > 1], "weight_decay": plan.weight_decay},
        {"params": [tensor for tensor in trained if tensor.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = {"adamw": AdamW, "sgd": SGD}[plan.optimizer]
    optimizer: Optimizer = kind(groups, lr=plan.learning_rate)
    return optimizer, LambdaLR(optimizer, lambda step: rate_factor(plan, first_step + step))
