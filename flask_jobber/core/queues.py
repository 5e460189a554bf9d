"""Queues by name: declared, changed, paused, counted, emptied."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..errors import DuplicateQueue, Invalid, NotFound, QueueInUse
from . import payload, seats, trust
from .candidates import still, word
from .engines import utcnow
from .enqueue import begin
from .models import QueueMixin
from .news import hint
from .settle import ended
from .states import POOL, State, Verb
from .store import Store
from .tally import note
from .transition import Change, apply

#: The error in the history of a job that was waiting in a queue when it was emptied.
EMPTIED = {"type": "QueueEmptied", "message": "Its queue was emptied.", "traceback": None}


_KINDS = ("waiting", "scheduled", "locked", "submitted", "blocked")


class Said(t.TypedDict, total=False):
    """What may be said of a queue; ``None`` is as if it were not said.

    ``capacity``: unfinished jobs that it may hold, 0 is no limit. ``priority`` and
    ``lease_for`` (seconds or a timedelta): of jobs that say none.
    """

    capacity: int | None
    priority: int | None
    lease_for: float | dt.timedelta | None


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """A queue and the number of its jobs.

    :param declared: an undeclared one is known by its jobs alone.
    :param waiting: may be claimed now, or could if the queue were not paused.
    :param scheduled: for later.
    :param blocked: wait for other jobs, or for others of their ``concurrency_key``.
    :param finished: ``None`` when they were not counted.
    :param oldest_seconds: how long the one that could have been claimed first has been waiting.
    """

    name: str
    declared: bool = False
    capacity: int = 0
    paused: bool = False
    priority: int | None = None
    lease_for: float | None = None
    waiting: int = 0
    scheduled: int = 0
    locked: int = 0
    submitted: int = 0
    blocked: int = 0
    finished: int | None = 0
    oldest_seconds: float | None = None

    @property
    def unfinished(self) -> int:
        """The jobs that count against the capacity."""
        return self.waiting + self.scheduled + self.locked + self.submitted + self.blocked


class Queues:
    """The queues of a Jobber. Its verbs join the caller's transaction and never commit."""

    def __init__(self, store: t.Callable[[], Store]) -> None:
        self._store = store

    def create(self, name: str, **said: t.Unpack[Said]) -> QueueMixin:
        """Declare a queue; jobs may be in it already.

        :param said: see :class:`Said`.
        :raises Invalid: for a bad name or setting.
        :raises DuplicateQueue: when it is declared; the transaction goes on.
        """
        store = self._store()
        queue = store.Queue(name=payload.check_name("name", name), **_checked(store, said))
        begin(store)
        savepoint = store.session.begin_nested()
        try:
            store.session.add(queue)
            store.session.flush()
        except IntegrityError as error:
            savepoint.rollback()
            raise DuplicateQueue(f"The queue {name!r} is declared already: change it.") from error
        savepoint.commit()
        return queue

    def change(self, name: str, **said: t.Unpack[Said]) -> QueueMixin:
        """Change what is said of a queue; what is in it stays, also over a smaller capacity.

        :raises Invalid: for a bad setting.
        :raises NotFound: when it is not declared.
        """
        return self._write(name, _checked(self._store(), said))

    def pause(self, name: str) -> QueueMixin:
        """Hand out none of its jobs; those that are held go on. :raises NotFound: as :meth:`change`."""
        return self._write(name, {"paused": True})

    def resume(self, name: str) -> QueueMixin:
        """Hand out its jobs again. :raises NotFound: as :meth:`change`."""
        hint(self._store(), more=True)
        return self._write(name, {"paused": False})

    def _write(self, name: str, values: dict[str, t.Any]) -> QueueMixin:
        store = self._store()
        if values:
            store.execute(sa.update(store.queues).where(store.queues.c.name == name).values(values))
        return self.find(name)

    def find(self, name: str) -> QueueMixin:
        """Return a declared queue. :raises NotFound: when it is not declared."""
        store = self._store()
        queue = store.session.get(store.Queue, name, populate_existing=True)
        if queue is None:
            raise NotFound(f"There is no queue {name!r} that is declared.")
        return queue

    def empty(self, name: str, limit: int = 1000, up_to: int = payload.MAX_ID) -> int:
        """Cancel up to ``limit`` of the waiting jobs in a queue, declared or not; return how many.

        Those that are held or submitted stay, those that wait for other jobs, and those of a
        series, which its own end ends.

        :param up_to: the last id that may be cancelled.
        :raises NotFound: when it is neither declared nor has jobs.
        """
        store, c = self._store(), self._store().jobs.c
        # The job that holds a series' key is the one that goes on with it.
        alone = sa.or_(c.every.is_(sa.null()), c.unique_key.is_(None))
        # A copy waits for its original, and is called off with it.
        pool = sa.and_(c.state.in_(sorted(POOL)), c.copy_of.is_(None))
        asked = c.trust.is_not(sa.null())
        door = sa.and_(c.state == word(State.BLOCKED), sa.or_(c.seated.is_not(None), asked))
        waiting = (c.queue == name, sa.or_(pool, door), alone, c.id <= up_to)
        chosen = sa.select(c.id).where(*waiting, c.finished_at.is_(None)).order_by(c.id).limit(limit)
        ids = store.execute(chosen).scalars().all()
        more = (asked.label("asked"), utcnow().label("now"))
        columns = (c.state, c.attempts, c.batch_id, c.concurrency_key, c.seated, *more)
        rows = store.lock(columns, c.id.in_(ids), still(*waiting)) if ids else ()
        for row in rows:
            trust.cancel(store, row)
        changes = [_emptied(row) for row in rows]
        apply(store, changes)
        note(store, [(row.batch_id, change) for row, change in zip(rows, changes, strict=True)])
        seats.after(store, changes, {row.id: row for row in rows})
        if not ids:
            self._check_known(store, name)
        return len(rows)

    def destroy(self, name: str, *, force: bool = False) -> None:
        """Forget what is declared of a queue.

        :param force: also with unfinished jobs, which go on as in any undeclared queue.
        :raises NotFound: when it is not declared.
        :raises QueueInUse: when unfinished jobs are in it.
        """
        queue, store = self.find(name), self._store()
        (now,) = self.stats(name, finished=False)
        if now.unfinished and not force:
            raise QueueInUse(
                f"{now.unfinished} unfinished jobs are in the queue {name!r}: empty it, or force it;"
                " then they go on without a capacity and unpaused."
            )
        store.session.delete(queue)
        store.session.flush()
        hint(store, more=queue.paused)

    def stats(self, name: str | None = None, *, finished: bool = True) -> list[Stats]:
        """Count the jobs in each queue, declared or not, or in one.

        :param finished: count those too; it reads the whole table.
        :raises NotFound: when the one is neither declared nor has jobs.
        """
        store = self._store()
        declared = {row.name: _settings(row) for row in store.execute(_of(store.queues.c.name, name))}
        counted = {row.name: _counts(row, finished) for row in store.execute(_count(store, name, finished))}
        if name is not None and name not in declared.keys() | counted.keys():
            self._check_known(store, name)
        none: dict[str, t.Any] = {} if finished else {"finished": None}
        names = sorted(declared.keys() | counted.keys() | ({name} if name is not None else set()))
        return [Stats(one, **declared.get(one, {}), **counted.get(one, none)) for one in names]

    def _check_known(self, store: Store, name: str) -> None:
        c, q = store.jobs.c, store.queues.c
        jobs, queue = sa.exists().where(c.queue == name), sa.exists().where(q.name == name)
        if not store.execute(sa.select(sa.or_(queue, jobs))).scalar_one():
            raise NotFound(f"There is no queue {name!r}: it is not declared and has no jobs.")


def _checked(store: Store, said: Said) -> dict[str, t.Any]:
    unknown = said.keys() - Said.__annotations__.keys()
    if unknown:
        raise Invalid({name: ["A queue has no such setting."] for name in unknown})
    values: dict[str, t.Any] = dict(said)
    if "capacity" in values:
        values["capacity"] = payload.check_int("capacity", values["capacity"] or 0, 0)
    if values.get("priority") is not None:
        payload.check_int("priority", values["priority"])
    if values.get("lease_for") is not None:
        longest = store.settings.max_lease_seconds
        values["lease_for"] = payload.check_seconds("lease_for", values["lease_for"], longest)
    return values


def _emptied(row: sa.Row[t.Any]) -> Change:
    values = ended(row.now) | {"locked_until": None, "lease_seconds": None}
    return Change(
        Verb.CANCEL,
        row.id,
        State(row.state),
        State.CANCELLED,
        row.attempts,
        error=dict(EMPTIED),
        values=values,
    )


def _of(column: sa.Column[t.Any], name: str | None) -> sa.Select[t.Any]:
    select = sa.select(column.table)
    return select if name is None else select.where(column == name)


def _settings(row: sa.Row[t.Any]) -> dict[str, t.Any]:
    names = ("capacity", "paused", "priority", "lease_for")
    return {"declared": True, **{name: getattr(row, name) for name in names}}


def _count(store: Store, name: str | None, finished: bool) -> sa.Select[t.Any]:
    c, now = store.jobs.c, utcnow()
    later = sa.and_(c.state == word(State.SCHEDULED), c.run_at > now)
    waiting = sa.and_(c.state.in_([word(state) for state in sorted(POOL)]), sa.not_(later))
    kinds = {"waiting": waiting, "scheduled": later, "finished": c.finished_at.is_not(None)}
    others = (State.LOCKED, State.SUBMITTED, State.BLOCKED)
    kinds |= {state.value: c.state == word(state) for state in others}
    numbers = [sa.func.count(sa.case((holds, 1))).label(kind) for kind, holds in kinds.items()]
    oldest = sa.func.min(sa.case((waiting, c.run_at))).label("oldest")
    select = sa.select(c.queue.label("name"), *numbers, oldest, now.label("now")).group_by(c.queue)
    select = select if finished else select.where(c.finished_at.is_(None))
    return select if name is None else select.where(c.queue == name)


def _counts(row: sa.Row[t.Any], finished: bool) -> dict[str, t.Any]:
    numbers = {kind: getattr(row, kind) for kind in _KINDS}
    oldest = None if row.oldest is None else max((row.now - row.oldest).total_seconds(), 0.0)
    return {**numbers, "finished": row.finished if finished else None, "oldest_seconds": oldest}
