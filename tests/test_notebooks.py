"""The notebooks: short cells, public names only, outputs that tell nothing of the machine; and the script that runs them."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode

import fl_privacy

REPOSITORY = Path(__file__).parents[1]
FOLDER = REPOSITORY / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OWNERS = ("hospital", "school", "service_desk")  # of 01 to 05
LONGEST_CELL = 20  # lines
LARGEST_PICTURE = 150_000  # bytes
ABSOLUTE = re.compile(r"(?<![\w.:/~<])/[\w.-]+/[\w.-]+")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks_run", FOLDER / "run.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def environment(state: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "FL_PRIVACY_DATA"}
    return kept | {"FL_PRIVACY_NOTEBOOKS": str(state)}


def code_cells(path: Path) -> list[NotebookNode]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def outputs(path: Path) -> Iterator[NotebookNode]:
    for cell in code_cells(path):
        yield from cell.outputs


def words(path: Path) -> str:
    """All that the outputs say, pictures aside."""
    found = []
    for output in outputs(path):
        found.append(output.get("text", ""))
        found += [part for kind, part in output.get("data", {}).items() if kind != "image/png"]
    return "\n".join(found)


def not_public(tree: ast.AST) -> Iterator[str]:
    """Names that a notebook's reader should not import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "fl_privacy":
            yield from (alias.name for alias in node.names if alias.name not in fl_privacy.__all__)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or "."] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (name for name in modules if name.split(".")[0] not in {*sys.stdlib_module_names, "matplotlib"})


def test_there_are_six_numbered_notebooks() -> None:
    assert [path.name[:3] for path in NOTEBOOKS] == [f"0{number}_" for number in range(1, 7)]


@every_notebook
def test_every_code_cell_is_short_and_is_introduced_in_words(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith(f"# {path.name[:2]} ")
    for before, cell in zip(cells, cells[1:], strict=False):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
            assert before.cell_type == "markdown", cell.source


@every_notebook
def test_only_public_names_the_standard_library_and_matplotlib_are_imported(path: Path) -> None:
    assert [name for cell in code_cells(path) for name in not_public(ast.parse(cell.source))] == []


@pytest.mark.parametrize(
    "line", ["from fl_privacy.guard import home", "from fl_privacy import template", "import syft", "import fl_privacy.owner"]
)
def test_a_name_that_is_not_public_would_be_found(line: str) -> None:
    assert list(not_public(ast.parse(line)))


@every_notebook
def test_the_stored_outputs_come_from_one_run_from_top_to_bottom_without_a_complaint(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [output for output in outputs(path) if output.output_type == "error" or output.get("name") == "stderr"]


@every_notebook
def test_the_last_output_is_a_picture_and_pictures_are_small(path: Path) -> None:
    found = list(outputs(path))
    assert "image/png" in found[-1].get("data", {})
    pictures = [output.data["image/png"] for output in found if "image/png" in output.get("data", {})]
    assert all(len(base64.b64decode(picture)) < LARGEST_PICTURE for picture in pictures)


@every_notebook
def test_outputs_tell_nothing_of_the_machine_that_ran_them(path: Path) -> None:
    assert not ABSOLUTE.search(words(path))
    assert "\x1b" not in words(path)  # colours of a terminal
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.metadata for cell in notebook.cells)
    assert notebook.metadata.language_info == {"name": "python"}


def test_an_absolute_path_would_be_found() -> None:
    assert ABSOLUTE.search("left in /home/you/x") and ABSOLUTE.search("'/root/x'")
    assert not ABSOLUTE.search("http://127.0.0.1:9201 spent 0.00 / 8.50, runs/notebooks, <td>a</td>")


def test_paths_of_this_machine_are_replaced(runner: ModuleType, tmp_path: Path) -> None:
    told = f"{tmp_path}/run and {REPOSITORY}/domains and {Path.home()}/x"
    assert runner.without_paths(told, tmp_path) == "runs/notebooks/run and ./domains and ~/x"


def test_lines_of_one_stream_become_one_output(runner: ModuleType) -> None:
    def line(name: str, text: str) -> Any:
        return nbformat.v4.new_output("stream", name=name, text=text)

    joined = runner.joined([line("stdout", "a\n"), line("stdout", "b\n"), line("stderr", "c\n")])
    assert [(output.name, output.text) for output in joined] == [("stdout", "a\nb\n"), ("stderr", "c\n")]


def test_a_folder_with_other_things_is_not_emptied(runner: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit, match="holds other things"):
        runner.empty(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_a_folder_of_an_earlier_run_is_emptied(runner: ModuleType, tmp_path: Path) -> None:
    runner.empty(tmp_path)
    (tmp_path / "run").mkdir()
    runner.empty(tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_process_that_is_no_owner_is_left_alone(runner: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "stale.pid").write_text(str(os.getpid()))
    runner.stop_owners(tmp_path)  # this test is still here to tell
    assert not (tmp_path / "stale.pid").exists()


def test_a_cell_that_fails_is_shown_and_ends_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(FOLDER / "run.py", folder)
    failing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('on purpose')")])
    nbformat.write(failing, folder / "01_failing.ipynb")
    stored = (folder / "01_failing.ipynb").read_bytes()
    ended = subprocess.run([sys.executable, folder / "run.py"], capture_output=True, text=True, env=environment(tmp_path / "n"))
    assert ended.returncode == 1
    assert "on purpose" in ended.stderr
    assert (folder / "01_failing.ipynb").read_bytes() == stored


@pytest.mark.slow
@pytest.mark.end_to_end
@pytest.mark.timeout(3600)
def test_all_notebooks_run_and_show_neither_a_password_nor_a_private_row(tmp_path: Path) -> None:
    state, out = tmp_path / "n", tmp_path / "out"
    subprocess.run([sys.executable, FOLDER / "run.py", "--out", out], check=True, env=environment(state))
    told = [words(path) for path in sorted(out.iterdir())]
    passwords = [file.read_text() for file in state.glob("*.password")]
    assert len(told) == len(NOTEBOOKS) and len(passwords) == len(OWNERS)
    assert not [password for password in passwords if password in "".join(told)]
    three, four = rows(state / f"{name}.jsonl" for name in OWNERS), rows(state.glob("four/*-private.jsonl"))
    assert len(three) == 18_000 and len(four) > 6_000
    # each federation by itself: the invented text of 06 may repeat a sentence of the others
    assert not [row for row in three if row in "".join(told[:5])]
    assert not [row for row in four if row in told[5]]
    assert not list(state.rglob("*.pid"))


def rows(files: Iterable[Path]) -> list[str]:
    return [json.loads(line)["text"] for file in files for line in file.read_text(encoding="utf-8").splitlines()]
