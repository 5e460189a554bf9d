"""What differs between the database engines, in one place.

Column types, the database's clock and the few functions that each engine spells in its
own way. Everything else in this package is written once for all of them.
"""

from __future__ import annotations

import datetime as dt
import json
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateTable
from sqlalchemy.sql.compiler import DDLCompiler, SQLCompiler
from sqlalchemy.sql.elements import Null
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

_MYSQL = ("mysql", "mariadb")

BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def name_type(length: int) -> sa.types.TypeEngine[str]:
    """Return a text type that compares byte by byte: MySQL's default takes ``Ann`` for ``ann``."""
    return sa.String(length).with_variant(mysql.VARCHAR(length, collation="utf8mb4_bin"), *_MYSQL)


class Instant(TypeDecorator[dt.datetime]):
    """An aware datetime in UTC, in and out, to the microsecond, on every engine."""

    impl = sa.DateTime
    cache_ok = True
    # Alembic writes a type of one's own into a migration by its module's name, without an
    # import; such a migration dies with NameError. By this name it imports ``mysql`` and
    # writes the repr below, which needs nothing of this package.
    __module__ = "sqlalchemy.dialects.mysql"

    def __repr__(self) -> str:
        return "DATETIME(fsp=6).with_variant(sa.DateTime(timezone=True), 'sqlite', 'postgresql')"

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[t.Any]:
        return mysql.DATETIME(fsp=6) if dialect.name in _MYSQL else sa.DateTime(timezone=True)

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("An instant needs a time zone: use datetime.now(UTC).")
        value = value.astimezone(dt.UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=dt.UTC) if value.tzinfo is None else value.astimezone(dt.UTC)


class Json(TypeDecorator[t.Any]):
    """JSON as it was given: ``JSON`` on PostgreSQL, text elsewhere.

    MariaDB's JSON refuses what nests over 31 deep, MySQL's rounds large numbers, and a
    column that SQLite is told to be JSON turns the document ``1.0`` into 1.

    :param none_as_null: whether ``None`` is SQL's NULL, or JSON's null (then
        ``sqlalchemy.null()`` is SQL's).
    """

    impl = sa.JSON
    cache_ok = True
    __module__ = "sqlalchemy.dialects.mysql"  # see Instant

    def __init__(self, none_as_null: bool = True) -> None:
        self.none_as_null = none_as_null
        #: Whether the ORM writes ``None`` that was set; what was never set stays SQL's NULL.
        self.should_evaluate_none = not none_as_null
        super().__init__(none_as_null=True)

    def __repr__(self) -> str:
        variants = ".with_variant(sa.Text(), 'sqlite').with_variant(sa.JSON(), 'postgresql')"
        return f"LONGTEXT(collation='utf8mb4_bin'){variants}"

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[t.Any]:
        if dialect.name == "postgresql":
            return sa.JSON(none_as_null=True)
        return mysql.LONGTEXT(collation="utf8mb4_bin") if dialect.name in _MYSQL else sa.Text()

    def process_bind_param(self, value: t.Any, dialect: Dialect) -> t.Any:
        if isinstance(value, Null) or (value is None and self.none_as_null):
            return None
        if dialect.name == "postgresql":
            return sa.JSON.NULL if value is None else value
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    def process_result_value(self, value: t.Any, dialect: Dialect) -> t.Any:
        return json.loads(value) if isinstance(value, str) and dialect.name != "postgresql" else value


class NameList(TypeDecorator[list[str]]):
    """A list of names, stored as lines between line feeds so that SQL can look for one."""

    impl = sa.Text
    cache_ok = True
    __module__ = "sqlalchemy.dialects.mysql"  # see Instant

    def __repr__(self) -> str:
        return "TEXT(collation='utf8mb4_bin').with_variant(sa.Text(), 'sqlite', 'postgresql')"

    def load_dialect_impl(self, dialect: Dialect) -> sa.types.TypeEngine[t.Any]:
        return mysql.TEXT(collation="utf8mb4_bin") if dialect.name in _MYSQL else sa.Text()

    def process_bind_param(self, value: list[str] | None, dialect: Dialect) -> str | None:
        return "\n".join(["", *value, ""]) if value else None

    def process_result_value(self, value: str | None, dialect: Dialect) -> list[str] | None:
        return value.strip("\n").split("\n") if value else None


class utcnow(FunctionElement[dt.datetime]):
    """The database's clock, at the beginning of the statement."""

    type = Instant()
    inherit_cache = True


@compiles(utcnow, "sqlite")
def _(element: utcnow, compiler: SQLCompiler, **kw: t.Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


@compiles(utcnow, "postgresql")
def _(element: utcnow, compiler: SQLCompiler, **kw: t.Any) -> str:
    # now() is the beginning of the transaction, which may be long ago; clock_timestamp()
    # moves within the statement, so that no index can be searched with it.
    return "statement_timestamp()"


@compiles(utcnow, *_MYSQL)
def _(element: utcnow, compiler: SQLCompiler, **kw: t.Any) -> str:
    return "UTC_TIMESTAMP(6)"


#: A table's ``info`` with this key: it need not outlive a crash of the server. Migrations keep it.
VOLATILE = "jobber.volatile"


@compiles(CreateTable, "postgresql")
def _(element: CreateTable, compiler: DDLCompiler, **kw: t.Any) -> str:
    text: str = compiler.visit_create_table(element, **kw)  # type: ignore[no-untyped-call]
    return text.replace("CREATE ", "CREATE UNLOGGED ", 1) if VOLATILE in element.element.info else text


class plus_seconds(FunctionElement[dt.datetime]):
    """``plus_seconds(instant, seconds)``: an instant that much later."""

    type = Instant()
    inherit_cache = True


def _two(element: FunctionElement[t.Any], compiler: SQLCompiler, kw: dict[str, t.Any]) -> list[str]:
    return [compiler.process(clause, **kw) for clause in element.clauses]


@compiles(plus_seconds, "sqlite")
def _(element: plus_seconds, compiler: SQLCompiler, **kw: t.Any) -> str:
    instant, seconds = _two(element, compiler, kw)
    return f"strftime('%Y-%m-%d %H:%M:%f000', {instant}, ({seconds}) || ' seconds')"


@compiles(plus_seconds, "postgresql")
def _(element: plus_seconds, compiler: SQLCompiler, **kw: t.Any) -> str:
    instant, seconds = _two(element, compiler, kw)
    return f"({instant} + make_interval(secs => {seconds}))"


@compiles(plus_seconds, *_MYSQL)
def _(element: plus_seconds, compiler: SQLCompiler, **kw: t.Any) -> str:
    instant, seconds = _two(element, compiler, kw)
    return f"({instant} + INTERVAL (({seconds}) * 1000000) MICROSECOND)"


class position(FunctionElement[int]):
    """``position(text, part)``: where the part begins, 1 or more; 0 when it is not there."""

    type = sa.Integer()
    inherit_cache = True


@compiles(position)
def _(element: position, compiler: SQLCompiler, **kw: t.Any) -> str:
    return "instr({}, {})".format(*_two(element, compiler, kw))


@compiles(position, "postgresql")
def _(element: position, compiler: SQLCompiler, **kw: t.Any) -> str:
    return "strpos({}, {})".format(*_two(element, compiler, kw))


class unforeseen(FunctionElement[t.Any]):
    """``unforeseen(value)``: a value that PostgreSQL's planner does not look at.

    It plans a prepared statement anew each time as long as it guesses that to be cheaper for the
    values at hand; where all values have one good plan, that takes longer than the statement. Of a
    limit it guesses that a tenth of the rows is wanted: it reads an index in order, though it has to
    guess how many rows that is. A driver that tells no types of values (psycopg2) shows them all the same.
    """

    inherit_cache = True


@compiles(unforeseen)
def _(element: unforeseen, compiler: SQLCompiler, **kw: t.Any) -> str:
    return compiler.process(element.clauses, **kw)


@compiles(unforeseen, "postgresql")
def _(element: unforeseen, compiler: SQLCompiler, **kw: t.Any) -> str:
    [value], text = element.clauses, compiler.process(element.clauses, **kw)
    # Without a type it would be text there, which cannot be compared with everything.
    is_typed = not isinstance(value, sa.BindParameter) or "::" in text
    return f"(SELECT {text})" if is_typed else text


class TransactionLost(SQLAlchemyError):
    """The database has ended the transaction by itself: nothing of it stands."""


# MySQL: too many connections, lock wait timeout, deadlock, a row changed since the snapshot,
# server gone (five ways), shutdown.
_MYSQL_TRANSIENT = {1040, 1203, 1205, 1213, 1020, 1053, 1077, 2002, 2003, 2006, 2013, 2055}
_NO_SAVEPOINT = 1305
_SQLITE_TRANSIENT = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_CANTOPEN", "SQLITE_IOERR", "SQLITE_PROTOCOL")
# PostgreSQL: connection, transaction roll-back, resources, object in use, operator intervention.
_SQLSTATES_TRANSIENT = ("08", "40", "53", "55", "57")


def is_transient(error: Exception) -> bool:
    """Tell whether the same request may succeed in a while: the database is locked or away."""
    if isinstance(error, PoolTimeoutError | TransactionLost):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    cause: t.Any = error.orig
    if hasattr(cause, "sqlite_errorname"):
        return str(cause.sqlite_errorname).startswith(_SQLITE_TRANSIENT)
    if _mysql_number(error) is not None:  # its drivers may know a state too, which says less
        return _mysql_number(error) in _MYSQL_TRANSIENT or _is_out_of_savepoint(error)
    state = getattr(cause, "sqlstate", None)  # None: the connection was never made
    return hasattr(cause, "sqlstate") and (state is None or state.startswith(_SQLSTATES_TRANSIENT))


def undo(session: Session) -> None:
    """Roll back, also what MySQL has rolled back by itself: it knows the session's savepoints no more."""
    try:
        session.rollback()
    except OperationalError as error:
        if not _is_out_of_savepoint(error):
            raise
        session.rollback()  # the rest


def _is_out_of_savepoint(error: Exception) -> bool:
    """Whether MySQL has rolled back the whole by itself, told by who then went back to a savepoint."""
    # The number is that of an absent procedure too.
    return _mysql_number(error) == _NO_SAVEPOINT and "SAVEPOINT" in str(getattr(error, "orig", ""))


def _mysql_number(error: Exception) -> int | None:
    """Return the number of an error of MySQL's, by any driver of it."""
    args = getattr(getattr(error, "orig", None), "args", ())
    return args[0] if args and isinstance(args[0], int) else None
