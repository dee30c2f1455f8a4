"""The one linear map of a round: from a flat update to the coordinates that are encoded, and from their opened mean back.

rotate -> subset -> scale each tensor, every step of it if asked for. The map A is the same for every owner and public, so
A (sum_k p_k D_k) = sum_k p_k A D_k but for float32, and owners need no other plan of encoding, masks or keys for it.

What a subset leaves out is either made up for on average, each coordinate that is sent standing for d / k of them (an unbiased
mean, of variance (d / k - 1) |D|^2), or kept by each owner and added to its next update (``remaining``: error feedback).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fl_privacy.compression.ranges import adaptive_ranges, scaled, unscaled
from fl_privacy.compression.rotation import rotate, unrotate
from fl_privacy.compression.subsets import Indices
from fl_privacy.errors import CompressionError
from fl_privacy.messages import TensorSpec
from fl_privacy.parameters import Vector, count


@dataclass(frozen=True, eq=False)
class Codec:
    """What of an update is sent in one round, and how it is read; the default sends all as it is.

    ``specs`` are the d coordinates of an update. ``rotation`` is the seed of the rotation; ``kept`` the rising indices, among
    the rotated coordinates, of those that are sent; ``ranges`` one bound for each tensor's coordinates, which is scaled to
    ``update_range``. ``error_feedback``: owners keep what is not sent, and add it to their next update. None: no such step.
    Raises: CompressionError: ranges and a rotation together, which mixes the tensors, or values out of range.
    Privacy: post-processing of private updates with public numbers. What owners keep is made of their own private updates.
    """

    specs: tuple[TensorSpec, ...]
    rotation: bytes | None = None
    kept: Indices | None = None
    ranges: tuple[float, ...] | None = None
    update_range: float = 1.0
    error_feedback: bool = False

    def __post_init__(self) -> None:
        if self.kept is not None:
            _check_indices(self.kept, self.size)
        if self.ranges is not None:
            if self.rotation is not None:
                raise CompressionError("a rotation mixes the tensors: leave it out, or the ranges for each of them")
            if len(self.ranges) != len(self.specs):
                raise CompressionError(f"{len(self.ranges)} ranges do not fit {len(self.specs)} tensors")
            if not all(0 < bound < math.inf for bound in (self.update_range, *self.ranges)):
                raise CompressionError("a range of coordinates is not a positive number")

    @property
    def size(self) -> int:
        """Coordinates of an update, d."""
        return count(self.specs)

    @property
    def coordinates(self) -> int:
        """How many of them are sent, k."""
        return self.size if self.kept is None else self.kept.size

    def send(self, update: Vector) -> Vector:
        """A update: float32 (size,) -> (coordinates,). With error feedback ``update`` is the round's plus what was kept."""
        _check_length(update, self.size)
        sent = update if self.rotation is None else rotate(update, self.rotation)
        if self.kept is not None:
            sent = sent[self.kept]
        return sent if self.ranges is None else scaled(sent, self._sizes(), self.ranges, self.update_range)

    def restore(self, mean: Vector) -> Vector:
        """The mean update that a mean of sent ones stands for: float32 (coordinates,) -> (size,).

        Unbiased over the draw of the subset, or with error feedback what was really sent, and zero where nothing was.
        """
        restored = self._unscaled(mean)
        if self.kept is not None:
            whole = np.zeros(self.size, np.float32)
            whole[self.kept] = restored if self.error_feedback else restored * np.float32(self.size / self.kept.size)
            restored = whole
        return restored if self.rotation is None else unrotate(restored, self.rotation)

    def remaining(self, update: Vector, sent: Vector) -> Vector:
        """What an owner keeps for its next update: ``update`` (the round's and what was kept) less what ``sent`` restores.

        Args: sent is ``send(update)`` as the sum has it: clipped and rounded (``encryption.secret_sum.representable``), so that
            what clipping and rounding took is kept, too.
        Returns: float32 (size,). Raises: CompressionError without error feedback.
        """
        if not self.error_feedback:
            raise CompressionError("without error feedback the mean stands for what was not sent as well; keep nothing")
        _check_length(update, self.size)
        return update - self.restore(sent)

    def next_ranges(self, mean: Vector, owners: int) -> tuple[float, ...]:
        """The ranges of the next round (``ranges.adaptive_ranges``) from the opened mean of this one, (coordinates,).

        Raises: CompressionError when this round has no ranges.
        """
        if self.ranges is None:
            raise CompressionError("the round had no ranges for each tensor; the next ones' growth has nothing to start from")
        return adaptive_ranges(self._unscaled(mean), self._sizes(), owners, self.ranges)

    def _unscaled(self, mean: Vector) -> Vector:
        _check_length(mean, self.coordinates)
        return mean if self.ranges is None else unscaled(mean, self._sizes(), self.ranges, self.update_range)

    def _sizes(self) -> list[int]:
        """How many coordinates of each tensor are sent; they lie side by side, in the order of the tensors."""
        sizes = [math.prod(spec.shape) for spec in self.specs]
        if self.kept is None:
            return sizes
        places = np.searchsorted(self.kept, np.cumsum([0, *sizes]))
        return [int(size) for size in np.diff(places)]


def _check_indices(kept: Indices, size: int) -> None:
    if not kept.size or kept[0] < 0 or kept[-1] >= size or not (kept[1:] > kept[:-1]).all():
        raise CompressionError(f"the coordinates to send are not rising indices below {size}")


def _check_length(vector: Vector, length: int) -> None:
    if vector.shape != (length,):
        raise CompressionError(f"a vector of shape {vector.shape} is not the {length} coordinates of this round")
