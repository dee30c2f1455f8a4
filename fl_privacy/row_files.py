"""Rows in files: an owner's corpus as it comes, and as the guard keeps it. Both are read piece by piece, never whole.

No error quotes a text, a label, a tag or a subject: errors of an owner's files may be read by others than the owner.
"""

from __future__ import annotations

import csv
import json
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fl_privacy.errors import CorpusError
from fl_privacy.messages import Annotation, Row

_Found = Iterator[tuple[str, Mapping[str, object]]]  # where in the file, and what is there by field

_BIO = re.compile(r"O|[BI]-\S(?:.*\S)?")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # no UTF-8 has half a surrogate pair; a zero byte ends a text for many programs
_ROWS_AT_ONCE = 1024  # of a Parquet file
_BUFFER = 1 << 20  # bytes


class Fields(NamedTuple):
    """The names of a file's fields or columns; None for what is not to be read."""

    text: str = "text"
    label: str | None = None
    tags: str | None = None
    subject: str | None = None

    @property
    def annotations(self) -> tuple[Annotation, ...]:
        """What every row has besides its text."""
        return (*(("label",) if self.label is not None else ()), *(("tags",) if self.tags is not None else ()))

    @property
    def wanted(self) -> dict[str, str]:
        """What is to be read, and the name of its field."""
        return {what: name for what, name in self._asdict().items() if name is not None}


PLAIN = Fields()  # text only


def read_rows(path: Path, fields: Fields = PLAIN) -> Iterator[Row]:
    """Every row of a JSONL, TXT (one text a line), CSV (with a header) or Parquet file; texts are UTF-8.

    A text is stripped of outer spaces, unless it has tags: then it stays as it stands, and each of its characters, also a
    space, has its tag. A label or subject is a text or a whole number, and the number is the same as its digits. Tags are a
    list or one text with spaces between them. Subjects are numbered in the order of first appearance, which needs memory for
    each; otherwise only a few rows are in memory.
    Raises: CorpusError that names the file and the line (of Parquet, the row), before or while rows are read.
    """
    try:
        reader = _READERS[path.suffix]
    except KeyError:
        raise CorpusError(f"{path}: unknown kind of file; use one of {', '.join(_READERS)}") from None
    subjects: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for where, found in reader(path, file, fields):
                yield _row(f"{path}, {where}", found, fields, subjects)
    except OSError as problem:
        raise CorpusError(f"{path}: {problem.strerror or 'cannot be read'}") from None


def stored(row: Row) -> bytes:
    """A row as ``StoredRows`` reads it: JSON in one line, without what the row does not have."""
    return row.model_dump_json(exclude_none=True).encode() + b"\n"


class StoredRows(Sequence[Row]):
    """The rows that ``stored`` wrote into a file, which is mapped into memory; a row is parsed when it is asked for.

    Of each row, 8 bytes are in memory; the mapped file is the system's to drop and read again. It is mapped when this is made,
    so the rows can be read in a process that cannot open files any more. The file may be replaced meanwhile, but not be cut.
    Raises: CorpusError that names the line of a row that is damaged, when the row is asked for.
    """

    def __init__(self, path: Path) -> None:
        """Raises: CorpusError when there is no such file, or no row in it, or its last row is cut off."""
        self._path = path
        try:
            with path.open("rb") as file:
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as problem:
            raise CorpusError(f"{path}: {problem.strerror}") from None
        except ValueError:  # an empty file cannot be mapped
            raise CorpusError(f"{path}: no rows") from None
        self._offsets = _line_offsets(self._bytes)
        if self._offsets[-1] != len(self._bytes):
            self.close()
            raise CorpusError(f"{path}, line {len(self) + 1}: cut off; add the corpus again")

    def close(self) -> None:
        """Unmap the file; no row can be read any more."""
        self._bytes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._parsed(place) for place in range(*index.indices(len(self)))]
        return self._parsed(range(len(self))[index])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many bytes each row takes in the file, shape (len(self),): rows of like length need little padding together."""
        return np.diff(self._offsets)

    def _parsed(self, place: int) -> Row:
        try:
            return Row.model_validate_json(self._bytes[self._offsets[place] : self._offsets[place + 1]])
        except ValidationError:
            raise CorpusError(f"{self._path}, line {place + 1}: damaged; add the corpus again") from None


def _line_offsets(mapped: mmap.mmap) -> NDArray[np.int64]:
    """Where each line begins, and where the last complete one ends."""
    found = [np.zeros(1, np.int64)]
    for start in range(0, len(mapped), _BUFFER):
        part = np.frombuffer(mapped[start : start + _BUFFER], np.uint8)
        found.append(np.flatnonzero(part == ord("\n")) + (start + 1))
    return np.concatenate(found)


def _row(where: str, found: Mapping[str, object], fields: Fields, subjects: dict[str, int]) -> Row:
    text, label, tags, subject = fields
    read_tags = None if tags is None else _tags(where, found.get(tags), tags)
    read_text = _text(where, found.get(text), text)
    if read_tags is None:
        read_text = read_text.strip()
    elif len(read_tags) != len(read_text):
        raise CorpusError(f"{where}: {len(read_tags)} tags in {tags!r} for {len(read_text)} characters in {text!r}")
    return Row(
        text=read_text,
        label=None if label is None else _name(where, found.get(label), label, "label"),
        tags=read_tags,
        subject=None
        if subject is None
        else subjects.setdefault(_name(where, found.get(subject), subject, "subject"), len(subjects)),
    )


def _text(where: str, value: object, field: str) -> str:
    if not isinstance(value, str):
        raise CorpusError(f"{where}: no text in {field!r}")
    if not value.strip():
        raise CorpusError(f"{where}: {field!r} is empty")
    return _writable(where, value, field)


def _name(where: str, value: object, field: str, kind: str) -> str:
    if not isinstance(value, str | int) or isinstance(value, bool) or not (name := str(value).strip()):
        raise CorpusError(f"{where}: no {kind} (text or a whole number) in {field!r}")
    return _writable(where, name, field)


def _tags(where: str, value: object, field: str) -> tuple[str, ...]:
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, Sequence):
        raise CorpusError(f"{where}: no tags (a list, or one text with spaces between them) in {field!r}")
    for number, tag in enumerate(tags, start=1):
        if not isinstance(tag, str) or not _BIO.fullmatch(tag):
            raise CorpusError(f"{where}: tag {number} in {field!r} is not O, B-kind or I-kind")
        _writable(where, tag, field)
    return tuple(tags)


def _writable(where: str, value: str, field: str) -> str:
    if _UNWRITABLE.search(value):
        raise CorpusError(f"{where}: {field!r} holds a zero byte or half a surrogate pair")
    return value


def _decoded(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise CorpusError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None


def _jsonl(path: Path, file: BinaryIO, fields: Fields) -> _Found:
    for number, line in _decoded(path, file):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # ValueError also for a number of too many digits
            raise CorpusError(f"{path}, line {number}: not a JSON object") from None
        yield f"line {number}", found if isinstance(found, dict) else {}


def _txt(path: Path, file: BinaryIO, fields: Fields) -> _Found:
    for number, line in _decoded(path, file):
        if line.strip():
            yield f"line {number}", {fields.text: line}


def _csv(path: Path, file: BinaryIO, fields: Fields) -> _Found:
    reader = csv.DictReader((line for _, line in _decoded(path, file)), strict=True)
    try:
        _check_columns(f"{path}, line 1", reader.fieldnames or (), fields)
        for found in reader:
            yield f"line {reader.line_num}", found
    except csv.Error as problem:
        raise CorpusError(f"{path}, line {reader.reader.line_num}: {problem}") from None


def _parquet(path: Path, file: BinaryIO, fields: Fields) -> _Found:
    import pyarrow  # here, because it is large, and nothing that trains or serves reads Parquet
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        table = ParquetFile(file, buffer_size=_BUFFER)
        _check_columns(str(path), table.schema_arrow.names, fields)
        for batch in table.iter_batches(_ROWS_AT_ONCE, columns=list(fields.wanted.values())):
            for found in _records(batch):
                number += 1
                yield f"row {number}", found
    except UnicodeDecodeError:
        raise CorpusError(f"{path}, row {number + 1}: not UTF-8; save the file as UTF-8") from None
    except (pyarrow.ArrowException, OSError):
        raise CorpusError(f"{path}: not a Parquet file, or damaged after row {number}") from None


def _records(batch: Any) -> Iterator[Mapping[str, object]]:
    """The rows of an Arrow batch, one at a time, so that a bad one is found."""
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for place in range(batch.num_rows):
        yield {name: column[place].as_py() for name, column in columns.items()}


def _check_columns(where: str, columns: Iterable[str], fields: Fields) -> None:
    options = {"text": "--field"} | {what: f"--{what}-field" for what in ("label", "tags", "subject")}
    for what, name in fields.wanted.items():
        if name not in columns:
            raise CorpusError(
                f"{where}: no column {name!r}; rename yours, or let `corpus add` know its name by {options[what]}"
            )


_READERS = {".jsonl": _jsonl, ".txt": _txt, ".csv": _csv, ".parquet": _parquet}
