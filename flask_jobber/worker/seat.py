"""A worker's seat in the waiting room of its app's Jobber."""

from __future__ import annotations

import contextlib
import typing as t

from flask import Flask

from ..core.candidates import Wanted
from ..core.scope import EVERYTHING
from ..wakeup.room import Waiter, read_wish
from .job import Job
from .source import Ring, Wish

if t.TYPE_CHECKING:
    from ..extension import Jobber


class Seat:
    """Taken while there is nothing to do: news of jobs that are wished for rings."""

    def __init__(self, app: Flask, jobber: Jobber, locker: str, ring: Ring) -> None:
        self._app, self._jobber, self._locker, self._ring = app, jobber, locker, ring
        with app.app_context():
            self._wakeup = jobber.wakeup
        self._waiter: Waiter | None = None

    @property
    def is_taken(self) -> bool:
        return self._waiter is not None and not self._waiter.dismissed

    @contextlib.contextmanager
    def looking(self, wish: Wish) -> t.Iterator[list[Job]]:
        """Take the seat, if it is free, and look from there: what is found goes into the list.

        Who looked first would not be told of what came before the seat was taken. It is left when
        the wish is fulfilled, or nobody knows what there is.
        """
        waiter = self._sit(wish)
        found: list[Job] = []
        try:
            yield found
        except BaseException:
            self.leave()
            raise
        self._wakeup.room.looked(waiter, found)
        if len(found) >= wish.limit:
            self.leave()

    def _sit(self, wish: Wish) -> Waiter:
        named = (wish.types, wish.queues, wish.min_priority, wish.max_priority)
        known = read_wish(self._jobber.Job, Wanted(self._locker, EVERYTHING, *named, limit=wish.limit))
        if self._waiter is not None:
            self._waiter.wish, self._waiter.limit = known, wish.limit
            self._wakeup.room.look(self._waiter)
            return self._waiter
        self._waiter = Waiter(known, self._ring, wish.limit)
        with self._app.app_context():
            self._wakeup.enter(self._waiter)
        return self._waiter

    def leave(self) -> None:
        """Leave what it is called for to others."""
        if self._waiter is not None:
            self._wakeup.leave(self._waiter)
            self._waiter = None
