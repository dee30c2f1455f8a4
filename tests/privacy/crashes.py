"""Children that die at a chosen SQL statement."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from typing import Any


def dies_at(statement: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that is killed when SQLite begins its ``statement``-th statement; False if it finished before."""
    pid = os.fork()
    if pid == 0:
        try:
            _kill_at(statement)
            work()
        except BaseException:  # noqa: BLE001 - the child must never return into the tests
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0, "the child failed instead of being killed"
        return False
    return True


def _kill_at(statement: int) -> None:
    connect, left = sqlite3.connect, [statement]

    def count(_sql: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def traced(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(count)
        return connection

    sqlite3.connect = traced
