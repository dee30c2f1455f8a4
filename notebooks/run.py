"""Run the notebooks in order, against real datasites, and store what they show: ``python notebooks/run.py``.

They share one folder, ``FL_PRIVACY_NOTEBOOKS`` or else runs/notebooks, which is emptied first. The owners that 01 and 06 start
outlive their kernels; whatever is left of them is stopped in the end, also when a cell fails.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
REPOSITORY = FOLDER.parent
STATE = "FL_PRIVACY_NOTEBOOKS"
MARK = "notebooks-of-fl-privacy"  # a file in a folder that may be emptied
CELL_SECONDS = 1800  # on a busy machine


def main() -> int:
    """Run all notebooks, or those that are named; 1 when a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*", help="such as 01 02; all by default. Later ones need what earlier ones leave.")
    parser.add_argument("--out", type=Path, default=FOLDER, help="Where the executed notebooks go; by default where they are.")
    asked = parser.parse_args()
    state = Path(os.environ.get(STATE) or REPOSITORY / "runs" / "notebooks").resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that owners are stopped then, too
    try:
        if not asked.numbers:
            empty(state)
        asked.out.mkdir(parents=True, exist_ok=True)
        for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")):
            if not asked.numbers or path.name[:2] in asked.numbers:
                run(path, state, asked.out / path.name)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as problem:
        print(problem, file=sys.stderr)
        return 1
    finally:
        stop_owners(state)
    return 0


def empty(state: Path) -> None:
    """Take away what an earlier run left. Raises: SystemExit when the folder is not one of ours."""
    if state.exists():
        if not (state / MARK).exists() and any(state.iterdir()):
            raise SystemExit(f"{state} holds other things than notebooks leave; take an empty folder for {STATE}")
        stop_owners(state)
        shutil.rmtree(state)
    state.mkdir(parents=True)
    (state / MARK).touch()


def run(path: Path, state: Path, out: Path) -> None:
    """Execute one notebook in a kernel of its own and write it with its outputs. Raises: CellExecutionError."""
    started = time.perf_counter()
    # Owners share this machine, so each trains on one core; commands find this Python.
    os.environ |= {STATE: str(state), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(FOLDER)}}
    NotebookClient(notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=resources, record_timing=False).execute()
    nbformat.write(tidy(notebook, state), out)
    print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)


def tidy(notebook: NotebookNode, state: Path) -> NotebookNode:
    """Take out what tells of the machine that ran it: paths, versions, sessions."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = joined(cell.outputs)
        for output in cell.outputs:
            for part in (output, output.get("data", {})):
                for name in {"text", "text/plain", "text/html"} & part.keys():
                    part[name] = without_paths(part[name], state)
    return notebook


def joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Lines of one stream as one output, however they came."""
    found: list[NotebookNode] = []
    for output in outputs:
        if found and output.output_type == found[-1].output_type == "stream" and output.name == found[-1].name:
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def without_paths(text: str, state: Path) -> str:
    """Folders of this machine by the names that they have for everybody."""
    for folder, name in ((state, "runs/notebooks"), (REPOSITORY, "."), (Path.home(), "~")):
        text = text.replace(str(folder), name)
    return text


def stop_owners(state: Path) -> None:
    """End the owners whose process ids lie in the folder, and wait until they are gone."""
    running = []
    for file in state.rglob("*.pid"):
        pid = int(file.read_text())
        if is_owner(pid):
            os.kill(pid, signal.SIGTERM)
            running.append(pid)
        file.unlink()
    deadline = time.monotonic() + 60
    while any(map(is_owner, running)) and time.monotonic() < deadline:
        time.sleep(0.2)


def is_owner(pid: int) -> bool:
    """Whether the process is an owner of ours, and not another one that has been given its number since."""
    try:
        return b"fl_privacy\0owner\0serve" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
