"""Read-only selects: what a client may see of jobs."""

from __future__ import annotations

import itertools
import typing as t

import sqlalchemy as sa

from ..errors import Invalid, NotFound
from . import candidates as find
from . import copies
from .candidates import word
from .claim import Claim
from .engines import utcnow
from .hold import Holder, Item, Row, held_by, possible, refusal
from .lanes import unpaused
from .payload import MAX_ID
from .states import State, Verb
from .store import Store

# What the copies of a job have not, and show nevertheless.
_OF_ORIGINALS = frozenset({"owner_ref", "batch_id"})


def open_claims(store: Store, holder: Holder) -> list[Claim]:
    """Return the jobs that the holder holds, late ones included unless these are refused."""
    mine = held_by(store, holder.locker, holder.scope.expression)
    select = _handed_out(store).where(*mine).order_by(store.jobs.c.id)
    return [_claim(row) for row in store.execute(select)]


def open_claim(store: Store, holder: Holder, item: Item) -> Claim:
    """Return one hand-out again, to its holder.

    :raises NotFound, LeaseLost, Cancelled, AlreadySettled: when it is not held.
    """
    c = store.jobs.c
    held = held_by(store, holder.locker, holder.scope.expression)
    mine = (c.id == item.job_id, c.attempts == item.attempt, *held)
    row = store.execute(_handed_out(store).where(*mine)).one_or_none() if possible(item) else None
    if row is None:
        raise refusal(store, holder, item)[0]
    return _claim(row)


def _handed_out(store: Store) -> sa.Select[t.Any]:
    c = store.jobs.c
    return sa.select(
        c.id, c.type, c.data, c.queue, c.priority, c.attempts.label("attempt"), c.failures, c.max_attempts,
        c.lease_seconds, c.created_at.label("enqueued_at"), c.has_files,
    )  # fmt: skip


def _claim(row: Row) -> Claim:
    return Claim(**row._mapping)


def visible(
    store: Store,
    scope: sa.ColumnElement[t.Any],
    *,
    after: int = 0,
    limit: int = 50,
    **equals: t.Any,
) -> list[Row]:
    """Return jobs in the scope by ascending id, those after an id; ``equals`` narrows by column."""
    c = store.jobs.c
    # A page of each alternative: of an OR all that it lets see would be read and sorted.
    pages = [
        sa.select(c.id).where(*arm, c.id > after, *way).order_by(c.id).limit(limit).subquery()
        for arm, way in itertools.product(find.arms_of(scope), ways(store, equals))
    ]
    ids = sa.union(*(sa.select(page) for page in pages)).subquery()
    select = sa.select(*seen(store)).join(ids, ids.c.id == c.id).order_by(c.id).limit(limit)
    return list(store.execute(select))


def equal(store: Store, equals: t.Mapping[str, t.Any]) -> list[sa.ColumnElement[bool]]:
    """Return what narrows jobs by column; ``None`` does not."""
    return [store.jobs.c[name] == value for name, value in equals.items() if value is not None]


def ways(store: Store, equals: t.Mapping[str, t.Any]) -> list[list[sa.ColumnElement[bool]]]:
    """Return the alternatives in which a job shows these: a copy shows some as its original has them."""
    theirs = {name: value for name, value in equals.items() if name in _OF_ORIGINALS and value is not None}
    if not theirs:
        return [equal(store, equals)]
    own = {name: value for name, value in equals.items() if name not in theirs}
    return [equal(store, equals), *([*equal(store, own), way] for way in copies.alike(store, theirs))]


def extent(store: Store, **equals: str | None) -> tuple[int, int]:
    """Return how many jobs there are, and the greatest id among them; ``equals`` narrows by column."""
    c = store.jobs.c
    facts = sa.func.count().label("number"), sa.func.coalesce(sa.func.max(c.id), 0).label("last")
    row = store.execute(sa.select(*facts).select_from(store.jobs).where(*equal(store, equals))).one()
    return row.number, row.last


def whole(store: Store, job_id: int) -> Row | None:
    """Return all columns of a job."""
    if not 1 <= job_id <= MAX_ID:
        return None
    return store.execute(sa.select(store.jobs).where(store.jobs.c.id == job_id)).one_or_none()


def one(store: Store, scope: sa.ColumnElement[t.Any], job_id: int, *, current: bool = False) -> Row:
    """Return one job.

    :param current: as it is now, also where a transaction sees what was when it began.
    :raises NotFound: when there is none in the scope.
    """
    if not 1 <= job_id <= MAX_ID:
        raise NotFound
    select = sa.select(*seen(store)).where(store.jobs.c.id == job_id, scope)
    row = store.execute(store.current(select) if current else select).one_or_none()
    if row is None:
        raise NotFound
    return row


def seen(store: Store) -> list[sa.ColumnElement[t.Any]]:
    """Return the columns of a job that others may see, and those that say who they are."""
    c = store.jobs.c
    # JSON's null is a result too.
    delivered = sa.case((c.result.is_(sa.null()), sa.false()), else_=sa.true()).label("delivered")
    return [
        c.id, c.type, c.data, c.queue, c.priority, c.state, c.attempts, c.failures, c.max_attempts,
        c.progress, c.note, c.result, c.locked_by, c.created_at, c.run_at, c.finished_at,
        c.series, copies.shown(store, "owner_ref"), copies.shown(store, "batch_id"), c.has_files,
        c.updated_at, delivered, c.copy_of, c.trust.is_not(sa.null()).label("asked"),
    ]  # fmt: skip


def last_errors(store: Store, job_ids: t.Sequence[int]) -> dict[int, Row]:
    """Return the row of history with the last error of each job that has had one.

    What went wrong before it was replaced was another content's.
    """
    h = store.history.c
    if not job_ids:
        return {}
    failed = sa.and_(h.error.is_not(sa.null()), h.to_state != State.LOCKED.value)
    told = sa.or_(failed, h.reason == Verb.REPLACE.value)
    last = sa.select(sa.func.max(h.id)).where(h.job_id.in_(job_ids), told).group_by(h.job_id)
    rows = store.execute(sa.select(store.history).where(h.id.in_(last)))
    return {row.job_id: row for row in rows if row.error is not None}


def history(store: Store, job_id: int) -> list[Row]:
    """Return the transitions of a job, oldest first."""
    h = store.history.c
    return list(store.execute(sa.select(store.history).where(h.job_id == job_id).order_by(h.id)))


def count_of(store: Store, owner: str, states: str | t.Iterable[str] | None) -> int:
    """Count the jobs of an owner, of these states only.

    :raises Invalid: for a word that is no state.
    """
    c = store.jobs.c
    wanted = [c.owner_ref == owner]
    if states is not None:
        words = {states} if isinstance(states, str) else set(states)
        if unknown := words - set(State):
            raise Invalid({"state": [f"There is no such state: {', '.join(sorted(unknown))}."]})
        wanted.append(c.state.in_(sorted(words)))
    select = sa.select(sa.func.count()).select_from(store.jobs).where(*wanted)
    return t.cast(int, store.execute(select).scalar_one())


def count_due(
    store: Store,
    types: t.Sequence[str],
    queues: t.Sequence[str] | None = None,
    min_priority: int | None = None,
    max_priority: int | None = None,
) -> int:
    """Count the jobs that a claim may take now. It reads them all."""
    c = store.jobs.c
    narrow: list[sa.ColumnElement[bool]] = [c.type.in_(types), unpaused(store)]
    narrow += [c.queue.in_(queues)] if queues is not None else []
    narrow += [c.priority >= min_priority] if min_priority is not None else []
    narrow += [c.priority <= max_priority] if max_priority is not None else []
    select = sa.select(sa.func.count()).select_from(store.jobs).where(find.due(store, utcnow()), *narrow)
    return t.cast(int, store.execute(select).scalar_one())


def next_untidy(store: Store) -> float | None:
    """Return the seconds until the next job expires, its lease ends, or its processor is called again."""
    c, now = store.jobs.c, utcnow()
    soonest = [
        sa.select(sa.func.min(c.run_at)).where(c.state == word(State.SUBMITTED), c.run_at > now),
        sa.select(sa.func.min(c.locked_until)).where(c.state == word(State.LOCKED), c.locked_until > now),
        sa.select(sa.func.min(c.expires_at)).where(c.finished_at.is_(None), c.expires_at > now),
    ]
    row: t.Any = store.execute(sa.select(now, *(one.scalar_subquery() for one in soonest))).one()
    instants = [instant for instant in row[1:] if instant is not None]
    return max((min(instants) - row[0]).total_seconds(), 0.0) if instants else None
