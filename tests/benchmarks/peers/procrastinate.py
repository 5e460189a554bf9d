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


def set_up() -> None:
    with app.open():
        app.schema_manager.apply_schema()


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        if len(numbers) == 1:
            work.defer(number=numbers[0])
        else:
            work.batch_defer(*({"number": number} for number in numbers))
        return time.monotonic()

    with app.open():
        yield send
