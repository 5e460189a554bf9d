"""PgQueuer, with asyncpg."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import typing as t

import asyncpg
from pgqueuer import PgQueuer, Queries

from .ticks import tick


@contextlib.asynccontextmanager
async def main() -> t.AsyncIterator[PgQueuer]:
    queuer = PgQueuer.from_asyncpg_connection(await asyncpg.connect(os.environ["BENCH_URL"]))

    @queuer.entrypoint("work")
    async def work(job: t.Any) -> None:
        tick(int(job.payload))

    yield queuer


def enqueue(numbers: range) -> None:
    asyncio.run(_enqueue(numbers))


async def _enqueue(numbers: range) -> None:
    queries = Queries.from_asyncpg_connection(await asyncpg.connect(os.environ["BENCH_URL"]))
    await queries.install()
    count = len(numbers)
    await queries.enqueue(["work"] * count, [b"%d" % number for number in numbers], [0] * count)


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    with asyncio.Runner() as runner:
        connection = runner.run(_connect())
        queries = Queries.from_asyncpg_connection(connection)

        def send(numbers: range) -> float:
            for number in numbers:
                runner.run(queries.enqueue("work", b"%d" % number, 0))
            return time.monotonic()

        yield send
        runner.run(connection.close())


async def _connect() -> t.Any:
    return await asyncpg.connect(os.environ["BENCH_URL"])
