"""Fairness: the owners of jobs take turns, however many jobs each of them has.

Decided at enqueue, by the tags of start-time fair queueing (Goyal, Vin and Cheng, 1996): an
owner's jobs get turns one after another, the first of them not before the turn that is
being served now. A claim reads jobs in the order of turns from its index, and pays nothing.

Turns are taken within a lane: the jobs of one type and priority.
"""

from __future__ import annotations

import collections
import hashlib
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from .candidates import turn as order
from .candidates import word
from .engines import plus_seconds, utcnow
from .models import MAX_VALUE, UNLED, UNTYPED, JobMixin
from .scope import Expression
from .states import State
from .store import Store, missed

Lane = tuple[str, int]
# Owners whose turns one statement writes.
_SOME = 200
# Jobs that ended last: the least of their turns is one that has been served.
_LAST = 50


def take(store: Store, jobs: t.Sequence[JobMixin]) -> None:
    """Give jobs that are about to be inserted their turns.

    Whoever else enqueues for one of these owners waits until the transaction ends.
    """
    if store.rules.fair_by is None:
        return
    lanes = collections.defaultdict[Lane, dict[str, list[JobMixin]]](dict)
    for job in jobs:
        value = _value(store, job, store.rules.fair_by)
        lanes[job.type, job.priority].setdefault(value, []).append(job)
    # In one order, so that two who enqueue for the same owners wait instead of dying.
    for lane, owners in sorted(lanes.items()):
        served, values = _served(store, lane), sorted(owners)
        for start in range(0, len(values), _SOME):
            some = {value: owners[value] for value in values[start : start + _SOME]}
            _give(some, _advance(store, lane, served, {value: len(own) for value, own in some.items()}))


def _value(store: Store, job: JobMixin, name: str) -> str:
    """Return what tells its owner apart, as text; empty when it has none."""
    mapper = sa.inspect(store.Job)
    column = store.jobs.c[name]
    value = getattr(job, mapper.get_property_by_column(column).key)
    for relationship in mapper.relationships if value is None else ():
        thing = relationship.key in sa.inspect(job).dict and getattr(job, relationship.key)
        for local, remote in relationship.local_remote_pairs or () if thing else ():
            if local is column:
                value = getattr(thing, sa.inspect(type(thing)).get_property_by_column(remote).key)
    text = "" if value is None else str(value)
    return text if len(text) <= MAX_VALUE else hashlib.sha256(text.encode()).hexdigest()


def _give(owners: t.Mapping[str, list[JobMixin]], last: t.Mapping[str, int]) -> None:
    for value, jobs in owners.items():
        for turn, job in enumerate(jobs, last[value] - len(jobs) + 1):
            if job.state == State.SCHEDULED:
                job.turn, job.later_turn = 0, turn
            else:
                job.turn = turn


def _served(store: Store, lane: Lane) -> int:
    """Return the turn that is being served in a lane now."""
    values = {"type": lane[0], "priority": lane[1]}
    return t.cast(int, store.run("served", lambda: _read_served(store), values).scalar_one())


def _read_served(store: Store) -> sa.Select[t.Any]:
    """Select the least turn that waits, or was served last: what waits first may be stuck.

    Where nothing waits all turns that were ever given have been served.
    """
    c, turn, rank = store.jobs.c, store.rules.Turn.__table__.c, order(store)
    typed, level = c.type == missed("type", c.type.type), c.priority == missed("priority", c.priority.type)
    queued = (c.state == word(State.QUEUED), level, c.turn > 0, sa.text(UNLED))
    here = sa.select(sa.func.min(c.turn)).where(*queued, typed).scalar_subquery()
    later = (c.state == word(State.SCHEDULED), level, typed, c.turn == 0, sa.text(UNLED))
    next_due = sa.select(c.later_turn).where(*later).order_by(c.run_at, c.id).limit(1).scalar_subquery()
    anywhere = sa.select(sa.func.min(c.turn)).where(*queued, sa.text(UNTYPED)).scalar_subquery()
    lane = (turn.type == missed("type", c.type.type), turn.priority == missed("priority", c.priority.type))
    given = sa.select(sa.func.max(turn.turn)).where(*lane).scalar_subquery()
    ended = sa.select(c.type, c.priority, rank, c.attempts).where(c.finished_at.is_not(None))
    last = ended.order_by(c.finished_at.desc()).limit(_LAST).subquery("last").c
    same = (last.type == missed("type", c.type.type), last.priority == missed("priority", c.priority.type))
    done = sa.select(sa.func.min(last.turn)).where(*same, last.attempts > 0, last.turn > 0).scalar_subquery()
    idle = _greatest(store, sa.func.coalesce(given, 0), sa.func.coalesce(anywhere, 0))
    waits = sa.func.coalesce(_least(store, here, next_due), here, next_due, idle)
    return sa.select(_greatest(store, waits, sa.func.coalesce(done, 0)))


def _least(store: Store, *values: t.Any) -> t.Any:
    """Return the least; of PostgreSQL's that is not NULL, elsewhere NULL if one is."""
    return (sa.func.min if store.engine_name == "sqlite" else sa.func.least)(*values)


def _greatest(store: Store, *values: t.Any) -> t.Any:
    return (sa.func.max if store.engine_name == "sqlite" else sa.func.greatest)(*values)


def _advance(store: Store, lane: Lane, served: int, counts: t.Mapping[str, int]) -> dict[str, int]:
    """Give owners so many turns more; return the last one of each."""
    turns, before = store.rules.Turn.__table__, max(served - 1, 0)
    type_, priority = lane
    rows = [
        {"type": type_, "priority": priority, "value": value, "turn": before + count, "used_at": utcnow()}
        for value, count in counts.items()
    ]
    if store.engine_name == "mysql":
        write = mysql.insert(turns).values(rows)
        later = sa.func.greatest(turns.c.turn, before) + write.inserted.turn - before
        store.execute(write.on_duplicate_key_update(turn=later, used_at=utcnow()))
        lane_is = (turns.c.type == type_, turns.c.priority == priority, turns.c.value.in_(list(counts)))
        written = store.execute(sa.select(turns.c.value, turns.c.turn).where(*lane_is).with_for_update())
    else:
        insert = sqlite.insert if store.engine_name == "sqlite" else postgresql.insert
        upsert: t.Any = insert(turns).values(rows)
        later = _greatest(store, turns.c.turn, before) + upsert.excluded.turn - before
        upsert = upsert.on_conflict_do_update(
            index_elements=turns.primary_key, set_={"turn": later, "used_at": utcnow()}
        )
        written = store.execute(upsert.returning(turns.c.value, turns.c.turn))
    return {row.value: row.turn for row in written}


def prune(store: Store, limit: int = 1000) -> None:
    """Forget owners of whom nothing was enqueued for ``KEEP_FINISHED_DAYS``."""
    if store.rules.fair_by is None:
        return
    turns = store.rules.Turn.__table__
    age: Expression = sa.literal(-store.settings.keep_finished_days * 86_400.0, sa.Double())
    old = sa.select(*turns.primary_key).where(turns.c.used_at <= plus_seconds(utcnow(), age))
    for row in store.execute(old.order_by(turns.c.used_at).limit(limit)).all():
        same = [column == row._mapping[column] for column in turns.primary_key]
        still = turns.c.used_at <= plus_seconds(utcnow(), age)
        store.execute(sa.delete(turns).where(*same, still))
