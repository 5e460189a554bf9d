"""The ends that nobody asks for: leases that lapsed once too often, and ``expires_at``."""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa

from . import candidates as find
from .engines import utcnow
from .hold import UNHELD, finish, followed
from .scope import Expression
from .settle import ended
from .states import State, Verb
from .store import Store, missed
from .transition import Change

#: The error of a lapse in the history.
LAPSED = {"type": "LeaseLapsed", "message": "The lease ended without a result.", "traceback": None}


def expire(store: Store, limit: int = 1000) -> int:
    """End up to ``limit`` jobs that are exhausted or past their ``expires_at``; return how many."""
    now = utcnow()
    c = store.jobs.c
    expirable = [c.state == find.word(state) for state in (State.QUEUED, State.SCHEDULED)]
    # Wrapped up, like the guards of find.still: the way to the late ones is their own index.
    unheld = find.still(sa.or_(*expirable, find.lapsed(store, now)))
    late = sa.and_(c.finished_at.is_(None), c.expires_at <= now, unheld)
    tired = sa.and_(find.lapsed(store, now), find.exhausted(store))
    count = 0
    for name, condition, order in (("tired", tired, c.locked_until), ("late", late, c.expires_at)):
        among = sa.select(c.id).where(condition).order_by(order).limit(limit - count)
        ids = store.execute(among).scalars().all()
        count += _end(store, name, {"ids": ids}, condition)
    return count


def end_dead(store: Store, wanted: find.Wanted, limit: int = 1000) -> None:
    """End the dead ones among a claim's best candidates."""
    wanted = dataclasses.replace(wanted, window=limit)
    levels, now = find.read_levels(store, wanted), wanted.clock
    values = wanted.values(store, levels)
    ids = find.read(store, wanted, levels, values)
    still = (find.due(store, now), find.dead(store, now), wanted.scope.template)
    _end(store, wanted.key, values | {"ids": ids}, *still)


def _end(store: Store, key: t.Hashable, values: dict[str, t.Any], *conditions: Expression) -> int:
    c = store.jobs.c
    columns = (
        c.state, c.attempts, c.failures, c.locked_by, find.exhausted(store).label("exhausted"),
        *followed(store), utcnow().label("now"),
    )  # fmt: skip
    chosen = c.id.in_(missed("ids", expanding=True))
    if not values["ids"]:
        return 0

    def lock() -> sa.Executable:
        return store.locking(columns, chosen, find.still(*conditions), skip_locked=True)

    rows = store.run(("end", key), lock, values).all()
    finish(store, [_change(row) for row in rows], {row.id: row for row in rows})
    return len(rows)


def _change(row: t.Any) -> Change:
    was = State(row.state)
    values = dict(UNHELD) | ended(row.now)
    if not row.exhausted:
        return Change(Verb.EXPIRE, row.id, was, State.EXPIRED, row.attempts, row.locked_by, None, values)
    values["failures"] = row.failures + 1
    return Change(Verb.LAPSE, row.id, was, State.FAILED, row.attempts, row.locked_by, LAPSED, values)
