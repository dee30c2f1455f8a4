"""A scientist's run in a process of its own, which can be killed at any moment, against guards in this one."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fl_privacy import template
from fl_privacy.encryption.keys import key_name
from fl_privacy.encryption.registry import Registry
from fl_privacy.errors import FlPrivacyError, from_wire, to_wire
from fl_privacy.guard.worker import Job
from fl_privacy.learning.models import ModelBundle
from fl_privacy.messages import sign
from fl_privacy.parameters import count
from fl_privacy.plan import TrainingPlan
from fl_privacy.scientist.history import History, Watcher
from fl_privacy.scientist.orders import Orders
from fl_privacy.scientist.run_folder import RunFolder
from fl_privacy.scientist.training_run import TrainingRun
from tests.builders import text_rows
from tests.guard.conftest import ROWS, Strongrooms
from tests.guard_desk import GuardDesk
from tests.scientist.runs import validation

ACTIONS = ("run", "close_order", "reveal_self_mask", "holds", "put_model", "put_blob", "put_file", "fetch_blob")
STEP = 0.05 / 127  # of an update of the tiny plan: its multiples are not rounded


@dataclass(frozen=True)
class Sent:
    """What the scientist's process gets of the rooms."""

    plan: TrainingPlan
    bundle: ModelBundle
    key: bytes
    registry: Registry
    he_key: str
    address: str
    out: Path


class GuardsOffice:
    """Lends desks at guards to other processes, over a Unix socket."""

    def __init__(self, rooms: Strongrooms, folder: Path) -> None:
        self.rooms = rooms
        self.desks = {owner: GuardDesk(guard) for owner, guard in rooms.guards.items()}
        self.address = str(folder / "office")
        self._listener = Listener(self.address, "AF_UNIX")
        threading.Thread(target=self._serve, daemon=True).start()

    def sent(self, out: Path) -> Sent:
        """What a run in ``out`` needs to know."""
        home = self.rooms.guards["bank"].home
        key = self.rooms.key.private_bytes_raw()
        he_key = key_name(home.secret_key("bfv"))
        return Sent(self.rooms.plan, self.rooms.bundle, key, home.registry, he_key, self.address, out)

    def close(self) -> None:
        """Answer no more."""
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=(self._listener.accept(),), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with connection, suppress(EOFError, ConnectionError):
            while True:
                owner, action, arguments = connection.recv()
                try:
                    answer = (True, getattr(self.desks[owner], action)(*arguments))
                except FlPrivacyError as problem:
                    answer = (False, to_wire(problem))
                connection.send(answer)


class Moments:
    """Names the moments of a run in a file, one a line, and ends the process by SIGKILL at one of them."""

    def __init__(self, file: Path, last: int) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._left, self._lock = last, threading.Lock()

    def pass_by(self, name: str) -> None:
        """One moment."""
        with self._lock:
            os.write(self._file, name.encode() + b"\n")
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)


class RemoteDesk:
    """A desk, and its relay, at a guard in another process."""

    bytes_sent = bytes_received = 0

    def __init__(self, owner: str, address: str, moments: Moments) -> None:
        self.owner, self.relay, self._moments = owner, self, moments
        self._connection = Client(address, "AF_UNIX")

    def run(self, name: str, task: dict[str, Any], timeout: float, on_progress: Any = None) -> Any:
        return self._ask(task["action"], "run", name, task, timeout)

    def __getattr__(self, action: str) -> Any:
        if action not in ACTIONS:
            raise AttributeError(action)
        return partial(self._ask, action, action)

    def _ask(self, moment: str, action: str, *arguments: object) -> Any:
        self._moments.pass_by(f"{moment} is asked")
        self._connection.send((self.owner, action, arguments))
        succeeded, answer = self._connection.recv()
        self._moments.pass_by(f"{moment} is answered")
        if not succeeded:
            raise from_wire(answer)
        return answer


def scientist(sent: Sent, moments_file: Path, last: int) -> None:
    """Begin the run, or go on with it where there is one; killed at the moment of number ``last``, if that comes."""
    moments = Moments(moments_file, last)
    _mark(moments)
    desks = {owner: RemoteDesk(owner, sent.address, moments) for owner in sent.plan.owners}
    run = _run(sent, desks)
    (run.resume if RunFolder(sent.out).exists else run.train)(sent.out)


def finish(sent: Sent, moments_file: Path, last: int = 0) -> int | None:
    """Do so in a fresh process; its exit status."""
    start = multiprocessing.get_context("forkserver")
    start.set_forkserver_preload([__name__])
    process = start.Process(target=scientist, args=(sent, moments_file, last))
    process.start()
    process.join(120)
    return process.exitcode


def train_exactly(job: Job, on_step: Any, started: Any) -> None:
    """Stands in for the training worker: the same owner, round and purpose give the same update, which is not rounded."""
    owner = next(part for part in Path(job.update).parts if part in job.plan.owners)
    seed = [job.round, job.purpose == "train", *owner.encode()]
    draw = np.random.default_rng(seed).integers(-40, 41, count(job.tensors))
    (draw * STEP).astype("<f4").tofile(job.update)


def _run(sent: Sent, desks: Mapping[str, RemoteDesk]) -> TrainingRun:
    key = Ed25519PrivateKey.from_private_bytes(sent.key)
    orders = Orders(
        plan=sent.plan,
        function="function",
        code=template.code_digest(template.render(sign(sent.plan, key))),
        registry=sent.registry,
        key=sent.he_key,
        sizes=dict.fromkeys(sent.plan.owners, ROWS),
        sign=partial(sign, key=key),
    )
    return TrainingRun(
        plan=sent.plan,
        bundle=sent.bundle,
        orders=orders,
        desks=desks,  # type: ignore[arg-type]
        evaluate=validation,
        watcher=Watcher(),
        timeout=60.0,
        validation=text_rows(2),
    )


def _mark(moments: Moments) -> None:
    """Make moments of what this process writes: before, in the middle and after."""
    write, append = RunFolder._write, History._write

    def writing(folder: RunFolder, name: str, content: bytes) -> None:
        moments.pass_by(f"{name} is to be written")
        (folder._kept / f"{name}.partial").write_bytes(content[: len(content) // 2])
        moments.pass_by(f"{name} is written in part")
        write(folder, name, content)
        moments.pass_by(f"{name} is written")

    def appending(history: History, line: str) -> None:
        moments.pass_by("a line is to be written")
        with history.path.open("ab") as file:
            whole = file.tell()
            file.write(line.encode()[: len(line) // 2])
            file.flush()
            moments.pass_by("a line is written in part")
            file.truncate(whole)
        append(history, line)
        moments.pass_by("a line is written")

    RunFolder._write, History._write = writing, appending  # type: ignore[method-assign]
