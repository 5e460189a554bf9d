"""The app of both servers: texts that wait to be counted by their user's worker."""

from __future__ import annotations

import typing as t

from flask import Flask, Request
from flask_login import LoginManager, UserMixin, current_user
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_jobber import Constant, Jobber, JobMixin


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
login_manager = LoginManager()


class User(UserMixin, db.Model):  # type: ignore[name-defined, misc]
    """Who logs in with a token."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    token: Mapped[str] = mapped_column(unique=True)


class Job(JobMixin, db.Model):  # type: ignore[name-defined, misc]
    __claim_by__ = ("user_id",)
    user_id: Mapped[int] = mapped_column(ForeignKey("user.id"))


class Count(db.Model):  # type: ignore[name-defined, misc]
    """How many words a text has, and who says so."""

    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int]
    words: Mapped[int]
    longest: Mapped[str]
    by: Mapped[str]


jobber = Jobber(db, Job)


@login_manager.request_loader
def load_user(request: Request) -> User | None:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return db.session.scalar(select(User).where(User.token == token))


@jobber.locker_name
def locker_name() -> str:
    return current_user.name


@jobber.scope
def scope() -> t.Any:
    return Job.user_id == current_user.id


@jobber.processor("count", backoff=Constant(0))
def keep_count(job: Job, words: int) -> None:
    """Store the result, the extras and the holder: the user's name and the worker's."""
    db.session.add(Count(job_id=job.id, words=words, longest=job.extras["longest"], by=job.locked_by))


def create_app(database: str) -> Flask:
    """Return the app on a database, whose tables are made if they are not there."""
    app = Flask(__name__)
    app.config.update(SQLALCHEMY_DATABASE_URI=database, JOBBER_IDLE_SECONDS=1)
    db.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    with app.app_context():
        db.create_all()
    return app
