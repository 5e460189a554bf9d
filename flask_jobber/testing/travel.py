"""Time travel: nobody waits for a lease to end."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from ..core.engines import Instant, plus_seconds

if t.TYPE_CHECKING:
    from ..core.store import Store
    from ..extension import Jobber

# 34 years: further than any two slots of a series in a test are apart.
_FAR = 2.0**30


def travel(jobber: Jobber, seconds: float | dt.timedelta) -> None:
    """Let time pass for all jobs, and commit ``db.session``.

    The database's clock goes on as it likes: every instant of the jobs and of their history
    goes back, which is the same to them. What the app's own columns say stays.
    """
    length = seconds.total_seconds() if isinstance(seconds, dt.timedelta) else seconds
    store = jobber.store()
    # Over a place where nothing is: a row that is moved first may not land on another's slot.
    for step in (-length - _FAR, _FAR):
        _move(store, store.jobs, step)
    for table in (store.history, store.keys):
        _move(store, table, -length)
    store.fronts.forget()
    store.session.commit()
    store.session.expire_all()  # of an app that has no expire_on_commit


def _move(store: Store, table: sa.Table, seconds: float) -> None:
    instants = [column for column in table.columns if isinstance(column.type, Instant)]
    moved = {column: plus_seconds(column, sa.literal(seconds, sa.Double())) for column in instants}
    store.execute(sa.update(table).values(moved))
