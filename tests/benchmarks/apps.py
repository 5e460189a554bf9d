"""The app under load: the same work by Jobber and by two views written by hand, on one server."""

from __future__ import annotations

import os
import typing as t

import sqlalchemy as sa
from flask import Flask, request
from flask_login import LoginManager, UserMixin, current_user, login_required
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_jobber import Jobber, JobMixin


class Base(DeclarativeBase):
    """The base of the models."""


db = SQLAlchemy(model_class=Base)


class User(UserMixin, db.Model):  # type: ignore[name-defined, misc]
    __tablename__ = "bench_user"
    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, db.Model):  # type: ignore[name-defined, misc]
    __tablename__ = "bench_job"
    __claim_by__ = ("user_id",)
    user_id: Mapped[int | None] = mapped_column()


class Plain(db.Model):  # type: ignore[name-defined, misc]
    """What someone would write who needs just this."""

    __tablename__ = "bench_plain"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    state: Mapped[str] = mapped_column(sa.String(10), default="queued")
    priority: Mapped[int] = mapped_column(default=0)
    type: Mapped[str] = mapped_column(sa.String(100))
    data: Mapped[t.Any] = mapped_column(sa.JSON)
    result: Mapped[t.Any] = mapped_column(sa.JSON, nullable=True)
    locked_by: Mapped[str | None] = mapped_column(sa.String(100))
    locked_until: Mapped[t.Any] = mapped_column(sa.DateTime(timezone=True), nullable=True)
    __table_args__ = (sa.Index("ix_bench_plain", "state", sa.text("priority DESC"), "id"),)


jobber = Jobber(db, Job)
login_manager = LoginManager()


@jobber.scope
def scope() -> t.Any:
    return Job.user_id == current_user.id


@login_manager.request_loader
def load_user(request: t.Any) -> User | None:
    token = request.headers.get("Authorization", "").removeprefix("Bearer ")
    return db.session.get(User, int(token)) if token else None


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY="bench", SQLALCHEMY_DATABASE_URI=os.environ["BENCH_URL"], JOBBER_TIDY_SECONDS=0
    )
    db.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    app.add_url_rule("/plain/claim", view_func=plain_claim, methods=["POST"])
    app.add_url_rule("/plain/<int:job_id>/result", view_func=plain_deliver, methods=["PUT"])
    return app


@login_required
def plain_claim() -> t.Any:
    table = Plain.__table__
    c = table.c
    free = (
        sa.select(c.id)
        .where(c.state == "queued", c.type.in_(request.get_json()["types"]))
        .order_by(c.priority.desc(), c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    until = sa.func.now() + sa.text("interval '600 seconds'")
    values = {"state": "locked", "locked_by": f"user_{current_user.id}", "locked_until": until}
    taken = sa.update(table).where(c.id == free).values(values).returning(c.id, c.type, c.data)
    row = db.session.connection().execute(taken).one_or_none()
    db.session.commit()
    return {"jobs": [dict(row._mapping)] if row else []}


@login_required
def plain_deliver(job_id: int) -> t.Any:
    c = Plain.__table__.c
    mine = (c.id == job_id, c.state == "locked", c.locked_by == f"user_{current_user.id}")
    values = {"state": "succeeded", "result": request.get_json()["result"]}
    done = db.session.connection().execute(sa.update(Plain.__table__).where(*mine).values(values))
    db.session.commit()
    return ({"state": "succeeded"}, 200) if done.rowcount else ({"code": "lease_lost"}, 409)
