"""Dramatiq, without results."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from .ticks import tick

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_URL"]))
work = dramatiq.actor(tick)


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    def send(numbers: range) -> float:
        for number in numbers:
            work.send(number)
        return time.monotonic()

    yield send
