"""Batches: jobs that wait for others, their members, and are then processed by the server.

The job of a batch goes from ``blocked`` to ``submitted`` when its members have ended, and
from there on like a result whose processor broke: it is tried until it goes well, or too
often. What it knows of its members are counters, see :mod:`.tally`.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import typing as t

import sqlalchemy as sa

from ..errors import NotFound, ResultRejected
from ..hooks import JobType
from . import seats, trust
from .candidates import is_held
from .engines import utcnow
from .hold import followed
from .models import JobMixin
from .payload import MAX_ID
from .process import call, describe, find_feedback, load_job
from .scope import in_scope
from .states import State, Verb
from .store import Store
from .tally import GO_ON, Row, is_broken, note
from .transition import Change, append, apply

logger = logging.getLogger("flask_jobber")
# Jobs that are read at once.
_PAGE = 500
# Members that are cancelled at once.
_SOME = 1000
_WITH_IT = {"type": "BatchEnded", "message": "It was cancelled with its batch.", "traceback": None}


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a batch is: from its counters, and from the jobs that are held now."""

    id: int
    type: str
    state: State
    data: t.Any
    owner: str | None
    #: Members.
    total: int
    #: Those that succeeded.
    done: int
    #: Those that failed or expired.
    failed: int
    cancelled: int
    #: Those that are held.
    running: int
    #: Those that have not ended.
    left: int
    #: Ends a second, on average from its beginning to the last one.
    rate: float | None
    #: Until all have ended, if they go on at this rate.
    seconds_left: float | None
    created_at: dt.datetime
    finished_at: dt.datetime | None


def progress(store: Store, batch_id: int, scope: sa.ColumnElement[t.Any] | None = None) -> Progress:
    """Return how far a batch is. :raises NotFound: when there is none, or none in the scope."""
    b, c = store.batches.c, store.jobs.c
    mine = (b.id == batch_id, *(() if scope is None else (c.id.in_(in_scope(store, scope, batch_id)),)))
    columns = (c.id, c.type, c.state, c.data, c.owner_ref.label("owner"), c.created_at, c.finished_at)
    counters = (b.total, b.done, b.failed, b.cancelled, b.remaining.label("left"), b.last_at)
    joined = store.batches.join(store.jobs, b.id == c.id)
    known = sa.select(*columns, *counters).select_from(joined).where(*mine)
    row = store.execute(known).one_or_none() if 1 <= batch_id <= MAX_ID else None
    if row is None:
        raise NotFound
    said = {**row._mapping, "state": State(row.state)}
    last_at = said.pop("last_at")
    rate = _rate(row.total - row.left, row.created_at, last_at)
    seconds = 0.0 if not row.left else None if rate is None else row.left / rate
    return Progress(**said, running=_running(store, batch_id), rate=rate, seconds_left=seconds)


def _rate(ended: int, begin: dt.datetime, last_at: dt.datetime | None) -> float | None:
    seconds = (last_at - begin).total_seconds() if last_at is not None else 0.0
    return ended / seconds if ended and seconds > 0 else None


def _running(store: Store, batch_id: int) -> int:
    """Count the members that are held, among all jobs that are: they are as many as the workers hold.

    A counter of them would be one row that every claim has to write.
    """
    c = store.jobs.c
    held = sa.select(c.batch_id).where(is_held(store))
    if store.engine_name == "mysql":
        held = held.with_hint(store.jobs, f"FORCE INDEX (ix_{store.jobs.name}_lapse)")
    some = held.cte("_held").prefix_with("" if store.engine_name == "mysql" else "MATERIALIZED")
    count = sa.select(sa.func.count()).select_from(some).where(some.c.batch_id == batch_id)
    return t.cast(int, store.execute(count).scalar_one())


def is_batch(store: Store, batch_id: int) -> bool:
    """Whether a job of this id is, or was, waiting for others."""
    return _read(store, batch_id) is not None


def _read(store: Store, batch_id: int) -> Row | None:
    b = store.batches.c
    return store.execute(sa.select(store.batches).where(b.id == batch_id)).one_or_none()


def results(store: Store, batch_id: int) -> t.Iterator[tuple[t.Any, t.Any]]:
    """Read the members that succeeded, by id, each with its result; a page at a time."""
    jobs, last = store.Job, 0
    while True:
        narrow = (jobs.batch_id == batch_id, jobs.state == State.SUCCEEDED.value, jobs.id > last)
        page = store.session.scalars(sa.select(jobs).where(*narrow).order_by(jobs.id).limit(_PAGE)).all()
        for job in page:
            last = job.id
            yield job, job.result
        if len(page) < _PAGE:
            return


class MembersFailed(Exception):
    """A member did not succeed, and that is the end of the batch."""


def process(store: Store, row: Row) -> Exception | None:
    """Call the processor of a batch whose members have ended, and its feedback; return what they raised."""
    batch = _read(store, row.id)
    if batch is None:
        return None
    if is_broken(batch):
        return MembersFailed(f"{batch.failed} failed, {batch.cancelled} were cancelled.")
    known, names = store.types.get(row.type) or JobType(), (row.on_success, batch.on_finish)
    calls = [find_feedback(store, name) for name in names if name is not None]
    job = load_job(store, row.id)
    return call(store, _call_all, known, calls, job)


def _call_all(known: JobType, calls: t.Iterable[t.Callable[..., t.Any]], job: JobMixin) -> None:
    before = (job.state, job.attempts)
    try:
        if known.batch is not None:
            known.batch(job)
        for function in calls:
            function(job, None)
    except ResultRejected as error:
        raise RuntimeError("Nobody has brought the result of a batch: there is none to reject.") from error
    if (job.state, job.attempts) != before:
        raise RuntimeError("The processor of a batch may not change the state of its job.")


def after_failure(store: Store, change: Change) -> None:
    """Cancel the members that are left of a batch that has failed, and call its feedback."""
    batch = _read(store, change.job_id)
    if batch is None:
        return
    # Its retry is to go on with what there is.
    call_off(store, batch.id, if_failed=GO_ON)
    if batch.on_finish is not None:
        function = find_feedback(store, batch.on_finish)
        broken = call(store, function, load_job(store, batch.id), change.error)
        if broken is not None:
            about = {"action": "on_finish", "job_id": batch.id}
            logger.error("the feedback of a batch broke", exc_info=broken, extra=about)
            append(store, [dataclasses.replace(change, from_state=State.FAILED, error=describe(broken))])


def lock(store: Store, job_id: int) -> bool:
    """Lock the counters of a job that may be a batch; return whether it is one that waits.

    Before its own row, as the last member does.
    """
    b = store.batches.c
    waits = sa.select(b.id).where(b.id == job_id, b.fired_at.is_(None))
    if not 1 <= job_id <= MAX_ID or store.execute(waits).one_or_none() is None:
        return False
    if store.engine_name != "sqlite":
        store.execute(waits.with_for_update())
    return True


def call_off(store: Store, batch_id: int, **values: t.Any) -> None:
    """Let a batch wait no more, and cancel its members: some now, the rest when the app tidies."""
    b = store.batches.c
    gone = {"fired_at": sa.func.coalesce(b.fired_at, utcnow()), "sweep": b.processed, **values}
    store.execute(sa.update(store.batches).where(b.id == batch_id).values(gone))
    swept = sa.select(b.id).where(b.id == batch_id, b.sweep)
    if store.execute(swept).one_or_none() is not None:
        sweep(store, batch_id)


def to_be_swept(store: Store, limit: int = 100) -> t.Sequence[int]:
    """Return the ids of batches that have ended before their members."""
    b = store.batches.c
    return store.execute(sa.select(b.id).where(b.sweep).order_by(b.id).limit(limit)).scalars().all()


def sweep(store: Store, batch_id: int) -> int:
    """Cancel some of the members that are left of a batch that has ended; return how many.

    Those that somebody is writing now are left for the next time.
    """
    c, b = store.jobs.c, store.batches.c
    left = (c.batch_id == batch_id, c.finished_at.is_(None))
    ids = store.execute(sa.select(c.id).where(*left).order_by(c.id).limit(_SOME)).scalars().all()
    if not ids:
        store.execute(sa.update(store.batches).where(b.id == batch_id).values(sweep=False))
        return 0
    asked = c.trust.is_not(sa.null()).label("asked")
    columns = (c.state, c.attempts, c.locked_by, asked, *followed(store), utcnow().label("now"))
    if store.engine_name != "sqlite":
        # The counters of those that are batches before their jobs, as their last members do.
        store.execute(sa.select(b.id).where(b.id.in_(ids)).order_by(b.id).with_for_update())
    rows = store.lock(columns, c.id.in_(ids), *left, skip_locked=True)
    for row in rows:
        trust.cancel(store, row)
    changes = [_swept(row) for row in rows]
    apply(store, changes)
    note(store, [(batch_id, change) for change in changes])
    seats.after(store, changes, {row.id: row for row in rows})
    nested = [row.id for row in rows if row.state == State.BLOCKED]
    if nested:
        gone = {"fired_at": sa.func.coalesce(b.fired_at, utcnow()), "sweep": b.processed}
        store.execute(sa.update(store.batches).where(b.id.in_(nested)).values(gone))
    return len(rows)


def _swept(row: Row) -> Change:
    values = {"locked_until": None, "lease_seconds": None, "seated": None}
    values |= {"finished_at": row.now, "unique_key": None}
    facts = (row.id, State(row.state), State.CANCELLED, row.attempts, row.locked_by)
    return Change(Verb.CANCEL, *facts, dict(_WITH_IT), values)
