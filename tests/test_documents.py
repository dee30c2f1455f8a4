"""What README.md and docs/ tell people to write and to type is what the program takes."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import click
import pytest
import tomli_w

from fl_privacy.cli import app
from fl_privacy.errors import HomeError, ModelError, PlanError
from fl_privacy.guard.domain import Domain
from fl_privacy.learning import custom_task
from fl_privacy.learning.families import FAMILIES
from fl_privacy.learning.models import new_bundle, save_pretrained
from fl_privacy.parameters import from_bytes
from fl_privacy.scientist.files import read_plan
from tests.tiny_families import CONFIGS, VOCABULARIES

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`(fl-privacy [^`\n]+)`")
HERE_DOCUMENT = re.compile(r"cat > \S+\.toml <<EOF\n(.*?)^EOF$", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"(?<![/\w-])fl-privacy ((?:\"[^\"\n]*\"|[^\n|;&#)>\"])*)")
TARGET = re.compile(r"^make ([a-z-]+)", re.MULTILINE)
PROGRAM = re.compile(r"\bpython \"?(\S+\.py)")
VARIABLES = {"repo": str(REPOSITORY), "port": "9201"}  # the others stand for names
OWNER = {"owner": "clinic", "title": "a title", "budget": {"epsilon": 8.0, "delta": 1e-5}}
PLAN = {
    "name": "documented",
    "purpose": "Try what the documents tell.",
    "owners": ["bank", "clinic", "school"],
    "model": "base",
    "max_length": 32,
}
BLOCKS = [
    pytest.param(found[1], found[2], id=f"{path.name}:{text[: found.start()].count(chr(10)) + 1}")
    for path in DOCUMENTS
    for text in [path.read_text(encoding="utf-8")]
    for found in BLOCK.finditer(text)
]
COMMANDS = sorted({line for path in DOCUMENTS for line in INLINE.findall(path.read_text(encoding="utf-8"))})


def check_toml(text: str, folder: Path) -> None:
    """A domain.toml or a plan, or a part of one that is whole with what is usual."""
    fields = tomllib.loads(text)
    if any(isinstance(value, dict) for value in fields.values()):
        (folder / "domain.toml").write_text(tomli_w.dumps(OWNER | fields), encoding="utf-8")
        Domain.read(folder / "domain.toml")
        return
    family = "gpt2" if fields.get("task") == "clm" else "bert"
    config = CONFIGS[family] | {"model_type": family, "num_hidden_layers": 12, "n_layer": 12}
    bundle = new_bundle(config, VOCABULARIES[family], 0, "base", FAMILIES[family].language_model)
    save_pretrained(folder / "base", bundle.spec, bundle.vocabulary, from_bytes(bundle.weights))
    (folder / "plan.toml").write_text(tomli_w.dumps(PLAN | fields), encoding="utf-8")
    read_plan(folder / "plan.toml")


def check_sh(text: str, folder: Path) -> None:
    """Its grammar, each command of this program with its arguments, and that targets, programs and written TOML are right."""
    told = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    if told.returncode:
        raise SyntaxError(told.stderr)
    text = re.sub(r"\$\{?(\w+)\}?", lambda found: VARIABLES.get(found[1], "clinic"), text)
    for line in COMMAND.findall(text):
        check_command(line, folder)
    for written in HERE_DOCUMENT.findall(text):
        check_toml(written, folder)
    targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    if unknown := set(TARGET.findall(text)) - set(targets):
        raise LookupError(f"no make target {unknown}")
    for program in PROGRAM.findall(text):
        (REPOSITORY / program).resolve(strict=True)


def check_command(line: str, folder: Path) -> None:
    """The command exists, and takes these options and arguments; one that is only named is not looked at further."""
    words, command = shlex.split(line), app
    context = click.Context(app)
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise LookupError(f"no command {name!r}")
        command = found
        if not words:
            return
    for word in words:
        if Path(word).suffix and not Path(word).is_absolute():  # some options want a file that is there
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).touch()
    command.make_context("documented", words)


def check_python(text: str, folder: Path) -> None:
    """A custom task that a guard would run; or lines whose imports are there."""
    if "def features(" in text:
        custom_task.check(text)
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            if missing := [alias.name for alias in node.names if not hasattr(module, alias.name)]:
                raise ImportError(f"{node.module} has no {missing}")


CHECKS: dict[str, Callable[[str, Path], None]] = {"toml": check_toml, "sh": check_sh, "python": check_python}


@pytest.mark.parametrize(("language", "text"), BLOCKS)
def test_every_block_is_what_the_program_takes(
    language: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if language:  # else it shows what is printed
        CHECKS[language](text, tmp_path)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_in_a_sentence_is_one(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_command(line.removeprefix("fl-privacy "), tmp_path)


def test_the_blocks_and_commands_are_found() -> None:
    assert {language for language, _ in (block.values for block in BLOCKS)} == {"", *CHECKS}
    tasks = re.findall(r"^```(\w+)$", (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(tasks) == sum(str(block.id).startswith("tasks.md") for block in BLOCKS) >= 3
    assert any("corpus add FILE" in line for line in COMMANDS)


BROKEN = [
    ("toml", "holdout = = 0.1", tomllib.TOMLDecodeError),
    ("toml", "holdout = 0.9", PlanError),
    ("toml", "hold_out = 0.1", PlanError),
    ("toml", 'task = "classification"\nlabels = ["one"]', ModelError),
    ("toml", "[policy]\ncustom_task = false", HomeError),
    ("toml", '[budget]\nepsilon = "much"', HomeError),
    ("sh", "for name in a; do ls", SyntaxError),
    ("sh", "fl-privacy pretrain public.txt --model tiny --output base", click.UsageError),
    ("sh", "ls && fl-privacy pretrain public.txt --steps many --out base", click.UsageError),
    ("sh", "while read -r name; do fl-privacy owner starts --home $name; done", LookupError),
    ("sh", "key=$(fl-privacy ledger export --home here)", click.UsageError),
    ("sh", "cat > plan.toml <<EOF\nround = 3\nEOF", PlanError),
    ("sh", "make coffee", LookupError),
    ("sh", "python domains/demonstration.py", FileNotFoundError),
    ("python", "def features(text, tokenizer):\n    return open(text)\n\ndef loss(scores, labels):\n    return 0", PlanError),
    ("python", "from fl_privacy import audit_everything", ImportError),
]


@pytest.mark.parametrize(("language", "text", "error"), BROKEN)
def test_a_broken_block_would_be_found(
    language: str, text: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        CHECKS[language](text, tmp_path)
