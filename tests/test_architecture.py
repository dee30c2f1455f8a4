"""The architecture, held: which room may import which, and which third party lives where."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fl_privacy

PACKAGE = Path(fl_privacy.__file__).parent
LEVEL_1 = {
    "cohort_fields",
    "compression_fields",
    "compute_costs",
    "durable_files",
    "errors",
    "layer_fields",
    "layer_schedules",
    "ledger_statement",
    "messages",
    "model_spec",
    "parallel_composition",
    "parameters",
    "printable",
    "plan",
    "round_order",
    "round_plan",
    "row_files",
    "selection",
    "step_fields",
    "strategy_fields",
    "template",
}
# where the rooms are put together for people
ASSEMBLY = {
    "owner",
    "owner_files",
    "auditor",
    "display",
    "display_corpora",
    "display_parts",
    "display_review",
    "display_runs",
    "display_screens",
    "cli",
    "cli_owner",
    "cli_ledger",
    "cli_pretrain",
    "cli_serving",
    "cli_verify",
    "__main__",
    "__init__",
}

# room -> the rooms of this package that it may import
ALLOWED = {
    **dict.fromkeys(LEVEL_1, LEVEL_1),
    "learning": LEVEL_1 | {"learning"},
    "privacy": LEVEL_1 | {"privacy"},
    "encryption": LEVEL_1 | {"encryption"},
    "strategies": LEVEL_1 | {"strategies"},
    "compression": LEVEL_1 | {"compression"},
    "guard": LEVEL_1 | {"guard", "learning", "privacy", "encryption", "compression"},
    "datasite": LEVEL_1 | {"datasite"},
    "scientist": LEVEL_1 | {"scientist", "learning", "strategies", "compression"},
    "console": LEVEL_1 | {"console", "owner", "owner_files"},
    "serving": LEVEL_1 | {"serving"},
}
# single modules that a room may import besides
EXCEPTIONS = {
    *(("learning.local_training", f"privacy.{part}") for part in ("dp_sgd", "team")),
    *(("learning.local_evaluation", f"privacy.{part}") for part in ("dp_evaluation", "randomness")),
    ("console.parts", "guard.findings"),
    ("guard.guard", "__version__"),
    ("serving.answers", "learning.metrics"),  # numpy only
    *((f"serving.{name}", f"scientist.{part}") for name in ("model_card", "sources") for part in ("history", "run_folder")),
    *((f"serving.{name}", "learning") for name in ("onnx_export", "sources")),  # an export needs torch, what it is for does not
    *((f"datasite.{name}", "guard.client") for name in ("front_desk", "execution", "__main__")),
    *(
        (f"scientist.{name}", f"encryption.{part}")
        for name in ("federation", "training_run", "records", "orders", "rounds", "traffic", "enrolment")
        for part in ("agreement", "blind_sum", "evidence", "packing", "registry")
    ),
}
# third party -> the rooms that may import it
THIRD_PARTIES = {
    "syft": {"datasite", "scientist"},
    "opacus": {"privacy"},
    "dp_accounting": {"privacy"},
    "tenseal": {"encryption"},
    "nacl": {"encryption"},
    "transformers": {"learning"},
    "tokenizers": {"learning", "serving"},
    "peft": {"learning"},
    "torch": {"learning", "privacy"},
    "nicegui": {"console"},
    "pyarrow": {"row_files"},
    "tensorboard": {"scientist"},
    "mlflow": {"scientist"},
    "rich": ASSEMBLY | {"scientist"},  # whose values show themselves
    "click": ASSEMBLY,
    "onnxruntime": {"serving"},
    "onnx": {"serving"},
    "prometheus_client": {"serving"},
}
# and single modules that may besides
THIRD_PARTY_EXCEPTIONS = {("serving.onnx_export", "torch"), ("serving.onnx_export", "transformers")}


def modules() -> Iterator[tuple[str, str, Path]]:
    """Dotted name inside the package, its room, and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        dotted = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        yield dotted, dotted.split(".")[0], path


def imported(path: Path) -> Iterator[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("fl_privacy", *(f"fl_privacy.{room}" for room in ALLOWED)):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


MODULES = list(modules())


@pytest.mark.parametrize(("dotted", "room", "path"), MODULES, ids=[dotted for dotted, _, _ in MODULES])
def test_a_module_imports_only_what_its_room_may(dotted: str, room: str, path: Path) -> None:
    if room in ASSEMBLY:
        return
    for name in imported(path):
        first = name.split(".")[0]
        if first == "fl_privacy":
            inner = name.removeprefix("fl_privacy.")
            allowed = inner.split(".")[0] in ALLOWED[room] or any(
                dotted == who and (inner == what or inner.startswith(what + ".")) for who, what in EXCEPTIONS
            )
            assert allowed, f"{dotted} imports {name}"
        else:
            allowed = room in THIRD_PARTIES.get(first, {room}) or (dotted, first) in THIRD_PARTY_EXCEPTIONS
            assert allowed, f"{dotted} imports {name}"


def test_every_room_is_under_the_rule() -> None:
    assert {room for _, room, _ in MODULES} <= ALLOWED.keys() | ASSEMBLY


@pytest.mark.parametrize("module", ["fl_privacy.guard.service", "fl_privacy.guard.worker"])
def test_no_syft_is_ever_loaded_in_a_guard(module: str) -> None:
    script = f"import sys, {module}; sys.exit('syft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_reference_run_without_privacy_is_out_of_a_guards_reach() -> None:
    script = "import sys, fl_privacy.guard.service, fl_privacy.guard.worker, fl_privacy.learning.local_training"
    script += "; sys.exit('fl_privacy.learning.reference_training' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_a_model_is_served_without_torch() -> None:
    script = (
        "import sys, fl_privacy.serving.app; sys.exit(bool({'torch', 'transformers', 'syft', 'tenseal'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_no_file_outgrows_its_responsibility() -> None:
    long = {dotted: len(path.read_text().splitlines()) for dotted, _, path in MODULES}
    assert {dotted: lines for dotted, lines in long.items() if lines > 300} == {}


def test_what_is_shown_in_a_terminal_is_shown_without_torch() -> None:
    """Most commands show a table and train nothing; torch takes seconds to load."""
    script = "import sys, fl_privacy.display; sys.exit(bool({'torch', 'transformers', 'syft', 'tenseal'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
