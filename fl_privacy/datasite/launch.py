"""Start and stop one datasite: a uvicorn process of its own, with persistent state under one folder."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from fl_privacy.datasite.application import HOME
from fl_privacy.datasite.front_desk import GUARD_SOCKET
from fl_privacy.datasite.identity import DatasiteIdentity
from fl_privacy.errors import ConnectionFailed, HomeError

PORT_FILE = "port"
KEPT_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH")

# h11 bounds a request's head, which uvicorn's faster parser does not; a connection that was idle for two minutes has lost its
# client; 256 connections are ten times what several scientists and a console hold; the proxy's word for whom it speaks counts
# only from this machine
SERVER_LIMITS = (
    *("--http", "h11", "--h11-max-incomplete-event-size", "16384", "--timeout-keep-alive", "120"),
    *("--limit-concurrency", "256", "--backlog", "256", "--no-server-header", "--no-access-log"),
    *("--proxy-headers", "--forwarded-allow-ips", "127.0.0.1"),
)


class Datasite:
    """One owner's Syft datasite on 127.0.0.1, as a process that this object may start and stop.

    Args: home holds identity, Syft's state and the log (0700); guard_socket is the guard's front socket; port None means the
        port of the last start, or else a free one.
    """

    def __init__(self, home: Path, owner: str, guard_socket: Path, port: int | None = None) -> None:
        self.home = home.resolve()
        self.owner = owner
        self.guard_socket = guard_socket.resolve()
        self._wanted_port = port
        self.identity = DatasiteIdentity.load_or_create(self.home, owner)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the datasite answers, also when another process started it. Raises: HomeError before the first start."""
        if self._wanted_port is not None:
            return f"http://127.0.0.1:{self._wanted_port}"
        try:
            return f"http://127.0.0.1:{int((self.home / PORT_FILE).read_text())}"
        except FileNotFoundError:
            raise HomeError(f"the datasite at {self.home} was never started") from None

    @property
    def log(self) -> Path:
        """The process's output; holds no secret."""
        return self.home / "datasite.log"

    def start(self, timeout: float = 180.0) -> Self:
        """Start the process and wait until it answers.

        Args: timeout in seconds. Raises: HomeError when another datasite uses the home, ConnectionFailed when it does not
            come up.
        """
        if self.exit_status is not None:
            self.stop()  # jobs that outlived the former process
        lock = _lock(self.home / "datasite.lock")
        try:
            port = self._wanted_port or _free_port(self.home / PORT_FILE)
            (self.home / PORT_FILE).write_text(str(port))
            self._process = self._spawn(lock, port)
        finally:
            os.close(lock)  # the process holds its own copy, and with it the lock, until it ends
        try:
            self._wait_until_it_answers(time.monotonic() + timeout)
        except ConnectionFailed:
            self.stop()
            raise
        return self

    def stop(self, grace: float = 5.0) -> None:
        """Ask the process to end; after ``grace`` seconds, and for whatever it started, kill."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            process.kill()
        _kill_group(process.pid)
        process.wait()

    @property
    def exit_status(self) -> int | None:
        """Of a process that ended by itself (minus the signal's number, if one ended it); None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self) -> int:
        """Block until the process ends; returns its exit status."""
        return 0 if self._process is None else self._process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def _spawn(self, lock: int, port: int) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        environment |= {HOME: str(self.home), GUARD_SOCKET: str(self.guard_socket), "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "uvicorn", "fl_privacy.datasite.application:app", "--factory", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--log-level", "warning", *SERVER_LIMITS]
        with os.fdopen(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            return subprocess.Popen(
                command,
                env=environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                start_new_session=True,  # a group of its own, so that stop() reaches its job processes and nothing else
            )

    def _wait_until_it_answers(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise ConnectionFailed(f"the datasite of {self.owner} ended while starting; see {self.log}")
            try:
                if httpx.get(f"{self.url}/api/v2/metadata", timeout=2.0).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise ConnectionFailed(f"the datasite of {self.owner} did not answer at {self.url} in time; see {self.log}")


def _free_port(last: Path) -> int:
    """The port written in ``last`` if nobody listens there, else any free one."""
    for wished in (int(last.read_text()) if last.exists() else 0, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", wished))
            except OSError:
                continue
            port: int = probe.getsockname()[1]
            return port
    raise ConnectionFailed("this machine has no free port on 127.0.0.1")


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise HomeError(f"{path.parent} is in use by a running datasite; stop it first") from None
    return descriptor


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
