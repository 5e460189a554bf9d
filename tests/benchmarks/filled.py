"""Databases that hold jobs by the million, and what goes on in them beside a claim."""

from __future__ import annotations

import contextlib
import os
import threading
import typing as t

import sqlalchemy as sa
from flask import Flask

from . import apps
from .rows import insert_jobs, vacuum
from .stores import postgres

# Of the rows of a table; the rest is finished.
SCHEDULED, QUEUED, LOCKED = 0.03, 0.04, 0.001
_USER, _TYPE = "1 + n % 1000", "'type_' || (1000 * random())::int % 1000"
_HISTORY = """
INSERT INTO bench_job_history (job_id, from_state, to_state, attempt, locker, reason, at)
SELECT id, was, becomes, 1, 'user_' || user_id, verb, updated_at FROM bench_job
CROSS JOIN (VALUES ('queued', 'locked', 'claim'), ('locked', 'succeeded', 'deliver'))
AS step (was, becomes, verb)
WHERE state = 'succeeded'
"""


@contextlib.contextmanager
def database(url: str, name: str) -> t.Iterator[Flask]:
    """Yield an app with a database of its own, whose name ends so."""
    with postgres(url, name) as store:
        os.environ["BENCH_URL"] = store.replace("://", "+psycopg://")
        app = apps.create_app()
        yield app
        with app.app_context():
            apps.db.engine.dispose()


def fill(app: Flask, statements: t.Iterable[str]) -> None:
    """Make the tables anew and fill them; their indexes last, which takes a fraction of the time."""
    with app.app_context():
        apps.db.drop_all()
        apps.db.create_all()
        tables = (apps.Job.__table__, apps.jobber.History.__table__)
        indexes = [index for table in tables for index in table.indexes]
        with apps.db.engine.begin() as connection:
            connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '512MB'")
            for index in indexes:
                index.drop(connection)
            for statement in statements:
                connection.execute(sa.text(statement))
            for index in indexes:
                index.create(connection)
        vacuum(apps.db.engine)


def mixed(rows: int) -> t.Iterator[str]:
    """Yield statements that make so many jobs of 1,000 users and 1,000 types, most of them finished.

    Those that succeeded have their history.
    """
    scheduled, queued, locked = (int(part * rows) for part in (SCHEDULED, QUEUED, LOCKED))
    failed = rows // 50
    done = {"attempts": "1", "result": """'{"answer": 42}'"""}
    ended = {"attempts": "10", "failures": "10", "finished_at": "now()"}
    until = "now() + interval '1 day'"
    held = {"attempts": "1", "locked_by": f"'user_' || {_USER}", "locked_at": "now()", "locked_until": until}
    yield _some(rows - failed - scheduled - queued - locked, "succeeded", more=done)
    yield _some(failed, "failed", more=ended)
    yield _some(scheduled, "scheduled", run_at=f"{until} * (1 + n % 30)", priority="n % 10")
    yield _some(queued, "queued")
    yield _some(locked, "locked", more=held)
    yield _HISTORY


def _some(number: int, state: str, *, run_at: str = "now()", **options: t.Any) -> str:
    options = {"user": _USER, "type_": _TYPE, **options}
    return insert_jobs(f"'{state}'", run_at, series=series(number), **options)


def series(number: int) -> str:
    return f"FROM generate_series(1, {number}) AS n"


@contextlib.contextmanager
def open_transaction(app: Flask) -> t.Iterator[None]:
    """Keep a transaction open that may still read each row as it is now, so that no vacuum removes one."""
    with app.app_context():
        engine = apps.db.engine
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        connection.execute(sa.select(apps.Job.id).limit(1)).all()
        yield


@contextlib.contextmanager
def vacuuming(app: Flask, statement: str, every: float = 0) -> t.Iterator[None]:
    """Vacuum again and again in the meantime, at the pace at which autovacuum does.

    :param every: how many seconds.
    """
    with app.app_context():
        url = apps.db.engine.url
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    ended = threading.Event()

    def loop() -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql("SET vacuum_cost_delay = 2")  # ms, the default of autovacuum's
            while not ended.wait(every):
                connection.exec_driver_sql(statement)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
