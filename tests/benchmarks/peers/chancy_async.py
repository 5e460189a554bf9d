"""Chancy set for many short jobs: coroutine functions, a hundred at once, the next when one has ended."""

from __future__ import annotations

import functools

from chancy import Chancy, Queue, job

from . import chancy
from .chancy import app
from .ticks import tick

__all__ = ["app", "sending", "set_up"]


@job()
async def looped(*, number: int) -> None:
    tick(number)


sending = functools.partial(chancy.sending, job=looped)


def set_up() -> None:
    chancy.set_up()
    with app:
        queue = Queue("default", concurrency=100, executor=Chancy.Executor.Async, eager_polling=True)
        app.sync_declare(queue, upsert=True)
