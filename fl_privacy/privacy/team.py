"""The processes that take every step of one training together, so that one order can use several cores or GPUs.

They are forks of one process and meet over torch.distributed (gloo) on the loopback interface. Sums travel through main memory
also where processes compute on GPUs: the noise is made there, so that is where they must come anyway.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fl_privacy.errors import OrderFailed

MEETING = timedelta(seconds=60)  # to find each other
PATIENCE = timedelta(minutes=10)  # by how much one may be later with its part of a step
_KEY = 32  # bytes


class Team:
    """One process of a training, and how it works with the others; by itself, until it splits.

    Rank 0 leads: it draws every sample and makes all noise, so that both happen once, whatever the number of processes.
    Privacy: processes tell each other samples and sums without noise. Another user of this machine could connect to gloo, which
        asks nobody who he is; therefore each process proves to every other that it knows a key that only forks inherit.
    """

    def __init__(self, size: int = 1) -> None:
        """Args: size is the number of processes there will be."""
        self.rank, self.size = 0, size
        self._leader = os.getpid()
        self._key = b""
        self._place = -1

    @property
    def leads(self) -> bool:
        """Whether this is the process that draws samples and makes noise."""
        return self.rank == 0

    def split(self) -> None:
        """Return in ``size`` processes, each with a rank of its own. Call while the process has one thread."""
        if self.size == 1:
            return
        self._key, self._place = os.urandom(_KEY), os.memfd_create("team")  # a file that no other user can open
        for rank in range(1, self.size):
            if os.fork() == 0:
                self.rank = rank
                return

    def meet(self) -> None:
        """Connect all processes; from now on none of them opens a file or a socket for it. Raises: OrderFailed."""
        if self.size == 1:
            return
        if not self.leads and os.getppid() != self._leader:
            raise _lost()
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        with _losses_told():
            store = dist.FileStore(f"/proc/self/fd/{self._place}", self.size)  # type: ignore[attr-defined]
            store.set(str(self.rank), "here")
            store.wait([str(rank) for rank in range(self.size)], MEETING)
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
            self._recognise()

    def share_of(self, sample: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
        """This process's part of the leader's sample.

        Args: sample holds different indices below ``rows``, rising; what the others give is not looked at.
        """
        if self.size == 1:
            return sample
        drawn = torch.zeros(rows, dtype=torch.uint8)
        if self.leads:
            drawn[torch.from_numpy(sample)] = 1
        taken: NDArray[np.int64] = np.flatnonzero(self.from_leader(drawn).numpy())
        return taken[self.rank :: self.size]

    def summed(self, part: Tensor) -> Tensor:
        """The sum of all processes' parts, for the leader; the others get numbers without meaning.

        Args: part is on the CPU and may be overwritten. Raises: OrderFailed when a process has ended.
        """
        if self.size > 1:
            with _losses_told():
                dist.reduce(part, 0)
        return part

    def from_leader(self, values: Tensor) -> Tensor:
        """The leader's values; the others give a tensor of the same shape and type on the CPU, which is not overwritten.

        Raises: OrderFailed when a process has ended.
        """
        if self.size == 1:
            return values
        received = values if self.leads else torch.empty_like(values)
        with _losses_told():
            dist.broadcast(received, 0)
        return received

    def _recognise(self) -> None:
        """Check over each single connection that the other end is a fork of the same process. Raises: OrderFailed."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        told = [dist.isend(self._word(self.rank, other), other) for other in others]
        heard = {other: torch.empty(_KEY, dtype=torch.uint8) for other in others}
        for work in [*(dist.irecv(word, other) for other, word in heard.items()), *told]:
            if work is not None:
                work.wait(MEETING)
        for other, word in heard.items():
            if not hmac.compare_digest(bytes(word.tolist()), bytes(self._word(other, self.rank).tolist())):
                raise OrderFailed("a stranger came between the processes of this training; see who else uses this machine")

    def _word(self, sender: int, receiver: int) -> Tensor:
        # another one for each direction of each connection, so that nobody can repeat what it has heard
        told = hmac.digest(self._key, f"{sender} to {receiver}".encode(), hashlib.sha256)
        return torch.tensor(list(told), dtype=torch.uint8)


@contextmanager
def _losses_told() -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        raise _lost() from None


def _lost() -> OrderFailed:
    return OrderFailed("a process of this training ended before the others, or stopped answering; send a new attempt")
