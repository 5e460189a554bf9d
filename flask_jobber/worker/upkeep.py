"""The tidying of a worker: not by the clock, but when there may be something to tidy."""

from __future__ import annotations

import time
import typing as t

from flask import Flask

from ..core.queries import next_untidy

if t.TYPE_CHECKING:
    from ..extension import Jobber, Tidied


class Upkeep:
    """Says when to tidy: not sooner than ``TIDY_SECONDS`` after the last time.

    After it was told of work or heard of any elsewhere, when the next thing that the database
    knows of is due, and in any case when it has heard nothing for the horizon of its wakeup.
    """

    def __init__(self, app: Flask, jobber: Jobber) -> None:
        self._jobber = jobber
        with app.app_context():
            self._wakeup, self._period = jobber.wakeup, jobber.settings.tidy_seconds
        #: Whether work was done.
        self.is_wanted = True
        self._heard = 0
        self._due = 0.0

    @property
    def is_due(self) -> bool:
        """Whether to tidy now. It asks nothing."""
        return self.is_wanted or self._wakeup.heard != self._heard or time.monotonic() >= self._due

    @property
    def pause(self) -> float:
        """The seconds until it is worth asking again."""
        return max(min(self._period, self._due - time.monotonic()), 0.0)

    def do(self) -> None:
        """Tidy, in the context of the app."""
        self.is_wanted, self._heard = False, self._wakeup.heard
        self._due = time.monotonic()  # should it fail
        done = self._jobber.tidy()
        self._due = time.monotonic() + max(self._left_alone(done), self._period)

    def _left_alone(self, done: Tidied) -> float:
        """Return for how many seconds there is nothing to do that nobody tells of."""
        if any(done) or self._wakeup.transport.look_every is not None:  # it may not have come to all
            return 0.0
        soonest = next_untidy(self._jobber.store())
        return self._wakeup.horizon if soonest is None else min(soonest, self._wakeup.horizon)
