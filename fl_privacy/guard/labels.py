"""What labels an owner's rows have, exactly and without noise: for the owner's own eyes, never for a scientist's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from fl_privacy.guard.corpus import rows_file
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import Annotation, CorpusCard, Row
from fl_privacy.model_spec import OUTSIDE
from fl_privacy.plan import TrainingPlan
from fl_privacy.row_files import StoredRows


class Misfits(NamedTuple):
    """Of how many rows the guard holds, how many a plan would learn nothing from."""

    rows: int
    of: int


def label_counts(rows: Iterable[Row], annotation: Annotation) -> Counter[str]:
    """How many rows have each label, or among their tags an entity of each kind."""
    return Counter(label for row in rows for label in labels_of(row, annotation))


def misfits(home: GuardHome, card: CorpusCard, plan: TrainingPlan) -> Misfits | None:
    """How many rows have a label, or a kind of entity, that the plan does not name; None where its task needs none.

    Raises: CorpusError.
    """
    if plan.annotation is None:
        return None
    return _misfits(rows_file(home), card.corpus, plan.annotation, frozenset(plan.model.labels))


def labels_of(row: Row, annotation: Annotation) -> frozenset[str]:
    """The label of a row, or the kinds of the entities that its tags mark."""
    if annotation == "label":
        return frozenset() if row.label is None else frozenset((row.label,))
    return frozenset(tag[2:] for tag in row.tags or () if tag != OUTSIDE)


@lru_cache(maxsize=64)  # reviews are read again and again, and a pass over a million rows takes ten seconds
def _misfits(path: Path, corpus: str, annotation: Annotation, known: frozenset[str]) -> Misfits:
    with StoredRows(path) as rows:
        return Misfits(sum(not labels_of(row, annotation) <= known for row in rows), len(rows))
