"""SAQ, which keeps each result for ten minutes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t

from saq import Queue

from .ticks import tick

queue = Queue.from_url(os.environ["BENCH_URL"])


async def work(_: t.Any, *, number: int) -> None:
    tick(number)


settings = {"queue": queue, "functions": [work]}


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    with asyncio.Runner() as runner:

        async def put(numbers: range) -> None:
            for number in numbers:
                await queue.enqueue("work", number=number)

        def send(numbers: range) -> float:
            runner.run(put(numbers))
            return time.monotonic()

        runner.run(queue.connect())
        yield send
        runner.run(queue.disconnect())
