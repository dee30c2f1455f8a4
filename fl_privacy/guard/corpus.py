"""The private corpus: read from the owner's file, kept in the guard's home, described to others by a card.

One record is one row of text: the unit that differential privacy protects.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from fl_privacy.errors import CorpusError
from fl_privacy.guard.home import GuardHome, write_atomically
from fl_privacy.messages import CorpusCard

FORMATS = (".jsonl", ".txt", ".csv")


def read_texts(path: Path, field: str = "text") -> Iterator[tuple[int, str]]:
    """Line number and text of every record of a JSONL, TXT (one record a line) or CSV (with a header) file in UTF-8.

    Raises: CorpusError that names file and line, never the text.
    """
    if path.suffix not in FORMATS:
        raise CorpusError(f"{path}: unknown kind of file; use one of {', '.join(FORMATS)}")
    reader = {".jsonl": _jsonl, ".txt": _txt, ".csv": _csv}[path.suffix]
    try:
        with path.open("rb") as raw:
            lines = _decoded(path, raw)
            yield from reader(path, lines, field)
    except OSError as problem:
        raise CorpusError(f"{path}: {problem.strerror}") from None


def add_corpus(home: GuardHome, path: Path, mock_rows: Sequence[str], field: str = "text") -> CorpusCard:
    """Copy a corpus into the home and describe it; the former corpus, if any, is replaced only when all rows are good.

    The declared size is the number of rows, rounded down to two digits; weights and sample rates are computed from it. Raises:
    CorpusError.
    Privacy: the declared size is published as it is, outside epsilon; rounding hides single records but at its steps.
    """
    folder = home.folder / "corpus"
    salt, count = secrets.token_bytes(32), 0
    seal = hmac.new(salt, digestmod=hashlib.sha256)
    partial = folder / "rows.jsonl.partial"
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as rows:
        for _, text in read_texts(path, field):
            line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
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
        declared_size=round_down(count),
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
    return [text for _, text in read_texts(path)]


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
    """The declared size of a corpus: its rows, rounded down to two digits."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return count // unit * unit


def _decoded(path: Path, lines: Iterator[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError:
            raise CorpusError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None


def _jsonl(path: Path, lines: Iterator[tuple[int, str]], field: str) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            raise CorpusError(f"{path}, line {number}: not a JSON object") from None
        yield number, _text(path, number, row.get(field) if isinstance(row, dict) else None, field)


def _txt(path: Path, lines: Iterator[tuple[int, str]], field: str) -> Iterator[tuple[int, str]]:
    for number, line in lines:
        if line.strip():
            yield number, _text(path, number, line, field)


def _csv(path: Path, lines: Iterator[tuple[int, str]], field: str) -> Iterator[tuple[int, str]]:
    reader = csv.DictReader((line + "\n" for _, line in lines), strict=True)
    try:
        if field not in (reader.fieldnames or ()):
            raise CorpusError(f"{path}, line 1: no column {field!r}; name the text column with --field")
        for row in reader:
            yield reader.line_num, _text(path, reader.line_num, row[field], field)
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
