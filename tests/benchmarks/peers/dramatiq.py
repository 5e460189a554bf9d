"""Dramatiq, without results."""

from __future__ import annotations

import os

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from .ticks import tick

dramatiq.set_broker(RedisBroker(url=os.environ["BENCH_URL"]))
work = dramatiq.actor(tick)


def enqueue(numbers: range) -> None:
    for number in numbers:
        work.send(number)
