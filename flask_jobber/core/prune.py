"""Prune and clear: forget jobs, with their history and their attachments, and keys."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from . import keys
from .attachments import forget_all
from .engines import plus_seconds, utcnow
from .hold import Row
from .queries import equal
from .scope import Expression
from .series import UNNAMED
from .store import Store


def prune(store: Store, limit: int = 1000, older_than: dt.timedelta | None = None) -> int:
    """Delete up to ``limit`` jobs that finished so long ago, with their history; return how many.

    Keys that are old enough go too.

    :param older_than: the default is ``KEEP_FINISHED_DAYS``.
    """
    age = older_than if older_than is not None else dt.timedelta(days=store.settings.keep_finished_days)
    c = store.jobs.c
    border = plus_seconds(utcnow(), sa.literal(-age.total_seconds(), sa.Double()))
    old = sa.and_(c.finished_at.is_not(None), c.finished_at <= border)
    chosen = sa.select(c.id).where(old, _is_not_the_last(store)).order_by(c.finished_at).limit(limit)
    ids = store.execute(chosen).scalars().all()
    rows = store.lock((c.has_files,), c.id.in_(ids), old, skip_locked=True) if ids else ()
    _delete(store, rows)
    keys.prune(store, limit)
    return len(rows)


def clear(store: Store, after: int, up_to: int, *, limit: int, **equals: str | None) -> tuple[int, int]:
    """Delete jobs whatever their state, up to ``limit`` of those with ids over ``after``.

    :param up_to: the last id that may be deleted.
    :param equals: narrows by column.
    :returns: how many, and the id to go on after; ``up_to`` when there are no more.
    """
    c = store.jobs.c
    narrow = equal(store, equals)
    chosen = sa.select(c.id).where(c.id > after, c.id <= up_to, *narrow).order_by(c.id).limit(limit)
    ids = store.execute(chosen).scalars().all()
    if not ids:
        return 0, up_to
    # Those that somebody is writing now are waited for, and left alone if they fit no more.
    gone = store.lock((c.has_files,), c.id.in_(ids), *narrow)
    _delete(store, gone)
    return len(gone), ids[-1]


def _delete(store: Store, gone: t.Sequence[Row]) -> None:
    if gone:
        forget_all(store, [row.id for row in gone if row.has_files])
        # One by one: MySQL reads a small table to its end for a list, and locks all it reads.
        ids = [{"gone": row.id} for row in gone]
        store.execute(sa.delete(store.history).where(store.history.c.job_id == sa.bindparam("gone")), ids)
        store.execute(sa.delete(store.jobs).where(store.jobs.c.id == sa.bindparam("gone")), ids)


def _is_not_the_last(store: Store) -> Expression:
    """Keep the last job of a series with a name: it tells that it was ended on purpose."""
    c, later = store.jobs.c, store.jobs.alias()
    others = sa.exists().where(later.c.series == c.series, later.c.id > c.id)
    return sa.or_(c.series.is_(None), c.series.startswith(UNNAMED), others)
