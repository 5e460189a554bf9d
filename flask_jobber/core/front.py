"""Where the waiting jobs of a claim begin, so that it need not pass those that are gone.

PostgreSQL keeps an entry in its indexes for each job that was taken, until a vacuum, and as long as
any transaction is open that began before. A claim would pass all of them each time: with 40,000 of
them it took eight times as long. So who has taken many remembers the place of the first that it
found, and begins there. What comes back before that place is found all the same: at once where a
transaction of this process brings it back, within a second otherwise, and in any case before a
claim gets fewer than it wants.

Nor does such a claim look at scheduled jobs and leases, unless the last look at them found one: a
shorter statement, which took PostgreSQL a fifth less for a claim of one.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
import typing as t

from sqlalchemy.orm import Session

from .. import commits

#: Before any place among leases.
BEGINNING = dt.datetime.min.replace(tzinfo=dt.UTC)
# Entries that are not worth remembering where they end: 60,000 that no vacuum may take took a claim 18 ms.
_MANY = 1000
# Seconds after which a claim looks from the beginning.
_FRESH = 1.0
# Claims of different kinds that are remembered.
_MOST = 1000
P = t.TypeVar("P")


class Front(t.NamedTuple):
    """A place in the order of waiting jobs."""

    priority: int
    turn: int
    run_at: dt.datetime
    id: int


class Start(t.NamedTuple):
    """Where a look begins.

    :param front: no queued job before it is found, and no job of a lower priority; ``None``: all are.
    :param queued_only: neither scheduled jobs nor leases are looked at.
    :param leases: no lease is found that ends before.
    :param at: when it began, of this process's monotonic clock.
    :param generation: of the places that were known then.
    """

    front: Front | None = None
    queued_only: bool = False
    leases: dt.datetime = BEGINNING
    at: float = 0.0
    generation: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it leaves out nothing."""
        return self.front is None and self.leases == BEGINNING


#: A look that leaves out nothing.
WHOLE = Start()


class Found(t.NamedTuple):
    """What a look has found.

    :param front: the place of the first that was taken.
    :param taken: how many were.
    :param queued_only: whether all of them were queued.
    :param lease: the end of the lease that ends first; ``None``: it did not look.
    """

    front: Front | None
    taken: int
    queued_only: bool
    lease: dt.datetime | None


@dataclasses.dataclass(slots=True)
class Bookmark(t.Generic[P]):
    """The place of the first that was found, of claims that may have the same.

    :param taken: how many they were given.
    :param looked_at: when the last look from the beginning began.
    :param is_dry: whether the last of them found nothing.
    :param queued_only: whether the last of them that looked at all jobs found queued ones only.
    """

    place: P | None = None
    taken: int = 0
    looked_at: float = 0.0
    is_dry: bool = False
    queued_only: bool = False

    def begin(self, now: float) -> P | None:
        """Return where a claim may begin, if not at the beginning."""
        return self.place if self.taken >= _MANY and now - self.looked_at < _FRESH else None

    def move(self, place: P | None, begun_at: P | None, at: float) -> None:
        """Note where the next may begin, unless others have looked from the beginning since it began."""
        if begun_at is None and at >= self.looked_at:
            self.looked_at = at
        elif begun_at is None or begun_at != self.place:
            return
        self.place = place


class Fronts:
    """The places of one process in one app."""

    def __init__(self) -> None:
        self._generation = 0
        #: The end of the lease that ends first, which is the same for all.
        self._leases: Bookmark[dt.datetime] = Bookmark()
        self._kinds: dict[t.Hashable, Bookmark[Front]] = {}

    def of(self, kind: t.Hashable) -> Bookmark[Front]:
        """Return the bookmark of a kind of claims."""
        try:
            known = self._kinds.get(kind)
        except TypeError:  # a scope that compares with what has no hash
            return Bookmark()
        if known is None:
            for oldest in list(self._kinds)[: len(self._kinds) + 1 - _MOST]:
                self._kinds.pop(oldest, None)
            known = self._kinds.setdefault(kind, Bookmark())
        return known

    def start(self, bookmark: Bookmark[Front]) -> Start:
        """Return where a claim begins: where there was nothing, at the beginning."""
        whole = self.whole()
        leases = None if bookmark.is_dry else self._leases.begin(whole.at)
        front = bookmark.begin(whole.at)
        queued_only = front is not None and bookmark.queued_only
        return whole._replace(front=front, queued_only=queued_only, leases=leases or BEGINNING)

    def whole(self) -> Start:
        """Return the beginning."""
        return Start(at=time.monotonic(), generation=self._generation)

    def note(self, bookmark: Bookmark[Front], start: Start, found: Found) -> None:
        """Note what a look has found, when it is committed."""
        bookmark.taken += found.taken
        bookmark.is_dry = not found.taken
        if not start.queued_only:  # else it could not find others
            bookmark.queued_only = found.queued_only
        self._leases.taken += found.taken
        if start.generation == self._generation:
            bookmark.move(found.front, start.front, start.at)
            if found.lease is not None:
                self._leases.move(found.lease, None if start.leases == BEGINNING else start.leases, start.at)

    def forget(self) -> None:
        """Let all look from the beginning: jobs may have come back before their places."""
        self._generation += 1
        self._leases.place = None
        for bookmark in list(self._kinds.values()):
            bookmark.place = None

    def enter(self, places: t.Iterable[tuple[int, int, dt.datetime]]) -> None:
        """Forget the places behind jobs that come in: priority, turn and time of each."""
        self._generation += 1
        first: dict[int, tuple[int, dt.datetime]] = {}
        for priority, turn, run_at in places:
            first[priority] = min(first.get(priority, (turn, run_at)), (turn, run_at))
        for bookmark in list(self._kinds.values()):
            known = bookmark.place
            if known and known.priority in first and first[known.priority] < (known.turn, known.run_at):
                bookmark.place = None


def come_back(session: Session, forget: t.Callable[[], None]) -> None:
    """Forget places: now for claims of this transaction, and for others when it is committed."""
    forget()
    commits.on_commit(session, forget)
