"""Decodes every signed message once in a process that may die of it, before the datasite decodes it.

Syft hands an account holder's bytes to libraries in C++, which are not made for hostile ones: pycapnp 2.0 crashes on one wrong
byte. The taster is started by the fork server, so it holds no key and no database. It ends with the datasite: at once when it
waits, for its pipe closes, and after at most ``SECONDS`` when it is stuck. It shields from crashes, not from code that a
message might bring to run: its OS user is the datasite's.
"""

from __future__ import annotations

import logging
import multiprocessing
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from syft.serde.deserialize import _deserialize as deserialize

from fl_privacy.datasite import hardening
from fl_privacy.errors import MessageError

SECONDS = 30  # for one message; the largest, of small values only, takes about five
MEMORY = 1 << 30  # bytes of its own, Syft's 0.4 GB included
FORGIVEN = 3  # messages of one key that may end the taster; each makes all other callers wait
_DECODED, _REFUSED = b"decoded", b"refused"
_log = logging.getLogger("fl_privacy.datasite")


class Taster:
    """One such process, started at the first message and again after each that ended it."""

    def __init__(self, account: Callable[[str], str], seconds: int = SECONDS, memory: int = MEMORY) -> None:
        """Args: account tells the log whose a public key (hex) is; seconds and memory (bytes) suffice for one message."""
        self._account, self._limits = account, (seconds, memory)
        self._start = multiprocessing.get_context("forkserver")
        self._lock = threading.Lock()  # one message at a time, so that it is known which one ended the process
        self._running: tuple[BaseProcess, Connection] | None = None
        self._ended_by: Counter[str] = Counter()

    def taste(self, message: bytes, key: str) -> None:
        """Return if a message could be decoded.

        Args: key is the caller's public key (hex).
        Raises: MessageError when decoding fails or takes too much time or memory, and for a key that ended the process often.
        """
        with self._lock:
            if self._ended_by[key] >= FORGIVEN:
                raise MessageError("messages of this key ended their decoder too often; ask the datasite's owner")
            pipe = self._pipe()
            try:
                pipe.send_bytes(message)
                verdict = pipe.recv_bytes()
            except (EOFError, OSError):
                self.stop()
                self._ended_by[key] += 1
                _log.warning("a message of %s ended its decoder (number %d)", self._account(key), self._ended_by[key])
                raise MessageError("the message cannot be decoded: it ended the process that tried") from None
        if verdict != _DECODED:
            raise MessageError("the message cannot be decoded")

    def stop(self) -> None:
        """End the process; the next message starts another."""
        if self._running is not None:
            process, pipe = self._running
            self._running = None
            pipe.close()
            process.kill()
            process.join()

    def _pipe(self) -> Connection:
        if self._running is None or not self._running[0].is_alive():
            self.stop()
            ours, theirs = self._start.Pipe()
            process = self._start.Process(target=_serve, args=(theirs, *self._limits), daemon=True)
            process.start()
            theirs.close()
            self._running = process, ours
        return self._running[1]


def _serve(pipe: Connection, seconds: int, memory: int) -> None:
    """The process itself."""
    hardening.apply()  # else Syft prints into the log what it reads
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also inside a library
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, memory)):
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        signal.alarm(seconds)
        verdict = _verdict(message)
        signal.alarm(0)
        pipe.send_bytes(verdict)


def _verdict(message: bytes) -> bytes:
    try:
        deserialize(message, from_bytes=True)
    except Exception:  # noqa: BLE001 - whatever a crafted message does to Syft
        return _REFUSED
    return _DECODED
