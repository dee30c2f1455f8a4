"""Which private units are kept from training, to evaluate on. Each one's own content decides, with a key of the owner.

So the parts are the same in every round and for every plan with the same share, and a unit more or less moves no other one from
part to part. That is what the two accounts need: in training, each unit outside of the held-out part is in a Poisson sample
with the same probability, independently of the others, and each held-out unit never; in an evaluation each held-out unit
adds its own vector and the others none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from fl_privacy.errors import PrivacyError
from fl_privacy.messages import PrivacyUnit, Row

_DRAW_BYTES = 8


def held_out(rows: Sequence[Row], share: float, key: bytes, unit: PrivacyUnit) -> NDArray[np.bool_]:
    """Whether each row is held out, shape (len(rows),); reads all rows once.

    A record is held out with probability ``share`` over the key, and a larger share holds out the same records and more; equal
    records share their fate. With ``unit = "subject"`` the first record of a subject decides for all of them: its number could
    not, since that tells which subjects come before it in the file.
    Raises: PrivacyError without a key, or when a row has no subject where those are the units.
    """
    if not key:
        raise PrivacyError("without a key anybody could tell which records are held out")
    threshold = int(share * 256**_DRAW_BYTES)
    if unit == "record":
        return np.fromiter((_draw(row, key) < threshold for row in rows), np.bool_, len(rows))
    fates: dict[int, bool] = {}
    return np.fromiter((_fate_of_subject(row, key, threshold, fates) for row in rows), np.bool_, len(rows))


class Part(Sequence[Row]):
    """Some of the rows, which stay where they are."""

    def __init__(self, rows: Sequence[Row], chosen: NDArray[np.bool_]) -> None:
        """Args: chosen, shape (len(rows),), tells which rows are in the part."""
        self._rows, self._indices = rows, np.flatnonzero(chosen)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._rows[int(place)] for place in self._indices[index]]
        return self._rows[int(self._indices[index])]

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """As ``StoredRows.lengths``; None where the whole has none."""
        lengths = getattr(self._rows, "lengths", None)
        return None if lengths is None else np.asarray(lengths, np.int64)[self._indices]


def _draw(row: Row, key: bytes) -> int:
    content = row.model_dump_json(exclude={"subject"}).encode()
    return int.from_bytes(hashlib.blake2b(content, key=key, digest_size=_DRAW_BYTES).digest(), "big")


def _fate_of_subject(row: Row, key: bytes, threshold: int, fates: dict[int, bool]) -> bool:
    if row.subject is None:
        raise PrivacyError("a row without a subject cannot be used where whole subjects are protected; add the corpus again")
    if row.subject not in fates:
        fates[row.subject] = _draw(row, key) < threshold
    return fates[row.subject]
