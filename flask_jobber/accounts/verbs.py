"""What an operator does to accounts, and what a worker needs of its own.

Each verb works in the caller's transaction and never commits. A worker's row is locked by
whoever takes rights away, and held by each request of the worker that touches jobs: when
:func:`lock`, :func:`fire` or :func:`destroy` has been committed, no claim of an older right
can follow.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..api.identity import ACCOUNT
from ..core.engines import plus_seconds, utcnow
from ..core.enqueue import begin
from ..core.hold import Row, take_back
from ..core.news import hint
from ..core.payload import check_name
from ..core.store import Store
from ..errors import Invalid, JobberError
from .secret import hash_of, is_one_of, new_client_id, new_secret, new_token
from .tables import MAX_NAME, Tables

NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")
#: Secrets that a worker may have at a time, and tokens.
MOST_SECRETS, MOST_TOKENS = 20, 1000


class NoSuchWorker(JobberError):
    """There is no such worker."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no worker {name!r}.")


class WorkerExists(JobberError):
    """There is a worker of this name already."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is a worker {name!r} already: reset it, or take another name.")


class TooManySecrets(JobberError):
    """The worker has as many secrets as it may."""


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What a worker logs in with. The secret is kept nowhere: it is told once."""

    name: str
    client_id: str
    client_secret: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Book:
    """The accounts of one Jobber, in one session."""

    store: Store
    tables: Tables


def locker_of(name: str) -> str:
    """Return the locker name of a worker; each of its nodes adds a slash and its own."""
    return ACCOUNT + name


# -- what an operator does ----------------------------------------------------------------


def create(book: Book, name: str) -> Credentials:
    """Make an account, with its first secret.

    :raises Invalid: when the name is none. :raises WorkerExists: when it is taken.
    """
    if not NAME.fullmatch(name):
        raise Invalid({"name": [f"The name of a worker matches {NAME.pattern}."]})
    if _find(book, name) is not None:
        raise WorkerExists(name)
    client_id = new_client_id()
    begin(book.store)
    savepoint = book.store.session.begin_nested()
    try:
        _insert(book, book.tables.worker, name=name, client_id=client_id)
    except IntegrityError as error:  # made since
        savepoint.rollback()
        raise WorkerExists(name) from error
    savepoint.commit()
    return _add_secret(book, take(book, name))


def add_secret(book: Book, name: str) -> Credentials:
    """Give a worker one more secret, for one more machine.

    :raises NoSuchWorker: when there is none.
    :raises TooManySecrets: when it has :data:`MOST_SECRETS`.
    """
    row = take(book, name)
    s = book.tables.secret.c
    count = book.store.execute(sa.select(sa.func.count()).where(s.worker_id == row.id)).scalar_one()
    if count >= MOST_SECRETS:
        raise TooManySecrets(f"{name!r} has {count} secrets, the most it may: reset it.")
    return _add_secret(book, row)


def _add_secret(book: Book, row: Row) -> Credentials:
    secret = new_secret()
    _insert(book, book.tables.secret, worker_id=row.id, hash=hash_of(secret))
    return Credentials(row.name, row.client_id, secret)


def reset(book: Book, name: str) -> Credentials:
    """Make a new secret; those of before and all tokens are dead. What it holds it keeps.

    :raises NoSuchWorker: when there is none.
    """
    row = take(book, name)
    for table in (book.tables.secret, book.tables.token):
        _delete(book, table, table.c.worker_id == row.id)
    return _add_secret(book, row)


def lock(book: Book, name: str) -> int:
    """Shut a worker out; its tokens are dead. Return how many claims are back in the queues.

    :raises NoSuchWorker: when there is none.
    """
    row = take(book, name)
    w = book.tables.worker
    book.store.execute(
        sa.update(w).where(w.c.id == row.id, w.c.locked_at.is_(None)).values(locked_at=utcnow())
    )
    _delete(book, book.tables.token, book.tables.token.c.worker_id == row.id)
    return take_back(book.store, locker_of(name))


def unlock(book: Book, name: str) -> None:
    """Let a worker in again, with the secrets it had. :raises NoSuchWorker: when there is none."""
    row = take(book, name)
    w = book.tables.worker
    book.store.execute(sa.update(w).where(w.c.id == row.id).values(locked_at=None))


def destroy(book: Book, name: str) -> int:
    """Delete an account; return how many claims are back in the queues.

    :raises NoSuchWorker: when there is none.
    """
    row = take(book, name)
    for table in (book.tables.secret, book.tables.token, book.tables.hire):
        _delete(book, table, table.c.worker_id == row.id)
    _delete(book, book.tables.worker, book.tables.worker.c.id == row.id)
    return take_back(book.store, locker_of(name))


def hire(book: Book, queue: str, name: str) -> bool:
    """Let a worker see the jobs of a queue; return whether it did not before.

    :raises Invalid: for a bad name of a queue. :raises NoSuchWorker: when there is none.
    """
    check_name("queue", queue)
    row = take(book, name)
    h = book.tables.hire.c
    mine = sa.select(h.id).where(h.worker_id == row.id, h.queue == queue)
    # Whoever else hires it waits for the worker's row.
    if book.store.execute(book.store.current(mine)).first() is not None:
        return False
    _insert(book, book.tables.hire, worker_id=row.id, queue=queue)
    hint(book.store, more=True)
    return True


def fire(book: Book, queue: str, name: str) -> tuple[bool, int]:
    """Take a queue from a worker; return whether it had it, and how many claims are back in it.

    :raises Invalid: for a bad name of a queue. :raises NoSuchWorker: when there is none.
    """
    check_name("queue", queue)
    row = take(book, name)
    h = book.tables.hire
    had = _delete(book, h, h.c.worker_id == row.id, h.c.queue == queue)
    return had > 0, take_back(book.store, locker_of(name), queue)


def take(book: Book, name: str) -> Row:
    """Return a worker's row, locked: its requests that are under way end first.

    :raises NoSuchWorker: when there is none.
    """
    w = book.tables.worker
    if book.store.engine_name == "sqlite":  # takes the only write lock
        statement: sa.Executable = sa.update(w).where(w.c.name == name).values(name=name).returning(*w.c)
    else:
        statement = sa.select(w).where(w.c.name == name).with_for_update()
    row = book.store.execute(statement).one_or_none() if NAME.fullmatch(name) else None
    if row is None:
        raise NoSuchWorker(name)
    return row


def _find(book: Book, name: str) -> Row | None:
    w = book.tables.worker
    return book.store.execute(sa.select(w).where(w.c.name == name)).one_or_none()


def _insert(book: Book, table: sa.Table, **values: t.Any) -> None:
    book.store.execute(sa.insert(table).inline().values(values))


def _delete(book: Book, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> int:
    return book.store.execute(sa.delete(table).where(*conditions)).rowcount


# -- what a worker needs ------------------------------------------------------------------


def authenticate(book: Book, client_id: str, client_secret: str) -> Row | None:
    """Return the worker with this id and secret, locked or not; ``None`` when there is none.

    A client that is not there costs the same reads and comparisons.
    """
    w, s = book.tables.worker, book.tables.secret
    known = sa.select(w, s.c.hash).join_from(w, s, s.c.worker_id == w.c.id).where(w.c.client_id == client_id)
    rows = book.store.execute(known).all()
    return rows[0] if is_one_of(client_secret, [row.hash for row in rows]) else None


def issue(book: Book, client_id: str, client_secret: str, seconds: float) -> str | None:
    """Return a new token for a worker that has authenticated; ``None`` when it is out by now.

    :param seconds: for which it is good.
    """
    w, s, k = book.tables.worker, book.tables.secret, book.tables.token
    mine = (w.c.client_id == client_id, w.c.locked_at.is_(None))
    # A lock or a reset that comes meanwhile waits for this, or has been waited for.
    if not book.store.execute(sa.update(w).where(*mine).values(last_login_at=utcnow())).rowcount:
        return None
    hashes = sa.select(s.c.worker_id, s.c.hash).join_from(s, w, s.c.worker_id == w.c.id).where(*mine)
    rows = book.store.execute(book.store.current(hashes)).all()
    if not is_one_of(client_secret, [row.hash for row in rows]):
        return None
    worker_id = rows[0].worker_id
    _make_room(book, worker_id)
    token = new_token()
    values = {"worker_id": worker_id, "hash": hash_of(token)}
    _insert(book, k, **values, expires_at=plus_seconds(utcnow(), sa.literal(seconds, sa.Double())))
    return token


def _make_room(book: Book, worker_id: int) -> None:
    """Forget its tokens that have expired, and the oldest of too many."""
    k = book.tables.token
    mine = k.c.worker_id == worker_id
    _delete(book, k, mine, k.c.expires_at <= utcnow())
    oldest = sa.select(k.c.id).where(mine).order_by(k.c.id.desc()).offset(MOST_TOKENS - 1).limit(1)
    border = book.store.execute(oldest).scalar_one_or_none()
    if border is not None:
        _delete(book, k, mine, k.c.id <= border)


def bearer(book: Book, token: str) -> Row | None:
    """Return the worker whose token this is: one that has not expired, of one that is not locked."""
    w, k = book.tables.worker, book.tables.token
    good = (k.c.hash == hash_of(token), k.c.expires_at > utcnow(), w.c.locked_at.is_(None))
    select = sa.select(w.c.id, w.c.name).join_from(k, w, k.c.worker_id == w.c.id).where(*good)
    return book.store.execute(select).one_or_none()


def revoke(book: Book, worker_id: int, token: str) -> None:
    """Make a token of this worker's dead, if it is one."""
    k = book.tables.token
    _delete(book, k, k.c.worker_id == worker_id, k.c.hash == hash_of(token))


def queues_of(book: Book, worker_id: int) -> sa.Select[t.Any]:
    """Return a statement that reads the queues which a worker is hired for; none when it is locked."""
    w, h = book.tables.worker, book.tables.hire
    mine = (w.c.id == worker_id, w.c.locked_at.is_(None))
    return sa.select(h.c.queue).join_from(w, h, h.c.worker_id == w.c.id).where(*mine)
