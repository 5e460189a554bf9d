"""Counting the ends of a batch's members, and what the last of them leads to.

Ends are gathered while a transaction goes on and counted when it is about to be committed:
one statement for each batch, and its row is locked for no longer than a commit takes. Who
leaves none unblocks the job that waits for them, in the transaction of that last end. Jobs
of no batch cost nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import typing as t

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from .. import commits
from ..errors import BatchEnded
from .candidates import word
from .engines import utcnow
from .states import TERMINAL, State, Verb
from .store import Store, missed
from .transition import Change, apply, forget

Row = sa.Row[t.Any]
#: What a member that did not succeed means: nothing, or the end of the batch.
GO_ON, CANCEL = "go_on", "cancel"
_COUNTERS = {
    State.SUCCEEDED: "done",
    State.FAILED: "failed",
    State.EXPIRED: "failed",
    State.CANCELLED: "cancelled",
}
_COUNTED = "flask_jobber.counted"
_NAMES = ("done", "failed", "cancelled")


@dataclasses.dataclass(frozen=True, slots=True)
class Ends:
    """Ends of members of one batch.

    :param counts: by the counter that they go into.
    :param culprit: one that did not succeed, and how it ended.
    """

    store: Store
    batch_id: int
    counts: t.Mapping[str, int]
    culprit: tuple[int, State] | None = None

    def __call__(self) -> None:
        """Be an effect of the commit; it is counted before."""


def gather(ends: Ends) -> None:
    """Let ends be counted when the transaction is about to be committed; at once when it is."""
    if _COUNTED in ends.store.session.info:  # a listener of the app's does its work at the commit
        _count([ends])
    else:
        commits.on_commit(ends.store.session, ends)


def note(store: Store, ends: t.Iterable[tuple[int | None, Change]]) -> None:
    """Note the ends among some changes, each with the batch of its job, to be counted."""
    counts: dict[int, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    culprits: dict[int, tuple[int, State]] = {}
    for batch_id, change in ends:
        if batch_id is not None and change.to_state in TERMINAL:
            counts[batch_id][_COUNTERS[change.to_state]] += 1
            if change.to_state is not State.SUCCEEDED:
                culprits.setdefault(batch_id, (change.job_id, change.to_state))
    for batch_id, some in counts.items():
        gather(Ends(store, batch_id, some, culprits.get(batch_id)))


def note_gone(store: Store, rows: t.Iterable[Row]) -> None:
    """Note members that are deleted; those that had not ended count as cancelled."""
    for row in rows:
        if row.batch_id is not None and row.state not in TERMINAL:
            gather(Ends(store, row.batch_id, {"cancelled": 1}, (row.id, State.CANCELLED)))


def counter_of(state: State) -> str:
    """Return the name of the counter that an end goes into."""
    return _COUNTERS[state]


def join(store: Store, numbers: t.Mapping[int, int]) -> None:
    """Let batches wait for so many more members.

    :raises BatchEnded: when one waits no more.
    """
    b = store.batches.c
    for batch_id in sorted(numbers):
        grown = {"total": b.total + numbers[batch_id], "remaining": b.remaining + numbers[batch_id]}
        waits = (b.id == batch_id, b.fired_at.is_(None))
        if not store.execute(sa.update(store.batches).where(*waits).values(grown)).rowcount:
            raise BatchEnded


def rejoin(store: Store, batch_id: int, state: State) -> bool:
    """Let a batch wait again for a member that had ended; return whether it still waits for any."""
    b, name = store.batches.c, _COUNTERS[state]
    back = {name: b[name] - 1, "remaining": b.remaining + 1}
    waits = (b.id == batch_id, b.fired_at.is_(None))
    return bool(store.execute(sa.update(store.batches).where(*waits).values(back)).rowcount)


def take_up(store: Store, row: t.Any) -> None:
    """Let a job that is open again be a member while its batch waits, and of none afterwards.

    After its seat was taken, as by those who end jobs.

    :param row: as it was before, with its ``batch_id``.
    """
    if row.batch_id is not None and not rejoin(store, row.batch_id, State(row.state)):
        store.execute(sa.update(store.jobs).where(store.jobs.c.id == row.id).values(batch_id=None))
        forget(store, row.id)


def close(store: Store, batch_id: int) -> None:
    """Let the job go on when all members that there are have ended: no more come with the first ones."""
    b = store.batches.c
    store.execute(sa.update(store.batches).where(b.id == batch_id).values(open=False))
    gather(Ends(store, batch_id, {}))


@event.listens_for(Session, "before_commit", insert=True)  # before what tells of it
def _count_all(session: Session) -> None:
    if not commits.is_last(session):
        return
    while ends := commits.take(session, Ends):
        batches: dict[tuple[str, int], list[Ends]] = collections.defaultdict(list)
        for one in ends:
            batches[one.store.batches.name, one.batch_id].append(one)
        # In the order of ids, so that two who end members of the same batches wait instead of dying.
        for _, some in sorted(batches.items(), key=lambda item: item[0]):
            _count(some)
    session.info[_COUNTED] = True


@event.listens_for(Session, "after_transaction_end")
def _forget(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_COUNTED, None)


def _count(ends: list[Ends]) -> None:
    store, batch_id = ends[0].store, ends[0].batch_id
    counts = {name: sum(one.counts.get(name, 0) for one in ends) for name in _NAMES}
    row = _add(store, batch_id, counts)
    if row is None or row.open or row.fired_at is not None:
        return
    if is_broken(row):
        _unblock(store, row, next((one.culprit for one in ends if one.culprit), None))
    elif not row.remaining:
        _unblock(store, row, None)


def is_broken(row: t.Any) -> bool:
    """Whether a member did not succeed, and that is the end of the batch."""
    return bool(row.if_failed == CANCEL and row.failed + row.cancelled)


def _add(store: Store, batch_id: int, counts: dict[str, int]) -> Row | None:
    """Count, and return the row as it is then."""
    values = {**counts, "ended": sum(counts.values()), "id": batch_id}
    written = store.run("count", lambda: _write(store), values)
    if store.engine_name != "mysql":
        return written.one_or_none()
    return store.run("counted", lambda: store.current(_read(store)), {"id": batch_id}).one_or_none()


def _write(store: Store) -> sa.Executable:
    b, integer = store.batches.c, sa.Integer()
    values: dict[str, t.Any] = {name: b[name] + missed(name, integer) for name in _NAMES}
    values |= {"remaining": b.remaining - missed("ended", integer)}
    values |= {"last_at": sa.case((missed("ended", integer) > 0, utcnow()), else_=b.last_at)}
    write = sa.update(store.batches).where(b.id == missed("id", b.id.type)).values(values)
    return write if store.engine_name == "mysql" else write.returning(*b)


def _read(store: Store) -> sa.Select[t.Any]:
    b = store.batches.c
    return sa.select(store.batches).where(b.id == missed("id", b.id.type))


def _unblock(store: Store, batch: Row, culprit: tuple[int, State] | None) -> None:
    """Let the job go on that has waited; who has cancelled it meanwhile has ended it for good."""
    c, b = store.jobs.c, store.batches.c
    columns = (c.state, c.attempts, c.run_at, c.turn, c.batch_id, utcnow().label("now"))
    rows = store.lock(columns, c.id == batch.id, c.state == word(State.BLOCKED))
    if not rows:
        return
    store.execute(sa.update(store.batches).where(b.id == batch.id).values(fired_at=utcnow()))
    change = _change(batch, rows[0], culprit)
    apply(store, [change])
    note(store, [(rows[0].batch_id, change)])
    if change.to_state is State.SUBMITTED:
        commits.on_commit(store.session, store.hurry)


def _change(batch: Row, row: Row, culprit: tuple[int, State] | None) -> Change:
    error = None if culprit is None else unsuccessful(*culprit)
    if batch.processed:
        to, values = State.SUBMITTED, {"run_at": row.now}
    elif is_broken(batch):
        to, values = State.CANCELLED, {"finished_at": row.now, "unique_key": None}
    elif row.run_at > row.now:
        to, values = State.SCHEDULED, {"turn": 0, "later_turn": row.turn or None}
    else:
        to, values = State.QUEUED, {}
    return Change(Verb.UNBLOCK, row.id, State.BLOCKED, to, row.attempts, None, error, values)


def unsuccessful(job_id: int, state: State) -> dict[str, t.Any]:
    """Return the error of a job that waited for one that did not succeed."""
    message = f"Job {job_id}, which it waited for, ended {state}."
    return {"type": "MemberFailed", "message": message, "traceback": None}
