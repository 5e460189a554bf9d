"""Celery, with results ignored."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from celery import Celery

from .ticks import tick

app = Celery(broker=os.environ["BENCH_URL"])
work = app.task(name="work", ignore_result=True)(tick)


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        with app.producer_or_acquire() as producer:
            for number in numbers:
                work.apply_async((number,), producer=producer)
        return time.monotonic()

    yield send
