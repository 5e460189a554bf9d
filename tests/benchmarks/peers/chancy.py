"""Chancy, whose jobs are executed by processes; it looks for the next every five seconds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t

from chancy import Chancy, Job, job

from .ticks import tick

app = Chancy(os.environ["BENCH_URL"])


@job()
def work(*, number: int) -> None:
    tick(number)


def set_up() -> None:
    asyncio.run(_migrate())


async def _migrate() -> None:
    async with app:
        await app.migrate()


@contextlib.contextmanager
def sending(job: t.Any = work) -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        jobs = [Job.from_func(job, kwargs={"number": number}) for number in numbers]
        for _ in app.sync_push_many(jobs):
            pass
        return time.monotonic()

    with app:
        yield send
