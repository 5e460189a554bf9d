"""An app whose claims wait, as the README has it, and whoever enqueues its jobs."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import typing as t

import sqlalchemy as sa
from flask import Flask
from flask_login import LoginManager, UserMixin, current_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_jobber import Jobber, JobMixin


class Base(DeclarativeBase):
    """The base of the models."""


db = SQLAlchemy(model_class=Base)


class User(UserMixin):
    """A login; it costs no statement."""

    def __init__(self, id: str) -> None:
        self.id = id


class Job(JobMixin, db.Model):  # type: ignore[name-defined, misc]
    __tablename__ = "bench_job"
    __claim_by__ = ("user_id",)
    user_id: Mapped[int | None] = mapped_column()


jobber = Jobber(db, Job)
login_manager = LoginManager()


@jobber.scope
def scope() -> t.Any:
    return (Job.user_id == int(current_user.id)) | Job.user_id.is_(None)


@login_manager.request_loader
def load_user(request: t.Any) -> User | None:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return User(token) if token else None


def create_app() -> Flask:
    """Return the app, which tells at ``/seen`` who waits and how many statements it has made."""
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="bench", SQLALCHEMY_DATABASE_URI=os.environ["BENCH_APP_URL"], JOBBER_TIDY_SECONDS=0,
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 15},  # a connection past it is made and closed each time
        JOBBER_MAX_WAITERS=2000, JOBBER_MAX_WAIT_SECONDS=600,
        JOBBER_WAKEUP_URL=os.environ.get("BENCH_WAKEUP_URL"),
    )  # fmt: skip
    db.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    with app.app_context():
        if db.engine.name == "sqlite":
            sa.event.listen(db.engine, "connect", set_up_sqlite)
        statements = count_statements()
    app.add_url_rule("/seen", "seen", lambda: {"waiting": count_waiting(), "statements": len(statements)})
    return app


def set_up_sqlite(connection: t.Any, _: object) -> None:
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA busy_timeout = 10000")


def count_statements() -> list[str]:
    """Return a list to which each statement is added; begin, commit and roll-back are none."""
    statements: list[str] = []
    sa.event.listen(db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    return statements


def count_waiting() -> int:
    wakeup = jobber.wakeup
    if wakeup._ear is None or not wakeup._full:
        return 0
    return sum(one.looking is None and not one.calls for one in tuple(wakeup.room._waiters))


@contextlib.contextmanager
def sending() -> t.Iterator[t.Callable[[range], float]]:
    """Enqueue; at the end print how many statements that took."""
    committed: list[float] = []

    def send(numbers: range) -> float:
        if len(numbers) == 1:
            jobber.enqueue("work", numbers[0])
        else:
            jobber.enqueue_many({"type": "work", "data": number} for number in numbers)
        db.session.commit()
        return committed[-1]

    with create_app().app_context():
        # Earlier than the return of commit(), which tells Redis and sockets before.
        sa.event.listen(db.session, "after_commit", lambda _: committed.append(time.monotonic()))
        statements = count_statements()
        yield send
        print(len(statements))


if __name__ == "__main__":
    with create_app().app_context():
        getattr(db, sys.argv[1])()
