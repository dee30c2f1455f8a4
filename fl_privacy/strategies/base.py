"""What a server strategy is: a pair of pure functions over named arrays.

A strategy sees only the cohort's weighted mean update, never one owner's: that is all that a secure sum gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fl_privacy.parameters import Parameters


@dataclass(frozen=True)
class ServerState:
    """The scientist's state between rounds: the next round's index and the global model (all tensors, frozen ones too)."""

    round: int
    model: Parameters


class Strategy(Protocol):
    """How the global model moves when a round's mean update is known."""

    def init(self, model: Parameters) -> ServerState:
        """The state before round 0."""

    def apply(self, state: ServerState, mean: Parameters) -> ServerState:
        """The state after a round. ``mean`` is sum_k p_k * (local_k - global), trained tensors only."""
