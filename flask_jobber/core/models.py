"""The tables: jobs, their history and attachments, declared queues, and the keys of requests."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped, Mapper, mapped_column, registry

from .engines import VOLATILE, BigId, Instant, Json, NameList, name_type, utcnow
from .owners import Owned
from .payload import MAX_LOCKER, MAX_NOTE, MAX_OWNER, MAX_UNIQUE_KEY
from .states import POOL, TERMINAL, State

# The login's part, a slash, the node.
_LOCKER = name_type(MAX_LOCKER + 61)


# SQLite uses a partial index only when a term of its OR stands in the query.
_POOL = f"({' OR '.join(f'state = {state.value!r}' for state in sorted(POOL))})"
_LATER = "(state = 'scheduled' OR state = 'submitted')"
#: Always true. A claim says one when it names no type, the other when its scope compares not
#: all columns of ``__claim_by__``; a planner whose statistics are old could else take an
#: index that fits less, and read past a million jobs of others.
UNTYPED, UNLED = "attempts >= 0", "failures >= 0"


class JobMixin(Owned):
    """The columns of a job. Compose the app's own class with ``class Job(JobMixin, db.Model)``.

    Indexes and constraints are added when the class is mapped, so that it may have
    ``__table_args__`` of its own.
    """

    #: Columns that the scope hook compares; they lead the indexes of the claim.
    __claim_by__: t.ClassVar[tuple[str, ...]] = ()
    #: The app's columns that a client may set over HTTP, if the permission hook then agrees.
    __client_columns__: t.ClassVar[tuple[str, ...]] = ()

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

        def __init__(self, **columns: t.Any) -> None: ...

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    type: Mapped[str] = mapped_column(name_type(100))
    #: JSON.
    data: Mapped[t.Any] = mapped_column(Json, nullable=True)
    #: JSON; SQL's NULL is no result, JSON's null is a result.
    result: Mapped[t.Any] = mapped_column(Json(none_as_null=False), nullable=True)
    #: JSON object that came with the result.
    extras: Mapped[t.Any] = mapped_column(Json, nullable=True)
    queue: Mapped[str] = mapped_column(name_type(100), default="default")
    #: Higher runs first.
    priority: Mapped[int] = mapped_column(default=0)
    run_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())
    expires_at: Mapped[dt.datetime | None] = mapped_column(Instant)
    #: Number of hand-outs; the last one is the fence.
    attempts: Mapped[int] = mapped_column(default=0)
    failures: Mapped[int] = mapped_column(default=0)
    max_attempts: Mapped[int] = mapped_column()
    #: JSON, see :mod:`.backoff`.
    backoff: Mapped[t.Any] = mapped_column(Json, nullable=True)
    #: Seconds: the lease this job wants.
    lease_for: Mapped[float | None] = mapped_column(sa.Double)
    state: Mapped[str] = mapped_column(name_type(20), default=State.QUEUED.value)
    #: Who holds it; after a delivery, who delivered.
    locked_by: Mapped[str | None] = mapped_column(_LOCKER)
    locked_at: Mapped[dt.datetime | None] = mapped_column(Instant)
    locked_until: Mapped[dt.datetime | None] = mapped_column(Instant)
    #: Seconds: the lease that was last granted.
    lease_seconds: Mapped[float | None] = mapped_column(sa.Double)
    #: 0 to 1.
    progress: Mapped[float | None] = mapped_column(sa.Double)
    note: Mapped[str | None] = mapped_column(name_type(MAX_NOTE))
    unique_key: Mapped[str | None] = mapped_column(name_type(MAX_UNIQUE_KEY))
    only_for: Mapped[str | None] = mapped_column(_LOCKER)
    #: Then ``only_for`` was a wish: others may have it.
    only_for_until: Mapped[dt.datetime | None] = mapped_column(Instant)
    not_for: Mapped[list[str] | None] = mapped_column(NameList)
    #: Names of the app's feedback, called like its processors.
    on_success: Mapped[str | None] = mapped_column(name_type(100))
    on_failure: Mapped[str | None] = mapped_column(name_type(100))
    #: JSON, see :mod:`.cadence`: its end makes the next job of the series.
    every: Mapped[t.Any] = mapped_column(Json, nullable=True)
    #: The name of the series that it is, or was, a job of.
    series: Mapped[str | None] = mapped_column(name_type(100))
    #: When the series has this one run; back-off moves ``run_at`` only.
    slot: Mapped[dt.datetime | None] = mapped_column(Instant)
    #: The thing it was enqueued for, see :mod:`.owners`; no foreign key, so it may go before its jobs.
    owner_ref: Mapped[str | None] = mapped_column(name_type(MAX_OWNER))
    #: Whether it has, or had, attachments: others pay nothing for them.
    has_files: Mapped[bool | None] = mapped_column()
    created_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())
    updated_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow(), onupdate=utcnow())
    finished_at: Mapped[dt.datetime | None] = mapped_column(Instant)


class HistoryMixin:
    """One row for each transition of a job.

    ``job_id`` is no foreign key: the row of a job that is being worked on need not be
    locked to write its history, and both are pruned together.
    """

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigId)
    #: NULL: there was no job before.
    from_state: Mapped[str | None] = mapped_column(name_type(20))
    to_state: Mapped[str] = mapped_column(name_type(20))
    at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())
    attempt: Mapped[int] = mapped_column()
    locker: Mapped[str | None] = mapped_column(_LOCKER)
    #: Who enqueued, cancelled, retried or released it, if that is known and is not its holder.
    by: Mapped[str | None] = mapped_column(_LOCKER)
    #: The verb, see :class:`~flask_jobber.core.states.Verb`.
    reason: Mapped[str] = mapped_column(name_type(40))
    #: ``{type, message, traceback}``.
    error: Mapped[t.Any] = mapped_column(Json, nullable=True)


class QueueMixin:
    """A declared queue. Jobs name theirs; any other name is an ordinary queue without bounds."""

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

        def __init__(self, **columns: t.Any) -> None: ...

    name: Mapped[str] = mapped_column(name_type(100), primary_key=True)
    #: Unfinished jobs that it may hold; 0 is no limit.
    capacity: Mapped[int] = mapped_column(default=0)
    #: Whether none of its jobs is handed out.
    paused: Mapped[bool] = mapped_column(default=False)
    #: Of jobs that say none.
    priority: Mapped[int | None] = mapped_column()
    #: Seconds: the lease of jobs that say none.
    lease_for: Mapped[float | None] = mapped_column(sa.Double)
    #: Grows when jobs enter while there is a capacity, see :mod:`.lanes`.
    admitted: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    created_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())


class KeyMixin:
    """One request that may come twice, see :mod:`.keys`."""

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    #: Of the login and its key.
    digest: Mapped[str] = mapped_column(name_type(64), primary_key=True)
    #: Of what was asked.
    fingerprint: Mapped[str] = mapped_column(name_type(64))
    #: JSON; NULL only within the transaction that answers.
    answer: Mapped[t.Any] = mapped_column(Json, nullable=True)
    created_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())


class AttachmentMixin:
    """One row for each file of a job that is there to be read; its bytes are in the storage.

    ``job_id`` is no foreign key, as in the history.
    """

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    id: Mapped[int] = mapped_column(BigId, primary_key=True)
    job_id: Mapped[int] = mapped_column(BigId)
    name: Mapped[str] = mapped_column(name_type(200))
    content_type: Mapped[str] = mapped_column(name_type(130))
    #: Bytes.
    size: Mapped[int] = mapped_column(sa.BigInteger)
    #: Hexadecimal.
    sha256: Mapped[str] = mapped_column(name_type(64))
    #: Its name in the storage.
    key: Mapped[str] = mapped_column(name_type(64))
    #: The hand-out whose holder brought it; NULL: the job came with it.
    attempt: Mapped[int | None] = mapped_column()
    created_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())


def make_job(
    tablename: str, metadata: sa.MetaData, *, volatile: bool = False, models: registry | None = None
) -> type[JobMixin]:
    """Return a plain job class, for an app that needs no columns of its own.

    :param models: where the classes of owners are mapped.
    :param volatile: what is in its table may be lost when the database server crashes.
    """
    job: type[JobMixin] = _map("Job", JobMixin, tablename, metadata, volatile)
    job.__models__ = models
    return job


def make_history(job: type[JobMixin], tablename: str) -> type[HistoryMixin]:
    """Return the class of the history of ``job``, in the same metadata."""
    table = job.__table__
    return _map("JobHistory", HistoryMixin, tablename, table.metadata, VOLATILE in table.info)


def make_queue(job: type[JobMixin], tablename: str) -> type[QueueMixin]:
    """Return the class of the declared queues of ``job``, in the same metadata.

    What is declared outlives a crash, whatever becomes of the jobs.
    """
    return _map("JobQueue", QueueMixin, tablename, job.__table__.metadata, False)


def make_key(job: type[JobMixin], tablename: str) -> type[KeyMixin]:
    """Return the class of the keys of requests for ``job``, in the same metadata."""
    table = job.__table__
    return _map("IdempotencyKey", KeyMixin, tablename, table.metadata, VOLATILE in table.info)


def make_attachment(job: type[JobMixin], tablename: str) -> type[AttachmentMixin]:
    """Return the class of the attachments of ``job``, in the same metadata."""
    table = job.__table__
    return _map("JobAttachment", AttachmentMixin, tablename, table.metadata, VOLATILE in table.info)


def _map(name: str, mixin: type[t.Any], tablename: str, metadata: sa.MetaData, volatile: bool) -> type[t.Any]:
    info = {"info": {VOLATILE: True} if volatile else {}}
    names = {"__tablename__": tablename, "__module__": __name__, "__table_args__": info}
    return registry(metadata=metadata).mapped(type(name, (mixin,), names))


def _in(column: str, words: t.Iterable[str]) -> str:
    return f"{column} IN ({', '.join(repr(str(word)) for word in sorted(words))})"


def _index(
    table: sa.Table, name: str, *columns: t.Any, only: str | None = None, unique: bool = False
) -> None:
    # MySQL has no partial indexes; there the index holds all rows.
    where: dict[str, t.Any] = {}
    if only is not None:
        where = {"sqlite_where": sa.text(only), "postgresql_where": sa.text(only)}
    sa.Index(f"{'uq' if unique else 'ix'}_{table.name}_{name}", *columns, unique=unique, **where)


@event.listens_for(JobMixin, "instrument_class", propagate=True)
def _complete_job_table(mapper: Mapper[t.Any], cls: type[JobMixin]) -> None:
    table = t.cast(sa.Table, mapper.local_table)
    c = table.c
    # SQLite gives the id of a pruned job to the next one; a late result would be taken for it.
    table.dialect_options["sqlite"]["autoincrement"] = True
    _add_constraints(table)
    lead = [c[name] for name in cls.__claim_by__]
    _index_claims(table, lead, "", "")
    if lead:
        _index_claims(table, [], "_all", f" AND {UNLED}")
        # A constraint: a foreign key of MySQL needs its index until the table is dropped.
        table.append_constraint(sa.UniqueConstraint(*lead, c.id, name=f"uq_{table.name}_list"))
    _index(table, "lapse", c.state, c.locked_until, only="state = 'locked'")
    _index(table, "held", c.locked_by, c.state, only="state = 'locked'")
    _index(table, "later", c.state, c.run_at, only=_LATER)
    _index(table, "expire", c.expires_at, c.state, only="expires_at IS NOT NULL AND finished_at IS NULL")
    _index(table, "prune", c.finished_at, only="finished_at IS NOT NULL")
    # Of no column that a claim writes: who counts a queue and who claims from it never meet.
    _index(table, "queue", c.queue, c.finished_at, only="finished_at IS NULL")
    _index(table, "owner", c.owner_ref, c.id, only="owner_ref IS NOT NULL")
    # Where it can be partial, jobs of no series pay nothing for it.
    _index(table, "slot", c.series, c.slot, only="series IS NOT NULL", unique=True)


def _index_claims(table: sa.Table, lead: list[sa.Column[t.Any]], suffix: str, mark: str) -> None:
    c = table.c
    order = (c.priority.desc(), c.run_at, c.id)
    _index(table, f"claim{suffix}", *lead, c.state, *order, only=f"{_POOL}{mark} AND {UNTYPED}")
    _index(table, f"claim_type{suffix}", *lead, c.state, c.type, *order, only=f"{_POOL}{mark}")


def _add_constraints(table: sa.Table) -> None:
    c = table.c
    ended = f"({_in('state', TERMINAL)})"
    table.primary_key.name = table.primary_key.name or f"pk_{table.name}"
    table.append_constraint(sa.UniqueConstraint(c.unique_key, name=f"uq_{table.name}_unique_key"))
    for name, rule in {
        "state": _in("state", State),
        "ended": f"(finished_at IS NOT NULL AND {ended}) OR (finished_at IS NULL AND NOT {ended})",
        "held": "state <> 'locked' OR (locked_by IS NOT NULL AND locked_until IS NOT NULL)",
        "key": f"unique_key IS NULL OR NOT {ended}",
    }.items():
        table.append_constraint(sa.CheckConstraint(rule, name=sa.schema.conv(f"ck_{table.name}_{name}")))


@event.listens_for(HistoryMixin, "instrument_class", propagate=True)
def _complete_history_table(mapper: Mapper[t.Any], cls: type[HistoryMixin]) -> None:
    table = t.cast(sa.Table, mapper.local_table)
    table.primary_key.name = table.primary_key.name or f"pk_{table.name}"
    _index(table, "job", table.c.job_id, table.c.id)


@event.listens_for(QueueMixin, "instrument_class", propagate=True)
def _complete_queue_table(mapper: Mapper[t.Any], cls: type[QueueMixin]) -> None:
    table = t.cast(sa.Table, mapper.local_table)
    table.primary_key.name = table.primary_key.name or f"pk_{table.name}"
    name = sa.schema.conv(f"ck_{table.name}_capacity")
    table.append_constraint(sa.CheckConstraint("capacity >= 0", name=name))
    # A claim asks which are paused; it is not to read a thousand queues for it.
    _index(table, "paused", table.c.paused, table.c.name)


@event.listens_for(KeyMixin, "instrument_class", propagate=True)
def _complete_key_table(mapper: Mapper[t.Any], cls: type[KeyMixin]) -> None:
    table = t.cast(sa.Table, mapper.local_table)
    table.primary_key.name = table.primary_key.name or f"pk_{table.name}"
    _index(table, "created", table.c.created_at)


@event.listens_for(AttachmentMixin, "instrument_class", propagate=True)
def _complete_attachment_table(mapper: Mapper[t.Any], cls: type[AttachmentMixin]) -> None:
    table = t.cast(sa.Table, mapper.local_table)
    c = table.c
    table.primary_key.name = table.primary_key.name or f"pk_{table.name}"
    table.append_constraint(sa.UniqueConstraint(c.job_id, c.name, name=f"uq_{table.name}_name"))
    table.append_constraint(sa.UniqueConstraint(c.key, name=f"uq_{table.name}_key"))
