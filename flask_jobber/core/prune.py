"""Prune and clear: forget jobs, with their history and their attachments, and keys."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from . import keys, rates, seats, turns
from .attachments import forget_all
from .engines import plus_seconds, utcnow
from .hold import Row
from .lockers import login_of, mark
from .queries import equal
from .scope import Expression
from .series import UNNAMED
from .states import State
from .store import Store
from .tally import note_gone


def prune(store: Store, limit: int = 1000, older_than: dt.timedelta | None = None) -> int:
    """Delete up to ``limit`` jobs that finished so long ago, with their history; return how many.

    Keys that are old enough go too, and the turns of owners who have enqueued nothing since.

    :param older_than: the default is ``KEEP_FINISHED_DAYS``.
    """
    age = older_than if older_than is not None else dt.timedelta(days=store.settings.keep_finished_days)
    c = store.jobs.c
    border = plus_seconds(utcnow(), sa.literal(-age.total_seconds(), sa.Double()))
    old = sa.and_(c.finished_at.is_not(None), c.finished_at <= border)
    kept = (_is_not_the_last(store), _is_not_awaited(store), _is_not_compared(store))
    chosen = sa.select(c.id).where(old, *kept).order_by(c.finished_at).limit(limit)
    ids = store.execute(chosen).scalars().all()
    rows = store.lock((c.has_files,), c.id.in_(ids), old, skip_locked=True) if ids else ()
    _delete(store, rows)
    keys.prune(store, limit)
    turns.prune(store, limit)
    seats.prune(store, limit)
    rates.prune(store, limit)
    return len(rows)


def clear(store: Store, after: int, up_to: int, *, limit: int, **equals: str | None) -> tuple[int, int]:
    """Delete jobs whatever their state, up to ``limit`` of those with ids over ``after``.

    Copies go with their original, and not without it: it would wait for them for ever. Gold does not.

    :param up_to: the last id that may be deleted.
    :param equals: narrows by column.
    :returns: how many, and the id to go on after; ``up_to`` when there are no more.
    """
    c = store.jobs.c
    narrow = [*equal(store, equals), sa.or_(c.copy_of.is_(None), c.shown_as.is_not(None))]
    asked = c.trust.is_not(sa.null()).label("asked")
    chosen = sa.select(c.id, asked).where(c.id > after, c.id <= up_to, *narrow).order_by(c.id).limit(limit)
    rows = store.execute(chosen).all()
    if not rows:
        return 0, up_to
    ids = [row.id for row in rows]
    copies = _lock_copies(store, [row.id for row in rows if row.asked])  # before their originals
    # Those that somebody is writing now are waited for, and left alone if they fit no more.
    columns = (c.has_files, c.state, c.batch_id, c.concurrency_key, c.seated, c.copy_of, c.locked_by)
    gone = store.lock(columns, c.id.in_(ids), *narrow)
    note_gone(store, gone)
    over = {row.id for row in gone}
    with_them = [row for row in copies if row.copy_of in over and row.id not in over]
    for row in (*gone, *with_them):
        if row.copy_of is not None and row.state == State.LOCKED:  # a claim is counted when it ends
            mark(store, login_of(row.locked_by), "claim")
    _delete(store, [*gone, *with_them])
    seats.leave(store, gone)
    return len(gone) + len(with_them), ids[-1]


def _lock_copies(store: Store, originals: t.Sequence[int]) -> t.Sequence[Row]:
    c = store.jobs.c
    found = sa.select(c.id).where(c.copy_of.in_(originals))
    # By their ids, and found before: what is made meanwhile is cancelled by who is handed it.
    ids = store.execute(found).scalars().all() if originals else ()
    return store.lock((c.has_files, c.copy_of, c.state, c.locked_by), c.id.in_(ids)) if ids else ()


def _delete(store: Store, gone: t.Sequence[Row]) -> None:
    if gone:
        forget_all(store, [row.id for row in gone if row.has_files])
        # One by one: MySQL reads a small table to its end for a list, and locks all it reads.
        ids = [{"gone": row.id} for row in gone]
        store.execute(sa.delete(store.history).where(store.history.c.job_id == sa.bindparam("gone")), ids)
        for table in (store.batches, store.jobs):
            store.execute(sa.delete(table).where(table.c.id == sa.bindparam("gone")), ids)


def _is_not_awaited(store: Store) -> Expression:
    """Keep the members of a batch until it has ended: it may still read their results."""
    c, batch = store.jobs.c, store.jobs.alias()
    waits = sa.exists().where(batch.c.id == c.batch_id, batch.c.finished_at.is_(None))
    return sa.or_(c.batch_id.is_(None), sa.not_(waits))


def _is_not_compared(store: Store) -> Expression:
    """Keep answers for as long as others may be compared with them; of gold it is the result."""
    c, original = store.jobs.c, store.jobs.alias()
    open_ = (original.c.finished_at.is_(None), original.c.result.is_(sa.null()))
    return sa.or_(c.copy_of.is_(None), sa.not_(sa.exists().where(original.c.id == c.copy_of, *open_)))


def _is_not_the_last(store: Store) -> Expression:
    """Keep the last job of a series with a name: it tells that it was ended on purpose."""
    c, later = store.jobs.c, store.jobs.alias()
    others = sa.exists().where(later.c.series == c.series, later.c.id > c.id)
    return sa.or_(c.series.is_(None), c.series.startswith(UNNAMED), others)
