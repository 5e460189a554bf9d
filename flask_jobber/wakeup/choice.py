"""Which way news travels."""

from __future__ import annotations

import os
import socket
import typing as t

import sqlalchemy as sa

from ..core.store import Store
from .local import Local
from .postgres import Postgres
from .redis import Broker, Redis
from .sqlite import Sqlite, file_of
from .transport import Transport


def choose(store: Store, broker: Broker | None) -> Transport:
    """Return the way that was asked for, else the database's, or a look now and then where it has none."""
    engine, look_every = t.cast(sa.Engine, store.session.get_bind(store.Job)), store.settings.idle_seconds
    if broker is not None:
        # Hosts have many names, and folders too: one database is called the same by all.
        database = os.path.basename(engine.url.database or "")
        return Redis(broker, f"flask_jobber:{database}:{store.jobs.name}")
    if store.engine_name == "postgresql" and engine.dialect.driver == "psycopg":
        return Postgres(engine, store.jobs.name)
    if store.engine_name == "sqlite":
        return _beside(file_of(engine.url), store, look_every)
    return Local(look_every)


def _beside(file: str | None, store: Store, look_every: float) -> Transport:
    if file is None:
        return Local()
    # Windows has no such sockets in Python.
    return Sqlite(file, store.jobs.name, look_every) if hasattr(socket, "AF_UNIX") else Local(look_every)
