"""The private corpus: read from the owner's file, kept in the guard's home, described to others by a card.

One record is one row: a text, with a label or tags if the owner's file has them. Differential privacy protects one record, or
with ``unit = "subject"`` all records of one person. Whose a record is, is kept as a number in the order of first appearance;
the file's own identifiers are not kept at all.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fl_privacy.durable_files import disk_problems_named, write_atomically
from fl_privacy.errors import CorpusError, MessageError
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import Annotation, CorpusCard, PrivacyUnit, Row
from fl_privacy.row_files import PLAIN, Fields, read_rows, stored


class _Copied(NamedTuple):
    rows: int
    subjects: int
    seal: str  # salted digest


def add_corpus(home: GuardHome, path: Path, mock_rows: Sequence[Row], fields: Fields = PLAIN) -> CorpusCard:
    """Copy a corpus into the home and describe it; the former corpus, if any, is replaced only when all rows are good.

    Args: fields.subject holds who each row is about (text or a whole number), where the budget's unit is a subject. Mock rows
        must have a label or tags if the corpus has.
    The declared size is the number of units (rows or subjects), rounded down to two digits; weights and sample rates are
    computed from it. Raises: CorpusError.
    Privacy: the declared size is published as it is, outside epsilon; rounding hides single records but at its steps. Published
        is also that every row has a label or tags; which ones there are, only the mock rows tell.
    """
    unit, rows, salt = _check_unit(home, fields.subject), rows_file(home), secrets.token_bytes(32)
    _check_mock_rows(mock_rows, fields.annotations)
    partial = rows.with_name(rows.name + ".partial")
    try:
        copied = _copy(read_rows(path, fields), partial, salt)
        if copied.rows == 0:
            raise CorpusError(f"{path}: no rows")
        card = CorpusCard(
            owner=home.owner,
            title=home.domain.title,
            description=home.domain.description,
            corpus=copied.seal,
            declared_size=round_down(copied.rows if unit == "record" else copied.subjects),
            unit=unit,
            annotations=fields.annotations,
            mock_rows=tuple(mock_rows),
        )
        partial.replace(rows)
    finally:
        partial.unlink(missing_ok=True)
    write_atomically(rows.with_name("salt.bin"), salt)
    write_atomically(rows.with_name("card.json"), card.canonical())
    return card


def rows_file(home: GuardHome) -> Path:
    """Where the rows lie that ``add_corpus`` kept, for ``row_files.StoredRows``."""
    return home.folder / "corpus" / "rows.jsonl"


def card_of(home: GuardHome) -> CorpusCard:
    """The card of the home's corpus. Raises: CorpusError when there is none that this version of the package reads."""
    try:
        return CorpusCard.parse((home.folder / "corpus" / "card.json").read_bytes())
    except FileNotFoundError:
        raise CorpusError(f"{home.owner} has no corpus; run `fl-privacy corpus add`") from None
    except MessageError as problem:
        raise CorpusError(f"{home.owner}'s corpus was added by another version ({problem}); add it again") from None


def check_digest(home: GuardHome) -> None:
    """Raise CorpusError if the rows on disk are not the ones of the card."""
    folder = home.folder / "corpus"
    seal = hmac.new((folder / "salt.bin").read_bytes(), digestmod=hashlib.sha256)
    with rows_file(home).open("rb") as rows:
        for line in rows:
            seal.update(line)
    if not hmac.compare_digest(seal.hexdigest(), card_of(home).corpus):
        raise CorpusError(f"the corpus of {home.owner} was changed outside `fl-privacy corpus add`; add it again")


def holdout_key(home: GuardHome) -> bytes:
    """What decides, with a record's content, whether it is held out (``privacy.holdout``); as long as this corpus stands."""
    return hmac.digest((home.folder / "corpus" / "salt.bin").read_bytes(), b"fl_privacy/v1/holdout", "sha256")


def round_down(count: int) -> int:
    """The declared size of a corpus: its units, rounded down to two digits."""
    step: int = 10 ** max(0, len(str(count)) - 2)
    return count // step * step


def _check_unit(home: GuardHome, subject_field: str | None) -> PrivacyUnit:
    unit = home.domain.budget.unit
    if unit == "subject" and subject_field is None:
        raise CorpusError(
            f'{home.owner}\'s budget protects whole subjects (budget.unit = "subject"): name the field that says whom a row is'
            " about with --subject-field"
        )
    if unit == "record" and subject_field is not None:
        raise CorpusError(
            f'{home.owner}\'s budget protects single records (budget.unit = "record"), so subjects would protect nobody more:'
            ' leave --subject-field out, or make a new owner\'s folder with unit = "subject"'
        )
    return unit


def _copy(rows: Iterable[Row], path: Path, salt: bytes) -> _Copied:
    count, subjects, seal = 0, 0, hmac.new(salt, digestmod=hashlib.sha256)
    with disk_problems_named(path), open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        for row in rows:
            line = stored(row)
            file.write(line)
            seal.update(line)
            count += 1
            subjects = max(subjects, 0 if row.subject is None else row.subject + 1)
        file.flush()
        os.fsync(file.fileno())
    return _Copied(count, subjects, seal.hexdigest())


def _check_mock_rows(mock_rows: Sequence[Row], annotations: tuple[Annotation, ...]) -> None:
    for number, row in enumerate(mock_rows, start=1):
        if row.annotations != annotations:
            wanted, found = (" and ".join(("text", *parts)) for parts in (annotations, row.annotations))
            raise CorpusError(
                f"mock row {number} has {found}, every row of the corpus has {wanted}; give the mock rows the same, since"
                " scientists try their plans on them"
            )
        if row.subject is not None:
            raise CorpusError(f"mock row {number} has a subject; leave it out, since mock rows are published")
