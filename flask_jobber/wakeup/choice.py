"""Which way news travels."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..core.store import Store
from .local import Local
from .postgres import Postgres
from .transport import Transport


def choose(store: Store) -> Transport:
    """Return the way that suits a database: its own, or a look now and then where it has none."""
    engine = t.cast(sa.Engine, store.session.get_bind(store.Job))
    if store.engine_name == "postgresql" and engine.dialect.driver == "psycopg":
        return Postgres(engine, store.jobs.name)
    if store.engine_name == "sqlite" and not engine.url.database:
        return Local()
    return Local(look_every=store.settings.idle_seconds)
