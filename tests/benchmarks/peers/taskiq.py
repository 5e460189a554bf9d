"""taskiq by streams of Redis, whose messages are acknowledged; without results."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t

from taskiq_redis import RedisStreamBroker

from .ticks import tick

broker = RedisStreamBroker(os.environ["BENCH_URL"])


@broker.task(task_name="work")
async def work(number: int) -> None:
    tick(number)


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    with asyncio.Runner() as runner:

        async def put(numbers: range) -> None:
            for number in numbers:
                await work.kiq(number)

        def send(numbers: range) -> float:
            runner.run(put(numbers))
            return time.monotonic()

        runner.run(broker.startup())
        yield send
        runner.run(broker.shutdown())
