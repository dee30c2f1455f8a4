"""docs/ tells of every public name, command, option and field, and `make docs` makes a site of it."""

from __future__ import annotations

import html
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import BaseModel

import fl_privacy
from fl_privacy.cli import app
from fl_privacy.guard.domain import Budget, Domain, Policy, Training
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist import files
from tests.field_tables import fields

REPOSITORY = Path(__file__).parents[1]
REFERENCE = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
FIELDS = (REPOSITORY / "docs" / "files.md").read_text(encoding="utf-8")
FROM_OUTSIDE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*")
WRITTEN = [TrainingPlan, Domain, Budget, Policy, Training, files._FederationFile, files._OwnerEntry]


def commands(command: click.Command = app, path: str = "fl-privacy") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{path} {name}")


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that are the package's own."""
    for base in kind.__mro__:
        if base.__module__.startswith("fl_privacy"):
            for name, value in vars(base).items():
                is_code = callable(value) or isinstance(value, (property, classmethod, staticmethod))
                if is_code and not name.startswith("_"):
                    yield f"{base.__name__}.{name}", value


COMMANDS = dict(commands())
KINDS = [name for name in fl_privacy.__all__ if inspect.isclass(getattr(fl_privacy, name))]


def test_the_reference_has_every_public_name_once() -> None:
    told = re.findall(r"^::: fl_privacy\.(\w+)$", REFERENCE, re.MULTILINE)
    assert sorted(told) == sorted([*fl_privacy.__all__, "errors"])


@pytest.mark.parametrize("name", KINDS)
def test_every_method_of_a_public_name_says_what_it_does(name: str) -> None:
    silent = [member for member, value in members(getattr(fl_privacy, name)) if not value.__doc__]
    assert not silent


@pytest.mark.parametrize("path", COMMANDS)
def test_a_command_and_its_options_say_what_they_do(path: str) -> None:
    command = COMMANDS[path]
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
        else:
            told = f"{command.help} {' '.join(getattr(other, 'help', None) or '' for other in command.params)}"
            assert re.search(rf"\b{parameter.make_metavar(click.Context(command)).strip('[].')}", told), parameter.name


@pytest.mark.parametrize("model", WRITTEN, ids=lambda model: model.__name__)
def test_every_field_that_people_write_is_told_with_its_default_and_limits(model: type[BaseModel]) -> None:
    for name, default, allowed in fields(model):
        row = re.escape(f"| `{name}` | {default} | {allowed} | ")
        assert re.search(rf"^{row}\S.*\|$", FIELDS, re.MULTILINE), name


def test_no_field_is_told_that_is_not_there() -> None:
    told = re.findall(r"^\| `(\w+)` \|", FIELDS, re.MULTILINE)
    assert sorted(told) == sorted(name for model in WRITTEN for name, *_ in fields(model))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(importlib.util.find_spec(package) is None for package in ("mkdocs", "mkdocstrings", "material")):
        pytest.skip("the generator is not installed: pip install --constraint constraints.txt --editable '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_the_site_tells_of_every_public_name(site: Path) -> None:
    page = (site / "reference.html").read_text(encoding="utf-8")
    for name in fl_privacy.__all__:
        target = getattr(fl_privacy, name)
        assert f'id="fl_privacy.{name}"' in page
        for member, _ in members(target) if inspect.isclass(target) else ():
            assert f'id="fl_privacy.{name}.{member.split(".")[1]}"' in page, member


def test_the_site_tells_of_every_command_and_option(site: Path) -> None:
    _, *told = re.split(r"Usage: (fl-privacy[\w -]*?) (?=\[|[A-Z])", text_of(site / "cli.html"))
    pages = dict(zip(told[::2], told[1::2], strict=True))
    assert pages.keys() == COMMANDS.keys()
    for path, command in COMMANDS.items():
        for parameter in command.params:
            for name in parameter.opts if isinstance(parameter, click.Option) else ():
                assert name in pages[path], (path, name)


def test_a_page_of_the_site_asks_nothing_of_other_machines(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not FROM_OUTSIDE.findall(page.read_text(encoding="utf-8")), page.name


def test_every_document_is_a_page_of_the_site(site: Path) -> None:
    documents = [path.stem for path in (REPOSITORY / "docs").glob("*.md")]
    assert all((site / f"{name}.html").exists() for name in [*documents, "index", "tutorial", "zh"])


def test_no_list_or_table_of_the_site_is_left_as_text(site: Path) -> None:
    for page in site.rglob("*.html"):
        for paragraph in re.findall(r"<p>(.*?)</p>", page.read_text(encoding="utf-8"), re.DOTALL):
            assert not re.search(r"^([-*|]|\d+\.) ", paragraph, re.MULTILINE), (page.name, paragraph)
