"""Series by name: declared as often as one likes, and ended."""

from __future__ import annotations

import hashlib
import json
import typing as t

import sqlalchemy as sa

from ..errors import DuplicateJob, Invalid
from . import cadence, enqueue
from .cancel import cancel
from .engines import utcnow
from .models import JobMixin
from .news import hint
from .payload import check_name
from .series import HANDED_ON, MOVED, columns_of_the_app, goes_on, key_of, taken_off
from .states import WAITING, State
from .store import Store
from .transition import forget

Row = sa.Row[t.Any]
# Looks at a series that others change meanwhile.
_MOST_LOOKS = 10


def declare(store: Store, name: str, job: JobMixin, *, revive: bool = True) -> None:
    """Let there be a series with this name and jobs like this unsaved one, which has an ``every``.

    One that is there already is left alone. If it was declared otherwise its waiting job is
    changed; one that is being worked on is the old series' last.

    :param revive: begin anew what was declared alike and ended on purpose.
    :raises Invalid: for a bad name, or without ``every``.
    """
    _name(store, check_name("name", name), job)
    for look in range(_MOST_LOOKS):
        row = _look(store, name, again=look > 0)
        if row is None:
            if look > 0:  # a job that has ended has the slot
                _pass_over(job)
            if (not revive and _is_over(store, name, job)) or _begin(store, job):
                return
        elif row.every["declared"] == job.every["declared"] or _change(store, row, job):
            return
    raise DuplicateJob(f"The series {name!r} is being changed by others all the time.")


def end(store: Store, name: str) -> bool:
    """End a series: its waiting job is cancelled, one that is being worked on is its last.

    :returns: whether there was one.
    """
    for look in range(_MOST_LOOKS):
        row = _look(store, check_name("name", name), again=look > 0)
        if row is None:
            return False
        locked = _lock(store, row)
        if locked is None:
            continue
        if locked.state in WAITING:
            cancel(store, row.id, sa.true())
        else:
            _take_off(store, locked)
        return True
    raise DuplicateJob(f"The series {name!r} is being changed by others all the time.")


def _name(store: Store, name: str, job: JobMixin) -> None:
    """Make a job the first of a series."""
    if job.every is None:
        raise Invalid({"every": ["A series needs it."]})
    job.series, job.unique_key = name, key_of(name)
    job.every = {**job.every, "declared": _digest(store, job)}


def _digest(store: Store, job: JobMixin) -> str:
    """Return a short text that is another one when the declaration is another one."""
    names = (*HANDED_ON, *columns_of_the_app(store))
    attributes = sa.inspect(store.Job).column_attrs
    values = {a.key: getattr(job, a.key) for a in attributes if a.columns[0].key in names}
    wish = job.only_for_until and (job.only_for_until - job.run_at).total_seconds()
    text = json.dumps([values, wish], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _look(store: Store, name: str, *, again: bool) -> Row | None:
    """Return the unfinished job of a series; MySQL shows what others did only to who looks again."""
    c = store.jobs.c
    select = sa.select(c.id, c.every).where(c.unique_key == key_of(name))
    return store.execute(store.current(select) if again else select).one_or_none()


def _lock(store: Store, row: Row) -> Row | None:
    c = store.jobs.c
    columns = (c.state, c.every, c.series, c.slot, c.expires_at, utcnow().label("now"))
    rows = store.lock(columns, c.id == row.id, c.unique_key.is_not(None), c.every.is_not(sa.null()))
    return rows[0] if rows else None


def _is_over(store: Store, name: str, job: JobMixin) -> bool:
    """Whether the series was ended on purpose since it was declared like this."""
    c = store.jobs.c
    select = sa.select(c.state, c.every).where(c.series == name).order_by(c.id.desc()).limit(1)
    last = store.execute(select).one_or_none()
    if last is None or last.every is None:
        return last is not None
    ended = last.state == State.CANCELLED or not goes_on(last.every)
    return bool(ended and last.every["declared"] == job.every["declared"])


def _pass_over(job: JobMixin) -> None:
    step = cadence.following(job.every, job.run_at, job.run_at) - job.run_at
    for name in ("slot", "run_at", *MOVED):
        if getattr(job, name) is not None:
            setattr(job, name, getattr(job, name) + step)
    job.state = State.SCHEDULED.value


def _begin(store: Store, job: JobMixin) -> bool:
    try:
        enqueue.insert(store, [job])
    except DuplicateJob:  # another process was first
        return False
    return True


def _change(store: Store, row: Row, job: JobMixin) -> bool:
    """Change a waiting job into a newly declared one; return whether that was all."""
    locked = _lock(store, row)
    if locked is None:
        return False
    if locked.state not in WAITING:
        _take_off(store, locked)
        return False
    c = store.jobs.c
    values = _declared(store, job) | _moved(locked, job)
    store.execute(sa.update(store.jobs).where(c.id == row.id, c.state == locked.state).values(values))
    forget(store, row.id)
    hint(store, ids=(row.id,))
    return True


def _declared(store: Store, job: JobMixin) -> dict[str, t.Any]:
    given = sa.inspect(job).dict
    attributes = {a.columns[0].key: a.key for a in sa.inspect(store.Job).column_attrs}
    own = [name for name in columns_of_the_app(store) if attributes.get(name) in given]
    names = (*HANDED_ON, "not_for", *own)
    return {name: getattr(job, attributes[name]) for name in names}


def _moved(row: Row, job: JobMixin) -> dict[str, t.Any]:
    """Return the times of a job whose slot another cadence moves, unless it is due or was tried."""
    slot = row.slot
    times: dict[str, t.Any] = {}
    if not cadence.is_same(row.every, job.every) and row.state == State.SCHEDULED and slot > row.now:
        slot = cadence.following(job.every, row.now, row.now)
        times = {"slot": slot, "run_at": slot}
    ends = {name: value and slot + (value - job.slot) for name in MOVED for value in [getattr(job, name)]}
    return {**times, **ends}


def _take_off(store: Store, row: Row) -> None:
    """Let a job go on alone."""
    alone = {"every": taken_off(row.every), "unique_key": None}
    store.execute(sa.update(store.jobs).where(store.jobs.c.id == row.id).values(alone))
    forget(store, row.id)
