"""The plan's optimizer and learning-rate schedule, the same with and without privacy."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fl_privacy.plan import TrainingPlan


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
    return optimizer, LambdaLR(optimizer, lambda step: plan.rate_factor(first_step + step))
