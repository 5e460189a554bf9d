"""Where the waiting jobs of a claim begin, so that it need not pass those that are gone.

PostgreSQL keeps an entry in its indexes for each job that was taken, until a vacuum, and as long as
any transaction is open that began before. A claim would pass all of them each time: with 40,000 of
them it took eight times as long. So who has taken many remembers the place of the first that it
found, and begins there.

What comes back before that place is found all the same: at once where this process sends it there,
within a second otherwise, and in any case before a claim gets fewer than it wants.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
import typing as t

#: Before any place among leases.
BEGINNING = dt.datetime.min.replace(tzinfo=dt.UTC)
# Entries that are not worth remembering where they end: they take a tenth of a millisecond.
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


@dataclasses.dataclass(slots=True)
class Bookmark(t.Generic[P]):
    """The place of the first that was found, of claims that may have the same.

    :param taken: how many they were given.
    :param is_dry: whether the last of them found nothing.
    """

    place: P | None = None
    taken: int = 0
    looked_at: float = 0.0
    is_dry: bool = False

    def begin(self) -> P | None:
        """Return where the next claim may begin, if not at the beginning."""
        is_known = self.taken >= _MANY and time.monotonic() - self.looked_at < _FRESH
        return self.place if is_known else None

    def note(self, place: P | None, taken: int, *, full: bool) -> None:
        """Note what a look has found first, and how many were taken.

        :param full: whether it looked from the beginning.
        """
        self.place, self.taken, self.is_dry = place, self.taken + taken, place is None
        if full:
            self.looked_at = time.monotonic()


class Fronts:
    """The places of one process in one database.

    :ivar leases: the end of the lease that ends first, which is the same for all.
    """

    def __init__(self) -> None:
        self.leases: Bookmark[dt.datetime] = Bookmark()
        self._kinds: dict[t.Hashable, Bookmark[Front]] = {}

    def of(self, kind: t.Hashable) -> Bookmark[Front]:
        """Return the bookmark of a kind of claims, to be moved on."""
        if len(self._kinds) >= _MOST:
            self._kinds.clear()
        try:
            return self._kinds.setdefault(kind, Bookmark())
        except TypeError:  # a scope that compares with what has no hash
            return Bookmark()

    def forget(self) -> None:
        """Let all look from the beginning: jobs may have come back before their places."""
        self.leases.place = None
        for bookmark in list(self._kinds.values()):
            bookmark.place = None

    def enter(self, turn: int, run_at: dt.datetime | None) -> None:
        """Forget places behind a job that comes in; without a time it comes now, behind all of them."""
        for bookmark in list(self._kinds.values()):
            place = bookmark.place
            if place is not None and (turn, run_at or place.run_at) < (place.turn, place.run_at):
                bookmark.place = None
