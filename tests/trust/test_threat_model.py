"""docs/threat-model.md names a test for every claim; here it is checked that each of them exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
DOCUMENT = (TESTS.parent / "docs" / "threat-model.md").read_text(encoding="utf-8")
HEAD = "| adversary | what it learns or can do | what stops it from more | tests |"
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", DOCUMENT)))
ROWS = [line.strip("| ").split(" | ") for line in DOCUMENT.splitlines() if line.startswith("| ") and line != HEAD]


@cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("file", "name"), NAMED, ids=["::".join(named) for named in NAMED])
def test_a_test_that_the_threat_model_names_exists(file: str, name: str) -> None:
    assert name in names_in(file)


def test_every_adversary_has_a_test_or_says_that_there_is_none() -> None:
    assert len(ROWS) > 30
    for row in ROWS:
        assert len(row) == 4, row[0]
        assert row[3] == "none" or re.fullmatch(r"(`[\w/]+\.py::\w+`(, )?)+", row[3]), row[0]


def test_no_name_of_a_test_is_written_in_another_form() -> None:
    assert len(re.findall("::", DOCUMENT)) == len(re.findall(r"`[\w/]+\.py::\w+`", DOCUMENT))
