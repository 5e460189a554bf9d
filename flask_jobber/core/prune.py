"""Prune: forget finished jobs."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from .engines import plus_seconds, utcnow
from .store import Store


def prune(store: Store, limit: int = 1000, older_than: dt.timedelta | None = None) -> int:
    """Delete up to ``limit`` jobs that finished so long ago, with their history; return how many.

    :param older_than: the default is ``KEEP_FINISHED_DAYS``.
    """
    age = older_than if older_than is not None else dt.timedelta(days=store.settings.keep_finished_days)
    c = store.jobs.c
    border = plus_seconds(utcnow(), sa.literal(-age.total_seconds(), sa.Double()))
    old = sa.and_(c.finished_at.is_not(None), c.finished_at <= border)
    chosen = sa.select(c.id).where(old).order_by(c.finished_at).limit(limit)
    ids = store.execute(chosen).scalars().all()
    rows = store.lock((), c.id.in_(ids), old, skip_locked=True) if ids else ()
    gone = [row.id for row in rows]
    if gone:
        # One by one: MySQL reads a small table to its end for a list, and locks all it reads.
        ids = [{"gone": job_id} for job_id in gone]
        store.execute(sa.delete(store.history).where(store.history.c.job_id == sa.bindparam("gone")), ids)
        store.execute(sa.delete(store.jobs).where(c.id == sa.bindparam("gone")), ids)
    return len(gone)
