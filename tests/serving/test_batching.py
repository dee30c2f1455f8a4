"""Requests that come together go together; each gets its own answer, and a full queue takes no more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from fl_privacy.errors import ModelError, TooManyRequests
from fl_privacy.serving.batching import Batcher


class Squares:
    """Work that waits until it may begin, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_begin = threading.Event()
        self.may_begin.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.may_begin.wait(30)
        self.batches.append(list(items))
        if -1 in items:
            raise ModelError("minus one")
        return [item * item for item in items]


def test_everybody_gets_the_own_answer() -> None:
    async def ask() -> list[int]:
        async with Batcher(Squares(), largest=4, queue=100) as batcher:
            return await asyncio.gather(*(batcher.submit(item) for item in range(50)))

    assert asyncio.run(ask()) == [item * item for item in range(50)]


def test_what_waits_together_goes_together_but_never_more_than_the_largest_batch() -> None:
    work, sizes = Squares(), []

    async def ask() -> None:
        async with Batcher(work, largest=4, wait=10.0, queue=100, on_batch=sizes.append) as batcher:
            await asyncio.gather(*(batcher.submit(item) for item in range(8)))

    asyncio.run(ask())
    assert work.batches == [[0, 1, 2, 3], [4, 5, 6, 7]] and sizes == [4, 4]


def test_a_single_request_does_not_wait_for_ever() -> None:
    async def ask() -> int:
        async with Batcher(Squares(), largest=4, wait=0.001) as batcher:
            return await batcher.submit(3)

    assert asyncio.run(ask()) == 9


def test_a_full_queue_refuses_and_those_in_it_are_still_answered() -> None:
    work = Squares()

    async def ask() -> list[int | BaseException]:
        work.may_begin.clear()
        async with Batcher(work, largest=1, wait=0.0, queue=2) as batcher:
            first = asyncio.create_task(batcher.submit(2))
            while batcher.waiting or not first:  # until the worker has taken it
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            rest = [asyncio.create_task(batcher.submit(item)) for item in (3, 4, 5, 6)]
            await asyncio.sleep(0.01)
            work.may_begin.set()
            return await asyncio.gather(first, *rest, return_exceptions=True)

    told = asyncio.run(ask())
    assert told[:3] == [4, 9, 16]
    assert [type(one) for one in told[3:]] == [TooManyRequests] * 2
    assert isinstance(told[3], TooManyRequests) and told[3].wait >= 1


def test_an_error_is_told_to_its_batch_and_the_next_is_worked_on() -> None:
    async def ask() -> int:
        async with Batcher(Squares(), largest=1) as batcher:
            with pytest.raises(ModelError):
                await batcher.submit(-1)
            return await batcher.submit(5)

    assert asyncio.run(ask()) == 25


def test_nothing_is_computed_for_those_who_have_gone() -> None:
    work = Squares()

    async def ask() -> None:
        work.may_begin.clear()
        async with Batcher(work, largest=1, wait=0.0) as batcher:
            first = asyncio.create_task(batcher.submit(1))
            await asyncio.sleep(0.01)
            second = asyncio.create_task(batcher.submit(2))
            await asyncio.sleep(0.01)
            second.cancel()
            work.may_begin.set()
            await first

    asyncio.run(ask())
    assert work.batches == [[1]]


def test_what_waits_at_the_end_is_finished() -> None:
    work = Squares()

    async def ask() -> list[int]:
        work.may_begin.clear()
        async with Batcher(work, largest=2, wait=0.0) as batcher:
            tasks = [asyncio.create_task(batcher.submit(item)) for item in range(5)]
            await asyncio.sleep(0.01)
            work.may_begin.set()
        return [task.result() for task in tasks]

    assert asyncio.run(ask()) == [0, 1, 4, 9, 16]
