"""What a verb works on."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import typing as t

import sqlalchemy as sa
from sqlalchemy.orm import Session

from ..config import Settings
from ..hooks import Function, JobType
from .backoff import Backoff, read_backoff
from .engines import utcnow
from .files import Storage
from .front import Fronts
from .limits import Rules
from .models import AttachmentMixin, BatchMixin, HistoryMixin, JobMixin, KeyMixin, LockerMixin, QueueMixin

if t.TYPE_CHECKING:
    from .news import Teller

_MOST_STATEMENTS = 500


@dataclasses.dataclass(frozen=True)
class Store:
    """One session and the tables in it, with what the app has set and registered.

    A verb is a function that takes a store first. It never commits: the caller does.
    """

    session: Session
    Job: type[JobMixin]
    History: type[HistoryMixin]
    Queue: type[QueueMixin]
    Key: type[KeyMixin]
    Locker: type[LockerMixin]
    settings: Settings
    types: t.Mapping[str, JobType]
    #: What jobs may name in ``on_success`` and ``on_failure``.
    feedback: t.Mapping[str, Function]
    #: The sender of the signals.
    sender: object
    #: Names of queues that were not declared when somebody looked; some may be by now.
    undeclared: set[str]
    #: What :meth:`run` has built.
    statements: dict[t.Hashable, sa.Executable]
    Attachment: type[AttachmentMixin]
    #: Where the bytes of attachments are.
    storage: Storage
    #: Tells those who wait for jobs.
    teller: Teller
    Batch: type[BatchMixin]
    #: Says that there is something to process now.
    hurry: t.Callable[[], None]
    #: What the app says of turns, seats and limits.
    rules: Rules
    #: Where claims may begin.
    fronts: Fronts

    @property
    def jobs(self) -> sa.Table:
        return self.Job.__table__

    @property
    def history(self) -> sa.Table:
        return self.History.__table__

    @property
    def queues(self) -> sa.Table:
        return self.Queue.__table__

    @property
    def keys(self) -> sa.Table:
        return self.Key.__table__

    @property
    def attachments(self) -> sa.Table:
        return self.Attachment.__table__

    @property
    def batches(self) -> sa.Table:
        return self.Batch.__table__

    @property
    def lockers(self) -> sa.Table:
        return self.Locker.__table__

    @property
    def connection(self) -> sa.Connection:
        return self.session.connection(bind_arguments={"mapper": self.Job})

    @functools.cached_property
    def engine_name(self) -> str:
        """``sqlite``, ``postgresql`` or ``mysql`` (MariaDB too)."""
        name = self.session.get_bind(self.Job).dialect.name
        return "mysql" if name == "mariadb" else name

    def identity_of(self, job_id: int) -> t.Any:
        """Return the key under which the session holds the object of a job."""
        return self.mapper.identity_key_from_primary_key((job_id,))

    @functools.cached_property
    def mapper(self) -> sa.orm.Mapper[t.Any]:
        return t.cast("sa.orm.Mapper[t.Any]", sa.inspect(self.Job))

    def execute(self, statement: sa.Executable, values: t.Any = None) -> sa.CursorResult[t.Any]:
        """Execute past the ORM, which would cost as much again as the statement."""
        if self.session.autoflush:
            self.session.flush()
        return self.connection.execute(statement, values)

    def run(
        self, key: t.Hashable, build: t.Callable[[], sa.Executable], values: t.Any
    ) -> sa.CursorResult[t.Any]:
        """Execute a statement that is built once for each key.

        Building a claim took 3.5 ms, executing it 0.5. What is built may hold no value of
        the request it was built in: all come by name, in ``values`` (one mapping, or a list).
        """
        key = (self.engine_name, key)
        values = [_named(row) for row in values] if isinstance(values, list) else _named(values)
        statement = self.statements.get(key)
        if statement is None:
            if len(self.statements) >= _MOST_STATEMENTS:
                self.statements.clear()
            statement = self.statements[key] = build()
        return self.execute(statement, values)

    def lock(
        self, columns: t.Sequence[t.Any], *conditions: sa.ColumnElement[t.Any], skip_locked: bool = False
    ) -> t.Sequence[sa.Row[t.Any]]:
        """Read rows as they are now, locked until the transaction ends."""
        return self.execute(self.locking(columns, *conditions, skip_locked=skip_locked)).all()

    def locking(
        self, columns: t.Sequence[t.Any], *conditions: sa.ColumnElement[t.Any], skip_locked: bool = False
    ) -> sa.Executable:
        """Return a statement that reads rows and keeps others from changing them.

        SQLite has no locks of rows: a write that changes nothing takes its only write lock.
        """
        c = self.jobs.c
        if self.engine_name == "sqlite":
            still = sa.update(self.jobs).where(*conditions).values(updated_at=c.updated_at)
            return still.returning(c.id, *columns)
        # In the order of ids, so that two who lock the same rows wait instead of dying.
        select = sa.select(c.id, *columns).where(*conditions).order_by(c.id)
        if self.engine_name == "mysql":  # it locks what it reads on its way: all of these go by id
            select = select.with_hint(self.jobs, "FORCE INDEX (PRIMARY)")
        return select.with_for_update(skip_locked=skip_locked)

    def now(self) -> dt.datetime:
        """Return the time by the database's clock."""
        return t.cast(dt.datetime, self.execute(sa.select(utcnow())).scalar_one())

    def current(self, select: sa.Select[t.Any]) -> sa.Select[t.Any]:
        """Make a read see what is committed now.

        MySQL's plain reads show the moment at which the transaction began.
        """
        return select.with_for_update(read=True) if self.engine_name == "mysql" else select

    def remembered(self, what: str) -> dict[t.Any, t.Any]:
        """Return what is noted under a name until the transaction ends, to be added to."""
        transaction = self.session.get_transaction()
        if transaction is None:
            return {}
        began, known = self.session.info.get(what, (None, {}))
        if began is not transaction:
            known = {}
            self.session.info[what] = (transaction, known)
        return t.cast(dict[t.Any, t.Any], known)

    def backoff(self, type_: str, of_job: t.Any) -> Backoff:
        """Return the back-off of a job: its own, its type's, or the app's."""
        known = self.types.get(type_)
        of_type = known.backoff if known is not None else None
        return read_backoff(of_job or of_type or self.settings.backoff)


def _named(values: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    # A value by the name of a column would be written into the column.
    return {f"_{name}": value for name, value in values.items()}


def missed(name: str, type_: t.Any = None, *, expanding: bool = False) -> sa.BindParameter[t.Any]:
    """Return the place of a value that must come with the execution, see :meth:`Store.run`."""
    return sa.bindparam(f"_{name}", type_=type_, expanding=expanding, required=True)
