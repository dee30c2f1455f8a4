"""The training worker: a process of its own that sees the corpus and one order's job, and no key.

Workers are forked from a server process that has imported torch and never held anything of the guard's memory, so that an order
does not wait for imports. A worker reads its inputs, opens its output, splits into as many processes as its owner wants, and
then locks itself in (``guard.sandbox``). It tells how well it is isolated, steps done, or why it refused, through one pipe as
JSON. The others of its processes end with the first, and that one ends when it misses one of them (``privacy.team``).
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, BinaryIO

from pydantic import ConfigDict, Field

from fl_privacy.errors import FlPrivacyError, OrderFailed, PolicyRefused, from_wire, to_wire
from fl_privacy.guard import sandbox
from fl_privacy.learning import devices
from fl_privacy.learning.local_evaluation import evaluate_privately
from fl_privacy.learning.local_start import evaluated_start, local_start, own_specs
from fl_privacy.learning.local_training import train_update
from fl_privacy.messages import Digest, Message, OwnerName, PrivacyUnit, Purpose, Row, TensorSpec
from fl_privacy.parameters import Parameters, flatten, flatten_or_zero, from_bytes, to_bytes, unflatten
from fl_privacy.plan import TrainingPlan
from fl_privacy.privacy.holdout import Part, held_out
from fl_privacy.privacy.team import Team
from fl_privacy.row_files import StoredRows

KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")

LONGEST_SILENCE = 3600.0  # seconds without a step; a step of the largest plan on a slow machine takes minutes
EVEN_STEPS = 1.0  # seconds; how long custom code takes may tell of single records, so its steps are drawn out to whole ones

_log = logging.getLogger(__name__)
_workers = multiprocessing.get_context("forkserver")
_workers.set_forkserver_preload(["fl_privacy.guard.worker"])


class Job(Message):
    """All that the worker is told. Paths point into the guard's home; ``holdout_key`` is hex, for plans with a holdout."""

    model_config = ConfigDict(protected_namespaces=())

    plan: TrainingPlan
    round: int
    declared_size: int
    noise_multiplier: float
    corpus: str
    weights: str
    vocabulary: str
    tensors: tuple[TensorSpec, ...]
    update: str
    unit: PrivacyUnit = "record"
    require_isolation: bool = False
    purpose: Purpose = "train"
    owner: OwnerName
    order: Digest
    own_before: str = ""  # FedSplitBERT: this owner's own tensors, and where those after the training go
    own_after: str = ""
    control: str = ""  # the server's control variate, and this owner's (SCAFFOLD); none: it is zero
    own_control: str = ""
    holdout_key: Annotated[str, Field(repr=False)] = ""
    device: devices.Device = "cpu"
    processes: int = 1  # for training; one evaluates


def run(job: Job, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> None:
    """Run a worker to its end, which leaves the update in ``job.update``: float32, little-endian, in the order of ``tensors``.

    Args: ``started`` gets the worker's pid. Raises: the worker's own FlPrivacyError, or OrderFailed if it died.
    """
    ours, theirs = _workers.Pipe(duplex=False)
    worker = _workers.Process(target=_run, args=(job.canonical(), theirs), daemon=True)
    worker.start()
    theirs.close()
    started(worker.pid or 0)
    try:
        refusal = _listen(ours, on_step)
        if refusal is not None:
            worker.kill()  # one of its processes has told; the others may still wait for that one
    finally:
        worker.join()
    if refusal is not None:
        raise refusal
    if worker.exitcode != 0:
        raise OrderFailed(f"the training worker ended with code {worker.exitcode}; send a new attempt")


def _listen(pipe: Connection, on_step: Callable[[int, int], None]) -> FlPrivacyError | None:
    """Why the worker refuses, or must be ended; None once it has nothing more to tell."""
    with pipe:
        while True:
            if not pipe.poll(LONGEST_SILENCE):
                return OrderFailed(f"the training worker was silent for {LONGEST_SILENCE:.0f} s and was ended; plan less work")
            try:
                told = json.loads(pipe.recv_bytes())
            except EOFError:
                return None
            if "error" in told:
                return from_wire(told)  # the first is the cause: other processes only miss the one that told it
            if "isolation" in told:
                if set(told["isolation"].values()) != {"isolated"}:
                    _log.warning("a training worker is not wholly isolated on this system: %s", told["isolation"])
            else:
                on_step(told["step"], told["steps"])


def _run(job_bytes: bytes, pipe: Connection) -> None:
    """What the forked process does; returning is success."""
    _forget_surroundings()
    job, tell = Job.parse(job_bytes), _Teller(pipe)
    team = Team(job.processes if job.purpose == "train" else 1)
    try:
        rows, *blobs, vocabulary = (
            StoredRows(Path(job.corpus)),  # mapped, so that it can be read when no file can be opened
            Path(job.weights).read_bytes(),
            Path(job.own_before).read_bytes() if job.own_before else b"",
            Path(job.vocabulary).read_bytes(),
        )
        correction = _correction(job)
        with _new_file(job.update) as file, _new_file(job.own_after or os.devnull) as own_file:
            team.split()
            device = devices.start(job.device, team.rank, team.size)
            isolation = sandbox.enter(Path(job.corpus), team.meet, team.size, gpu=job.device == "cuda")
            if team.leads:
                tell(isolation=isolation.model_dump())
            if job.require_isolation and isolation.missing:
                raise PolicyRefused(f"policy, require_isolation = true: this worker's {isolation.missing} is not isolated")
            on_step = tell.step if job.plan.task != "custom" else tell.even_step
            on_step = on_step if team.leads else _untold
            model = {name: tensor for blob in blobs if blob for name, tensor in from_bytes(blob).items()}
            update = _work(job, rows, model, vocabulary, on_step, correction=correction, device=device, team=team)
            if team.leads:
                file.write(flatten(update, job.tensors).astype("<f4", copy=False).data)  # tofile() overlooks a full disk
                if job.own_after:
                    own_file.write(to_bytes({spec.name: model[spec.name] + update[spec.name] for spec in own_specs(job.plan)}))
    except FlPrivacyError as error:
        tell(**to_wire(error))
    finally:
        if not team.leads:
            os._exit(0)  # how the worker ended is the leader's to say; it misses who ended too early


def _work(
    job: Job,
    rows: Sequence[Row],
    model: Parameters,
    vocabulary: bytes,
    on_step: Callable[[int, int], None],
    *,
    correction: Parameters | None = None,
    device: devices.Place | None = None,
    team: Team | None = None,
) -> Parameters:
    """Train on what is not held out, or evaluate on what is."""
    if job.plan.holdout:
        held = held_out(rows, job.plan.holdout, bytes.fromhex(job.holdout_key), job.unit)
        rows = Part(rows, held if job.purpose == "evaluate" else ~held)
    size, noise = job.declared_size, job.noise_multiplier
    if job.purpose == "evaluate":
        plan, start = evaluated_start(job.plan, job.round, model)
        return evaluate_privately(plan, start, vocabulary, rows, size, noise, on_step, unit=job.unit, device=device)
    plan, start = local_start(job.plan, job.round, model, job.owner, job.order)
    return train_update(
        plan,
        job.round,
        start,
        vocabulary,
        rows,
        size,
        noise,
        on_step,
        unit=job.unit,
        correction=correction,
        device=device,
        team=team,
    )


def _correction(job: Job) -> Parameters | None:
    """SCAFFOLD's c - c_k, which the guard has seen to fit the order; None where both are zero."""
    if not (job.control or job.own_control):
        return None
    kept = (from_bytes(Path(told).read_bytes()) if told else {} for told in (job.control, job.own_control))
    server, own = (flatten_or_zero(variate, job.tensors) for variate in kept)
    return unflatten(server - own, job.tensors)


def _new_file(path: str) -> BinaryIO:
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if path != os.devnull else 0), 0o600), "wb")


def _untold(step: int, steps: int) -> None:
    """Progress of all processes but the leader."""


class _Teller:
    """The worker's end of the pipe."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._last = pipe, time.monotonic()

    def __call__(self, **told: object) -> None:
        self._pipe.send_bytes(json.dumps(told).encode())

    def step(self, step: int, steps: int) -> None:
        self(step=step, steps=steps)

    def even_step(self, step: int, steps: int) -> None:
        """Tell of a step at the next whole EVEN_STEPS since the last one."""
        time.sleep(-(time.monotonic() - self._last) % EVEN_STEPS)
        self._last = time.monotonic()
        self.step(step, steps)


def _forget_surroundings() -> None:
    """Keep only what training needs of the environment; write nowhere, since a traceback could quote private text."""
    for name in set(os.environ) - set(KEPT_ENVIRONMENT):
        del os.environ[name]
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
