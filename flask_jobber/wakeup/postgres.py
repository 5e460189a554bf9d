"""News by PostgreSQL's LISTEN and NOTIFY: one connection for each process that waits.

NOTIFY is part of the transaction, so that nothing is told that does not happen, nor
happens untold. PostgreSQL sends its notifications one commit after the other.
"""

from __future__ import annotations

import selectors
import typing as t

import sqlalchemy as sa

from ..core.store import Store
from .transport import Bell, keep_alive


class Postgres:
    """Reaches every process that uses the database.

    :param channel: its name is that of the table of jobs.
    """

    look_every: float | None = None

    def __init__(self, engine: sa.Engine, channel: str) -> None:
        self._engine, self._channel = engine, channel

    def tell(self, store: Store, text: str) -> None:
        store.execute(_notify(self._channel, text))

    def say(self, text: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(_notify(self._channel, text))

    def listen(self) -> PostgresEar:
        return PostgresEar(self._engine, self._channel)


def _notify(channel: str, text: str) -> sa.Select[t.Any]:
    return sa.select(sa.func.pg_notify(channel, text))


class PostgresEar:
    """A connection made as the app's are, but kept by nobody else."""

    def __init__(self, engine: sa.Engine, channel: str) -> None:
        pooled = engine.raw_connection()
        pooled.detach()
        self._connection = t.cast(t.Any, pooled.dbapi_connection)
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

    def close(self) -> None:
        self._selector.close()
        self._bell.close()
        self._connection.close()
