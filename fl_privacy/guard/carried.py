"""What an owner carries from one round of a plan to its next, and never sends: own layers, and what compression left out.

After a training it lies in its order's folder; what counts is the last training that came to a receipt, whatever became of its
sum. An owner that has none starts without: from the plan's own model (as everybody does in round 0), with nothing left out.

Privacy: own layers (FedSplitBERT) are trained with the shared ones, by the same DP-SGD, so that what is told of them later, as
by an evaluation, is private like what is sent. What compression left out is made of this owner's own private updates. Sources:
Lit et al. 2022, arXiv 2205.13299; Seide et al. 2014 (error feedback).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fl_privacy.compression.order_codec import check_compression, codec_of
from fl_privacy.durable_files import write_atomically
from fl_privacy.encryption.secret_sum import representable
from fl_privacy.errors import CompressionError, OrderRefused
from fl_privacy.guard.orders import MEMORY, OWN_LAYERS, OrderFolder
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import RoundOrder


def latest(earlier: Sequence[OrderFolder], name: str) -> Path | None:
    """Where what is carried under this file name lies after a plan's ``earlier`` orders, the latest last; None: nowhere."""
    kept = [folder.path / name for folder in earlier if folder.is_sealed and (folder.path / name).exists()]
    return kept[-1] if kept else None


def forget_older(earlier: Sequence[OrderFolder]) -> None:
    """Delete all that is carried but the latest, and what a training left that never came to a receipt."""
    for name in (OWN_LAYERS, MEMORY):
        last = latest(earlier, name)
        for folder in earlier:
            if folder.path / name != last:
                (folder.path / name).unlink(missing_ok=True)


def check_map(order: RoundOrder, plan: TrainingPlan, inbox: Path) -> None:
    """Raise OrderRefused unless the order's map is one that the plan describes."""
    try:
        check_compression(plan, order, _kept(order, inbox))
    except CompressionError as problem:
        raise OrderRefused(f"the order's compression is not one of the approved plan: {problem}") from None


def compress(folder: OrderFolder, plan: TrainingPlan, owner: str, earlier: Sequence[OrderFolder], inbox: Path) -> None:
    """Put what is sent of a trained update in its place, and keep what is not, where the plan says so.

    Raises: CompressionError, EncodingOverflow, HomeError.
    """
    order = folder.order
    if (codec := codec_of(plan, order, _kept(order, inbox))) is None:
        return
    update = np.fromfile(folder.update, "<f4")
    if before := latest(earlier, MEMORY):
        update += np.fromfile(before, "<f4")
    sent = codec.send(update)
    if codec.error_feedback:
        sent = representable(sent, order, owner)  # so that what is kept is what this order's sum really lacks
        left = codec.remaining(update, sent)
        write_atomically(folder.path / MEMORY, left.astype("<f4", copy=False).tobytes())
    write_atomically(folder.update, sent.astype("<f4", copy=False).tobytes())


def _kept(order: RoundOrder, inbox: Path) -> bytes | None:
    """The blob of indices that an order names. Raises: OrderRefused."""
    name = order.compression and order.compression.kept
    try:
        return (inbox / name).read_bytes() if name else None
    except FileNotFoundError:
        raise OrderRefused(f"blob {str(name)[:16]}… has not been uploaded") from None
