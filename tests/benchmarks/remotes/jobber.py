"""flask_jobber: a claim and a delivery for each job."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..rows import insert_jobs, vacuum
from .web import Connection

RESULT = {"result": {"answer": 42}}


def fill(_: int, jobs: int) -> None:
    """Make tables with these jobs, in the database that is named in the environment."""
    from .. import apps

    with apps.create_app().app_context():
        apps.db.session.execute(sa.delete(apps.Job))
        series = f"FROM generate_series(1, {jobs}) AS n"
        apps.db.session.execute(sa.text(insert_jobs("'queued'", "now()", series=series)))
        apps.db.session.commit()
        vacuum(apps.db.engine)


def set_up() -> None:
    """Make the tables, and the login."""
    from .. import apps

    with apps.create_app().app_context():
        apps.db.drop_all()
        apps.db.create_all()
        apps.db.session.add(apps.User(id=1))
        apps.db.session.commit()


class Client:
    def __init__(self, port: int) -> None:
        self._connection = Connection(port, {"Authorization": "Bearer 1"})

    def turn(self, held: list[t.Any], wanted: int) -> list[t.Any]:
        for job in held:
            self._connection.call("PUT", f"{job['href']}/result", RESULT)
        if not wanted:
            return []
        claim = {"types": ["work"], "limit": wanted}
        return self._connection.call("POST", "/jobber/claims", claim)["jobs"]  # type: ignore[no-any-return]


def connect(port: int, name: str) -> Client:
    return Client(port)
