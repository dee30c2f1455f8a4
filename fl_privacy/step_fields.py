"""The fields of a plan that say how many steps an owner takes, with which optimizer, and how long each step is."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_privacy.messages import Message


class StepFields(Message):
    """Local steps. The learning rate counts steps of the whole run, not of a round."""

    rounds: Annotated[int, Field(ge=1, le=1000)] = 5
    local_steps: Annotated[int, Field(ge=1, le=10_000)] = 20
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["constant", "linear"] = "linear"  # after the warm-up; linear falls to zero at the end of the run

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup_steps >= self.total_steps:
            raise ValueError(f"warmup_steps: {self.warmup_steps} leaves none of the {self.total_steps} steps")
        return self

    @property
    def total_steps(self) -> int:
        """Steps of the whole run at one owner."""
        return self.rounds * self.local_steps

    def rate_factor(self, step: int) -> float:
        """Factor on the learning rate at a step of the whole run (0 to total_steps - 1), always above zero.

        Rises linearly over ``warmup_steps``, then stays (``constant``) or falls linearly (``linear``), to zero at
        ``total_steps``.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return 1.0
        return max(self.total_steps - step, 0) / (self.total_steps - self.warmup_steps)

    def rates(self, round_index: int) -> tuple[float, ...]:
        """The learning rates of a round's local steps."""
        first = round_index * self.local_steps
        return tuple(self.learning_rate * self.rate_factor(step) for step in range(first, first + self.local_steps))
