"""Who waits at a server for a job while the worker goes on."""

from __future__ import annotations

import dataclasses
import threading
import time
import typing as t

from ..client.line import Line
from ..client.records import ClaimedJob
from .source import Ring, Unheard

# Seconds for which the server is asked to wait: gateways cut off who waits for long.
_WAIT_SECONDS = 25.0
# Who answers or fails within so many has not waited.
_AT_ONCE = 1.0
# Seconds for its thread to end when it is called back.
_GRACE = 1.0


@dataclasses.dataclass(slots=True)
class _Trip:
    """What one thread brings; one that was called back in vain may come home later, and is nobody's."""

    home: threading.Event = dataclasses.field(default_factory=threading.Event)
    found: list[ClaimedJob] = dataclasses.field(default_factory=list)
    error: Exception | None = None


class Scout:
    """Sends claims that wait, one after the other, in a thread, until one brings a job or fails.

    :param ring: called when it is back.
    """

    def __init__(self, line: Line, ring: Ring) -> None:
        self._line, self._ring = line, ring
        self._thread: threading.Thread | None = None
        self._trip = _Trip()
        self._swift = 0

    @property
    def may_go(self) -> bool:
        """Whether waiting is worth another try: it did not fail at once, time after time."""
        return self._swift < 2

    def forgive(self) -> None:
        """Let it try again next time."""
        self._swift = 0

    def send(self, claim: dict[str, t.Any]) -> None:
        """Send it out."""
        self.forget()
        self._line.pick_up()
        errand = (self._trip, claim | {"limit": 1, "wait_seconds": _WAIT_SECONDS})
        self._thread = threading.Thread(target=self._run, args=errand, name="jobber-scout", daemon=True)
        self._thread.start()

    def found(self) -> list[ClaimedJob]:
        """Return what it has brought. :raises Unheard: when it has failed, and may have been given some."""
        error = self._trip.error
        if error is not None:
            raise Unheard(f"waiting failed: {error}") from error
        return self._trip.found

    def forget(self) -> None:
        """Forget what it has brought: it is known."""
        self._trip = _Trip()

    def recall(self) -> None:
        """Call it back."""
        if self._thread is not None:
            self._trip.home.set()
            self._line.hang_up()
            self._thread.join(_GRACE)
            self._thread = None

    def close(self) -> None:
        self.recall()
        self._line.close()

    def _run(self, trip: _Trip, body: dict[str, t.Any]) -> None:
        began = time.monotonic()
        try:
            trip.found = self._wait(trip.home, body)
            self._swift = 0
        except Exception as error:
            trip.error = error
            self._swift = self._swift + 1 if time.monotonic() - began < _AT_ONCE else 0
        self._ring()

    def _wait(self, home: threading.Event, body: dict[str, t.Any]) -> list[ClaimedJob]:
        while not home.is_set():
            began = time.monotonic()
            jobs, pause = self._line.claim(body)
            if jobs:
                return jobs
            if time.monotonic() - began < _AT_ONCE:  # it has no place to wait in, or does not know how
                home.wait(pause)
        return []
