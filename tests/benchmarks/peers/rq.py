"""RQ: a process for each job; no result is kept."""

from __future__ import annotations

import os

from redis import Redis
from rq import Queue


def enqueue(numbers: range) -> None:
    queue = Queue(connection=Redis.from_url(os.environ["BENCH_URL"]))
    work = f"{__package__}.ticks.tick"
    queue.enqueue_many([Queue.prepare_data(work, (number,), result_ttl=0) for number in numbers])
