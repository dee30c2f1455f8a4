"""The scientist's half: add the owners' ciphertexts without being able to read them. No key is used or accepted here.

Anybody who has the encrypted updates can add them again and must get the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from fl_privacy.encryption import cipher, ckks_wire
from fl_privacy.encryption.cipher import Kind
from fl_privacy.encryption.packing import DEGREE, block_count, check_encoding
from fl_privacy.encryption.registry import check_cohort
from fl_privacy.errors import CohortMismatch
from fl_privacy.round_order import RoundOrder

_AT_A_TIME = 16  # blocks that are read from each file at a time, half a megabyte


def add_updates(updates: Sequence[Path], order: RoundOrder, total: Path) -> None:
    """Add one encrypted update of each owner of the cohort and write the encrypted sum to ``total``.

    Check each file against its owner's signed receipt first: the position in a file is not authenticated by itself.
    Memory grows neither with the model nor with the cohort; the same updates give the same bytes, whatever their order.
    ``total`` appears only when it is complete; until then its name ends in ``.partial``. One process does it: for a model
    like BERT-base it takes a fraction of a second per owner.

    Raises: CiphertextInvalid, CohortMismatch (an owner missing or twice), CohortTooSmall, EncodingOverflow, OSError.
    Privacy: reads nothing; without a secret key a ciphertext is pseudo-random, and a sum adds no noise of its own.
    """
    if order.encoding.scheme == "ckks":
        ckks_wire.add_updates(updates, order, total)
        return
    check_cohort(order)
    check_encoding(order)
    ordered = _in_cohort_order(updates, order)
    partial = total.with_name(f"{total.name}.partial")
    try:
        with partial.open("wb") as file:
            cipher.write_header(file, Kind.TOTAL, order, 0)
        _add_blocks(ordered, order, partial)
        partial.replace(total)
    finally:
        partial.unlink(missing_ok=True)


def check_update(update: Path, order: RoundOrder, owner: str) -> None:
    """Read one encrypted update through, as adding does: to find out whose it was when a sum has failed. Only headers of CKKS.

    Raises: CiphertextInvalid, CohortMismatch (another owner's).
    """
    with update.open("rb") as file:
        if order.encoding.scheme == "ckks":
            position = ckks_wire.read_header(file, ckks_wire.UPDATE, order)
        else:
            position = cipher.read_header(file, Kind.UPDATE, order)
            for index in range(block_count(order)):
                for block in cipher.read_blocks(file, Kind.UPDATE, order, range(index, index + 1)):
                    cipher.split_block(block)
    if position != sorted(order.cohort).index(owner):
        raise CohortMismatch(f"{owner!r} delivered an update for position {position} of the cohort")


def _in_cohort_order(updates: Sequence[Path], order: RoundOrder) -> list[Path]:
    """The files by their owner's place in the sorted cohort. Raises: CiphertextInvalid, CohortMismatch."""
    cohort, found = sorted(order.cohort), dict[int, Path]()
    for path in updates:
        with path.open("rb") as file:
            position = cipher.read_header(file, Kind.UPDATE, order)
        if position >= len(cohort) or position in found:
            raise CohortMismatch(f"an update at position {position} of the cohort is superfluous")
        found[position] = path
    missing = [owner for position, owner in enumerate(cohort) if position not in found]
    if missing:
        raise CohortMismatch(f"no update of {', '.join(missing)}")
    return [found[position] for position in range(len(cohort))]


def _add_blocks(updates: Sequence[Path], order: RoundOrder, total: Path) -> None:
    """Add the blocks of all files behind the header of ``total``."""
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("rb")) for path in updates]
        target, blocks = stack.enter_context(total.open("ab")), block_count(order)
        for start in range(0, blocks, _AT_A_TIME):
            part = range(start, min(start + _AT_A_TIME, blocks))
            sums, seeds = np.zeros((len(part), DEGREE), np.uint64), [b""] * len(part)
            for file in files:
                for index, block in enumerate(cipher.read_blocks(file, Kind.UPDATE, order, part)):
                    c0, own_seeds = cipher.split_block(block)
                    cipher.add_coefficients(sums[index], c0)
                    seeds[index] += b"".join(own_seeds)
            for c0, all_seeds in zip(sums, seeds, strict=True):
                target.write(cipher.pack_coefficients(c0) + all_seeds)
