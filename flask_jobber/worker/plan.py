"""What all feeds of a worker share: its slots, its orders and its counts, under one lock."""

from __future__ import annotations

import dataclasses
import threading
import time
import typing as t

from .source import Wish

# Seconds that handlers which were made to end have for it, before the worker leaves without them.
_GRACE = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker is to do.

    :param types: of the handlers' types these only; ``None`` is all of them.
    :param concurrency: jobs at a time.
    :param max_jobs: leave after so many.
    :param burst: leave when there is nothing left to do.
    """

    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    min_priority: int | None = None
    max_priority: int | None = None
    concurrency: int = 10
    max_jobs: int | None = None
    burst: bool = False

    def wish(self, handled: t.Iterable[str]) -> Wish:
        """Return what to claim, of the types that are handled."""
        types = tuple(type for type in handled if self.types is None or type in self.types)
        bounds = (self.queues, self.min_priority, self.max_priority)
        return Wish(self.concurrency, types, *bounds)


@dataclasses.dataclass(slots=True)
class Counts:
    """What has come of the jobs so far."""

    succeeded: int = 0
    failed: int = 0
    released: int = 0
    dropped: int = 0

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.released + self.dropped


class Plan:
    """The shared state, to be read and changed with :attr:`bell` held, which rings at a change."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.bell = threading.Condition()
        self.counts = Counts()
        #: No more jobs are claimed; what runs is finished.
        self.stopping = False
        #: When what runs was to be given back, by the monotonic clock.
        self.leaving_since: float | None = None
        self.free = orders.concurrency
        #: Handlers that were made to end and have not yet; each keeps its slot.
        self.stuck = 0
        self._stuck_since = 0.0
        self._asked = 0
        self._left = orders.max_jobs
        self._fed: dict[object, float] = {}
        self._hungry: set[object] = set()

    def take(self, who: object, most: int) -> int:
        """Take up to so many free slots."""
        share = self.share(who)
        taken = min(share, most, share if self._left is None else self._left)
        self._move(taken)
        self._asked += taken
        return taken

    def share(self, who: object) -> int:
        """Return how many slots are free for a feed: one fed before others that wait leaves them half."""
        mine = self._fed.setdefault(who, 0.0)
        waits = any(self._fed[other] < mine for other in self._hungry if other is not who)
        return self.free // 2 if waits else self.free

    def use(self, taken: int, used: int) -> None:
        """Give back those of the slots taken for which there was no job."""
        self._asked -= taken
        self._move(used - taken)
        self.bell.notify_all()

    def _move(self, slots: int) -> None:
        self.free -= slots
        if self._left is not None:
            self._left -= slots

    def vacate(self, *, ring: bool) -> None:
        """Give back the slot of a job that is done."""
        self.free += 1
        if ring:
            self.bell.notify_all()

    def feed(self, who: object, *, hungry: bool) -> None:
        """Note that one of the feeds has got jobs, or all there are."""
        self._fed[who] = time.monotonic()
        (self._hungry.add if hungry else self._hungry.discard)(who)

    def expect(self, who: object) -> None:
        """Note that a feed begins: it is to get its share from the start."""
        self._fed.setdefault(who, 0.0)
        self._hungry.add(who)

    def count_stuck(self, more: int) -> None:
        """Note that a handler was made to end, or that one of these has ended."""
        self.stuck += more
        self._stuck_since = time.monotonic()

    def pass_over(self, who: object) -> None:
        """Leave nothing to a feed whose source is away."""
        self._hungry.discard(who)
        self.bell.notify_all()

    @property
    def may_claim(self) -> bool:
        return not self.stopping and self._left != 0

    @property
    def is_full(self) -> bool:
        """Whether no job will be claimed any more."""
        return self.stopping or (self._left == 0 and self._asked == 0)

    @property
    def is_stuck(self) -> bool:
        """Whether every slot has been kept for a while by a handler that does not end."""
        return self.stuck >= self.orders.concurrency and time.monotonic() > self._stuck_since + _GRACE

    @property
    def leaving(self) -> bool:
        return self.leaving_since is not None

    def stop(self) -> None:
        """Claim no more."""
        with self.bell:
            self.stopping = True
            self.bell.notify_all()

    def leave(self) -> None:
        """Give back what runs, and claim no more."""
        with self.bell:
            self.stopping, self.leaving_since = True, self.leaving_since or time.monotonic()
            self.bell.notify_all()
