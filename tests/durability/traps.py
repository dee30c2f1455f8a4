"""Trouble at a chosen moment of one guard's life: every durable side effect under its home is counted, and one is a trap.

Nothing of this is in the product: the operating system's calls, SQLite's statements and the worker's messages are wrapped from
outside, in a child process that is made for one point.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from fl_privacy.guard import closing, worker
from fl_privacy.round_order import RoundOrder

Mode = Literal["before", "after", "torn", "full", "worker"]
Result = TypeVar("Result")
FILLER = "filler"  # fills a small disk that only the home is on
STATEMENTS = ("BEGIN", "COMMIT", "INSERT", "CREATE", "PRAGMA user_version =")
WRITING = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC


@dataclass(frozen=True)
class Strike:
    """What happens at the ``at``-th event: the process dies (before it, after it, with half of a file on disk), the disk is
    full from now on, or the training worker dies."""

    at: int
    mode: Mode


class Traps:
    """Counts the events of the guard at ``home`` from ``set`` on, and strikes once."""

    def __init__(self, home: Path, strike: Strike | None = None) -> None:
        self.home, self.strike = home.resolve(), strike
        self.events: list[str] = []
        self.is_full = False
        self.worker = 0  # its pid
        self.seen: Callable[[str, str], None] = lambda what, order: None  # called before an order is "trained" or "decrypted"
        self._lock = threading.Lock()
        self._raw_open = os.open

    def set(self) -> None:
        """Wrap everything, for the rest of this process's life."""
        self._wrap_calls()
        self._wrap_sqlite()
        self._wrap_worker()
        self._wrap_opening()

    def event(self, name: str, act: Callable[[], Result], tear: Callable[[], None] | None = None) -> Result:
        """One durable side effect, or another moment (``act`` does nothing then)."""
        with self._lock:
            here = len(self.events)
            self.events.append(name)
        mode = self.strike.mode if self.strike and self.strike.at == here else None
        if mode == "torn" and tear:
            tear()
        if mode in ("before", "torn"):
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "full":
            self._fill()
        if mode == "worker" and self.worker:
            os.kill(self.worker, signal.SIGKILL)
        try:
            return act()
        finally:
            if mode == "after":
                os.kill(os.getpid(), signal.SIGKILL)

    def free(self) -> None:
        """Make room on the disk again; the strike is over."""
        self.is_full = False
        (self.home / FILLER).unlink(missing_ok=True)

    def _fill(self) -> None:
        """A small disk is filled to the last byte; on a large one, calls only say that it is full."""
        disk = os.statvfs(self.home)
        if disk.f_blocks * disk.f_frsize > 64 << 20:
            self.is_full = True
            return
        descriptor = self._raw_open(self.home / FILLER, os.O_WRONLY | os.O_CREAT, 0o600)
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    os.write(descriptor, bytes(size))
            except OSError:
                continue
        os.close(descriptor)

    def _must_have_room(self, path: object) -> None:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def _is_ours(self, path: object, folder: int | None = None) -> bool:
        if isinstance(path, int) or not isinstance(path, str | os.PathLike):
            return False
        where = Path(f"/proc/self/fd/{folder}").readlink() / path if folder is not None else Path(path).absolute()
        return self.home in where.parents and where.name not in ("guard.lock", FILLER)

    def _named(self, path: object) -> str:
        name = str(path).removeprefix(f"{self.home}/").replace(str(self.home), "(home)")
        name = re.sub(r"[0-9a-f]{64}", "<digest>", name)
        return re.sub(r"\b(?:[0-9a-f]{32}|[0-9a-f]{8})\.partial", "<random>.partial", name)

    def _wrap_calls(self) -> None:
        for name, grows in (("mkdir", True), ("unlink", False), ("remove", False), ("rmdir", False), ("chmod", False)):
            self._wrap_call(name, grows)
        for name in ("replace", "rename"):
            self._wrap_move(name)
        real_open, real_fsync, real_file = os.open, os.fsync, io.open

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if not flags & WRITING or not self._is_ours(path, kwargs.get("dir_fd")):
                return real_open(path, flags, *args, **kwargs)
            return self.event(
                f"create {self._named(path)}", lambda: self._with_room(path, real_open, path, flags, *args, **kwargs)
            )

        def opened_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wxa+") or not self._is_ours(file):
                return real_file(file, mode, *args, **kwargs)
            return self.event(
                f"create {self._named(file)}", lambda: self._with_room(file, real_file, file, mode, *args, **kwargs)
            )

        def synced(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path != self.home and not self._is_ours(path):
                real_fsync(descriptor)
                return

            def tear() -> None:
                if path.is_file():
                    os.truncate(path, path.stat().st_size // 2)

            self.event(f"sync {self._named(path)}", lambda: self._with_room(path, real_fsync, descriptor), tear)

        os.open, os.fsync, io.open, builtins.open = opened, synced, opened_file, opened_file

    def _wrap_call(self, name: str, grows: bool) -> None:
        real = getattr(os, name)

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._is_ours(path, kwargs.get("dir_fd")):
                return real(path, *args, **kwargs)
            first = self._with_room if grows else lambda _, do, *a, **k: do(*a, **k)
            return self.event(f"{name} {self._named(path)}", lambda: first(path, real, path, *args, **kwargs))

        setattr(os, name, call)

    def _wrap_move(self, name: str) -> None:
        real = getattr(os, name)

        def move(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            if not self._is_ours(target):
                return real(source, target, *args, **kwargs)
            return self.event(f"{name} {self._named(target)}", lambda: real(source, target, *args, **kwargs))

        setattr(os, name, move)

    def _with_room(self, path: object, do: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        self._must_have_room(path)
        return do(*args, **kwargs)

    def _wrap_sqlite(self) -> None:
        traps, connect = self, sqlite3.connect

        class Connection(sqlite3.Connection):
            name = ""

            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                run = super().execute
                if not sql.startswith(STATEMENTS):
                    return run(sql, *args)

                def act() -> sqlite3.Cursor:
                    if traps.is_full and not sql.startswith("BEGIN"):
                        raise sqlite3.OperationalError("database or disk is full")
                    return run(sql, *args)

                return traps.event(f"sql {self.name}: {sql[:22]}", act)

        def connected(path: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
            if not self._is_ours(path):
                return connect(path, *args, **kwargs)
            connection: Connection = connect(path, *args, factory=Connection, **kwargs)
            connection.name = Path(path).name
            return connection

        sqlite3.connect = connected

    def _wrap_worker(self) -> None:
        real = worker.run

        def run(job: worker.Job, on_step: Callable[[int, int], None], started: Callable[[int], None]) -> None:
            if not self._is_ours(job.update):
                real(job, on_step, started)
                return

            def start(pid: int) -> None:
                self.worker = pid
                self.event("worker started", lambda: started(pid))

            def step(number: int, steps: int) -> None:
                self.event(f"worker step {number}", lambda: on_step(number, steps))

            self.seen("trained", Path(job.update).parent.name)
            self.event("worker asked for", lambda: None)
            try:
                real(job, step, start)
            finally:
                self.worker = 0
            self.event("worker ended", lambda: None)

        worker.run = run

    def _wrap_opening(self) -> None:
        real = closing.open_sum

        def open_sum(total: Any, order: RoundOrder, *args: Any) -> Any:
            if self._is_ours(total.name):
                self.seen("decrypted", order.digest())
            return real(total, order, *args)

        closing.open_sum = open_sum
