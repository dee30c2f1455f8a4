"""Rows in files: every format gives the same rows, every error names its place and quotes nothing, and little is in memory."""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from fl_privacy.errors import CorpusError
from fl_privacy.messages import Row
from fl_privacy.row_files import Fields, StoredRows, read_rows, stored

ALL = Fields(text="body", label="class", tags="bio", subject="who")
SECRET = "geheim"


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- writers of each format: as other programs write them -----------------------------------------------------------------


def write_jsonl(path: Path, records: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, records[0])
        writer.writeheader()
        writer.writerows(records)


def write_parquet(path: Path, records: Sequence[dict[str, Any]]) -> None:
    columns = {name: [record[name] for record in records] for name in records[0]}
    parquet.write_table(pyarrow.table(columns), path)


def records_of(rows: Iterable[Row], listed: bool) -> list[dict[str, Any]]:
    """What an owner's file would hold, with tags as a list or in one text, and with fields that nobody asks for."""
    return [
        {
            "body": row.text,
            "class": row.label,
            "bio": list(row.tags or ()) if listed else " ".join(row.tags or ()),
            "who": f"person {row.subject}",
            "more": 1,
        }
        for row in rows
    ]


WRITERS: dict[str, tuple[Callable[[Path, Sequence[dict[str, Any]]], None], str, bool]] = {
    "JSONL, tags as a list": (write_jsonl, "a.jsonl", True),
    "JSONL, tags in one text": (write_jsonl, "a.jsonl", False),
    "CSV": (write_csv, "a.csv", False),
    "Parquet, tags as a list": (write_parquet, "a.parquet", True),
    "Parquet, tags in one text": (write_parquet, "a.parquet", False),
}

# a byte order mark is not part of a text; surrogates and zero bytes are refused
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1, max_size=12)
texts = texts.filter(lambda text: bool(text.strip()))
names = st.text(st.sampled_from("ab甲乙-_. 1"), min_size=1, max_size=6).filter(lambda name: bool(name.strip())).map(str.strip)
tag = st.one_of(st.just("O"), st.sampled_from(["B-人名", "I-人名", "B-org", "I-org"]))


@st.composite
def tagged_rows(draw: st.DrawFn) -> list[Row]:
    """Rows with everything; subjects are numbered in the order of first appearance, as they will be when read."""
    rows, numbers = [], dict[int, int]()
    for text in draw(st.lists(texts, min_size=1, max_size=6)):
        tags = draw(st.lists(tag, min_size=len(text), max_size=len(text)))
        subject = numbers.setdefault(draw(st.integers(0, 3)), len(numbers))
        rows.append(Row(text=text, label=draw(names), tags=tuple(tags), subject=subject))
    return rows


@pytest.mark.parametrize("kind", WRITERS)
@given(rows=tagged_rows())
def test_rows_written_in_any_format_are_read_as_they_were(kind: str, rows: list[Row]) -> None:
    writer, name, listed = WRITERS[kind]
    with tempfile.TemporaryDirectory() as folder:
        writer(Path(folder) / name, records_of(rows, listed))
        assert list(read_rows(Path(folder) / name, ALL)) == rows


@given(st.lists(texts.map(str.strip).filter(lambda text: "\n" not in text), min_size=1, max_size=6))
def test_a_text_a_line_is_read_as_rows_of_text(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.txt", "\n\n".join(lines))
        assert list(read_rows(path)) == [Row(text=line) for line in lines]


@given(rows=tagged_rows(), bare=st.booleans())
def test_stored_rows_are_the_rows_that_were_stored_by_place_by_slice_and_in_order(rows: list[Row], bare: bool) -> None:
    rows = [Row(text=row.text) for row in rows] if bare else rows
    lines = [stored(row) for row in rows]
    assert all(line.count(b"\n") == 1 and b"null" not in line for line in lines)
    with tempfile.TemporaryDirectory() as folder, StoredRows(write(Path(folder) / "rows.jsonl", b"".join(lines))) as found:
        assert list(found) == rows and len(found) == len(rows)
        assert [found[index - len(rows)] for index in range(len(rows))] == rows
        assert found[np.int64(len(rows) - 1)] == rows[-1] and found[::-2] == rows[::-2] and found[1:] == rows[1:]
        assert found.lengths.tolist() == list(map(len, lines))
        for outside in (len(rows), -len(rows) - 1):
            with pytest.raises(IndexError):
                found[outside]


# --- what is made of values ----------------------------------------------------------------------------------------------


def test_a_text_with_tags_keeps_its_outer_spaces_and_one_without_does_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": " 王 ", "tags": "O B-x O"}\n')
    assert [(row.text, row.tags) for row in read_rows(path, Fields(tags="tags"))] == [(" 王 ", ("O", "B-x", "O"))]
    assert [row.text for row in read_rows(path)] == ["王"]


def test_a_quoted_csv_text_keeps_its_line_ends_so_that_tags_stay_in_their_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,tags\r\n"a\r\nb",O O O B-x\r\nc,O\r\n')
    assert [(row.text, row.tags) for row in read_rows(path, Fields(tags="tags"))] == [
        ("a\r\nb", ("O", "O", "O", "B-x")),
        ("c", ("O",)),
    ]


def test_labels_and_subjects_may_be_whole_numbers_which_are_the_same_as_their_digits(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [{"text": "x", "label": number, "who": number} for number in (7, 8, 7)])
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "label": name, "who": name} for name in (7, " 8 ", "7")])
    for name in ("a.parquet", "a.jsonl"):
        rows = read_rows(tmp_path / name, Fields(label="label", subject="who"))
        assert [(row.label, row.subject) for row in rows] == [("7", 0), ("8", 1), ("7", 0)]


def test_parquet_categories_are_labels_and_its_rows_are_in_order_over_row_groups(tmp_path: Path) -> None:
    labels = [f"class {index % 3}" for index in range(5000)]
    table = pyarrow.table({"label": pyarrow.array(labels).dictionary_encode(), "text": [f"text {i}" for i in range(5000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    rows = list(read_rows(tmp_path / "a.parquet", Fields(label="label")))
    assert [row.label for row in rows] == labels and rows[-1].text == "text 4999"


def test_what_is_not_asked_for_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "x", "label": 1.5, "tags": 3, "subject": null}\n')
    assert list(read_rows(path)) == [Row(text="x")]


# --- errors --------------------------------------------------------------------------------------------------------------


def told(path: Path, fields: Fields = ALL) -> str:
    """The error of reading a file, which must name it and quote nothing of it."""
    with pytest.raises(CorpusError) as caught:
        list(read_rows(path, fields))
    error = str(caught.value)
    assert error.startswith(str(path)) and SECRET not in error
    assert caught.value.__suppress_context__ or caught.value.__context__ is None, "a traceback would quote it"
    return error.removeprefix(str(path))


GOOD: dict[str, Any] = {"body": f"{SECRET}!", "class": SECRET, "bio": ["O"] * 7, "who": SECRET}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"body": None}, "no text in 'body'"),
    ({"body": "  "}, "'body' is empty"),
    ({"body": f"{SECRET}\0"}, "'body' holds a zero byte"),
    ({"bio": ["O"] * 6}, "6 tags in 'bio' for 7 characters in 'body'"),
    ({"bio": ["O"] * 6 + [SECRET]}, "tag 7 in 'bio' is not O, B-kind or I-kind"),
    ({"bio": ["O"] * 6 + [f"I- {SECRET}"]}, "tag 7 in 'bio' is not"),
    ({"bio": ["O"] * 6 + [f"B-{SECRET}\0"]}, "'bio' holds a zero byte"),
    ({"bio": None}, "no tags (a list, or one text with spaces between them) in 'bio'"),
    ({"class": None}, "no label (text or a whole number) in 'class'"),
    ({"class": " "}, "no label"),
    ({"class": f"{SECRET}\0"}, "'class' holds a zero byte"),
    ({"who": None}, "no subject (text or a whole number) in 'who'"),
]


@pytest.mark.parametrize(("bad", "expected"), BAD, ids=[expected for _, expected in BAD])
def test_a_bad_row_is_named_by_its_place_in_every_format_and_never_quoted(
    tmp_path: Path, bad: dict[str, Any], expected: str
) -> None:
    rows = [GOOD, GOOD | bad]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_parquet(tmp_path / "a.parquet", rows)
    assert told(tmp_path / "a.jsonl").startswith(f", line 2: {expected}")
    assert told(tmp_path / "a.parquet").startswith(f", row 2: {expected}")
    if "I- " not in str(bad.get("bio", "")):
        write_csv(tmp_path / "a.csv", [row | {"bio": " ".join(row["bio"] or ())} for row in rows])
        assert told(tmp_path / "a.csv").startswith(", line 3: ")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", f'{{"body": "{SECRET}"', ", line 1: not a JSON object"),
        ("a.jsonl", "\n" + "[" * 100_000, ", line 2: not a JSON object"),
        ("a.jsonl", "1" * 5000, ", line 1: not a JSON object"),
        ("a.jsonl", f'["{SECRET}"]', ", line 1: no tags"),
        ("a.jsonl", b"\xff" + SECRET.encode(), ", line 1: not UTF-8; save"),
        ("a.jsonl", '{"body": "\\ud800", "class": "x", "bio": "O", "who": 1}', ", line 1: 'body' holds a zero byte or half a"),
        ("a.jsonl", '{"body": "x", "class": "\\ud800", "bio": "O", "who": 1}', ", line 1: 'class' holds a zero byte or half a"),
        ("a.jsonl", '{"body": "x", "class": true, "bio": "O", "who": 1}', ", line 1: no label"),
        ("a.jsonl", '{"body": "x", "class": 1.5, "bio": "O", "who": 1}', ", line 1: no label"),
        ("a.jsonl", '{"body": "x", "class": 1, "bio": {"O": 1}, "who": 1}', ", line 1: no tags"),
        ("a.txt", SECRET, ", line 1: no tags"),
        ("a.csv", f"body,class,bio,{SECRET}\nx,y,O,1\n", ", line 1: no column 'who'; rename yours, or let `corpus add` know"),
        ("a.csv", f'body,class,bio,who\n{SECRET},y,O,"1" x\n', ", line 2: "),
        ("a.csv", f"body,class,bio,who\n{SECRET}\n", ", line 2: no tags"),
        ("a.parquet", SECRET, ": not a Parquet file, or damaged"),
        ("a.pdf", SECRET, ": unknown kind of file; use one of .jsonl, .txt, .csv, .parquet"),
    ],
)
def test_a_bad_file_is_named_with_its_line_and_never_quoted(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    assert told(write(tmp_path / name, content)).startswith(expected)


def test_a_parquet_file_that_lacks_a_column_or_its_end_or_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, [{"text": SECRET}])
    assert told(path, Fields(label="class")).startswith(": no column 'class'")
    whole = path.read_bytes()
    assert "not a Parquet file" in told(write(path, whole[:-8]))
    damaged = write(path, whole.replace(SECRET.encode(), b"\xff" * len(SECRET)))
    assert told(damaged, Fields()).startswith(", row 1: not UTF-8")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for read in (lambda path: list(read_rows(path)), StoredRows):
        with pytest.raises(CorpusError, match=r"nowhere\.jsonl: No such file"):
            read(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("line", [b"{}", b"\xff", b"", b'{"text": 1}', b'{"text": "geheim", "more": 1}'])
def test_a_damaged_stored_row_is_told_by_its_line_when_it_is_asked_for(tmp_path: Path, line: bytes) -> None:
    good = stored(Row(text=SECRET))
    with StoredRows(write(tmp_path / "rows.jsonl", good + line + b"\n" + good)) as rows:
        assert rows[0] == rows[2] == Row(text=SECRET)
        with pytest.raises(CorpusError, match="line 2: damaged; add the corpus again") as caught:
            rows[1]
    assert SECRET not in str(caught.value)


def test_a_stored_file_that_is_cut_off_or_empty_is_refused_at_once(tmp_path: Path) -> None:
    line = stored(Row(text=SECRET))
    with pytest.raises(CorpusError, match="line 2: cut off; add the corpus again"):
        StoredRows(write(tmp_path / "rows.jsonl", line + line[:-1]))
    with pytest.raises(CorpusError, match="no rows"):
        StoredRows(write(tmp_path / "rows.jsonl", b""))


def test_nothing_of_a_row_is_in_the_representation_of_stored_rows(tmp_path: Path) -> None:
    with StoredRows(write(tmp_path / "rows.jsonl", stored(Row(text=SECRET, label=SECRET)))) as rows:
        assert SECRET not in repr(rows) + repr(rows[0])


# --- memory --------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from pathlib import Path
import numpy as np
from fl_privacy.row_files import Fields, StoredRows, read_rows

def own():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0])

if path := sys.argv[2:]:  # Parquet, which loads its library
    next(read_rows(Path(path[0]), Fields(label="label")))
before, most, count = own(), 0, 0
with StoredRows(Path(sys.argv[1])) as rows:
    order = np.argsort(rows.lengths, kind="stable")
    for index in order[:: max(1, len(order) // 100_000)]:
        most, count = max(most, 0 if index % 997 else own()), count + len(rows[index].text)
for row in read_rows(Path((path or sys.argv[1:])[0]), Fields(label="label")):
    count += 1
    most = max(most, 0 if count % 997 else own())
print(max(most, own()) - before)
"""


def corpus_of(path: Path, megabytes: int) -> int:
    """Write stored rows of a few hundred bytes; returns how many."""
    draw, count, most = random.Random(0), 0, megabytes << 20
    part = [stored(Row(text="病人头痛三天" * draw.randint(1, 40), label=str(draw.randint(0, 9)))) for _ in range(1000)]
    with path.open("wb") as file:
        while file.tell() < most:
            file.writelines(part)
            count += len(part)
    return count


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("megabytes", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_a_corpus_is_read_in_a_small_part_of_its_size(tmp_path: Path, megabytes: int) -> None:
    rows = corpus_of(tmp_path / "rows.jsonl", megabytes)
    grown = int(subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "rows.jsonl"], check=True, stdout=-1).stdout)
    print(f"{megabytes} MB, {rows} rows: {grown / 1024:.1f} MB more")  # noqa: T201 - the figure is of interest
    assert grown * 1024 < (8 << 20) + 40 * rows


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_parquet_file_of_one_row_group_is_read_in_a_small_part_of_its_size(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    texts = ["".join(map(chr, draw.integers(0x4E00, 0x9FA5, 60))) for _ in range(20_000)]  # does not compress
    table = pyarrow.table({"text": pyarrow.array(texts * 1), "label": ["x"] * len(texts)})
    with parquet.ParquetWriter(tmp_path / "a.parquet", table.schema, use_dictionary=False) as writer:
        writer.write_table(pyarrow.concat_tables([table] * 20), row_group_size=10**7)
    (tmp_path / "rows.jsonl").write_bytes(stored(Row(text="x", label="x")))
    files = [tmp_path / "rows.jsonl", tmp_path / "a.parquet"]
    grown = int(subprocess.run([sys.executable, "-c", MEASURE, *files], check=True, stdout=-1).stdout)
    size = files[1].stat().st_size
    print(f"{size >> 20} MB of Parquet: {grown / 1024:.1f} MB more")  # noqa: T201
    assert grown * 1024 < size / 2
