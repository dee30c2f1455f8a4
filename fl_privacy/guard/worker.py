"""The training worker: a process of its own that sees the corpus and one order's job, and no key.

Workers are forked from a server process that has imported torch and never held anything of the guard's memory, so that an order
does not wait for imports. What a worker tells goes through one pipe as JSON: steps done, or why it refused.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from pydantic import ConfigDict

from fl_privacy.errors import FlPrivacyError, OrderFailed, from_wire, to_wire
from fl_privacy.guard.corpus import load_rows
from fl_privacy.messages import Message
from fl_privacy.parameters import from_bytes, to_bytes
from fl_privacy.plan import TrainingPlan

UPDATE = "update.safetensors"
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS")

_workers = multiprocessing.get_context("forkserver")
_workers.set_forkserver_preload(["fl_privacy.guard.worker", "fl_privacy.learning.local_training"])


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


def start(job: Job, folder: Path, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> bytes:
    """Run a worker and return the update's safetensors bytes; the copy on disk is removed.

    Args: ``started`` gets the worker's pid. Raises: the worker's own FlPrivacyError, or OrderFailed if it died.
    """
    ours, theirs = _workers.Pipe(duplex=False)
    worker = _workers.Process(target=_run, args=(job.canonical(), str(folder), theirs), daemon=True)
    worker.start()
    theirs.close()
    started(worker.pid or 0)
    refusal = _listen(ours, on_step)
    worker.join()
    if refusal is not None:
        raise refusal
    if worker.exitcode != 0:
        raise OrderFailed(f"the training worker ended with code {worker.exitcode}; send a new attempt")
    update = (folder / UPDATE).read_bytes()
    (folder / UPDATE).unlink()
    return update


def _listen(pipe: Connection, on_step: Callable[[int, int], None]) -> FlPrivacyError | None:
    refusal = None
    with pipe:
        while True:
            try:
                told = json.loads(pipe.recv_bytes())
            except EOFError:
                return refusal
            if "error" in told:
                refusal = from_wire(told)
            else:
                on_step(told["step"], told["steps"])


def _run(job_bytes: bytes, folder: str, pipe: Connection) -> None:
    """What the forked process does; returning is success."""
    from fl_privacy.learning.local_training import train_update

    _forget_surroundings()
    job = Job.parse(job_bytes)
    try:
        update = train_update(
            job.plan,
            job.round,
            from_bytes(Path(job.weights).read_bytes()),
            Path(job.vocabulary).read_bytes(),
            load_rows(Path(job.corpus)),
            job.declared_size,
            job.noise_multiplier,
            lambda step, steps: pipe.send_bytes(json.dumps({"step": step, "steps": steps}).encode()),
        )
        (Path(folder) / UPDATE).write_bytes(to_bytes(update))
    except FlPrivacyError as error:
        pipe.send_bytes(json.dumps(to_wire(error)).encode())


def _forget_surroundings() -> None:
    """Keep only what training needs of the environment; write nowhere, since a traceback could quote private text."""
    for name in set(os.environ) - set(KEPT_ENVIRONMENT):
        del os.environ[name]
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
