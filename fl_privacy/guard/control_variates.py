"""An owner's own control variate c_k (SCAFFOLD): which one an order trains with, and the one after it.

c_k is never sent. The one after an order lies in the order's folder, written before the receipt, and belongs to the server's
variate only if the order's sum was added to that. Owners cannot see whether it was; so every order names, for each owner of its
cohort, its last order whose sum is in the server's variate. That can only be the one which this owner's latest order named, or
this latest order itself: anything else is refused. So no c_k is used twice, skipped, or silently taken for zero.

An owner that has lost its own refuses, too. Then the scientist starts all variates anew: c = 0 at the server, c_k = 0 at every
owner, which an order says by a later ``since``; until the next sum the order is one of plain SGD.

Control variates are kept for each tensor by itself, those of tensors that an order does not train stay as they are; a tensor
that none is kept for has zero.

Privacy: c_k is made of this owner's own differentially private updates (as rounded for the sums), of public numbers, and of
nothing else. Like those updates it is for sums only: it stays here. An order that counts a sum for a part of its cohort only,
so that the next sum would hold one owner's last update and not the others', is refused as far as this owner can see it: not
where others have trained without it since, which tells the scientist as much by the difference of two sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fl_privacy.durable_files import write_atomically
from fl_privacy.encryption.secret_sum import representable
from fl_privacy.errors import BlobMissing, ControlMismatch, FlPrivacyError, OrderRefused
from fl_privacy.guard.orders import OrderFolder, Orders
from fl_privacy.parameters import Vector, flatten_or_zero, from_bytes, to_bytes, unflatten
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import RoundOrder

ANEW = "the scientist can start all control variates anew, at zero"


def check_control(order: RoundOrder, plan: TrainingPlan, owner: str, earlier: Sequence[OrderFolder], inbox: Path) -> None:
    """Raise unless the order's control variates are the ones that come next here; ``earlier`` are the plan's orders, in turn.

    Raises: OrderRefused (malformed, or the blob is missing or unfit), ControlMismatch (not the next one, or lost).
    """
    control = order.control
    if (control is not None) != (plan.strategy == "scaffold" and order.purpose == "train"):
        raise OrderRefused("control variates belong to orders to train by SCAFFOLD, and to no others")
    if control is None:
        return
    if len(control.after) != len(order.cohort) or control.since > order.round:
        raise OrderRefused("the order's control variates do not fit its cohort and round")
    if control.blob is None and any(control.after):
        raise OrderRefused("the order names sums in a control variate of the server that it says is zero")
    _server_control(order, inbox)
    named = _named(order)
    trained = [folder for folder in earlier if folder.order.purpose == "train"]
    if trained:
        _check_next(order, named, owner, trained[-1])
    elif named[owner] is not None:
        raise ControlMismatch(f"{owner} has trained in no order of this plan, but the order names one; {ANEW}")
    if (last := named[owner]) is not None and not any(f.digest == last and f.control.exists() for f in earlier):
        raise ControlMismatch(f"{owner} has lost its control variate after order {last[:16]}…; {ANEW}")


def same_controls(order: RoundOrder, past: RoundOrder) -> bool:
    """Whether what ``past`` trained with is what ``order`` trains with, at every owner of both."""
    if order.control is None or past.control is None:
        return order.control == past.control
    ours, theirs = _named(order), _named(past)
    return (order.control.blob, order.control.since) == (past.control.blob, past.control.since) and all(
        ours[owner] == theirs[owner] for owner in ours.keys() & theirs.keys()
    )


def own_control(order: RoundOrder, owner: str, orders: Orders) -> Path | None:
    """The file of c_k (safetensors) that an order trains with; None: c_k is zero."""
    last = _named(order)[owner] if order.control else None
    return orders.folder(last).control if last else None


def forget_others(order: RoundOrder, owner: str, earlier: Sequence[OrderFolder]) -> None:
    """An order was admitted: delete the variates after ``earlier`` orders, but for the one that it names."""
    if order.control is not None:
        for folder in earlier:
            if folder.digest != _named(order)[owner]:
                folder.control.unlink(missing_ok=True)


def advance(folder: OrderFolder, plan: TrainingPlan, owner: str, update: Vector, own: Path | None, inbox: Path) -> Vector:
    """Write the owner's control variate after an order into the order's folder.

    Args: own is where the one lies that the order trained with; None: it was zero.
    Returns: the update as the sum will have it. The variate is made of that, too: the server's, made of the sum, then is the
        weighted mean of the owners' but for float32.
    Raises: EncodingOverflow, HomeError.
    """
    order = folder.order
    sent, server = representable(update, order, owner), _server_control(order, inbox)
    kept = {} if own is None else from_bytes(own.read_bytes())
    before = flatten_or_zero(kept, order.tensors) if kept else None
    after = next_control(before, server, sent, sum(plan.rates(order.round)), plan.scaffold_damping)
    write_atomically(folder.control, to_bytes(kept | unflatten(after, order.tensors)))
    return sent


def next_control(own: Vector | None, server: Vector | None, update: Vector, rate_sum: float, damping: float) -> Vector:
    """c_k <- c_k - rho (c + D_k / L), L being the sum of the learning rates of the round that gave update D_k; None is zero.

    With rho = 1 and c, c_k what the round trained with, this is the mean of its gradients, weighted by their rates.
    Source: Karimireddy et al. 2020, option II, as c_k - c + (x - y) / L.
    """
    change = update / np.float32(rate_sum)
    if server is not None:
        change += server
    change *= np.float32(-damping)
    return change if own is None else change + own


def _check_next(order: RoundOrder, named: Mapping[str, str | None], owner: str, latest: OrderFolder) -> None:
    past, control = latest.order, order.control
    if control is None or past.control is None:
        raise OrderRefused("an order of this plan has no control variates")
    if control.since > past.control.since:  # started anew
        if named[owner] is not None or control.since < past.round:
            raise ControlMismatch(f"the order's start of the control variates contradicts round {past.round}; {ANEW}")
        return
    before = _named(past)
    expected = {before[owner], *([latest.digest] if latest.is_sealed else [])}
    if control.since < past.control.since or named[owner] not in expected:
        raise ControlMismatch(f"the order names a control variate that is not the one after {owner}'s latest order; {ANEW}")
    # who names neither has trained since, in an order that this owner had no part in
    counted = {named[member] == latest.digest for member in named if named[member] in (latest.digest, before.get(member, ""))}
    if len(counted) > 1:
        raise ControlMismatch(f"order {latest.digest[:16]}… is named for a part of its cohort only; its sum counts for all")


def _named(order: RoundOrder) -> dict[str, str | None]:
    return dict(zip(order.cohort, order.control.after, strict=True)) if order.control else {}


def _server_control(order: RoundOrder, inbox: Path) -> Vector | None:
    """The server's c, flat; None: zero. Raises: OrderRefused."""
    blob = order.control.blob if order.control else None
    if blob is None:
        return None
    try:
        return flatten_or_zero(from_bytes((inbox / blob).read_bytes()), order.tensors)
    except FileNotFoundError:
        raise BlobMissing(f"blob {blob[:16]}… has not been uploaded") from None
    except FlPrivacyError as problem:
        raise OrderRefused(f"the control variate does not fit the order's tensors: {problem}") from None
