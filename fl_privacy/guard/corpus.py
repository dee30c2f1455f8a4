"""The private corpus: read from the owner's file, kept in the guard's home, described to others by a card.

One record is one row of text. Differential privacy protects one record, or with ``unit = "subject"`` all records of one person.
Whose a record is, is kept as a number in the order of first appearance; the file's own identifiers are not kept at all.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fl_privacy.errors import CorpusError
from fl_privacy.guard.files import disk_problems_named, write_atomically
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import CorpusCard, PrivacyUnit

Row = Mapping[str, object]
Lines = Iterator[tuple[int, str]]  # number and text
FORMATS = (".jsonl", ".txt", ".csv")


class Record(NamedTuple):
    """One row of an owner's file: where it stands, its text, and whose it is, if that was asked for."""

    line: int
    text: str
    subject: str | None


class Rows(NamedTuple):
    """A corpus file in memory: texts, and for each the number of its subject where the unit is one."""

    texts: list[str]
    subjects: list[int] | None


def read_records(path: Path, field: str = "text", subject_field: str | None = None) -> Iterator[Record]:
    """Every record of a JSONL, TXT (one record a line) or CSV (with a header) file in UTF-8.

    Raises: CorpusError that names file and line, never the text or the subject.
    """
    if path.suffix not in FORMATS:
        raise CorpusError(f"{path}: unknown kind of file; use one of {', '.join(FORMATS)}")
    fields = [field] if subject_field is None else [field, subject_field]
    reader = {".jsonl": _jsonl, ".txt": _txt, ".csv": _csv}[path.suffix]
    try:
        with path.open("rb") as raw:
            for number, row in reader(path, _decoded(path, raw), fields):
                text = _text(path, number, row.get(field), field)
                subject = _subject(path, number, row.get(subject_field), subject_field) if subject_field is not None else None
                yield Record(number, text, subject)
    except OSError as problem:
        raise CorpusError(f"{path}: {problem.strerror}") from None


def add_corpus(
    home: GuardHome, path: Path, mock_rows: Sequence[str], field: str = "text", subject_field: str | None = None
) -> CorpusCard:
    """Copy a corpus into the home and describe it; the former corpus, if any, is replaced only when all rows are good.

    Args: subject_field holds who each row is about (text or a whole number), where the budget's unit is a subject.
    The declared size is the number of units (rows or subjects), rounded down to two digits; weights and sample rates are
    computed from it. Raises: CorpusError.
    Privacy: the declared size is published as it is, outside epsilon; rounding hides single records but at its steps.
    """
    unit = _check_unit(home, subject_field)
    folder = home.folder / "corpus"
    salt, count, subjects = secrets.token_bytes(32), 0, dict[str, int]()
    seal = hmac.new(salt, digestmod=hashlib.sha256)
    partial = folder / "rows.jsonl.partial"
    with (
        disk_problems_named(partial),
        open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as rows,
    ):
        for record in read_records(path, field, subject_field):
            row: dict[str, str | int] = {"text": record.text}
            if record.subject is not None:
                row["subject"] = subjects.setdefault(record.subject, len(subjects))
            line = json.dumps(row, ensure_ascii=False) + "\n"
            rows.write(line)
            seal.update(line.encode())
            count += 1
        rows.flush()
        os.fsync(rows.fileno())
    if count == 0:
        partial.unlink()
        raise CorpusError(f"{path}: no rows")
    card = CorpusCard(
        owner=home.owner,
        title=home.domain.title,
        description=home.domain.description,
        corpus=seal.hexdigest(),
        declared_size=round_down(count if unit == "record" else len(subjects)),
        unit=unit,
        mock_rows=tuple(mock_rows),
    )
    partial.replace(folder / "rows.jsonl")
    write_atomically(folder / "salt.bin", salt)
    write_atomically(folder / "card.json", card.canonical())
    return card


def card_of(home: GuardHome) -> CorpusCard:
    """The card of the home's corpus. Raises: CorpusError when there is none."""
    try:
        return CorpusCard.parse((home.folder / "corpus" / "card.json").read_bytes())
    except FileNotFoundError:
        raise CorpusError(f"{home.owner} has no corpus; run `fl-privacy corpus add`") from None


def load_rows(path: Path) -> list[str]:
    """All texts of a corpus file, in order. Raises: CorpusError."""
    return [record.text for record in read_records(path)]


def load_records(path: Path, unit: PrivacyUnit) -> Rows:
    """The rows that ``add_corpus`` kept, with their subjects where the unit is one. Raises: CorpusError."""
    if unit == "record":
        return Rows(load_rows(path), None)
    records = list(read_records(path, subject_field="subject"))
    return Rows([record.text for record in records], [int(record.subject or 0) for record in records])


def check_digest(home: GuardHome) -> None:
    """Raise CorpusError if the rows on disk are not the ones of the card."""
    folder = home.folder / "corpus"
    seal = hmac.new((folder / "salt.bin").read_bytes(), digestmod=hashlib.sha256)
    with (folder / "rows.jsonl").open("rb") as rows:
        for line in rows:
            seal.update(line)
    if not hmac.compare_digest(seal.hexdigest(), card_of(home).corpus):
        raise CorpusError(f"the corpus of {home.owner} was changed outside `fl-privacy corpus add`; add it again")


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


def _decoded(path: Path, lines: Iterator[bytes]) -> Lines:
    for number, line in enumerate(lines, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise CorpusError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None


def _jsonl(path: Path, lines: Lines, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise CorpusError(f"{path}, line {number}: not a JSON object") from None
        yield number, row if isinstance(row, dict) else {}


def _txt(path: Path, lines: Lines, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    for number, line in lines:
        if line.strip():
            yield number, {fields[0]: line}


def _csv(path: Path, lines: Lines, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    reader = csv.DictReader((line + "\n" for _, line in lines), strict=True)
    options = ("--field", "--subject-field")
    try:
        for field, option in zip(fields, options, strict=False):
            if field not in (reader.fieldnames or ()):
                raise CorpusError(f"{path}, line 1: no column {field!r}; name the column with {option}")
        for row in reader:
            yield reader.line_num, row
    except csv.Error as problem:
        raise CorpusError(f"{path}, line {reader.line_num}: {problem}") from None


def _text(path: Path, number: int, value: object, field: str) -> str:
    if not isinstance(value, str):
        raise CorpusError(f"{path}, line {number}: no text in {field!r}")
    if not value.strip():
        raise CorpusError(f"{path}, line {number}: {field!r} is empty")
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise CorpusError(f"{path}, line {number}: {field!r} holds a zero byte or half a surrogate pair")
    return value.strip()


def _subject(path: Path, number: int, value: object, field: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise CorpusError(f"{path}, line {number}: no subject (text or a whole number) in {field!r}")
    return str(value).strip()
