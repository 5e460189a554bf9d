"""A worker: feeds, a crew, and the signals that end them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import threading
import typing as t

from ..errors import SetupError
from .crew import Crew
from .feed import Feed, Supply
from .plan import Orders, Plan
from .source import Away, Source
from .status import Status

logger = logging.getLogger("flask_jobber")
# Seconds between two looks at what else there is to do.
_TICK = 0.25
#: The environment variable that tells a worker which process started it, and looks after it.
PARENT = "JOBBER_PARENT"
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """Does the jobs of one or more sources until it is told to stop, or its orders are done.

    :raises SetupError: when there is no handler for any of the types it is to do.
    """

    def __init__(
        self, supplies: t.Sequence[Supply], orders: Orders | None = None, *, status: Status | None = None
    ) -> None:
        self.plan = Plan(orders or Orders())
        self._supplies = supplies
        self._check()
        self._crew = Crew()
        self._feeds = [Feed(supply, self._crew, self.plan) for supply in supplies]
        self._status = status or Status.silent()
        self._tidy_ended = threading.Event()

    def _check(self) -> None:
        handlers = [handler for supply in self._supplies for handler in supply.handlers]
        if not handlers:
            raise SetupError("There are no handlers: register some with @handlers(type).")
        alone = [one.type for s in self._supplies for one in s.handlers if one.process and not s.place.loader]
        if alone:
            raise SetupError(f"{', '.join(alone)} cannot run in a process: nothing finds its handler there.")
        known = {handler.type for handler in handlers}
        if unknown := [type for type in self.plan.orders.types or () if type not in known]:
            raise SetupError(f"There is no handler for {', '.join(unknown)}.")

    def run(self) -> int:
        """Work; return 0, or 1 when a source refused, broke, or every slot is stuck.

        In the main thread SIGTERM and SIGINT stop it: what runs is finished. A second one gives
        back what runs and leaves.
        """
        with signalled() as signals:
            threads = [threading.Thread(target=feed.run, name="jobber-feed") for feed in self._feeds]
            threads += [
                threading.Thread(target=self._tidy, args=(supply.source,)) for supply in self._supplies
            ]
            for thread in threads:
                thread.daemon = True
                thread.start()
            while any(not feed.ended for feed in self._feeds):
                self._heed(signals(_TICK))
                self._status.show(self.plan.counts, sum(feed.running for feed in self._feeds))
        self._tidy_ended.set()
        self._crew.close()
        self._status.close(self.plan.counts)
        return 1 if self.plan.is_stuck or any(feed.error for feed in self._feeds) else 0

    @property
    def _parent(self) -> str:
        return str(os.getppid())

    def stop(self) -> None:
        """Claim no more; finish what runs, and leave."""
        self.plan.stop()

    def leave(self) -> None:
        """Give back what runs, and leave."""
        self.plan.leave()

    def _heed(self, signals: int) -> None:
        for _ in range(signals):
            if self.plan.stopping:
                logger.warning("leaving: what is unfinished is given back")
                self.leave()
            else:
                logger.warning("stopping: what is begun is finished; once more gives it back")
                self.stop()
        if not self.plan.stopping and os.environ.get(PARENT, self._parent) != self._parent:
            logger.error("the process that looks after this one has died: leaving")
            self.stop()
        if self.plan.is_stuck and not self.plan.stopping:
            logger.error("every slot is kept by a handler that does not end: leaving")
            self.stop()

    def _tidy(self, source: Source) -> None:
        pause: float | None = 0.0
        while pause is not None and not self._tidy_ended.wait(pause):
            try:
                pause = source.tidy()
            except Away as away:
                pause = 30.0
                logger.warning("%s: %s", source.label, away)
            except Exception:
                logger.exception("%s: tidying failed", source.label)
                pause = 30.0


@contextlib.contextmanager
def signalled() -> t.Iterator[t.Callable[[float], int]]:
    """Yield what waits so many seconds for signals and returns how many came.

    A handler of a signal may take no lock: it writes into a pipe.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def wait(seconds: float) -> int:
        ready, _, _ = select.select([reader], [], [], seconds)
        return len(os.read(reader, 100)) if ready else 0

    old: dict[signal.Signals, t.Any] = {}
    if threading.current_thread() is threading.main_thread():
        old = {number: signal.signal(number, lambda *_: os.write(writer, b"!")) for number in _SIGNALS}
    try:
        yield wait
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
