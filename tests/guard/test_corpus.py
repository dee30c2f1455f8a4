"""Reading owners' files: what is accepted, and what each bad file is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.errors import CorpusError
from fl_privacy.guard.corpus import add_corpus, card_of, check_digest, load_rows, read_records, round_down
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.home import GuardHome
from tests.builders import write_domain


@pytest.fixture
def home(tmp_path: Path) -> GuardHome:
    return GuardHome.create(tmp_path / "home", Domain.read(write_domain(tmp_path, "clinic")))


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "一"}\n\n{"text": " 二 ", "more": 1}\n'),
        ("a.txt", "一\n\n二\n"),
        ("a.csv", 'id,text\n1,一\n2,"二"\n'),
        ("bom.csv", b"\xef\xbb\xbftext\r\n\xe4\xb8\x80\r\n\xe4\xba\x8c\r\n"),
    ],
)
def test_all_formats_give_the_same_texts(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert load_rows(write(tmp_path / name, content)) == ["一", "二"]


def test_a_quoted_csv_field_may_hold_a_newline(tmp_path: Path) -> None:
    assert load_rows(write(tmp_path / "a.csv", 'text\n"a\nb"\nc\n')) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", '{"text": "ok"}\n{broken\n', "line 2: not a JSON object"),
        ("a.jsonl", '{"text": "ok"}\n{"body": "x"}\n', "line 2: no text in 'text'"),
        ("a.jsonl", '["secret"]\n', "line 1: no text"),
        ("a.jsonl", '{"text": "  "}\n', "line 1: 'text' is empty"),
        ("a.txt", b"good\n\xff\xfe\n", "line 2: not UTF-8"),
        ("a.csv", "body\nx\n", "no column 'text'"),
        ("a.pdf", "x", "unknown kind of file"),
        ("a.txt", "a\0b\n", "line 1: 'text' holds a zero byte"),
        ("a.jsonl", '{"text": "\\ud800"}\n', "line 1: 'text' holds a zero byte or half a surrogate"),
    ],
)
def test_a_bad_file_is_named_with_its_line_and_never_quoted(tmp_path: Path, name: str, content: str | bytes, told: str) -> None:
    with pytest.raises(CorpusError, match=told) as caught:
        load_rows(write(tmp_path / name, content))
    assert name in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"nowhere\.txt"):
        list(read_records(tmp_path / "nowhere.txt"))


def test_a_bad_file_leaves_the_former_corpus_in_place(home: GuardHome, tmp_path: Path) -> None:
    card = add_corpus(home, write(tmp_path / "good.txt", "一\n二\n三\n"), ["模"])
    for bad in (write(tmp_path / "bad.jsonl", '{"text": "x"}\n{'), write(tmp_path / "empty.txt", "\n\n")):
        with pytest.raises(CorpusError):
            add_corpus(home, bad, [])
    assert card_of(home) == card
    check_digest(home)


def test_the_card_binds_the_rows_and_hides_them(home: GuardHome, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.txt", "甲\n乙\n丙\n")
    first, second = add_corpus(home, file, []), add_corpus(home, file, [])
    assert first.corpus != second.corpus, "an unsalted digest would let anyone test a guess at the corpus"
    rows = home.folder / "corpus" / "rows.jsonl"
    rows.write_text(json.dumps({"text": "丁"}) + "\n")
    with pytest.raises(CorpusError, match="changed outside"):
        check_digest(home)


@given(st.integers(1, 10**8))
def test_the_declared_size_is_rounded_down_to_two_digits(count: int) -> None:
    declared = round_down(count)
    assert declared <= count < declared + max(1, 10 ** (len(str(count)) - 2))
    assert set(str(declared)[2:]) <= {"0"}
