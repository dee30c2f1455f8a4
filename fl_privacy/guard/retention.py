"""Old blobs go: models, ciphertexts and sums that no unopened order needs. Ledger, receipts and orders stay for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fl_privacy.guard.approvals import Approvals
from fl_privacy.guard.blobs import Blobs
from fl_privacy.guard.orders import OrderFolder, Orders
from fl_privacy.messages import UpdateReceipt

DAY = 86_400.0  # seconds


@contextmanager
def held(orders: Orders, approvals: Approvals) -> Iterator[frozenset[str]]:
    """The blobs that unopened orders need; no order is admitted meanwhile, or its model could be deleted at this moment."""
    with orders.lock:
        latest = orders.latest()
        yield frozenset(name for folder in orders.all() for name in _needed(folder, folder in latest, approvals))


def delete_old(blobs: Blobs, orders: Orders, approvals: Approvals, days: int) -> int:
    """Delete what has lain for more than ``days`` in inbox and outbox and that no unopened order needs; returns how many."""
    with held(orders, approvals) as needed:
        old = time.time() - days * DAY
        found = 0
        for box in (blobs.inbox, blobs.outbox):
            for path in box.iterdir():
                if path.name.split(".")[0] not in needed and path.stat().st_mtime < old:
                    path.unlink()
                    found += 1
        return found


def _needed(folder: OrderFolder, is_latest: bool, approvals: Approvals) -> list[str]:
    """The blobs of an order that may still be opened: once it is closed, whatever came after it, or as its plan's latest.

    A closed order is never trained again and needs no model: most owners open few of the orders that they close.
    """
    if folder.is_opened or folder.is_revoked or folder.has_failed or not (folder.is_closed or is_latest):
        return []
    order, named = folder.order, list[str]()
    extra = (order.control and order.control.blob, order.compression and order.compression.kept)
    if not folder.is_closed:
        named = [order.model, *(blob for blob in extra if blob)]
    if folder.is_sealed:
        named.append(UpdateReceipt.parse(folder.receipt.body).ciphertext)
    elif decision := approvals.of_plan(order.plan):
        named.append(decision.training_plan.model.vocabulary)
    if folder.is_closed:
        named.append(folder.closing.total)
    return named
