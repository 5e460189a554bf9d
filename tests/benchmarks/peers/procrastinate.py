"""Procrastinate."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

import procrastinate

from .ticks import tick

app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=os.environ["BENCH_URL"]))


@app.task(name="work")
async def work(number: int) -> None:
    tick(number)


def enqueue(numbers: range) -> None:
    with app.open():
        app.schema_manager.apply_schema()
        work.batch_defer(*({"number": number} for number in numbers))


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        for number in numbers:
            work.defer(number=number)
        return time.monotonic()

    with app.open():
        yield send
