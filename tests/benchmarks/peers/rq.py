"""RQ: a process for each job; no result is kept."""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from redis import Redis
from rq import Queue

WORK = f"{__package__}.ticks.tick"


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    queue = Queue(connection=Redis.from_url(os.environ["BENCH_URL"]))

    def send(numbers: range) -> float:
        if len(numbers) == 1:
            queue.enqueue(WORK, numbers[0], result_ttl=0)
        else:
            queue.enqueue_many([Queue.prepare_data(WORK, (number,), result_ttl=0) for number in numbers])
        return time.monotonic()

    yield send
