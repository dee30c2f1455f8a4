"""Which owners a round asks, and whether the sums of several cohorts together give one owner's update away.

Pure functions of what a plan says, so that every owner's guard finds the same cohorts as the scientist.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from typing import Literal

Selection = Literal["all", "groups", "random"]


def cohort(owners: Sequence[str], selection: Selection, size: int, seed: int, round_index: int) -> tuple[str, ...]:
    """The owners that a round trains with, sorted.

    ``all``: everybody. ``groups``: the owners, in their order, cut into groups of ``size`` (the last takes what is left over),
    which take turns. ``random``: ``size`` of them, uniform and without replacement, by a hash of seed and round that anyone can
    repeat: in the order of sha256(seed, round, owner), the first ones.
    Args: size is at least 1 and at most ``len(owners)`` but for ``all``, which ignores it; seed is of use to ``random`` only.
    """
    if selection == "all":
        return tuple(sorted(owners))
    if selection == "groups":
        group = round_index % (len(owners) // size)
        is_last = group == len(owners) // size - 1
        return tuple(sorted(owners[group * size : None if is_last else (group + 1) * size]))
    return tuple(sorted(sorted(owners, key=lambda owner: _lot(seed, round_index, owner))[:size]))


@lru_cache(maxsize=64)
def first_isolation(owners: tuple[str, ...], selection: Selection, size: int, seed: int, rounds: int) -> tuple[int, str] | None:
    """The first round whose sum, with those before it, isolates an owner (``isolated``), and that owner; None: never."""
    sums = _Sums(owners)
    for round_index in range(rounds):
        if owner := sums.add(cohort(owners, selection, size, seed, round_index)):
            return round_index, owner
    return None


def isolated(cohorts: Iterable[Collection[str]]) -> str | None:
    """An owner whose update a combination of these cohorts' sums leaves alone, if there is one.

    That is so when its unit vector lies in the row space of the participation matrix, whatever the weights: updates that change
    little from round to round are then known but for that change. Exact arithmetic.
    Source: So et al. 2021 (Securing secure aggregation), arXiv 2106.03328.
    """
    rows = [frozenset(members) for members in cohorts]
    sums = _Sums(tuple(sorted(frozenset().union(*rows))))
    return next((owner for row in rows if (owner := sums.add(row))), None)


def most_rounds(owners: tuple[str, ...], selection: Selection, size: int, seed: int, rounds: int) -> tuple[int, ...]:
    """The rounds of the owner that is asked most often (of several, any)."""
    if selection == "all":
        return tuple(range(rounds))
    return max(_rounds_by_owner(owners, selection, size, seed, rounds), key=len)


@lru_cache(maxsize=64)
def _rounds_by_owner(
    owners: tuple[str, ...], selection: Selection, size: int, seed: int, rounds: int
) -> tuple[tuple[int, ...], ...]:
    cohorts = [cohort(owners, selection, size, seed, round_index) for round_index in range(rounds)]
    return tuple(tuple(place for place, members in enumerate(cohorts) if owner in members) for owner in owners)


def _lot(seed: int, round_index: int, owner: str) -> bytes:
    return hashlib.sha256(f"fl_privacy/v1/selection\0{seed}\0{round_index}\0{owner}".encode()).digest()


class _Sums:
    """The row space of a participation matrix, as reduced rows of coprime integers: each has a pivot that no other has."""

    def __init__(self, owners: Sequence[str]) -> None:
        self._owners, self._rows = owners, dict[int, list[int]]()

    def add(self, members: Collection[str]) -> str | None:
        """Add one sum; an owner that is isolated now, if there is one.

        A vector of the space is determined by its entries at the pivots. So a unit vector in it has the one at a pivot, and is
        that pivot's row.
        """
        row = [int(owner in members) for owner in self._owners]
        for pivot, other in self._rows.items():
            row = _eliminated(row, other, pivot)
        if not any(row):
            return None
        new = next(place for place, value in enumerate(row) if value)
        self._rows = {pivot: _eliminated(other, row, new) for pivot, other in self._rows.items()} | {new: row}
        units = (pivot for pivot, other in self._rows.items() if sum(map(bool, other)) == 1)
        return next((self._owners[pivot] for pivot in units), None)


def _eliminated(row: list[int], by: list[int], pivot: int) -> list[int]:
    """A multiple of ``row`` less one of ``by``, so that it is zero at ``pivot``, without common factors."""
    if not row[pivot]:
        return row
    ours, theirs = row[pivot], by[pivot]
    combined = [theirs * mine - ours * other for mine, other in zip(row, by, strict=True)]
    factor = math.gcd(*combined) or 1
    return [value // factor for value in combined]
