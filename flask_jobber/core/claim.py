"""Claim: the atomic hand-out."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa

from . import candidates as find
from .candidates import Levels, Wanted
from .engines import utcnow
from .expire import LAPSED, end_dead
from .news import hint_due
from .quota import check_room
from .states import State, Verb
from .store import Store, missed
from .transition import Change, announce_if_heard, record

Rows = t.Sequence[sa.Row[t.Any]]
# Jobs that rivals hold locked at this moment are skipped; this many more are looked at
# than are wanted, before a second look at eight times as many.
_SPARE = 12
# A window is sized for one of these numbers of jobs: each size is a statement of its own, and
# the first executions of one cost 100 ms, to build, compile and plan.
_SIZES = (1, 10, 40, 100)
# Rounds of a claim that meets jobs to be ended; each ends up to a thousand.
_MOST_ROUNDS = 50


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A handed-out job."""

    id: int
    type: str
    data: t.Any
    queue: str
    priority: int
    attempt: int
    failures: int
    max_attempts: int
    #: Length of the lease, from now.
    lease_seconds: float
    enqueued_at: dt.datetime
    #: Whether there may be attachments.
    has_files: bool | None = None


def claim(store: Store, wanted: Wanted) -> list[Claim]:
    """Hand out up to ``wanted.limit`` jobs, the best first. Fewer does not mean that there are no more.

    Jobs met on the way that are exhausted or past their ``expires_at`` are ended.

    :raises TooManyClaims: when the login holds ``MAX_OPEN_CLAIMS`` jobs.
    """
    limit = min(wanted.limit, check_room(store, wanted.locker))
    window, claims = 4 * _size(limit) + _SPARE, list[Claim]()
    for _ in range(_MOST_ROUNDS):
        wanted = dataclasses.replace(wanted, limit=limit - len(claims), window=window)
        rows, crowded = _take(store, wanted)
        live = [row for row in rows if row.live]
        claims += [_claim(row) for row in live]
        if len(live) < len(rows):
            end_dead(store, wanted)
        elif crowded:
            window *= 8
        else:
            break
        if len(claims) == limit:
            break
    if claims:
        hint_due(store, min(one.lease_seconds for one in claims))
    return claims


def _size(limit: int) -> int:
    """Return the number of jobs for which a claim of so many is sized."""
    return next((size for size in _SIZES if size >= limit), limit)


def _claim(row: sa.Row[t.Any]) -> Claim:
    return Claim(
        id=row.id,
        type=row.type,
        data=row.data,
        queue=row.queue,
        priority=row.priority,
        attempt=row.attempts + 1,
        failures=row.failures + (row.was == State.LOCKED),
        max_attempts=row.max_attempts,
        lease_seconds=row.granted,
        enqueued_at=row.created_at,
        has_files=row.has_files,
    )


def _take(store: Store, wanted: Wanted) -> tuple[Rows, bool]:
    """Lock up to ``wanted.limit`` jobs and give the living ones to the client.

    :returns: the rows as they were before, and whether rivals had locked all that was seen.
    """
    if store.engine_name == "postgresql":
        return _take_in_one(store, wanted)
    levels = find.read_levels(store, wanted)
    if store.engine_name == "sqlite":
        # Nobody else can hold a lock meanwhile: there is no more to look at than is wanted.
        wanted = dataclasses.replace(wanted, window=_size(wanted.limit))
        rows, crowded = _lock_in_sqlite(store, wanted, levels), False
    else:
        rows, crowded = _lock_in_mysql(store, wanted, levels)
    _hand_out(store, wanted, [row for row in rows if row.live])
    return rows, crowded


def _hand_out(store: Store, wanted: Wanted, rows: Rows) -> None:
    """Write the hand-out of locked rows, and record it."""
    if rows:
        ids = {"ids": [row.id for row in rows]}
        write = ("hand out", wanted.key)
        store.run(write, lambda: _write(store, wanted), wanted.values(store) | ids)
        record(store, [change for row in rows for change in _changes(wanted, row)])


def _write(store: Store, wanted: Wanted) -> sa.Update:
    ids = missed("ids", expanding=True)
    guard = (store.jobs.c.id.in_(ids), find.still(find.due(store, wanted.clock)))
    lease = _lease(store, wanted, find.granted(store, wanted))
    write = sa.update(store.jobs).where(*guard).ordered_values(*lease)
    return write.with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql").with_hint(
        "FORCE INDEX (PRIMARY)", dialect_name="mariadb"
    )


def _lease(store: Store, wanted: Wanted, length: t.Any) -> list[tuple[sa.Column[t.Any], t.Any]]:
    """Return what a hand-out writes.

    In this order: MySQL evaluates from left to right and would see the new state in the
    case, and count a failure at every claim.
    """
    c = store.jobs.c
    lapse = sa.case((c.state == find.word(State.LOCKED), find.number(1)), else_=find.number(0))
    return [
        (c.failures, c.failures + lapse),
        (c.state, find.word(State.LOCKED)),
        (c.attempts, c.attempts + find.number(1)),
        (c.locked_by, missed("locker", sa.String())),
        (c.locked_at, wanted.clock),
        (c.locked_until, find.lease_end(wanted, length)),
        (c.lease_seconds, length),
        (c.progress, sa.null()),
        (c.note, sa.null()),
    ]


def _before(store: Store, wanted: Wanted) -> list[t.Any]:
    """Return the columns of a job about to be taken."""
    c = store.jobs.c
    plain = (c.type, c.data, c.queue, c.priority, c.run_at, c.max_attempts, c.created_at, c.has_files)
    old = (c.state.label("was"), c.locked_by.label("was_by"), c.attempts, c.failures)
    live = sa.not_(find.dead(store, wanted.clock)).label("live")
    return [*plain, *old, find.granted(store, wanted).label("granted"), live]


def _take_in_one(store: Store, wanted: Wanted) -> tuple[Rows, bool]:
    found = store.run(("claim", wanted.key), lambda: _statement(store, wanted), wanted.values(store)).all()
    rows = [row for row in found if row.id is not None]
    live = [row for row in rows if row.live]
    made = [row.id for row in live]
    announce_if_heard(store, made, lambda: [change for row in live for change in _changes(wanted, row)])
    return rows, not rows and found[0].crowded


def _statement(store: Store, wanted: Wanted) -> sa.Select[t.Any]:
    """Return PostgreSQL's claim: find, lock in order, write and record, in one statement.

    The locks are taken above the sort and below the limit, so exactly the rows that are
    handed out are locked. ``UPDATE … WHERE id IN (SELECT … LIMIT 1 FOR UPDATE SKIP
    LOCKED)`` may run the subselect again for each row and hand out everything.
    """
    c = store.jobs.c
    # Not materialized, which would lose its order; it is counted only when nothing is picked.
    found = find.candidates(store, wanted).cte("candidate").prefix_with("NOT MATERIALIZED")
    picked = (
        sa.select(c.id, *_before(store, wanted))
        .select_from(found.join(store.jobs, found.c.id == c.id))
        .where(find.due(store, wanted.clock), wanted.scope.template, *find.wished(store, wanted))
        .order_by(found.c.priority.desc(), found.c.run_at, found.c.id)
        .limit(missed("limit", sa.Integer()))
        .with_for_update(of=store.jobs, skip_locked=True)
        .cte("picked")
    )
    write = sa.update(store.jobs).where(c.id == picked.c.id, picked.c.live)
    written = write.ordered_values(*_lease(store, wanted, picked.c.granted)).returning(c.id).cte("written")
    # One row at least: whether all that was looked at was locked, only this look can tell.
    seen = sa.select(sa.func.count()).select_from(found).scalar_subquery()
    crowded = sa.case((sa.exists().select_from(picked), sa.false()), else_=seen >= find.number(wanted.window))
    look = sa.select(crowded.label("crowded")).subquery("look")
    told = sa.select(picked, look.c.crowded).select_from(look.outerjoin(picked, sa.true()))
    # PostgreSQL runs what is written although nothing reads it.
    return told.add_cte(written, _recorded(store, picked))


def _word(verb: Verb) -> t.Any:
    return sa.literal_column(f"'{verb}'", sa.String())


def _recorded(store: Store, picked: sa.CTE) -> sa.CTE:
    """Return the insertion of what :func:`_changes` says of each picked row."""
    p, lapsed = picked.c, picked.c.was == find.word(State.LOCKED)
    queued, json = find.word(State.QUEUED), store.history.c.error.type
    lapse = {
        "turn": sa.literal_column("1"), "job_id": p.id, "from_state": p.was, "to_state": queued,
        "attempt": p.attempts, "locker": p.was_by, "reason": _word(Verb.LAPSE), "at": utcnow(),
        "error": sa.literal(LAPSED, json),
    }  # fmt: skip
    claim = lapse | {
        "turn": sa.literal_column("2"), "from_state": sa.case((lapsed, queued), else_=p.was),
        "to_state": find.word(State.LOCKED), "attempt": p.attempts + find.number(1),
        "locker": missed("locker", sa.String()), "reason": _word(Verb.CLAIM),
        "error": sa.cast(sa.null(), json),
    }  # fmt: skip
    rows = sa.union_all(_select(lapse).where(p.live, lapsed), _select(claim).where(p.live)).subquery()
    names = [name for name in lapse if name != "turn"]
    ordered = sa.select(*(rows.c[name] for name in names)).order_by(rows.c.turn)
    insert = sa.insert(store.history).from_select(names, ordered)
    return insert.returning(store.history.c.id).cte("recorded")


def _select(columns: dict[str, t.Any]) -> sa.Select[t.Any]:
    return sa.select(*(column.label(name) for name, column in columns.items()))


def _lock_in_sqlite(store: Store, wanted: Wanted, levels: Levels) -> Rows:
    def build() -> sa.Executable:
        best = find.candidates(store, wanted, levels).limit(missed("limit", sa.Integer())).subquery()
        chosen = store.jobs.c.id.in_(sa.select(best.c.id))
        guard = (chosen, find.still(find.due(store, wanted.clock), wanted.scope.template))
        return store.locking(_before(store, wanted), *guard)

    key = ("lock", wanted.key, find.shape(levels))
    rows = store.run(key, build, wanted.values(store, levels))
    return sorted(rows.all(), key=_order)


def _lock_in_mysql(store: Store, wanted: Wanted, levels: Levels) -> tuple[Rows, bool]:
    """Lock by primary key as many as are wanted, in the order of a read that locks nothing.

    A locking read that orders by anything else locks every row it looks at; everyone else
    is then told that there is none.
    """

    def build() -> sa.Executable:
        ids = missed("ids", expanding=True)
        due = (find.due(store, wanted.clock), wanted.scope.template, *find.wished(store, wanted))
        guard = (store.jobs.c.id.in_(ids), find.still(*due))
        lock = sa.select(store.jobs.c.id, *_before(store, wanted)).where(*guard)
        # By nothing but the key: what MySQL reads on its way it locks.
        return lock.with_hint(store.jobs, "FORCE INDEX (PRIMARY)").with_for_update(skip_locked=True)

    values = wanted.values(store, levels)
    ids = find.read(store, wanted, levels, values)
    rows: list[sa.Row[t.Any]] = []
    start = 0
    while start < len(ids) and len(rows) < wanted.limit:
        chunk = ids[start : start + wanted.limit - len(rows)]
        start += len(chunk)
        rows += sorted(store.run(("lock", wanted.key), build, values | {"ids": chunk}).all(), key=_order)
    return rows, not rows and len(ids) == wanted.window


def _order(row: sa.Row[t.Any]) -> tuple[t.Any, ...]:
    return -row.priority, row.run_at, row.id


def _changes(wanted: Wanted, row: sa.Row[t.Any]) -> t.Iterator[Change]:
    was = State(row.was)
    if was is State.LOCKED:
        yield Change(Verb.LAPSE, row.id, was, State.QUEUED, row.attempts, row.was_by, LAPSED)
        was = State.QUEUED
    yield Change(Verb.CLAIM, row.id, was, State.LOCKED, row.attempts + 1, wanted.locker)
