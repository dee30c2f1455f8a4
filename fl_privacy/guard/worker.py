"""The training worker: a process of its own that sees the corpus and one order's job file, and no key.

Run by ``guard.rounds`` as ``python -m fl_privacy.guard.worker JOB_FOLDER``. Progress goes to standard output as ``step i n``; a
refusal as one line of JSON; the differentially private update to ``update.safetensors`` in the job folder.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import ConfigDict

from fl_privacy.errors import FlPrivacyError, OrderFailed, from_wire, to_wire
from fl_privacy.messages import Message
from fl_privacy.parameters import from_bytes, to_bytes
from fl_privacy.plan import TrainingPlan

UPDATE = "update.safetensors"
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "VIRTUAL_ENV", "PYTHONPATH", "OMP_NUM_THREADS")


class Job(Message):
    """All that the worker is told. Paths point into the guard's home."""

    model_config = ConfigDict(protected_namespaces=())

    plan: TrainingPlan
    round: int
    declared_size: int
    noise_multiplier: float
    corpus: str
    weights: str
    vocabulary: str


def run(folder: Path) -> None:
    """Train one round as ``job.json`` says and write the update. Raises: FlPrivacyError."""
    from fl_privacy.guard.corpus import load_rows
    from fl_privacy.learning.local_training import train_update

    job = Job.parse((folder / "job.json").read_bytes())
    update = train_update(
        job.plan,
        job.round,
        from_bytes(Path(job.weights).read_bytes()),
        Path(job.vocabulary).read_bytes(),
        load_rows(Path(job.corpus)),
        job.declared_size,
        job.noise_multiplier,
        lambda step, steps: _tell(f"step {step} {steps}"),
    )
    (folder / UPDATE).write_bytes(to_bytes(update))


def start(job: Job, folder: Path, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> bytes:
    """Run the worker as a child process and return the update's safetensors bytes; the copy on disk is removed.

    Args: ``started`` gets the child's pid. Raises: the worker's own FlPrivacyError, or OrderFailed if it died.
    """
    import subprocess

    (folder / "job.json").write_bytes(job.canonical())
    with subprocess.Popen(
        [sys.executable, "-m", "fl_privacy.guard.worker", str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback could quote private text
        env=_environment(os.environ),
        text=True,
    ) as child:
        started(child.pid)
        refusal: FlPrivacyError | None = None
        for line in child.stdout or ():
            if line.startswith("step "):
                _, step, steps = line.split()
                on_step(int(step), int(steps))
            elif line.startswith("{"):
                refusal = from_wire(json.loads(line))
    if refusal is not None:
        raise refusal
    if child.returncode != 0:
        raise OrderFailed(f"the training worker ended with code {child.returncode}")
    update = (folder / UPDATE).read_bytes()
    (folder / UPDATE).unlink()
    return update


def _environment(outer: Mapping[str, str]) -> dict[str, str]:
    kept = {name: outer[name] for name in KEPT_ENVIRONMENT if name in outer}
    return kept | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore"}


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]))
    except FlPrivacyError as error:
        _tell(json.dumps(to_wire(error)))
        sys.exit(1)
