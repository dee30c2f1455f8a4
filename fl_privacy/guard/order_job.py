"""What the worker of an order is told."""

from __future__ import annotations

from pathlib import Path

from fl_privacy.guard.carried import latest
from fl_privacy.guard.control_variates import own_control
from fl_privacy.guard.corpus import holdout_key
from fl_privacy.guard.home import GuardHome
from fl_privacy.guard.orders import OWN_LAYERS, OrderFolder, Orders
from fl_privacy.guard.worker import Job
from fl_privacy.learning.devices import Device
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.entries import Spend
from fl_privacy.round_order import RoundOrder


def job_of(
    folder: OrderFolder,
    order: RoundOrder,
    plan: TrainingPlan,
    spend: Spend,
    home: GuardHome,
    orders: Orders,
    inbox: Path,
    device: Device,
) -> Job:
    """The job of an admitted order that was paid for."""
    own, server = own_control(order, home.owner, orders), order.control and order.control.blob
    before = latest(orders.before(folder), OWN_LAYERS) if plan.local_layers else None
    return Job(
        plan=plan,
        owner=home.owner,
        order=folder.digest,
        purpose=order.purpose,
        round=order.round,
        declared_size=order.weights[order.cohort.index(home.owner)],
        noise_multiplier=spend.noise_multiplier,
        corpus=str(home.folder / "corpus" / "rows.jsonl"),
        weights=str(inbox / order.model),
        vocabulary=str(inbox / plan.model.vocabulary),
        tensors=order.tensors,
        update=str(folder.update),
        own_before=str(before or ""),
        own_after=str(folder.own_layers) if plan.local_layers and order.purpose == "train" else "",
        unit=home.ledger.opening.unit,
        require_isolation=home.domain.policy.require_isolation,
        control=str(inbox / server) if server else "",
        own_control=str(own or ""),
        holdout_key=holdout_key(home).hex() if plan.holdout else "",
        device=device,
        processes=home.domain.training.processes,
    )
