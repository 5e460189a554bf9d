"""What an operator does to a job, whoever holds it: cancel and retry."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..errors import IllegalTransition, NotFound
from . import batches, trust
from .engines import utcnow
from .hold import finish, followed
from .lanes import Lanes
from .payload import MAX_ID
from .series import taken_off
from .settle import ended
from .states import TRANSITIONS, State, Verb
from .store import Store
from .tally import take_up
from .transition import UNHELD, Change


def cancel(store: Store, job_id: int, scope: sa.ColumnElement[t.Any], by: str | None = None) -> None:
    """End an unfinished job at once. A holder hears of it at its next call.

    :param by: who does, for the history.
    :raises NotFound: when there is none in the scope.
    :raises IllegalTransition: when it has ended.
    """
    waits = batches.lock(store, job_id)
    row = _lock(store, job_id, scope, Verb.CANCEL)
    trust.cancel(store, row)
    # Who held it stays: it is to be told "cancelled", not "lost".
    values = ended(row.now) | {"locked_until": None, "lease_seconds": None, "slot": row.past_slot}
    _apply(store, row, Verb.CANCEL, State.CANCELLED, values, by)
    if waits:
        batches.call_off(store, job_id)


def retry(store: Store, job_id: int, scope: sa.ColumnElement[t.Any], by: str | None = None) -> None:
    """Give a failed, cancelled or expired job another life: its failures and exclusions are forgotten.

    A job whose result is kept goes back to its processor, any other one into the pool. One
    of a series runs alone: the series has gone on, or is over; so does a member of a batch that has.

    :param by: who does, for the history.
    :raises NotFound: when there is none in the scope.
    :raises IllegalTransition: when it has not ended, or succeeded.
    :raises QueueFull: when its queue has no room for it.
    """
    row = _lock(store, job_id, scope, Verb.RETRY)
    Lanes(store).admit({row.queue: 1})
    fresh: dict[str, t.Any] = {"failures": 0, "not_for": None, "run_at": row.now, "finished_at": None}
    fresh["every"] = taken_off(row.every)
    fresh["seated"] = True if row.concurrency_key is not None else None
    if row.asked and (row.trust.get("gold") or not row.delivered):  # of gold the result is known
        _apply(store, row, Verb.RETRY, State.BLOCKED, {**fresh, "expires_at": row.unexpired}, by)
        trust.ask_again(store, row.id)
    elif row.delivered:
        _apply(store, row, Verb.RETRY, State.SUBMITTED, fresh, by)
    else:
        _apply(store, row, Verb.RETRY, State.QUEUED, {**fresh, **UNHELD, "expires_at": row.unexpired}, by)
    take_up(store, row)


def _lock(store: Store, job_id: int, scope: sa.ColumnElement[t.Any], verb: Verb) -> sa.Row[t.Any]:
    c = store.jobs.c
    # A job brought back after its expires_at would be ended by the next claim.
    unexpired = sa.case((c.expires_at > utcnow(), c.expires_at), else_=sa.null()).label("unexpired")
    delivered = sa.case((c.result.is_(sa.null()), sa.false()), else_=sa.true()).label("delivered")
    # A slot that has not come is free for the series that is begun anew.
    past_slot = sa.case((c.slot <= utcnow(), c.slot), else_=sa.null()).label("past_slot")
    told = (delivered, unexpired, past_slot, utcnow().label("now"))
    asked = c.trust.is_not(sa.null()).label("asked")
    columns = (c.state, c.queue, c.attempts, c.locked_by, c.every, c.trust, asked, *followed(store), *told)
    rows = store.lock(columns, c.id == job_id, scope) if 1 <= job_id <= MAX_ID else ()
    if not rows:
        raise NotFound
    if rows[0].copy_of is not None:
        raise IllegalTransition(f"{verb} is not for a copy: it goes with its job.")
    if rows[0].state not in TRANSITIONS[verb].from_states:
        raise IllegalTransition(f"{verb} is not for a job that is {rows[0].state}.")
    return rows[0]


def _apply(
    store: Store, row: sa.Row[t.Any], verb: Verb, state: State, values: dict[str, t.Any], by: str | None
) -> None:
    was, holder = State(row.state), row.locked_by
    change = Change(verb, row.id, was, state, row.attempts, holder, None, values, by)
    finish(store, [change], {row.id: row})
