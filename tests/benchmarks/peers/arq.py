"""arq, which keeps each result for an hour."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t

from arq import create_pool
from arq.connections import RedisSettings

from .ticks import tick

SETTINGS = RedisSettings.from_dsn(os.environ["BENCH_URL"])
#: No line for each job.
LOGS = {"version": 1}


async def work(_: t.Any, number: int) -> None:
    tick(number)


class Worker:
    functions = (work,)
    redis_settings = SETTINGS


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    with asyncio.Runner() as runner:
        pool = runner.run(create_pool(SETTINGS))

        async def put(numbers: range) -> None:
            for number in numbers:
                await pool.enqueue_job("work", number)

        def send(numbers: range) -> float:
            runner.run(put(numbers))
            return time.monotonic()

        yield send
        runner.run(pool.aclose())
