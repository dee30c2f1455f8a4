"""Who is sampled in a step of DP-SGD: records one by one, or subjects, each with one of its records."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl_privacy.errors import PrivacyError
from fl_privacy.privacy.randomness import OwnerRandomness


class Units:
    """The private rows by the unit that is protected: each row by itself, or grouped by subject.

    Privacy: every unit is in a sample with probability ``rate``, independently of the others, and then with exactly one row. So
        all rows of one subject together change at most one clipped gradient of a step, and what an accountant says of
        record-level DP-SGD at this rate holds for adding or removing a whole subject. Which of its rows stands for a subject
        is drawn anew in every step; that choice depends on this subject alone.
    """

    def __init__(self, rows: int, subjects: Sequence[int] | None = None) -> None:
        """Args: subjects gives each of the ``rows`` rows its subject's number. Raises: PrivacyError when some have none."""
        if subjects is not None and len(subjects) != rows:
            raise PrivacyError(f"{rows} rows and {len(subjects)} subjects: each row needs exactly one")
        self.count = rows
        self._rows: NDArray[np.int64] | None = None
        if subjects is not None:
            labels = np.asarray(subjects, dtype=np.int64)
            self._rows = np.argsort(labels, kind="stable")  # the rows, subject by subject
            _, self._first, self._sizes = np.unique(labels[self._rows], return_index=True, return_counts=True)
            self.count = len(self._sizes)

    def sample(self, rate: float, randomness: OwnerRandomness) -> NDArray[np.int64]:
        """Indices of the rows of one Poisson sample, in rising order."""
        units = randomness.poisson_sample(self.count, rate)
        if self._rows is None:
            return units
        sizes = self._sizes[units]
        chosen = np.minimum((randomness.uniform(len(units)) * sizes).astype(np.int64), sizes - 1)
        return np.sort(self._rows[self._first[units] + chosen])
