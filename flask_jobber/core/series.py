"""The next job of a series, made in the transaction in which the last one ends.

A series is a chain: its unfinished job holds the series' ``unique_key``, so that there is
one at the most, and ``every`` says when the next one runs, or after which end there is one.
``(series, slot)`` is unique too.
"""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from . import cadence, seats
from .engines import utcnow
from .models import OURS
from .news import hint
from .states import State, Verb
from .store import Store
from .transition import Change, record

#: The states whose end makes the next job; a cancelled series is over.
ENDS = frozenset({State.SUCCEEDED, State.FAILED, State.EXPIRED})
#: Begins the names of series that have none; no name that is given has it.
UNNAMED = "~"
#: What a job hands on to the next one, besides the app's own columns.
HANDED_ON = (
    "type", "data", "queue", "priority", "max_attempts", "backoff", "lease_for", "only_for", "on_success",
    "on_failure", "every", "series", "owner_ref", "concurrency_key",
)  # fmt: skip
#: Instants that keep their distance from the slot.
MOVED = ("expires_at", "only_for_until")


def key_of(series: str) -> str:
    """Return the unique_key of a series' unfinished job, which nobody else may have: a space leads it."""
    return f" {series}"


def taken_off(every: t.Any) -> dict[str, t.Any] | None:
    """Return what is kept of ``every`` in a job that the series goes on without: how it was declared."""
    return {"declared": every["declared"]} if every and "declared" in every else None


def goes_on(every: t.Mapping[str, t.Any]) -> bool:
    """Whether the end of a job with this ``every`` makes the next one."""
    return every.keys() != {"declared"}


def columns_of_the_app(store: Store) -> list[str]:
    """Return the names of the columns that are not ours."""
    return [column.key for column in store.jobs.c if column.key not in OURS and column.computed is None]


def follow(store: Store, job_id: int) -> None:
    """Make the next job of the series of one that has ended, unless the series was taken off it."""
    c = store.jobs.c
    moved = (c[name] for name in MOVED)
    columns = (
        c.state,
        c.finished_at,
        c.every,
        c.series,
        c.slot,
        c.concurrency_key,
        *moved,
        utcnow().label("now"),
    )
    chained = sa.select(*columns).where(c.id == job_id, c.every.is_not(sa.null()))
    row = store.execute(store.current(chained)).one_or_none()
    if row is None or not goes_on(row.every):
        return
    well = row.state == State.SUCCEEDED
    slot = cadence.after_end(row.every, row.slot, row.finished_at, row.now, well=well)
    if slot is None:
        return
    store.execute(_copy(store, job_id, _own(row, slot)))
    following = sa.select(c.id).where(c.series == row.series, c.slot == slot)
    next_id = store.execute(following).scalar_one()
    record(store, [Change(Verb.ENQUEUE, next_id, None, State.SCHEDULED, 0)])
    hint(store, ids=(next_id,))
    seats.enter(store, row.concurrency_key)


def _own(row: t.Any, slot: t.Any) -> dict[str, t.Any]:
    """Return what the next job has of its own."""
    moved = {name: getattr(row, name) + (slot - row.slot) for name in MOVED if getattr(row, name)}
    # As it was given: rejections keep away from one job, not from all that follow.
    not_for = {"not_for": row.every["not_for"]} if "not_for" in row.every else {}
    begin: dict[str, t.Any] = {"state": State.SCHEDULED.value, "attempts": 0, "failures": 0, "turn": 0}
    begin["seated"] = True if row.concurrency_key is not None else None
    return {"slot": slot, "run_at": slot, "unique_key": key_of(row.series), **moved, **not_for, **begin}


def _copy(store: Store, job_id: int, own: dict[str, t.Any]) -> sa.Insert:
    c = store.jobs.c
    handed_on = [c[name] for name in (*HANDED_ON, *columns_of_the_app(store))]
    values = [sa.literal(value, c[name].type) for name, value in own.items()]
    row = sa.select(*handed_on, *values, utcnow(), utcnow()).where(c.id == job_id)
    names = [*handed_on, *(c[name] for name in own), c.created_at, c.updated_at]
    return sa.insert(store.jobs).from_select(names, row, include_defaults=False)
