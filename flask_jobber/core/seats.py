"""Concurrency keys: so many jobs of one key are in the pool at once; the others are at its door.

Whoever changes the seats of a key locks its row first, and counts there: who claims pays
nothing, and never reads past the jobs at the door. The locks of jobs come before those of
keys; what is at the door is locked only if nobody else has it, so that nobody waits in a
ring.

The seats go to those that are held, then to those that are due, then to those that are due
next: one that is not due gives its seat to one that is, or will be before it.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from .candidates import word
from .engines import plus_seconds, utcnow
from .models import JobMixin
from .scope import Expression
from .states import TERMINAL, State, Verb
from .store import Store, missed
from .transition import Change, apply

Row = sa.Row[t.Any]
_FAR = dt.datetime.max.replace(tzinfo=dt.UTC)


@dataclasses.dataclass(slots=True)
class Door:
    """What is counted of a key, while its row is locked."""

    key: str
    taken: int
    waiting: int
    limit: int


def take(store: Store, jobs: t.Sequence[JobMixin]) -> list[str]:
    """Give seats to jobs that are about to be inserted, the best first; block the others.

    :returns: the keys of which not all have a seat, for :func:`arrange` when they are inserted.
    """
    keyed = collections.defaultdict[str, list[JobMixin]](list)
    for job in jobs:
        if job.concurrency_key is not None:
            keyed[job.concurrency_key].append(job)
    # In one order, so that two who enqueue for the same keys wait instead of dying.
    return [key for key in sorted(keyed) if not _seat(store, key, sorted(keyed[key], key=_rank))]


def _rank(job: JobMixin) -> tuple[t.Any, ...]:
    later = job.run_at if job.state == State.SCHEDULED else dt.datetime.min.replace(tzinfo=dt.UTC)
    return later, -job.priority, job.run_at or _FAR


def _seat(store: Store, key: str, jobs: t.Sequence[JobMixin]) -> bool:
    """Give out the free seats; return whether all have one."""
    door = _open(store, key)
    free = 0 if door.waiting else max(door.limit - door.taken, 0)
    for job in jobs[:free]:
        job.seated = True
        if job.state == State.BLOCKED:  # when it was to be inserted before, and was not
            job.state = State.SCHEDULED.value
    for job in jobs[free:]:
        job.seated, job.state = False, State.BLOCKED.value
    door.taken += len(jobs[:free])
    door.waiting += len(jobs[free:])
    _close(store, door)
    return len(jobs) <= free


def after(store: Store, changes: t.Sequence[Change], rows: t.Mapping[int, Row]) -> None:
    """Let others in when jobs with a key have left their seats, or have come back into the pool.

    :param rows: by id, as they were before, with ``concurrency_key`` and ``seated``.
    """
    moves = collections.defaultdict[str, list[int]](lambda: [0, 0])
    for change in changes:
        row = rows[change.job_id]
        if row.concurrency_key is not None:
            for place, number in enumerate(_moved(change, row)):
                moves[row.concurrency_key][place] += number
    for key in sorted(moves):
        arrange(store, key, *moves[key])


def _moved(change: Change, row: Row) -> tuple[int, int]:
    """Return how many more have a seat, and wait for one."""
    if change.from_state in TERMINAL:
        return 1, 0
    return (-(row.seated is True), -(row.seated is False)) if change.to_state in TERMINAL else (0, 0)


def leave(store: Store, gone: t.Sequence[Row]) -> None:
    """Free the seats of jobs that have been deleted."""
    keys = {row.concurrency_key for row in gone if row.seated is not None}
    for key in sorted(keys):
        own = [row.seated for row in gone if row.concurrency_key == key]
        arrange(store, key, -own.count(True), -own.count(False))


def enter(store: Store, key: str | None) -> None:
    """Count a job that was inserted with a seat, in the pool; without a free one somebody leaves it."""
    if key is not None:
        arrange(store, key, 1)


def arrange(store: Store, key: str, taken: int = 0, waiting: int = 0) -> None:
    """Give the seats of a key to those that are to have them.

    :param taken: seats that were taken, or left, without being counted yet.
    :param waiting: jobs that came to the door, or left it.
    """
    door = _open(store, key)
    door.taken, door.waiting = door.taken + taken, door.waiting + waiting
    while door.taken < door.limit and door.waiting and (best := _best(store, key)):
        _admit(store, door, best)
    while door.taken > door.limit and (worst := _worst(store, key)):
        _block(store, door, worst)
    while door.waiting and (worst := _worst(store, key, later=True)):
        best = _best(store, key)
        if best is None or max(best.run_at, best.now) >= worst.run_at:
            break
        _block(store, door, worst)
        _admit(store, door, best)
    _close(store, door)


def lock(store: Store, rows: t.Iterable[Row]) -> None:
    """Lock the keys of some jobs that end one by one: in one order, so that two wait instead of dying."""
    keys = {row.concurrency_key for row in rows} - {None}
    for key in sorted(keys) if len(keys) > 1 else ():
        _open(store, key)


def _open(store: Store, key: str) -> Door:
    """Lock a key and read what is counted of it, as it is now; others wait until the end."""
    seats = store.rules.Seat.__table__
    new = {"key": key, "taken": 0, "waiting": 0, "used_at": utcnow()}
    if store.engine_name == "mysql":
        store.execute(mysql.insert(seats).values(new).on_duplicate_key_update(used_at=utcnow()))
        mine = sa.select(seats.c.taken, seats.c.waiting).where(seats.c.key == key).with_for_update()
        row = store.execute(mine).one()
    else:
        insert = sqlite.insert if store.engine_name == "sqlite" else postgresql.insert
        upsert = insert(seats).values(new)
        upsert = upsert.on_conflict_do_update(index_elements=[seats.c.key], set_={"used_at": utcnow()})
        row = store.execute(upsert.returning(seats.c.taken, seats.c.waiting)).one()
    return Door(key, row.taken, row.waiting, store.rules.seats_of(key))


def _close(store: Store, door: Door) -> None:
    seats = store.rules.Seat.__table__
    counted = {"taken": door.taken, "waiting": door.waiting}
    store.execute(sa.update(seats).where(seats.c.key == door.key).values(counted))


def _admit(store: Store, door: Door, row: Row) -> None:
    """Let a job in. Its turn is that of one in the pool: 0 while it is scheduled."""
    turn = row.turn if row.later_turn is None else row.later_turn
    due = row.run_at <= row.now
    state = State.QUEUED if due else State.SCHEDULED
    values = {"turn": turn, "later_turn": None} if due else {"turn": 0, "later_turn": turn or None}
    _move(store, row, Verb.ADMIT, state, {**values, "seated": True})
    door.taken, door.waiting = door.taken + 1, door.waiting - 1


def _block(store: Store, door: Door, row: Row) -> None:
    _move(store, row, Verb.BLOCK, State.BLOCKED, {"seated": False})
    door.taken, door.waiting = door.taken - 1, door.waiting + 1


def _move(store: Store, row: Row, verb: Verb, state: State, values: dict[str, t.Any]) -> None:
    apply(store, [Change(verb, row.id, State(row.state), state, row.attempts, values=values)])


def _best(store: Store, key: str) -> Row | None:
    """Return the job at the door that comes next: of those that are due by priority, else by time."""
    c = store.jobs.c
    waits = (c.state == word(State.BLOCKED), c.seated == sa.false())
    order = (c.priority.desc(), c.run_at, c.id)
    best = _pick(store, key, "best", waits, order)
    if best is None or best.run_at <= best.now:
        return best
    due = _pick(store, key, "due", (*waits, c.run_at <= utcnow()), order)
    return due or _pick(store, key, "next", waits, (c.run_at, c.id))


def _worst(store: Store, key: str, *, later: bool = False) -> Row | None:
    """Return the job in the pool whose seat is wanted last.

    :param later: only if it is not due.
    """
    c, now = store.jobs.c, utcnow()
    scheduled, queued = c.state == word(State.SCHEDULED), c.state == word(State.QUEUED)
    last = _pick(
        store, key, "last", (scheduled, c.seated == sa.true(), c.run_at > now), (c.run_at.desc(), c.id.desc())
    )
    if last is not None or later:
        return last
    pool = (sa.or_(scheduled, queued), c.seated == sa.true())
    return _pick(store, key, "least", pool, (c.priority, c.run_at.desc(), c.id.desc()))


def _pick(
    store: Store, key: str, name: str, conditions: t.Sequence[Expression], order: t.Sequence[Expression]
) -> Row | None:
    """Lock the first job of a key in an order that nobody else has locked."""
    c = store.jobs.c
    columns = (c.id, c.state, c.attempts, c.run_at, c.turn, c.later_turn, utcnow().label("now"))
    mine = (c.concurrency_key == missed("key", c.concurrency_key.type), *conditions)
    select = sa.select(*columns).where(*mine).order_by(*order).limit(1)
    values = {"key": key}
    if store.engine_name == "mysql":
        # By its id, which locks nothing beside it.
        seen = store.run(("seen", name), lambda: select, values).first()
        still = (c.id == (seen.id if seen else 0), c.concurrency_key == key, *conditions)
        rows = store.lock(columns[1:], *still, skip_locked=True)
        # A plain read shows what there was when the transaction began: others may have come to the door.
        if rows or name != "best":
            return rows[0] if rows else None
    locking = select.with_for_update(skip_locked=True)
    return store.run(("pick", name), lambda: locking, values).first()


def tidy(store: Store, limit: int = 100) -> None:
    """Give out the seats of some keys at whose door jobs wait: their limits may have been changed."""
    seats = store.rules.Seat.__table__
    some = sa.select(seats.c.key).where(seats.c.waiting > 0).order_by(seats.c.used_at).limit(limit)
    for key in sorted(store.execute(some).scalars()):
        arrange(store, key)


def prune(store: Store, limit: int = 1000) -> None:
    """Forget keys that no job has had for ``KEEP_FINISHED_DAYS``."""
    seats = store.rules.Seat.__table__
    age: Expression = sa.literal(-store.settings.keep_finished_days * 86_400.0, sa.Double())
    unused = (seats.c.used_at <= plus_seconds(utcnow(), age), seats.c.taken == 0, seats.c.waiting == 0)
    chosen = sa.select(seats.c.key).where(*unused).order_by(seats.c.used_at).limit(limit)
    for key in store.execute(chosen).scalars().all():
        store.execute(sa.delete(seats).where(seats.c.key == key, *unused))
