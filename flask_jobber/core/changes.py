"""What has changed of the jobs that a client may see: those of certain ids, or since a row of the history."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from .candidates import is_held
from .engines import utcnow
from .hold import Row
from .queries import seen, ways
from .store import Store

#: So many jobs that have changed are told one by one.
MOST = 1000
# History farther back is not read.
_FARTHEST = 100_000
# Rows of history are committed in another order than that of their ids: so many before the cursor
# are read again, when they are no older than this.
_BEFORE, _AGE = 10_000, dt.timedelta(seconds=60)
_Condition = sa.ColumnElement[bool]
#: What differs between two moments of a job; an instant alone need not, where clocks tell milliseconds.
Mark = tuple[t.Any, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Narrow:
    """Which jobs somebody wants to hear of.

    :param ids: these only; ``None``: any.
    :param equals: column to value; ``None`` does not narrow.
    """

    ids: tuple[int, ...] | None
    equals: t.Mapping[str, str | None]

    def conditions(self, store: Store, scope: sa.ColumnElement[t.Any]) -> list[t.Any]:
        some = [store.jobs.c.id.in_(self.ids)] if self.ids is not None else []
        return [scope, *some, sa.or_(*(sa.and_(sa.true(), *way) for way in ways(store, self.equals)))]


def last(store: Store) -> int:
    """Return the id of the last row of the history that is to be seen."""
    return t.cast(int, store.execute(sa.select(_last(store))).scalar_one())


def _last(store: Store) -> sa.ColumnElement[int]:
    most = sa.select(sa.func.max(store.history.c.id)).scalar_subquery()
    return sa.func.coalesce(most, 0)


def these(
    store: Store, scope: sa.ColumnElement[t.Any], narrow: Narrow, ids: t.Iterable[int]
) -> t.Sequence[Row]:
    """Return those of some jobs that are wanted and in the scope."""
    c = store.jobs.c
    wanted = sa.select(*seen(store)).where(c.id.in_(sorted(ids)), *narrow.conditions(store, scope))
    return store.execute(wanted.order_by(c.id)).all()


def since(
    store: Store, scope: sa.ColumnElement[t.Any], narrow: Narrow, cursor: int
) -> dict[int, Mark] | None:
    """Return which jobs have, or may have, changed since a row of the history: their ids, and how they are.

    Some of them had changed before. ``None``: too many, or too long ago to be known.
    """
    if narrow.ids is not None:
        return _read(store, scope, narrow, [])
    known = _conditions(store, cursor)
    if known is None:
        return None
    new, *before = known
    found = _read(store, scope, narrow, [new])
    if len(found) > MOST:
        return None
    for condition in before:
        found |= _read(store, scope, narrow, [condition])
    return found


def _read(
    store: Store, scope: sa.ColumnElement[t.Any], narrow: Narrow, more: list[_Condition]
) -> dict[int, Mark]:
    c = store.jobs.c
    columns = c.id, c.updated_at, c.state, c.attempts, c.progress, c.note
    wanted = sa.select(*columns).where(*more, *narrow.conditions(store, scope))
    # The latest, should there be too many.
    return {row.id: mark(row) for row in store.execute(wanted.order_by(c.id.desc()).limit(MOST + 1))}


def mark(row: Row) -> Mark:
    return (row.updated_at, row.state, row.attempts, row.progress, row.note)


def _conditions(store: Store, cursor: int) -> list[_Condition] | None:
    """Return what holds of jobs that have changed since, that may have before, and of those in progress."""
    h, c = store.history.c, store.jobs.c
    first = sa.select(sa.func.min(h.id)).scalar_subquery()
    at = sa.select(h.at).where(h.id <= cursor).order_by(h.id.desc()).limit(1).scalar_subquery()
    row: t.Any = store.execute(sa.select(_last(store), first, at, utcnow())).one()
    newest, oldest, then, now = row
    if cursor > newest or newest - cursor > _FARTHEST or (cursor and oldest > cursor):
        return None
    begin = (then or now) - _AGE
    early = sa.and_(h.id > cursor - _BEFORE, h.id <= cursor, h.at >= begin)
    return [
        c.id.in_(sa.select(h.job_id).where(h.id > cursor)),
        c.id.in_(sa.select(h.job_id).where(early)),
        # A heartbeat leaves no row.
        sa.and_(is_held(store), c.updated_at >= begin),
    ]
