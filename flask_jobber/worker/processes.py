"""Several workers at once, each in a process of its own, which is started again when it ends."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time

from .worker import PARENT, signalled

logger = logging.getLogger("flask_jobber")
_TICK = 0.25
# Seconds before one that has failed is started again: doubled each time, up to the most.
_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
# Seconds after which one that failed had come up well.
_WELL = 60.0
#: The code of a worker that is not set up to work: it would end again and again. (sysexits.h)
EX_CONFIG = 78


@dataclasses.dataclass(slots=True)
class _Place:
    """One of the workers, and how it has fared."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float = 0.0
    failures: int = 0


class Supervisor:
    """Runs this command so many times, as ``<name>-1``, ``<name>-2``, …

    :param ends: whether one that has ended is done, and not to be started again.
    """

    def __init__(self, name: str, count: int, *, ends: bool) -> None:
        self._name, self._ends = name, ends
        self._places = [_Place(number) for number in range(1, count + 1)]
        self._stopping = False
        self._worst = 0

    def run(self) -> int:
        """Run them until they have ended; return the worst code."""
        with signalled() as signals:
            self._start_those_due()
            while self._places:
                for _ in range(signals(_TICK)):
                    self._stop()
                for place in list(self._places):
                    self._look_after(place)
                self._start_those_due()
        return self._worst

    def _stop(self) -> None:
        """Tell all to end, once more than before."""
        self._stopping = True
        for place in self._places:
            if place.process is not None:
                place.process.terminate()

    def _look_after(self, place: _Place) -> None:
        code = place.process.poll() if place.process is not None else None
        if place.process is None and self._stopping:
            self._places.remove(place)
        if code is None:
            return
        place.process = None
        # One that was told to end before it could listen has ended well.
        code = 0 if self._stopping and code == -signal.SIGTERM else abs(code)
        if code == EX_CONFIG:
            self._stop()
        if self._stopping or self._ends:
            self._worst = max(self._worst, code)
            self._places.remove(place)
        elif code:
            self._postpone(place, code)

    def _postpone(self, place: _Place, code: int) -> None:
        now = time.monotonic()
        place.failures = 1 if now > place.started + _WELL else place.failures + 1
        pause = min(_LONGEST_PAUSE, _PAUSE * 2 ** min(place.failures - 1, 10))
        place.due = now + pause
        logger.error("%s-%s ended with %s; again in %g s", self._name, place.number, code, pause)

    def _start_those_due(self) -> None:
        for place in self._places:
            if place.process is None and not self._stopping and place.due <= time.monotonic():
                place.process, place.started = self._start(place.number), time.monotonic()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        # In a session of its own: a terminal's Ctrl-C is for the parent, which tells it.
        return subprocess.Popen(
            [*sys.orig_argv, "--processes", "1", "--name", f"{self._name}-{number}"],
            env=os.environ | {PARENT: str(os.getpid())},
            start_new_session=True,
        )
