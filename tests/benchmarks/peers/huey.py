"""Huey; a job that returns nothing leaves no result."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from huey import RedisHuey

from .ticks import tick

huey = RedisHuey("bench", url=os.environ["BENCH_URL"])
work = huey.task()(tick)


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        for number in numbers:
            work(number)
        return time.monotonic()

    yield send
