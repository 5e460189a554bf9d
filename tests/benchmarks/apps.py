"""The app under load: the same work by Jobber and by views written by hand, on one server."""

from __future__ import annotations

import datetime as dt
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
    id: Mapped[int] = mapped_column(sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True)
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
        SECRET_KEY="bench", SQLALCHEMY_DATABASE_URI=os.environ["BENCH_URL"], JOBBER_TIDY_SECONDS=0,
        # A connection past the pool's is made and closed each time.
        SQLALCHEMY_ENGINE_OPTIONS={"pool_size": 32},
    )  # fmt: skip
    db.init_app(app)
    login_manager.init_app(app)
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    app.add_url_rule("/empty", view_func=empty, methods=["POST", "PUT"])
    app.add_url_rule("/plain/claim", view_func=plain_claim, methods=["POST"])
    app.add_url_rule("/plain/<int:job_id>/result", view_func=plain_deliver, methods=["PUT"])
    app.add_url_rule("/plain/claims", view_func=plain_claim_many, methods=["POST"])
    app.add_url_rule("/plain/results", view_func=plain_deliver_many, methods=["PUT"])
    with app.app_context():
        if db.engine.name == "sqlite":
            sa.event.listen(db.engine, "connect", set_up_sqlite)
    return app


def set_up_sqlite(connection: t.Any, _: object) -> None:
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute(f"PRAGMA journal_mode = {os.environ.get('BENCH_JOURNAL', 'delete')}")


def empty() -> t.Any:
    request.get_data()  # some servers close a connection on which a body was left
    return {}


# -- written by hand, one job -----------------------------------------------------------------


@login_required
def plain_claim() -> t.Any:
    row = db.session.connection().execute(take(request.get_json()["types"], 1)).one_or_none()
    db.session.commit()
    return {"jobs": [dict(row._mapping)] if row else []}


@login_required
def plain_deliver(job_id: int) -> t.Any:
    values = {"state": "succeeded", "result": request.get_json()["result"]}
    statement = sa.update(Plain.__table__).where(Plain.id == job_id, *held()).values(values)
    done = db.session.connection().execute(statement)
    db.session.commit()
    return ({"state": "succeeded"}, 200) if done.rowcount else ({"code": "lease_lost"}, 409)


# -- written by hand, many jobs ---------------------------------------------------------------


@login_required
def plain_claim_many() -> t.Any:
    asked = request.get_json()
    rows = db.session.connection().execute(take(asked["types"], asked["limit"])).all()
    db.session.commit()
    return {"jobs": [dict(row._mapping) for row in rows]}


@login_required
def plain_deliver_many() -> t.Any:
    """Settle all in one statement, whose only parameter is the results as they came."""
    given = given_results(request.get_json()["results"]).subquery("given")
    statement = (
        sa.update(Plain.__table__)
        .where(Plain.id == given.c.id, *held())
        .values(state="succeeded", result=given.c.result)
        .returning(Plain.id)
    )
    settled = db.session.connection().execute(statement).scalars().all()
    db.session.commit()
    return {"settled": settled}


# -- and their statements ---------------------------------------------------------------------


def take(types: list[str], limit: int) -> t.Any:
    """Return the statement that locks so many jobs."""
    table = Plain.__table__
    c = table.c
    free = (
        sa.select(c.id)
        .where(c.state == "queued", c.type.in_(types))
        .order_by(c.priority.desc(), c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    which = c.id == free.scalar_subquery() if limit == 1 else c.id.in_(free)
    until = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=600)
    values = {"state": "locked", "locked_by": f"user_{current_user.id}", "locked_until": until}
    return sa.update(table).where(which).values(values).returning(c.id, c.type, c.data)


def held() -> tuple[t.Any, ...]:
    c = Plain.__table__.c
    return c.state == "locked", c.locked_by == f"user_{current_user.id}"


def given_results(results: list[t.Any]) -> t.Any:
    """Return a query of what ``[{"id": …, "result": …}, …]`` holds."""
    document = sa.literal(results, sa.JSON)
    if db.engine.name == "sqlite":
        one = sa.func.json_each(document).table_valued("value")
        fields = [sa.func.json_extract(one.c.value, path) for path in ("$.id", "$.result")]
        return sa.select(fields[0].label("id"), fields[1].label("result"))
    columns = sa.column("id", sa.BigInteger), sa.column("result", sa.JSON)
    records = sa.func.json_to_recordset(document).table_valued(*columns).render_derived(with_types=True)
    return sa.select(records.c.id, records.c.result)
