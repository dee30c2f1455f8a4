"""The map of one order: what its plan says of it, what the order adds, and the public seed of what is drawn."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fl_privacy.compression.codec import Codec
from fl_privacy.compression.subsets import Indices, random_subset, shared_top
from fl_privacy.errors import CompressionError
from fl_privacy.messages import TensorSpec
from fl_privacy.parameters import Vector, count
from fl_privacy.plan import TrainingPlan
from fl_privacy.round_order import Compression, RoundOrder

AT_RANDOM = 0.1  # of the shared-top coordinates: a coordinate that stayed at zero could else never come in


def check_compression(plan: TrainingPlan, order: RoundOrder, kept: bytes | None) -> None:
    """Raise CompressionError unless the order's compression is one that its plan describes. Args: as ``codec_of``."""
    told, size = order.compression, count(order.tensors)
    if (told is not None) != (plan.is_compressed and order.purpose == "train"):
        raise CompressionError("it belongs to orders to train by a plan that compresses, and to no others")
    if told is None:
        return
    if told.coordinates != sent_count(plan, size):
        raise CompressionError(f"of {size} coordinates the plan sends {sent_count(plan, size)}, the order {told.coordinates}")
    if (told.ranges is not None) != (plan.update_ranges == "adaptive"):
        raise CompressionError(f"update_ranges are {plan.update_ranges} in the plan")
    if (told.kept is not None) != (plan.sent == "shared-top") or (kept is None) != (told.kept is None):
        raise CompressionError(f"what is sent is {plan.sent!r} in the plan")
    Codec(order.tensors, kept=None if kept is None else _named(kept, told.coordinates), ranges=told.ranges)


def codec_of(plan: TrainingPlan, order: RoundOrder, kept: bytes | None) -> Codec | None:
    """The map of an order; None when the plan compresses nothing.

    Args: kept is the blob of indices that the order names, if it does.
    Raises: CompressionError when the order's compression is not one that the plan describes.
    """
    check_compression(plan, order, kept)
    if (told := order.compression) is None:
        return None
    drawn = _drawn(plan, order.round, count(order.tensors)) if kept is None else _named(kept, told.coordinates)
    return Codec(
        specs=order.tensors,
        rotation=seed_of(plan, order.round) if plan.rotation else None,
        kept=drawn,
        ranges=told.ranges,
        update_range=plan.update_range,
        error_feedback=plan.error_feedback,
    )


def compression_of(
    plan: TrainingPlan, specs: Sequence[TensorSpec], ranges: Mapping[str, float], kept: bytes | None
) -> Compression | None:
    """What an order to train says of its map.

    Args: ranges by tensor, ``update_range`` where there is none yet; kept is the blob of ``top_of``, where the plan needs one.
    """
    if not plan.is_compressed:
        return None
    return Compression(
        coordinates=sent_count(plan, count(specs)),
        ranges=tuple(ranges.get(spec.name, plan.update_range) for spec in specs) if plan.update_ranges == "adaptive" else None,
        kept=None if kept is None else hashlib.sha256(kept).hexdigest(),
    )


def top_of(plan: TrainingPlan, round_index: int, mean: Vector) -> bytes:
    """The indices of the shared top of the last opened mean (n,), little-endian uint32."""
    kept = sent_count(plan, mean.size)
    return shared_top(mean, kept, math.ceil(AT_RANDOM * kept), seed_of(plan, round_index)).astype("<u4").tobytes()


def sent_count(plan: TrainingPlan, size: int) -> int:
    """How many of so many coordinates are sent."""
    return size if plan.sent == "all" else math.ceil(plan.sent_share * size)


def seed_of(plan: TrainingPlan, round_index: int) -> bytes:
    """The public seed of a round: it is fixed when the plan is approved, so that nobody can choose a subset to its liking."""
    return hashlib.sha256(f"fl_privacy/compression/{plan.digest()}/{round_index}".encode()).digest()


def _drawn(plan: TrainingPlan, round_index: int, size: int) -> Indices | None:
    return random_subset(seed_of(plan, round_index), size, sent_count(plan, size)) if plan.sent == "random" else None


def _named(kept: bytes, count: int) -> Indices:
    if len(kept) != 4 * count:
        raise CompressionError(f"a blob of {len(kept)} bytes is not the {count} indices of coordinates to send")
    return np.frombuffer(kept, "<u4").astype(np.int64)
