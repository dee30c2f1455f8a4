"""README.zh-CN.md says what README.md says: the same code, figures, names and links, section by section."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ENGLISH, CHINESE = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh-CN.md"))
BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
SECTION = re.compile(r"^## .+$", re.MULTILINE)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
FIGURE = re.compile(r"(?<![\w.-])\d[\d.,/e-]*\d|(?<![\w.-])\d")


def sections(text: str) -> list[str]:
    """Prose of each section, the one before the first heading included."""
    return SECTION.split(BLOCK.sub("", text))


def figures(cells: str) -> Counter[str]:
    return Counter(FIGURE.findall(CODE.sub("", cells)))


def tables(text: str) -> list[list[str]]:
    return [row.strip("| ").split("|") for row in text.splitlines() if row.startswith("|")]


PAIRS = list(zip(sections(ENGLISH), sections(CHINESE), strict=True))


def test_both_have_the_same_code_blocks() -> None:
    assert BLOCK.findall(CHINESE) == BLOCK.findall(ENGLISH)


def test_both_have_as_many_headings_of_each_level() -> None:
    levels = [re.findall(r"^(#+) ", BLOCK.sub("", text), re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


def test_each_links_to_the_other_before_anything_else() -> None:
    assert LINK.findall(ENGLISH)[0] == "README.zh-CN.md"
    assert LINK.findall(CHINESE)[0] == "README.md"


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=range(len(PAIRS)))
def test_a_section_has_the_same_names_and_links_in_both(english: str, chinese: str) -> None:
    assert Counter(CODE.findall(chinese)) == Counter(CODE.findall(english))
    others = {"README.md", "README.zh-CN.md"}
    assert set(LINK.findall(chinese)) - others == set(LINK.findall(english)) - others


@pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=range(len(PAIRS)))
def test_a_section_has_as_many_points_and_the_same_figures_in_its_tables(english: str, chinese: str) -> None:
    assert [len(row) for row in tables(chinese)] == [len(row) for row in tables(english)]
    for ours, theirs in zip(tables(chinese), tables(english), strict=True):
        assert [figures(cell) for cell in ours] == [figures(cell) for cell in theirs]
    assert chinese.count("\n- ") == english.count("\n- ")
    assert chinese.count("**") == english.count("**")


def test_a_figure_a_name_and_a_code_block_that_drift_would_be_found() -> None:
    assert figures("epsilon 8.00 of 8.50, 1/36, 1e-5, 36.7 %") == Counter(["8.00", "8.50", "1/36", "1e-5", "36.7"])
    assert figures("(CKKS 57.4, `v1.2`, SHA-256)") == Counter(["57.4"])
    assert sections("one\n\n## Two\n\n```sh\n## three\n```\nfour\n") == ["one\n\n", "\n\n\nfour\n"]
