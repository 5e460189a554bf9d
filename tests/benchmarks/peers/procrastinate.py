"""Procrastinate."""

from __future__ import annotations

import os

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
