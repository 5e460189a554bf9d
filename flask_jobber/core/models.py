"""The tables: jobs, their history, attachments and batches, declared queues, and the keys of requests."""

from __future__ import annotations

import datetime as dt
import typing as t

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Mapped, Mapper, mapped_column, registry

from .engines import VOLATILE, BigId, Instant, Json, NameList, name_type, utcnow
from .owners import Owned
from .payload import MAX_LOCKER, MAX_NOTE, MAX_OWNER, MAX_UNIQUE_KEY
from .states import POOL, TERMINAL, UNFINISHED, State

M = t.TypeVar("M")
# The login's part, a slash, the node.
_LOCKER = name_type(MAX_LOCKER + 61)


#: Characters of a value that tells owners apart; a longer one is told by its digest.
MAX_VALUE = 200

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

    #: What becomes of a job that has its ``unique_key`` already, see :mod:`.unique`; it is not stored.
    on_conflict = "raise"

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
    #: Lower runs first among jobs of one priority, see :mod:`.turns`; 0 of scheduled ones, whom time orders.
    turn: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    #: Of one that was enqueued for later: its turn once it is due.
    later_turn: Mapped[int | None] = mapped_column(sa.BigInteger)
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
    #: So many jobs of one key as its limit says are in the pool, see :mod:`.seats`.
    concurrency_key: Mapped[str | None] = mapped_column(name_type(MAX_UNIQUE_KEY))
    #: Of an unfinished job with a key: whether it has a seat in the pool, or waits at the door.
    seated: Mapped[bool | None] = mapped_column()
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
    #: Whether it has, or had, attachments: others (NULL) pay nothing for them. False: a copy that has
    #: none of its own, but those that its original has, or may get.
    has_files: Mapped[bool | None] = mapped_column()
    #: The job that waits for its end; no foreign key, so it may go before it.
    batch_id: Mapped[int | None] = mapped_column(BigId)
    #: The job of which this is one of several hand-outs to different logins, see :mod:`.trust`.
    copy_of: Mapped[int | None] = mapped_column(BigId)
    #: Of a copy of gold: the job beside which it was mixed in, whose owner and batch it shows.
    shown_as: Mapped[int | None] = mapped_column(BigId)
    #: JSON: how many results it wants, and what has become of its copies.
    trust: Mapped[t.Any] = mapped_column(Json, nullable=True)
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


class BatchMixin:
    """What a job that waits for others, its members, knows of them: counters, never their rows.

    Each end of a member changes it, in the same transaction, see :mod:`.tally`.
    """

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    #: Of the job that waits.
    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=False)
    total: Mapped[int] = mapped_column(default=0)
    #: Members that succeeded.
    done: Mapped[int] = mapped_column(default=0)
    #: Those that failed or expired.
    failed: Mapped[int] = mapped_column(default=0)
    cancelled: Mapped[int] = mapped_column(default=0)
    #: Those that have not ended.
    remaining: Mapped[int] = mapped_column(default=0)
    #: Whether its first members are still being added.
    open: Mapped[bool] = mapped_column(default=True)
    #: Whether the server processes it then; else a worker does it.
    processed: Mapped[bool] = mapped_column(default=True)
    #: ``go_on`` or ``cancel``: what a member that did not succeed means.
    if_failed: Mapped[str] = mapped_column(name_type(10))
    #: The name of the app's feedback that is called at its end.
    on_finish: Mapped[str | None] = mapped_column(name_type(100))
    #: Whether members that have not ended are to be cancelled.
    sweep: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())
    #: When the last member ended until now.
    last_at: Mapped[dt.datetime | None] = mapped_column(Instant)
    #: When it ceased to wait; then nothing is added.
    fired_at: Mapped[dt.datetime | None] = mapped_column(Instant)


class TurnMixin:
    """The last turn that was given to an owner's jobs of one type and priority, see :mod:`.turns`."""

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    type: Mapped[str] = mapped_column(name_type(100), primary_key=True)
    priority: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Of the column that tells owners apart, as text.
    value: Mapped[str] = mapped_column(name_type(MAX_VALUE), primary_key=True)
    turn: Mapped[int] = mapped_column(sa.BigInteger)
    used_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())


class SeatMixin:
    """One concurrency key: the seats that its jobs have, see :mod:`.seats`."""

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    key: Mapped[str] = mapped_column(name_type(MAX_UNIQUE_KEY), primary_key=True)
    #: Unfinished jobs that have a seat.
    taken: Mapped[int] = mapped_column()
    #: Those that wait for one.
    waiting: Mapped[int] = mapped_column()
    used_at: Mapped[dt.datetime] = mapped_column(Instant, default=utcnow())


class MeterMixin:
    """One limit of claims that is counted: when there is room in it, see :mod:`.rates`."""

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    #: ``type``, ``queue`` or ``locker``, a colon, and which.
    name: Mapped[str] = mapped_column(name_type(MAX_LOCKER + 10), primary_key=True)
    #: When all that was handed out would have been, one by one at the rate.
    ready_at: Mapped[dt.datetime] = mapped_column(Instant)
    #: The jobs that were ever handed out through it.
    handed: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    #: Those of them that were held no more when it was counted what is held, and when that was.
    ended: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    counted_at: Mapped[dt.datetime | None] = mapped_column(Instant)


class LockerMixin:
    """The record of one login, see :mod:`.lockers`."""

    if t.TYPE_CHECKING:
        __table__: t.ClassVar[sa.Table]

    login: Mapped[str] = mapped_column(name_type(MAX_LOCKER), primary_key=True)
    #: Copies that it was handed, and holds no more.
    claims: Mapped[int] = mapped_column(default=0)
    #: Answers that agreed with others, or with what is known; ``invalid``: that did not.
    valid: Mapped[int] = mapped_column(default=0)
    invalid: Mapped[int] = mapped_column(default=0)
    #: Leases that ended without a result.
    lapses: Mapped[int] = mapped_column(default=0)
    #: Valid answers since the last invalid one.
    streak: Mapped[int] = mapped_column(default=0)
    #: What its quotas are multiplied with.
    standing: Mapped[float] = mapped_column(sa.Double, default=1.0)
    #: JSON: seconds that its last answers took.
    durations: Mapped[t.Any] = mapped_column(Json, nullable=True)
    #: JSON: what it is told of itself, which is how things stood when the day began.
    told: Mapped[t.Any] = mapped_column(Json, nullable=True)
    #: The day (UTC) of ``told``, and of ``today``: the claims since.
    day: Mapped[str | None] = mapped_column(name_type(10))
    today: Mapped[int] = mapped_column(default=0)
    blocked_at: Mapped[dt.datetime | None] = mapped_column(Instant)
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


def make_companion(
    job: type[JobMixin], mixin: type[M], name: str, tablename: str, *, lasting: bool = False
) -> type[M]:
    """Return the class of a table beside that of ``job``, in the same metadata.

    :param name: of the class.
    :param lasting: what is in it outlives a crash, whatever becomes of the jobs.
    """
    table = job.__table__
    return _map(name, mixin, tablename, table.metadata, VOLATILE in table.info and not lasting)


def _map(name: str, mixin: type[t.Any], tablename: str, metadata: sa.MetaData, volatile: bool) -> type[t.Any]:
    info = {"info": {VOLATILE: True} if volatile else {}}
    names = {"__tablename__": tablename, "__module__": __name__, "__table_args__": info}
    return registry(metadata=metadata).mapped(type(name, (mixin,), names))


def _in(states: t.Iterable[State]) -> str:
    return f"state IN ({', '.join(repr(str(state)) for state in sorted(states))})"


def _index(
    table: sa.Table, name: str, *columns: t.Any, only: str | None = None, unique: bool = False
) -> None:
    # MySQL has no partial indexes; there the index holds all rows.
    where: dict[str, t.Any] = {}
    if only is not None:
        where = {"sqlite_where": sa.text(only), "postgresql_where": sa.text(only)}
    sa.Index(f"{'uq' if unique else 'ix'}_{table.name}_{name}", *columns, unique=unique, **where)


def _table_of(mapper: Mapper[t.Any]) -> sa.Table:
    """Return the table of a class, whose primary key has a name."""
    table = t.cast(sa.Table, mapper.local_table)
    table.primary_key.name = table.primary_key.name or f"pk_{table.name}"
    return table


#: The columns of every table of jobs.
OURS = frozenset(name for name in JobMixin.__annotations__ if not name.startswith("_"))


@event.listens_for(JobMixin, "instrument_class", propagate=True)
def _complete_job_table(mapper: Mapper[t.Any], cls: type[JobMixin]) -> None:
    table = _table_of(mapper)
    c = table.c
    # SQLite gives the id of a pruned job to the next one; a late result would be taken for it.
    table.dialect_options["sqlite"]["autoincrement"] = True
    _leave_out_nulls(table)
    _add_constraints(table)
    lead = [c[name] for name in cls.__claim_by__]
    _index_claims(table, lead, "", "")
    if lead:
        _index_claims(table, [], "_all", f" AND {UNLED}")
        # A constraint: a foreign key of MySQL needs its index until the table is dropped.
        table.append_constraint(sa.UniqueConstraint(*lead, c.id, name=f"uq_{table.name}_list"))
    # Nothing else has an end of its lease. The condition does not say the state: PostgreSQL would not look
    # for it then, though it comes first, and would read all of the index with what is dead.
    _index(table, "lapse", c.state, c.locked_until, only="locked_until IS NOT NULL")
    # It has a holder anyway. Who looks for leases says none, so that PostgreSQL cannot take it for those,
    # which is to go through all of it.
    _index(table, "held", c.locked_by, c.state, only="state = 'locked' AND locked_by IS NOT NULL")
    _index(table, "later", c.state, c.run_at, only=_LATER)
    _index(table, "expire", c.expires_at, c.state, only="expires_at IS NOT NULL AND finished_at IS NULL")
    _index(table, "prune", c.finished_at, only="finished_at IS NOT NULL")
    # Of no column that a claim writes: who counts a queue and who claims from it never meet.
    _index(table, "queue", c.queue, c.finished_at, only="finished_at IS NULL")
    _index(table, "owner", c.owner_ref, c.id, only="owner_ref IS NOT NULL")
    # Of no column that a claim writes.
    seats = (c.concurrency_key, c.seated, c.priority.desc(), c.run_at, c.id)
    _index(table, "seat", *seats, only="concurrency_key IS NOT NULL")
    # Where they can be partial, jobs that have no key and are of no series pay nothing for them.
    _index(table, "unique_key", c.unique_key, only="unique_key IS NOT NULL", unique=True)
    _index(table, "slot", c.series, c.slot, only="series IS NOT NULL", unique=True)
    _index(table, "batch", c.batch_id, c.id, only="batch_id IS NOT NULL")
    _index(table, "copy", c.copy_of, c.id, only="copy_of IS NOT NULL")
    _index(table, "shown", c.shown_as, c.id, only="shown_as IS NOT NULL")


def _leave_out_nulls(table: sa.Table) -> None:
    """Let the insertion of a job name no column that is to be NULL, and read back that it is.

    The ORM says each of them, and psycopg took two thirds of a bulk to read the placeholders of a
    thousand jobs: 1,800 jobs a second with them, 4,300 without.
    """
    for column in table.c:
        if column.name in OURS and column.nullable and column.default is None:
            column.server_default = sa.FetchedValue()


def is_left_null(column: sa.Column[t.Any]) -> bool:
    """Whether a column of which an insertion says nothing is NULL."""
    return column.default is None and (column.name in OURS or column.server_default is None)


def _index_claims(table: sa.Table, lead: list[sa.Column[t.Any]], suffix: str, mark: str) -> None:
    c = table.c
    order = (c.priority.desc(), c.turn, c.run_at, c.id)
    _index(table, f"claim{suffix}", *lead, c.state, *order, only=f"{_POOL}{mark} AND {UNTYPED}")
    _index(table, f"claim_type{suffix}", *lead, c.state, c.type, *order, only=f"{_POOL}{mark}")


def _add_constraints(table: sa.Table) -> None:
    # Each state is named once: PostgreSQL reads these anew for each statement that writes a job. With
    # lists in four of them that took 16 µs more, of an update's 207.
    for name, rule in {
        "state": f"CASE WHEN finished_at IS NULL THEN {_in(UNFINISHED)} ELSE {_in(TERMINAL)} END",
        "held": "state <> 'locked' OR (locked_by IS NOT NULL AND locked_until IS NOT NULL)",
        "key": "unique_key IS NULL OR finished_at IS NULL",
        "seat": "seated IS NULL OR finished_at IS NULL",
        "turn": "state <> 'scheduled' OR turn = 0",
    }.items():
        table.append_constraint(sa.CheckConstraint(rule, name=sa.schema.conv(f"ck_{table.name}_{name}")))


@event.listens_for(HistoryMixin, "instrument_class", propagate=True)
def _complete_history_table(mapper: Mapper[t.Any], cls: type[HistoryMixin]) -> None:
    table = _table_of(mapper)
    _index(table, "job", table.c.job_id, table.c.id)


@event.listens_for(QueueMixin, "instrument_class", propagate=True)
def _complete_queue_table(mapper: Mapper[t.Any], cls: type[QueueMixin]) -> None:
    table = _table_of(mapper)
    name = sa.schema.conv(f"ck_{table.name}_capacity")
    table.append_constraint(sa.CheckConstraint("capacity >= 0", name=name))
    # A claim asks which are paused; it is not to read a thousand queues for it.
    _index(table, "paused", table.c.paused, table.c.name)


@event.listens_for(KeyMixin, "instrument_class", propagate=True)
def _complete_key_table(mapper: Mapper[t.Any], cls: type[KeyMixin]) -> None:
    table = _table_of(mapper)
    _index(table, "created", table.c.created_at)


@event.listens_for(TurnMixin, "instrument_class", propagate=True)
def _complete_turn_table(mapper: Mapper[t.Any], cls: type[TurnMixin]) -> None:
    table = _table_of(mapper)
    c = table.c
    _index(table, "last", c.type, c.priority, c.turn)
    _index(table, "used", c.used_at)


@event.listens_for(SeatMixin, "instrument_class", propagate=True)
def _complete_seat_table(mapper: Mapper[t.Any], cls: type[SeatMixin]) -> None:
    table = _table_of(mapper)
    _index(table, "used", table.c.used_at)


@event.listens_for(MeterMixin, "instrument_class", propagate=True)
def _complete_meter_table(mapper: Mapper[t.Any], cls: type[MeterMixin]) -> None:
    table = _table_of(mapper)
    _index(table, "ready", table.c.ready_at)


@event.listens_for(LockerMixin, "instrument_class", propagate=True)
def _complete_locker_table(mapper: Mapper[t.Any], cls: type[LockerMixin]) -> None:
    _table_of(mapper)


@event.listens_for(AttachmentMixin, "instrument_class", propagate=True)
def _complete_attachment_table(mapper: Mapper[t.Any], cls: type[AttachmentMixin]) -> None:
    table = _table_of(mapper)
    c = table.c
    table.append_constraint(sa.UniqueConstraint(c.job_id, c.name, name=f"uq_{table.name}_name"))
    table.append_constraint(sa.UniqueConstraint(c.key, name=f"uq_{table.name}_key"))


@event.listens_for(BatchMixin, "instrument_class", propagate=True)
def _complete_batch_table(mapper: Mapper[t.Any], cls: type[BatchMixin]) -> None:
    table = _table_of(mapper)
    # It is written at each end of a member: no index holds what changes then.
    _index(table, "sweep", table.c.sweep, table.c.id)
