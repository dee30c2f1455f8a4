"""A corpus in the guard: what is kept of the owner's file, and what its card says. See test_row_files for the formats."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_privacy.errors import CorpusError
from fl_privacy.guard.corpus import add_corpus, card_of, check_digest, round_down, rows_file
from fl_privacy.guard.domain import Domain
from fl_privacy.guard.home import GuardHome
from fl_privacy.messages import Row
from fl_privacy.row_files import Fields, StoredRows
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
def test_all_formats_are_kept_as_the_same_rows(home: GuardHome, tmp_path: Path, name: str, content: str | bytes) -> None:
    add_corpus(home, write(tmp_path / name, content), [])
    assert rows_file(home).read_bytes() == '{"text":"一"}\n{"text":"二"}\n'.encode()
    with StoredRows(rows_file(home)) as rows:
        assert list(rows) == [Row(text="一"), Row(text="二")]


def test_a_bad_file_leaves_the_former_corpus_in_place(home: GuardHome, tmp_path: Path) -> None:
    card = add_corpus(home, write(tmp_path / "good.txt", "一\n二\n三\n"), [Row(text="模")])
    for bad in (write(tmp_path / "bad.jsonl", '{"text": "x"}\n{'), write(tmp_path / "empty.txt", "\n\n")):
        with pytest.raises(CorpusError):
            add_corpus(home, bad, [])
    assert card_of(home) == card and not list((home.folder / "corpus").glob("*.partial"))
    check_digest(home)


NER = '{"text": "王五", "tags": "B-name I-name", "kind": 3}\n{"text": "下雨", "tags": ["O", "O"], "kind": " 4 "}\n'


def test_labels_and_tags_are_kept_and_the_card_says_that_there_are_some_but_not_which(home: GuardHome, tmp_path: Path) -> None:
    mock = Row(text="李四", label="9", tags=("B-made-up", "I-made-up"))
    card = add_corpus(home, write(tmp_path / "a.jsonl", NER), [mock], Fields(label="kind", tags="tags"))
    assert card.annotations == ("label", "tags") and card.mock_rows == (mock,) and card_of(home) == card
    assert b"-name" not in card.canonical()
    with StoredRows(rows_file(home)) as rows:
        assert list(rows) == [
            Row(text="王五", label="3", tags=("B-name", "I-name")),
            Row(text="下雨", label="4", tags=("O", "O")),
        ]
    check_digest(home)


@pytest.mark.parametrize(
    ("mock", "told"),
    [
        (Row(text="李四"), "mock row 2 has text, every row of the corpus has text and tags; give the mock rows the same"),
        (Row(text="李", label="x"), "has text and label, every row of the corpus has text and tags"),
        (Row(text="李", tags=("O",), subject=0), "has a subject; leave it out"),
    ],
)
def test_mock_rows_that_do_not_look_like_the_corpus_are_refused_before_it_is_replaced(
    home: GuardHome, tmp_path: Path, mock: Row, told: str
) -> None:
    card = add_corpus(home, write(tmp_path / "a.txt", "一\n"), [])
    with pytest.raises(CorpusError, match=told) as caught:
        add_corpus(home, write(tmp_path / "a.jsonl", NER), [Row(text="赵", tags=("O",)), mock], Fields(tags="tags"))
    assert "李" not in str(caught.value) and card_of(home) == card


def test_a_card_of_an_older_version_asks_for_the_corpus_again(home: GuardHome, tmp_path: Path) -> None:
    add_corpus(home, write(tmp_path / "a.txt", "一\n"), [])
    card = home.folder / "corpus" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_bytes()) | {"mock_rows": ["made up"]}))
    with pytest.raises(CorpusError, match="was added by another version .*; add it again") as caught:
        card_of(home)
    assert "made up" not in str(caught.value)


def test_the_card_binds_the_rows_and_hides_them(home: GuardHome, tmp_path: Path) -> None:
    file = write(tmp_path / "rows.txt", "甲\n乙\n丙\n")
    first, second = add_corpus(home, file, []), add_corpus(home, file, [])
    assert first.corpus != second.corpus, "an unsalted digest would let anyone test a guess at the corpus"
    rows_file(home).write_text(json.dumps({"text": "丁"}) + "\n")
    with pytest.raises(CorpusError, match="changed outside"):
        check_digest(home)


@given(st.integers(1, 10**8))
def test_the_declared_size_is_rounded_down_to_two_digits(count: int) -> None:
    declared = round_down(count)
    assert declared <= count < declared + max(1, 10 ** (len(str(count)) - 2))
    assert set(str(declared)[2:]) <= {"0"}
