"""Where the waiting jobs of a claim begin, so that it need not pass those that are gone.

PostgreSQL keeps an entry in its indexes for each job that was taken, until a vacuum, and as long as
any transaction is open that began before. A claim would pass all of them each time: with 40,000 of
them it took eight times as long. So who has taken many remembers the place of the first that it
found, and begins there. What comes back before that place is found all the same: at once where a
transaction of this process brings it back, within a second otherwise, and in any case before a
claim gets fewer than it wants.

Nor does such a claim look at scheduled jobs and leases, unless the last look at them found one: a
shorter statement, which took PostgreSQL a fifth less for a claim of one.

Claims that are under way at a time keep out of each other's way: each begins behind what others of this
process have taken and not committed yet, and skips as many jobs as others want whose answers are not
there yet. PostgreSQL would let it pass their locks, but not without a price: to find that a job is
taken it locks it, and whoever took it could not settle it at once. Of eight clients that exchanged by
the hundred each fifth was refused so. How many to skip is a guess, as others commit meanwhile: a job
may be passed that nobody takes. The next look at all finds it, and claims go on from there.
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


class Found(t.NamedTuple):
    """What a look has found.

    :param front: the place of the first that was taken.
    :param end: a place behind the last of them, where all were queued.
    :param taken: how many were.
    :param queued_only: whether all of them were queued.
    :param lease: the end of the lease that ends first; ``None``: it did not look.
    """

    front: Front | None
    end: Front | None
    taken: int
    queued_only: bool
    lease: dt.datetime | None


@dataclasses.dataclass(slots=True, eq=False)
class Taking:
    """A claim under way: it has begun, and its transaction has not ended.

    :param at: when it began.
    :param most: how many jobs it may be taking, as long as nothing is known of it.
    :param end: a place behind the last job that it has taken.
    :param taken: how many it has taken.
    """

    at: float
    most: int
    end: Front | None = None
    taken: int = 0

    def find(self, found: Found) -> None:
        """Note what a look of it has found."""
        self.most, self.end = 0, self.end or found.end
        self.taken += found.taken


class Start(t.NamedTuple):
    """Where a look begins.

    :param taking: the claim that looks.
    :param front: no queued job before it is found, and no job of a lower priority; ``None``: all are.
    :param queued_only: neither scheduled jobs nor leases are looked at.
    :param ahead: nor so many of the first, which others are taking.
    :param leases: no lease is found that ends before.
    :param at: when it began, of this process's monotonic clock.
    :param generation: of the places that were known then.
    """

    taking: Taking
    front: Front | None = None
    queued_only: bool = False
    ahead: int = 0
    leases: dt.datetime = BEGINNING
    at: float = 0.0
    generation: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it leaves out nothing."""
        return self.front is None and self.leases == BEGINNING


#: A look that leaves out nothing.
WHOLE = Start(Taking(0.0, 0))


@dataclasses.dataclass(slots=True)
class _Mark(t.Generic[P]):
    """The place of the first that was found.

    :param taken: how many they were given.
    :param looked_at: when the last look from the beginning began, of those that are committed.
    :param known_at: when it was committed.
    :param sent_at: when the last was sent to look from there because it was time.
    """

    place: P | None = None
    taken: int = 0
    looked_at: float = 0.0
    known_at: float = 0.0
    sent_at: float = 0.0

    def begin(self, now: float) -> P | None:
        """Return where a claim may begin, if not at the beginning. Who asks goes there."""
        if self.taken < _MANY or (now - self.looked_at >= _FRESH and now - self.sent_at >= _FRESH):
            self.sent_at = now  # one, not all that begin before it has found something
            return None
        return self.place

    def give_back(self) -> None:
        """Let another look from the beginning, for one whose look came to nothing."""
        self.sent_at = self.looked_at

    def move(self, place: P | None, at: float, *, whole: bool) -> None:
        """Note where the next may begin, unless others have looked from the beginning since it began."""
        if whole and at >= self.looked_at:
            self.looked_at, self.known_at = at, time.monotonic()
        elif whole or self.place is None or at < self.known_at:
            return
        self.place = place


@dataclasses.dataclass(slots=True)
class Bookmark(_Mark[Front]):
    """The place of claims that may have the same jobs.

    :param is_dry: whether the last of them found nothing.
    :param queued_only: whether the last of them that looked at all jobs found queued ones only.
    :param under_way: those that have begun and not ended, in the order in which they began.
    """

    is_dry: bool = False
    queued_only: bool = False
    under_way: list[Taking] = dataclasses.field(default_factory=list)

    def fresh(self, now: float) -> list[Taking]:
        """Return the claims under way but those whose transactions take long."""
        return [taking for taking in self.under_way if taking.at > now - _FRESH]

    def behind(self, place: Front, now: float) -> tuple[Front, int]:
        """Return where a claim begins behind others that are under way, and how many they take from there.

        Who began before the last look at all is not heeded: that look was for what they have passed.
        """
        ahead = 0
        for rival in self.fresh(now):
            if rival.at > self.known_at:
                ahead += rival.most
                if rival.end is not None and rival.end.priority == place.priority and rival.end > place:
                    place, ahead = rival.end, 0  # who began before it is taking what stands before it
        return place, ahead


class Fronts:
    """The places of one process in one app."""

    def __init__(self) -> None:
        self._generation = 0
        #: The end of the lease that ends first, which is the same for all.
        self._leases: _Mark[dt.datetime] = _Mark()
        self._kinds: dict[t.Hashable, Bookmark] = {}

    def of(self, kind: t.Hashable) -> Bookmark:
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

    def start(self, bookmark: Bookmark, most: int) -> Start:
        """Return where a claim of so many begins: where there was nothing, at the beginning."""
        whole = self.whole(Taking(time.monotonic(), most))
        place = bookmark.begin(whole.at)
        if place is not None and bookmark.queued_only:
            front, ahead = bookmark.behind(place, whole.at)
            start = whole._replace(front=front, ahead=ahead, queued_only=True)
        else:
            leases = None if bookmark.is_dry else self._leases.begin(whole.at)
            start = whole._replace(front=place, leases=leases or BEGINNING)
        bookmark.under_way = [*bookmark.fresh(whole.at), start.taking]
        return start

    def whole(self, taking: Taking) -> Start:
        """Return the beginning."""
        return Start(taking, at=time.monotonic(), generation=self._generation)

    def note(self, bookmark: Bookmark, start: Start, found: Found) -> None:
        """Note what a look has found, when it is committed."""
        bookmark.taken += found.taken
        bookmark.is_dry = not found.taken
        if not start.queued_only:  # else it could not find others
            bookmark.queued_only = found.queued_only
        self._leases.taken += found.taken
        if start.generation != self._generation:
            self._give_back(bookmark, start)
            return
        # Who began behind others may have passed what they did not take: only a guess said how many.
        if start.front in (None, bookmark.place) and not start.ahead:
            bookmark.move(found.front, start.at, whole=start.front is None)
        if found.lease is not None:
            self._leases.move(found.lease, start.at, whole=start.leases == BEGINNING)

    def end(self, bookmark: Bookmark, start: Start) -> None:
        """Note that a claim is not under way any more."""
        bookmark.under_way = [other for other in bookmark.under_way if other is not start.taking]

    def undo(self, bookmark: Bookmark, start: Start) -> None:
        """Note that a claim has come to nothing: what it had taken others may have passed."""
        self.end(bookmark, start)
        self._give_back(bookmark, start)
        if start.taking.taken:
            self.forget()

    def _give_back(self, bookmark: Bookmark, start: Start) -> None:
        if start.front is None:
            bookmark.give_back()
        if not start.queued_only and start.leases == BEGINNING:
            self._leases.give_back()

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
