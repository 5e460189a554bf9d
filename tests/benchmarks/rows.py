"""Rows by the hundred thousand: jobs that are taken, or that are in the way of one."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa


def fill(jobs: int, plain: int) -> None:
    """Make the tables of the app anew, with so many jobs, and so many rows for the views written by hand."""
    from . import apps

    with apps.create_app().app_context():
        apps.db.drop_all()
        apps.db.create_all()
        apps.db.session.add(apps.User(id=1))
        for statement in (
            insert_jobs("'queued'", "CURRENT_TIMESTAMP", series=series(jobs)),
            "INSERT INTO bench_plain (state, priority, type, data)"
            f" SELECT 'queued', 0, 'work', '{{}}' {series(plain)}",
        ):
            apps.db.session.execute(sa.text(statement))
        apps.db.session.commit()
        if apps.db.engine.name == "postgresql":
            vacuum(apps.db.engine)


def series(last: int) -> str:
    """Return a FROM clause that counts from 1, in any database."""
    count = f"SELECT 1 AS n UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}"
    return f"FROM (WITH RECURSIVE numbers AS ({count}) SELECT n FROM numbers) AS series"


def insert_jobs(
    state: str,
    run_at: str,
    *,
    series: str,
    user: str = "1",
    priority: str = "0",
    type_: str = "'work'",
    turn: str = "0",
    more: t.Mapping[str, str] | None = None,
) -> str:
    """Return a statement that makes jobs by the million."""
    now = "CURRENT_TIMESTAMP"
    values = {
        "type": type_, "queue": "'default'", "priority": priority, "run_at": run_at, "attempts": "0",
        "failures": "0", "max_attempts": "10", "state": state, "data": "'{}'", "created_at": now,
        "updated_at": now, "finished_at": now if state == "'succeeded'" else "NULL", "user_id": user,
        "turn": turn, **(more or {}),
    }  # fmt: skip
    return f"INSERT INTO bench_job ({', '.join(values)}) SELECT {', '.join(values.values())} {series}"


def vacuum(engine: sa.Engine) -> None:
    """Bring the statistics up to date."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")
