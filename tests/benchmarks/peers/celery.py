"""Celery, with results ignored."""

from __future__ import annotations

import os

from celery import Celery

from .ticks import tick

app = Celery(broker=os.environ["BENCH_URL"])
work = app.task(name="work", ignore_result=True)(tick)


def enqueue(numbers: range) -> None:
    with app.producer_or_acquire() as producer:
        for number in numbers:
            work.apply_async((number,), producer=producer)
