"""News by PostgreSQL's LISTEN and NOTIFY: one connection for each process that waits.

NOTIFY is part of the transaction, so that nothing is told that does not happen, nor
happens untold. PostgreSQL sends its notifications one commit after the other.
"""

from __future__ import annotations

import selectors
import typing as t
import zlib

import sqlalchemy as sa

from ..core.store import Store
from .transport import Bell, keep_alive

# The first of the two keys of our advisory locks.
_LOCKS = 0x4A0B


class Postgres:
    """Reaches every process that uses the database.

    :param channel: its name is that of the table of jobs.
    """

    look_every: float | None = None
    #: To ask is a statement.
    notice = 2.0

    def __init__(self, engine: sa.Engine, channel: str) -> None:
        self._engine, self.channel = engine, channel

    def tell(self, store: Store, text: str) -> None:
        store.execute(_notify(self.channel, text))

    def say(self, text: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(_notify(self.channel, text))

    def is_watched(self, store: Store) -> bool:
        return bool(store.execute(_watched(_key(self.channel))).scalar_one())

    def listen(self) -> PostgresEar:
        return PostgresEar(self._engine, self.channel)


def _key(channel: str) -> int:
    return zlib.crc32(channel.encode()) & 0x7FFF_FFFF


def _watched(key: int) -> sa.TextClause:
    """Return a look for the lock that those who watch share: it goes with their connections."""
    here = "SELECT oid FROM pg_database WHERE datname = current_database()"
    keys = f"classid = {_LOCKS} AND objid = {key} AND objsubid = 2"
    found = f"SELECT FROM pg_locks WHERE locktype = 'advisory' AND {keys} AND database = ({here})"
    return sa.text(f"SELECT EXISTS ({found})")


def _notify(channel: str, text: str) -> sa.Select[t.Any]:
    return sa.select(sa.func.pg_notify(channel, text))


class PostgresEar:
    """A connection made as the app's are, but kept by nobody else."""

    def __init__(self, engine: sa.Engine, channel: str) -> None:
        pooled = engine.raw_connection()
        pooled.detach()
        self._connection = t.cast(t.Any, pooled.dbapi_connection)
        self._key = _key(channel)
        self._bell, self._selector = Bell(), selectors.DefaultSelector()
        try:
            self._connection.autocommit = True
            quoted = engine.dialect.identifier_preparer.quote_identifier(channel)
            self._connection.execute(f"LISTEN {quoted}")
            keep_alive(self._connection.fileno())
            for one in (self._connection, self._bell):
                self._selector.register(one.fileno(), selectors.EVENT_READ)
        except BaseException:
            self.close()
            raise

    def wait(self, seconds: float | None) -> list[str]:
        self._selector.select(seconds)
        self._bell.hush()
        return [notice.payload for notice in self._connection.notifies(timeout=0)]

    def stir(self) -> None:
        self._bell.ring()

    def watch(self, watching: bool) -> None:
        verb = "pg_advisory_lock_shared" if watching else "pg_advisory_unlock_shared"
        self._connection.execute(f"SELECT {verb}({_LOCKS}, {self._key})")

    def close(self) -> None:
        self._selector.close()
        self._bell.close()
        self._connection.close()
