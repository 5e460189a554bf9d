"""Revoke: what a login has delivered is taken back, and done again by others."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa

from . import seats, trust
from .engines import utcnow
from .hold import Row
from .lockers import of_login
from .series import taken_off
from .states import TERMINAL, State, Verb
from .store import Store
from .tally import take_up
from .transition import UNHELD, Change, apply

_SETTLED = (State.SUCCEEDED, State.SUBMITTED)
# Jobs that are taken back by one statement.
_SOME = 500


def revoke(store: Store, login: str, since: dt.datetime | None, until: dt.datetime | None) -> int:
    """Take back what a login delivered from one moment to before another; return how many jobs.

    What agreed with it stands while enough others agree. The app's ``on_revoked`` is called in
    the same transaction, for each result that was processed; what it raises is the caller's.
    """
    ids, count = _delivered(store, login, since, until), 0
    for start in range(0, len(ids), _SOME):
        rows = _lock(store, login, ids[start : start + _SOME])
        trust.lock(store, {row.copy_of for row in rows if row.copy_of is not None})
        for row in rows:
            _revoke(store, login, row)
        count += len(rows)
    return count


def _delivered(
    store: Store, login: str, since: dt.datetime | None, until: dt.datetime | None
) -> t.Sequence[int]:
    c, h = store.jobs.c, store.history.c
    settled = (of_login(store, login), c.state.in_([str(state) for state in _SETTLED]))
    delivery = (h.job_id == c.id, h.attempt == c.attempts, h.reason == Verb.DELIVER.value)
    between = [h.at >= since] if since is not None else []
    between += [h.at < until] if until is not None else []
    select = sa.select(c.id).where(*settled, sa.exists().where(*delivery, *between)).order_by(c.id)
    return store.execute(select).scalars().all()


def _lock(store: Store, login: str, ids: t.Sequence[int]) -> t.Sequence[Row]:
    c = store.jobs.c
    # A job brought back after its expires_at would be ended by the next claim.
    unexpired = sa.case((c.expires_at > utcnow(), c.expires_at), else_=sa.null()).label("unexpired")
    columns = (
        c.state, c.attempts, c.locked_by, c.type, c.every, c.not_for, c.copy_of, c.result, c.batch_id,
        c.concurrency_key, c.seated, unexpired, utcnow().label("now"),
    )  # fmt: skip
    settled = c.state.in_([str(state) for state in _SETTLED])
    return store.lock(columns, c.id.in_(ids), of_login(store, login), settled)


def _revoke(store: Store, login: str, row: Row) -> None:
    if row.copy_of is not None:
        apply(store, [_change(row, State.CANCELLED, {"finished_at": row.now})])
        _strike(store, row)
        return
    if row.state == State.SUCCEEDED:
        _undo(store, row.id, row.type, row.result)
    fresh: dict[str, t.Any] = {**UNHELD, "failures": 0, "run_at": row.now, "expires_at": row.unexpired}
    # Of a series it runs alone: the series has gone on.
    fresh |= {"every": taken_off(row.every), "not_for": sorted({*(row.not_for or ()), login})}
    fresh |= _seat(row)
    change = _change(row, State.QUEUED, {**fresh, **_UNSAID})
    apply(store, [change])
    seats.after(store, [change], {row.id: row})
    if row.state in TERMINAL:
        take_up(store, row)


def _seat(row: t.Any) -> dict[str, t.Any]:
    """Return what lets a job that had ended have a seat again."""
    had_left = row.state in TERMINAL and row.concurrency_key is not None
    return {"seated": True} if had_left else {}


#: What an ended job has, and an open one has not.
_UNSAID: dict[str, t.Any] = {"result": sa.null(), "extras": None, "finished_at": None}


def _change(row: t.Any, state: State, values: dict[str, t.Any]) -> Change:
    was = State(row.state)
    return Change(Verb.REVOKE, row.id, was, state, row.attempts, row.locked_by, None, values)


def _undo(store: Store, job_id: int, type_: str, result: t.Any) -> None:
    known = store.types.get(type_)
    if known is not None and known.on_revoked is not None:
        job = store.session.get(store.Job, job_id, populate_existing=True)
        known.on_revoked(job, result)
        store.session.flush()


def _strike(store: Store, row: Row) -> None:
    """Strike the answer of a copy; its original is open again if too few are left that agreed."""
    original = trust.lock(store, [row.copy_of]).get(row.copy_of)
    if original is None:
        return
    stands = trust.strike(store, original, row.id)
    if stands or original.state not in _SETTLED:
        return
    if original.state == State.SUCCEEDED:
        _undo(store, original.id, original.type, original.result)
    fresh = {**_UNSAID, "run_at": original.now}
    apply(store, [_change(original, State.BLOCKED, fresh)])
    if original.state in TERMINAL:
        take_up(store, original)
    trust.reopen(store, original.id)
