"""Two storages in one app: what matters in the database, trifles in one that may be lost."""

from __future__ import annotations

import pathlib
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy

from flask_jobber import Jobber, SetupError
from flask_jobber.worker.crew import Place
from flask_jobber.worker.database import DatabaseSource
from flask_jobber.worker.feed import Supply
from flask_jobber.worker.job import Job
from flask_jobber.worker.plan import Orders
from flask_jobber.worker.worker import Worker

COUNT = 30
#: As the guide has it: one connection, which one thread at a time has.
MEMORY = {
    "url": "sqlite:///file:trifles?mode=memory&uri=true",
    "poolclass": sa.QueuePool,
    "pool_size": 1,
    "max_overflow": 0,
    "connect_args": {"check_same_thread": False},
}


def make_app(url: str, trifles: dict[str, t.Any]) -> tuple[Flask, Jobber, Jobber]:
    """Return an app with two Jobbers and the same handlers."""
    app, db = Flask(__name__), SQLAlchemy()
    app.config |= {
        "SQLALCHEMY_DATABASE_URI": url,
        "SQLALCHEMY_BINDS": {"memory": MEMORY, "shared": "sqlite://"},
    }
    jobber, scratch = Jobber(db), Jobber(db, name="scratch", **trifles)
    db.init_app(app)
    LoginManager(app)
    for one in (jobber, scratch):
        app.register_blueprint(one.blueprint, url_prefix=f"/{one.name}")

    @jobber.handlers("important")
    def important(job: Job) -> None:
        scratch.enqueue("trifle", job.id)
        db.session.commit()

    @jobber.handlers("trifle")
    def trifle(job: Job) -> t.Any:
        return job.data

    scratch.handlers.update(jobber.handlers)
    with app.app_context():
        db.drop_all()
        db.create_all()
        jobber.enqueue_many([{"type": "important"}] * COUNT)
        db.session.commit()
    return app, jobber, scratch


def states(app: Flask, jobber: Jobber) -> dict[str, int]:
    """Return how many jobs there are of each type and state."""
    c = jobber.Job
    with app.app_context():
        select = sa.select(c.type + " " + c.state, sa.func.count()).group_by(c.type, c.state)
        return dict(jobber.db.session.execute(select).all())


def work(app: Flask, *jobbers: Jobber) -> int:
    """Work off the jobs of the Jobbers by one worker; the handlers of one give work to the other."""
    place = Place(app.app_context)
    supplies = [Supply(DatabaseSource(app, one, "one"), one.handlers, place) for one in jobbers]
    return Worker(supplies, Orders(burst=True, concurrency=4)).run()


def check(app: Flask, jobber: Jobber, scratch: Jobber) -> None:
    assert work(app, jobber, scratch) == 0
    assert work(app, scratch) == 0  # what came after it had looked its last
    assert states(app, jobber) == {"important succeeded": COUNT}
    assert states(app, scratch) == {"trifle succeeded": COUNT}


@pytest.mark.parametrize("trifles", [{"bind_key": "memory"}, {"volatile": True}], ids=["memory", "volatile"])
def test_one_worker_does_the_jobs_of_both_storages(db_url: str, trifles: dict[str, t.Any]) -> None:
    """With the same handlers, of which one storage's enqueue into the other."""
    check(*make_app(db_url, trifles))


def test_no_worker_shares_a_connection(sqlite_url: str) -> None:
    """A plain database in memory has one for all threads: one would commit what another began."""
    app, _, scratch = make_app(sqlite_url, {"bind_key": "shared"})
    with pytest.raises(SetupError, match="pool_size"):
        DatabaseSource(app, scratch, "one")


def test_the_trifles_of_a_process_end_with_it(tmp_path: pathlib.Path) -> None:
    """Those in memory, that is; the important ones stay."""
    url = f"sqlite:///{tmp_path}/app.db"
    app, jobber, scratch = make_app(url, {"bind_key": "memory"})
    with app.app_context():
        scratch.enqueue("trifle")
        scratch.db.session.commit()
        for engine in scratch.db.engines.values():
            engine.dispose()
        scratch.db.create_all(bind_key="memory")
    assert states(app, scratch) == {}
    assert states(app, jobber) == {"important queued": COUNT}
