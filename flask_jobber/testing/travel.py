"""Time travel: nobody waits for a lease to end."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from ..core.engines import Instant, plus_seconds

if t.TYPE_CHECKING:
    from ..extension import Jobber


def travel(jobber: Jobber, seconds: float | dt.timedelta) -> None:
    """Let time pass for all jobs, and commit ``db.session``.

    The database's clock goes on as it likes: every instant of the jobs and of their history
    goes back, which is the same to them. What the app's own columns say stays.
    """
    length = seconds.total_seconds() if isinstance(seconds, dt.timedelta) else seconds
    store = jobber.store()
    for table in (store.jobs, store.history):
        back = {
            column: plus_seconds(column, sa.literal(-length, sa.Double()))
            for column in table.columns
            if isinstance(column.type, Instant)
        }
        store.execute(sa.update(table).values(back))
    store.session.commit()
    store.session.expire_all()  # of an app that has no expire_on_commit
