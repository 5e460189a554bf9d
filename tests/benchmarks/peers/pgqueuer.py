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
    queuer = PgQueuer.from_asyncpg_connection(await connect())

    @queuer.entrypoint("work")
    async def work(job: t.Any) -> None:
        tick(int(job.payload))

    yield queuer


async def connect() -> t.Any:
    return await asyncpg.connect(os.environ["BENCH_URL"])


def set_up() -> None:
    asyncio.run(_install())


async def _install() -> None:
    await Queries.from_asyncpg_connection(await connect()).install()


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    with asyncio.Runner() as runner:
        connection = runner.run(connect())
        queries = Queries.from_asyncpg_connection(connection)

        def send(numbers: range) -> float:
            count = len(numbers)
            payloads = [b"%d" % number for number in numbers]
            runner.run(queries.enqueue(["work"] * count, payloads, [0] * count))
            return time.monotonic()

        yield send
        runner.run(connection.close())
