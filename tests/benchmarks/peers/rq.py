"""RQ: a process for each job; no result is kept."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from redis import Redis
from rq import Queue


def enqueue(numbers: range) -> None:
    queue = Queue(connection=Redis.from_url(os.environ["BENCH_URL"]))
    work = f"{__package__}.ticks.tick"
    queue.enqueue_many([Queue.prepare_data(work, (number,), result_ttl=0) for number in numbers])


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    queue = Queue(connection=Redis.from_url(os.environ["BENCH_URL"]))

    def send(numbers: range) -> float:
        for number in numbers:
            queue.enqueue(f"{__package__}.ticks.tick", number, result_ttl=0)
        return time.monotonic()

    yield send
