"""The strategy that a plan names."""

from __future__ import annotations

from fl_privacy.plan import TrainingPlan
from fl_privacy.strategies.base import Strategy
from fl_privacy.strategies.fedavg import FedAvg
from fl_privacy.strategies.fedopt import FedAdam, FedAvgM, FedYogi
from fl_privacy.strategies.scaffold import Scaffold


def strategy_of(plan: TrainingPlan) -> Strategy:
    """The plan's strategy with the plan's constants."""
    match plan.strategy:
        case "scaffold":
            return Scaffold(lambda round_index: sum(plan.rates(round_index)), plan.scaffold_damping, plan.server_lr)
        case "fedavgm":
            return FedAvgM(plan.server_momentum, plan.server_lr)
        case "fedadam":
            return FedAdam(plan.server_momentum, plan.server_beta2, plan.server_tau, plan.server_lr)
        case "fedyogi":
            return FedYogi(plan.server_momentum, plan.server_beta2, plan.server_tau, plan.server_lr)
        case "fedavg" | "fedprox":  # which differ at the owners only
            return FedAvg(plan.server_lr)
