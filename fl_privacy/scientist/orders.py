"""The orders of a run, as the guards expect them: everything but round, cohort and model follows from the plan."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fl_privacy.encryption.packing import plan_encoding
from fl_privacy.encryption.registry import Registry
from fl_privacy.learning.private_counts import order_specs
from fl_privacy.messages import Purpose, Signed
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import Compression, Control, RoundOrder
from fl_privacy.scientist.history import RoundRecord


@dataclass(frozen=True)
class Orders:
    """What all orders of a run have in common.

    ``function`` and ``code`` are the approved code's name and digest, ``key`` is the public name of the owners' HE key,
    ``sizes`` are the declared corpus sizes by owner.
    """

    plan: TrainingPlan
    function: str
    code: str
    registry: Registry
    key: str
    sizes: Mapping[str, int]
    sign: Callable[[RoundOrder], Signed]

    def make(
        self,
        purpose: Purpose,
        round_index: int,
        attempt: int,
        cohort: tuple[str, ...],
        model: bytes,
        control: Control | None = None,
        compression: Compression | None = None,
    ) -> Signed:
        """A signed order. Args: ``model`` is the blob that the owners start from. Raises: EncodingOverflow."""
        weights = tuple(self.sizes[owner] for owner in cohort)
        order = RoundOrder(
            purpose=purpose,
            plan=self.plan.digest(),
            code=self.code,
            registry=self.registry.digest(),
            key=self.key,
            round=round_index,
            attempt=attempt,
            model=hashlib.sha256(model).hexdigest(),
            tensors=order_specs(self.plan, purpose, round_index),
            cohort=cohort,
            weights=weights,
            encoding=plan_encoding(self.plan, weights, purpose),
            control=control,
            compression=compression,
        )
        return self.sign(order)

    def share(self, order: RoundOrder) -> float:
        """The cohort's part of all owners' declared sizes."""
        return sum(order.weights) / sum(self.sizes[owner] for owner in self.plan.owners)


def control_of(
    plan: TrainingPlan, blob: bytes | None, since: int, cohort: Sequence[str], rounds: Sequence[RoundRecord]
) -> Control | None:
    """What an order to train says of SCAFFOLD's control variates, from the rounds that were opened before; else None.

    Args: ``blob`` is the server's variate, None while it is zero; ``since`` is the round before which all variates were zero.
    """
    if plan.strategy != "scaffold":
        return None
    latest = {owner: record.order for record in rounds if record.round >= since for owner in record.cohort}
    digest = None if blob is None else hashlib.sha256(blob).hexdigest()
    return Control(blob=digest, since=since, after=tuple(latest.get(owner) for owner in cohort))
