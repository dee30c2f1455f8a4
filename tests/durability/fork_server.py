"""Preloaded into the matrix's fork server, which all guards share: no client that is killed as it connects takes it along.

Python's own server ends with the ``EOFError`` of such a client; a connection that was aborted it forgets.
"""

from __future__ import annotations

import errno
import os
import socket
from multiprocessing import reduction

_receive = reduction.recvfds


def _receive_or_forget(client: socket.socket, most: int) -> list[int]:
    try:
        return _receive(client, most)
    except EOFError:
        raise ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)) from None


reduction.recvfds = _receive_or_forget
