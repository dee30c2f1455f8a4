"""What an owner needs before an order, brought to it in as few bytes as it takes.

A guard keeps what one key has brought until it has no room for it, so most of it need not come again. Of a model that the guard
does not have, a step from one that it has is enough.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from fl_privacy.errors import BlobMissing, TooLarge
from fl_privacy.scientist.relay import RelayClient


@dataclass(frozen=True)
class ModelStep:
    """From the model whose blob has the sha256 ``base``, by ``change``: a blob of ``compression.steps.make_step``."""

    base: str
    change: bytes


@dataclass(frozen=True)
class Delivery:
    """A blob, and for a model steps to it, the best one first; with every step the guard must get exactly this blob."""

    blob: bytes
    steps: tuple[ModelStep, ...] = ()

    @cached_property
    def digest(self) -> str:
        """By which the order names it."""
        return hashlib.sha256(self.blob).hexdigest()


def deliver(relay: RelayClient, delivery: Delivery) -> None:
    """See to it that an owner has a blob of this scientist: it is there, or made by a step, or sent whole.

    To be called right before the order: a guard may discard what no order needs. Raises: what the owner's side raises.
    """
    if not relay.holds(delivery.digest) and not any(_is_made(relay, delivery.digest, step) for step in delivery.steps):
        relay.put_blob(delivery.blob)


def _is_made(relay: RelayClient, model: str, step: ModelStep) -> bool:
    """Whether the owner has made the model by this step; it cannot without the base, or one too large for its memory."""
    if not relay.holds(step.base):
        return False
    try:
        relay.put_model(model, step.base, relay.put_blob(step.change))
    except (BlobMissing, TooLarge):  # the base has made room for something since, or there is a limit
        return False
    return True
