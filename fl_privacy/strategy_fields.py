"""The fields of a plan that say how the model moves by the owners' mean updates; docs/strategies.md has the equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from fl_privacy.messages import Message

# field -> the strategies that use it; with any other it has to be zero, so that no plan promises what is not done
_USED_BY = {
    "prox_mu": ("fedprox",),
    "scaffold_damping": ("scaffold",),
    "server_momentum": ("fedavgm", "fedadam", "fedyogi"),
    "server_beta2": ("fedadam", "fedyogi"),
    "server_tau": ("fedadam", "fedyogi"),
}


def _usual(field: str, value: float) -> Callable[[dict[str, Any]], float]:
    """The default of a field that only some strategies use."""
    return lambda plan: value if plan.get("strategy") in _USED_BY[field] else 0.0


def _usual_lr(plan: dict[str, Any]) -> float:
    return 0.01 if plan.get("strategy") in ("fedadam", "fedyogi") else 1.0  # theirs is the length of a step


class StrategyFields(Message):
    """The server's strategy and its constants. Defaults are those of the papers, zero where a strategy does not use the field.

    ``server_momentum`` is beta of FedAvgM and beta_1 of FedAdam and FedYogi; ``scaffold_damping`` 1 is SCAFFOLD as published.
    """

    strategy: Literal["fedavg", "fedprox", "scaffold", "fedavgm", "fedadam", "fedyogi"] = "fedavg"
    server_lr: Annotated[float, Field(gt=0, le=10, default_factory=_usual_lr)]
    prox_mu: Annotated[float, Field(ge=0, le=100, default_factory=_usual("prox_mu", 0.01))]
    scaffold_damping: Annotated[float, Field(ge=0, le=1, default_factory=_usual("scaffold_damping", 0.5))]
    server_momentum: Annotated[float, Field(ge=0, lt=1, default_factory=_usual("server_momentum", 0.9))]
    server_beta2: Annotated[float, Field(ge=0, lt=1, default_factory=_usual("server_beta2", 0.99))]
    server_tau: Annotated[float, Field(ge=0, le=1e9, default_factory=_usual("server_tau", 1e-3))]

    @model_validator(mode="after")
    def _used(self) -> Self:
        for field, strategies in _USED_BY.items():
            if getattr(self, field) and self.strategy not in strategies:
                raise ValueError(f"{field}: {self.strategy} does not use it; it is for {', '.join(strategies)}")
        if self.strategy in _USED_BY["server_tau"] and not self.server_tau:
            raise ValueError(f"server_tau: {self.strategy} divides by it where nothing has moved yet; it must be above 0")
        if self.strategy == "scaffold" and not self.scaffold_damping:
            raise ValueError("scaffold_damping: with 0 the control variates would never move; 1 is no damping")
        return self
