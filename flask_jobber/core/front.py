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

# Entries that are not worth remembering where they end: they take a tenth of a millisecond.
_MANY = 1000
# Seconds after which a claim looks from the beginning.
_FRESH = 1.0
# Claims of different kinds that are remembered.
_MOST = 1000


class Front(t.NamedTuple):
    """A place in the order of waiting jobs; and among leases, in the order of their ends."""

    priority: int
    turn: int
    run_at: dt.datetime
    #: No lease ended before.
    lease: dt.datetime


@dataclasses.dataclass(slots=True)
class Kind:
    """Claims that may have the same jobs, and how many these were."""

    taken: int = 0
    front: Front | None = None
    looked_at: float = 0.0

    def begin(self) -> Front | None:
        """Return where the next claim may begin, if not at the beginning."""
        is_known = self.taken >= _MANY and time.monotonic() - self.looked_at < _FRESH
        return self.front if is_known else None

    def note(self, front: Front | None, taken: int, *, full: bool) -> None:
        """Note what a look has found first, and how much of it was taken.

        :param full: whether it looked from the beginning.
        """
        self.front, self.taken = front, self.taken + taken
        if full:
            self.looked_at = time.monotonic()


class Fronts:
    """The places of one process and database, by kinds of claims."""

    def __init__(self) -> None:
        self._kinds: dict[t.Hashable, Kind] = {}

    def of(self, key: t.Hashable) -> Kind:
        """Return what is known of a kind, to be added to."""
        kinds = self._kinds
        if len(kinds) >= _MOST:
            kinds.clear()
        try:
            return kinds.setdefault(key, Kind())
        except TypeError:  # a scope that compares with what has no hash
            return Kind()

    def forget(self) -> None:
        """Let all look from the beginning: jobs may have come back before their places."""
        for kind in list(self._kinds.values()):
            kind.front = None

    def enter(self, turn: int, run_at: dt.datetime | None) -> None:
        """Forget places behind a job that comes in; without a time it comes now, behind all of them."""
        for kind in list(self._kinds.values()):
            front = kind.front
            if front is not None and (turn, run_at or front.run_at) < (front.turn, front.run_at):
                kind.front = None
