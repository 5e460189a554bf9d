"""Huey; a job that returns nothing leaves no result."""

from __future__ import annotations

import os

from huey import RedisHuey

from .ticks import tick

huey = RedisHuey("bench", url=os.environ["BENCH_URL"])
work = huey.task()(tick)


def enqueue(numbers: range) -> None:
    for number in numbers:
        work(number)
