"""The ends that nobody asks for: leases that lapsed once too often, and ``expires_at``."""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa

from . import candidates as find
from .engines import utcnow
from .hold import finish, followed
from .scope import Expression
from .settle import ended
from .states import POOL, State, Verb
from .store import Store, missed
from .transition import UNHELD, Change

#: The error of a lapse in the history.
LAPSED = {"type": "LeaseLapsed", "message": "The lease ended without a result.", "traceback": None}


def expire(store: Store, limit: int = 1000) -> int:
    """End up to ``limit`` jobs that are exhausted or past their ``expires_at``; return how many."""
    c, count = store.jobs.c, 0
    tired, late = _tired(store), _late(store)
    for name, condition, order in (("tired", tired, c.locked_until), ("late", late, c.expires_at)):
        among = sa.select(c.id).where(condition).order_by(order).limit(limit - count)
        ids = store.execute(among).scalars().all()
        count += _end(store, name, {"ids": ids}, condition)
    return count


def _tired(store: Store) -> Expression:
    return sa.and_(find.lapsed(store, utcnow()), find.exhausted(store))


def _late(store: Store) -> Expression:
    c, now = store.jobs.c, utcnow()
    expirable = [c.state == find.word(state) for state in sorted(POOL)]
    # What waits for other jobs does not expire, what waits for a seat does.
    expirable.append(sa.and_(c.state == find.word(State.BLOCKED), c.seated.is_not(None)))
    # Wrapped up, like the guards of find.still: the way to the late ones is their own index.
    unheld = find.still(sa.or_(*expirable, find.lapsed(store, now)))
    return sa.and_(c.finished_at.is_(None), c.expires_at <= now, unheld)


def over(store: Store) -> Expression:
    """Whether a job is exhausted or past its ``expires_at``, though nobody has met it yet."""
    return sa.func.coalesce(sa.or_(_tired(store), _late(store)), sa.false())


def end_these(store: Store, ids: t.Sequence[int]) -> None:
    """End those of some jobs that are :func:`over`."""
    _end(store, "over", {"ids": ids}, over(store))


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
