"""Requests that arrive together are scored together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Self, TypeVar

from fl_privacy.errors import TooManyRequests

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRY_AFTER = 1.0  # seconds; a queue of the usual length is worked off in less


class Batcher(Generic[Item, Result]):
    """One worker that takes what is waiting, at most ``largest`` at a time, and gives each its own result.

    The first of a batch waits at most ``wait`` seconds for others. While a batch is worked on, in a thread, ``queue`` more may
    wait, and what comes on top of them is refused at once. An item whose asker has gone is left out.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result]],
        *,
        largest: int = 16,
        wait: float = 0.005,
        queue: int = 128,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        """Args: ``work`` gives one result for each item, in order; ``on_batch`` is told each batch's size."""
        self._work, self._largest, self._wait, self._on_batch = work, largest, wait, on_batch
        self._waiting: asyncio.Queue[tuple[Item, asyncio.Future[Result]] | None] = asyncio.Queue(queue)
        self._thread = ThreadPoolExecutor(1, "batches")

    async def __aenter__(self) -> Self:
        self._worker = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Finish what is waiting."""
        await self._waiting.put(None)
        await self._worker
        self._thread.shutdown()

    @property
    def waiting(self) -> int:
        """How many items no batch has taken yet."""
        return self._waiting.qsize()

    async def submit(self, item: Item) -> Result:
        """The item's result. Raises: TooManyRequests when the queue is full, and whatever ``work`` raises on its batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((item, future))
        except asyncio.QueueFull:
            raise TooManyRequests(f"{self._waiting.maxsize} texts are waiting already; try again later", RETRY_AFTER) from None
        return await future

    async def _run(self) -> None:
        is_open = True
        while is_open:
            is_open, batch = await self._batch()
            live = [(item, future) for item, future in batch if not future.done()]
            if live:
                await self._finish([item for item, _ in live], [future for _, future in live])

    async def _batch(self) -> tuple[bool, list[tuple[Item, asyncio.Future[Result]]]]:
        """The next batch, and whether more may come."""
        if (first := await self._waiting.get()) is None:
            return False, []
        batch, loop = [first], asyncio.get_running_loop()
        until = loop.time() + self._wait
        while len(batch) < self._largest:
            try:
                following = await asyncio.wait_for(self._waiting.get(), until - loop.time())
            except TimeoutError:
                break
            if following is None:
                return False, batch
            batch.append(following)
        return True, batch

    async def _finish(self, items: list[Item], futures: list[asyncio.Future[Result]]) -> None:
        self._on_batch(len(items))
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, items)
        except Exception as problem:  # noqa: BLE001 - it is the askers' to handle, and the worker must go on
            for future in futures:
                if not future.done():
                    future.set_exception(problem)
            return
        for future, result in zip(futures, results, strict=True):
            if not future.done():
                future.set_result(result)
