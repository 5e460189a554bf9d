"""What a declared queue means to the jobs in it: its room, its pauses, its defaults.

Who enters a queue with a capacity locks its row, and then counts: nobody else enters
until its transaction ends. The jobs themselves are not locked, so nobody who works on
them waits for who enters, nor the other way round.
"""

from __future__ import annotations

import random
import typing as t

import sqlalchemy as sa

from ..errors import QueueFull
from .payload import NAME
from .scope import Expression
from .store import Store, missed

#: The queue of jobs that name none.
DEFAULT = "default"
# A list of more names is not sent: all declared queues are read.
_MOST_NAMES = 500
_UNSEEN = "flask_jobber.unseen"


class Declared(Exception):
    """A queue was taken for undeclared, and is declared."""


class Lanes:
    """The declared ones among the queues that jobs are to enter, each read once.

    :param guess: whether those that were not declared when this process looked last are taken for
        undeclared without a look; whoever inserts makes sure.
    """

    def __init__(self, store: Store, *, guess: bool = False) -> None:
        self._store, self._guess = store, guess
        self._known: dict[str, sa.Row[t.Any] | None] = {}
        #: The names that were guessed.
        self.guessed: set[str] = set()

    def read(self, names: t.Iterable[t.Any]) -> None:
        """Read the queues of these names that are not known yet, by one statement.

        What cannot be a name is passed over.
        """
        good = {name for name in names if isinstance(name, str) and NAME.fullmatch(name)}
        if self._guess:
            self.guessed |= good & self._store.undeclared
            self._known |= dict.fromkeys(self.guessed)
        new = sorted(good - self._known.keys())
        if new:
            self._known |= self._look(new)

    def _look(self, names: t.Sequence[str]) -> dict[str, sa.Row[t.Any] | None]:
        found = {row.name: row for row in _declared(self._store, names)}
        undeclared = self._store.undeclared
        undeclared.difference_update(found)
        if len(undeclared) < _MOST_NAMES:
            undeclared.update(name for name in names if name not in found)
        return dict.fromkeys(names) | found

    def defaults(self, queue: str) -> dict[str, t.Any]:
        """Return what a queue says for jobs that do not say it."""
        self.read([queue])
        lane = self._known[queue]
        if lane is None:
            return {"priority": 0}
        lease = {} if lane.lease_for is None else {"lease_for": lane.lease_for}
        return {"priority": lane.priority or 0, **lease}

    def admit(self, entering: t.Mapping[str, int]) -> None:
        """Let so many jobs into each queue; others that want into a bounded one wait until the end.

        :raises QueueFull: when one has no room for them.
        """
        self.read(entering)
        # In the order of names, so that two who enter the same queues wait instead of dying.
        for name in sorted(entering):
            lane = self._known[name]
            if lane is not None and lane.capacity:
                _enter(self._store, name, entering[name])


def _declared(store: Store, names: t.Sequence[str]) -> t.Sequence[sa.Row[t.Any]]:
    q = store.queues.c
    columns = (q.name, q.capacity, q.priority, q.lease_for)
    if len(names) == 1:
        named = q.name == missed("name", q.name.type)
        return store.run("lane", lambda: sa.select(*columns).where(named), {"name": names[0]}).all()
    some = q.name.in_(names) if len(names) <= _MOST_NAMES else sa.true()
    return store.execute(sa.select(*columns).where(some)).all()


def _enter(store: Store, name: str, number: int) -> None:
    lane = _lock(store, name, number)
    if lane is None or not lane.capacity:  # not any more
        return
    taken = _count(store, name, lane)
    if taken + number > lane.capacity:
        room = max(lane.capacity - taken, 0)
        raise QueueFull(
            f"The queue {name!r} is full: {number} more would be too many, it has room for {room}"
            f" of {lane.capacity}. Try again when some of its jobs have ended.",
            store.settings.idle_seconds * random.uniform(0.75, 1.25),
        )
    if store.engine_name == "mysql":
        store.execute(_admit(store, name, number))


def _lock(store: Store, name: str, number: int) -> sa.Row[t.Any] | None:
    """Lock a queue and return its capacity and its counter, as they are now.

    By a write, where it can tell what it wrote: in PostgreSQL a transaction that reads what
    there was at its beginning then ends with an error, when others have entered since.
    """
    q = store.queues.c
    columns = (q.capacity, q.admitted)
    if store.engine_name == "mysql":
        return store.execute(sa.select(*columns).where(q.name == name).with_for_update()).one_or_none()
    return store.execute(_admit(store, name, number).returning(*columns)).one_or_none()


def _admit(store: Store, name: str, number: int) -> sa.Update:
    q = store.queues.c
    return sa.update(store.queues).where(q.name == name).values(admitted=q.admitted + number)


def _count(store: Store, name: str, lane: sa.Row[t.Any]) -> int:
    """Return how many unfinished jobs there may be in a queue that is locked, the capacity at most.

    MySQL's plain reads show the moment at which the transaction began. A read that shows
    the present would lock the jobs, and the gaps between queues. So what others have let in
    since that moment is told by the queue's counter; what has ended since is not seen.
    """
    c, q = store.jobs.c, store.queues.c
    unfinished = sa.select(c.id).where(c.queue == name, c.finished_at.is_(None))
    if store.engine_name == "postgresql":
        # It takes the unfinished for as many as the finished, and would look for a few by
        # reading the table; unless it is to have them in the order of the index.
        unfinished = unfinished.order_by(c.finished_at)
    unfinished = unfinished.limit(lane.capacity)
    number = sa.select(sa.func.count()).select_from(unfinished.subquery()).scalar_subquery()
    seen = store.execute(sa.select(number.label("taken"), q.admitted).where(q.name == name)).one_or_none()
    if seen is None:  # declared since that moment
        return 0
    return t.cast(int, seen.taken) + _unseen(store, name, lane.admitted - seen.admitted)


def _unseen(store: Store, name: str, number: int) -> int:
    """Return how many jobs others have let in since this transaction began.

    Once it has written the counter itself it sees it as it is, and the jobs still do not show.
    """
    known = store.remembered(_UNSEEN)
    known[store.queues.name, name] = most = max(number, known.get((store.queues.name, name), 0))
    return t.cast(int, most)


def unpaused(store: Store) -> Expression:
    """Whether a job's queue hands out jobs."""
    q, queue = store.queues.c, store.jobs.c.queue
    paused = sa.select(q.name).where(q.paused)
    if store.engine_name != "postgresql":
        return queue.not_in(paused)
    # The array is made once for each statement. The planner takes <> ALL for what next to
    # nothing passes, and sorts all that waits; of this it knows nothing, and expects most.
    one, none = (sa.literal_column(text, sa.Integer()) for text in "10")
    held_back = sa.case((queue == sa.any_(sa.func.array(paused.scalar_subquery())), one), else_=none)
    return held_back != one
