"""Flask-Migrate, driven the way an app drives it: each command in a process of its own."""

from __future__ import annotations

import contextlib
import datetime as dt
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import types
import typing as t

import pytest
import sqlalchemy as sa

from tables import drop

APP = """
import os

import sqlalchemy as sa
from flask import Flask
from flask_login import LoginManager, UserMixin, current_user
from flask_migrate import Migrate
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from flask_jobber import Jobber, JobMixin
from flask_jobber.accounts import Workers

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    metadata = sa.MetaData(naming_convention=NAMES if os.environ["NAMED"] == "True" else None)


db = SQLAlchemy(model_class=Base)


class User(UserMixin, db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)


class Job(JobMixin, db.Model):
    __claim_by__ = ("user_id",)
    user_id: Mapped[int | None] = mapped_column(sa.ForeignKey("user.id"))


jobber = Jobber(db, Job)
jobber.scope(lambda: Job.user_id == current_user.id)
# A second Jobber, whose plain tables are the package's alone.
plain = Jobber(db, name="plain")
scratch = Jobber(db, name="scratch", volatile=True)
workers = Workers(jobber)


def create_app():
    app = Flask(__name__)
    app.config.update(SECRET_KEY="test", SQLALCHEMY_DATABASE_URI=os.environ["DATABASE_URL"])
    db.init_app(app)
    Migrate(app, db)
    login = LoginManager(app)
    login.request_loader(lambda request: db.session.get(User, request.headers["Authorization"].split()[1]))
    app.register_blueprint(jobber.blueprint, url_prefix="/jobber")
    app.register_blueprint(plain.blueprint, url_prefix="/plain")
    app.register_blueprint(scratch.blueprint, url_prefix="/scratch")
    app.register_blueprint(workers.blueprint)
    return app
"""
COMMANDS = """
import sys

import flask_migrate

from app import create_app, db

with create_app().app_context():
    for command in sys.argv[1:]:
        getattr(flask_migrate, command)()
    db.engine.dispose()
"""
# The template of Flask-Migrate calls what Flask-SQLAlchemy has deprecated.
WARNINGS = "error,ignore:'get_engine' is deprecated:DeprecationWarning"
INSTANT = dt.datetime(2026, 1, 2, 3, 4, 5, 678_901, dt.UTC)
_DESCRIBE_POSTGRESQL = (
    "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default"
    " FROM information_schema.columns WHERE table_schema = 'public'",
    "SELECT relname, relpersistence FROM pg_class"
    " WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'",
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
    " WHERE connamespace = 'public'::regnamespace",
)


class Site:
    """An app in a folder of its own, on one database."""

    def __init__(self, folder: pathlib.Path, url: str, named: bool) -> None:
        self._folder = folder
        self._environment = {"DATABASE_URL": url, "NAMED": str(named), "PYTHONWARNINGS": WARNINGS}
        (folder / "app.py").write_text(APP)
        (folder / "commands.py").write_text(COMMANDS)
        self.module = self._load()
        self.app = self.module.create_app()

    def _load(self) -> types.ModuleType:
        spec = importlib.util.spec_from_file_location("migrated_app", self._folder / "app.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "migrated_app", module)
            for name, value in self._environment.items():
                patch.setenv(name, value)
            spec.loader.exec_module(module)
            module.create_app = _keeping(module.create_app, self._environment)
        return module

    def run(self, *commands: str) -> None:
        """Run commands of ``flask db`` in a fresh process."""
        done = subprocess.run(
            [sys.executable, "commands.py", *commands],
            cwd=self._folder,
            env={**os.environ, **self._environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    @contextlib.contextmanager
    def engine(self) -> t.Iterator[sa.Engine]:
        with self.app.app_context():
            yield self.module.db.engine

    def schema(self) -> list[str]:
        """Return all that the database knows of its tables, in its own words."""
        with self.engine() as engine, engine.connect() as connection:
            lines = _DESCRIBERS[engine.dialect.name](connection)
            return sorted(line for line in lines if "alembic_version" not in line)

    def close(self) -> None:
        with self.app.app_context():
            self.module.db.session.remove()
            self.module.db.engine.dispose()


def _keeping(create_app: t.Callable[[], t.Any], environment: t.Mapping[str, str]) -> t.Callable[[], t.Any]:
    def create() -> t.Any:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            return create_app()

    return create


def _lines(name: str, statement: str) -> t.Iterator[str]:
    for line in statement.splitlines():
        yield f"{name}: {line.strip().rstrip(',')}"


def _describe_sqlite(connection: sa.Connection) -> t.Iterator[str]:
    made = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    for name, statement in made:
        yield from _lines(name, statement)


def _describe_postgresql(connection: sa.Connection) -> t.Iterator[str]:
    for statement in _DESCRIBE_POSTGRESQL:
        yield from map(repr, connection.exec_driver_sql(statement))


def _describe_mariadb(connection: sa.Connection) -> t.Iterator[str]:
    for table in sa.inspect(connection).get_table_names():
        yield from _lines(table, connection.exec_driver_sql(f"SHOW CREATE TABLE `{table}`").one()[1])


_DESCRIBERS: dict[str, t.Callable[[sa.Connection], t.Iterable[str]]] = {
    "sqlite": _describe_sqlite,
    "postgresql": _describe_postgresql,
    "mysql": _describe_mariadb,
    "mariadb": _describe_mariadb,
}


@pytest.fixture(params=[False, True], ids=["unnamed", "named"])
def site(request: pytest.FixtureRequest, db_url: str, tmp_path: pathlib.Path) -> t.Iterator[Site]:
    """An app whose tables are not made yet, with and without a naming convention of its own."""
    site = Site(tmp_path, db_url, request.param)
    with site.engine() as engine:
        drop(engine)
    yield site
    site.close()


def made_at_once(site: Site) -> list[str]:
    """Return the schema that ``create_all`` makes, and leave nothing of it."""
    with site.engine() as engine:
        site.module.db.create_all()
        schema = site.schema()
        drop(engine)
    return schema


def do_one_job(site: Site) -> None:
    """Let a job go its whole way, with times that need every digit."""
    module = site.module
    with site.app.app_context():
        module.db.session.add(module.User(id=7))
        module.db.session.flush()
        job_id = module.jobber.enqueue(
            "work", {"n": 1}, run_at=INSTANT, user_id=7, not_for=["slow", "lame"]
        ).id
        module.db.session.commit()
    client = site.app.test_client()
    headers = {"Authorization": "Bearer 7"}
    (job,) = client.post("/jobber/claims", json={"lease_seconds": 1.25}, headers=headers).json["jobs"]
    assert (job["id"], job["data"]) == (job_id, {"n": 1})
    with site.app.app_context():
        row = module.db.session.get(module.Job, job_id)
        assert row.run_at == INSTANT
        assert row.not_for == ["lame", "slow"]
        assert row.locked_until - row.locked_at == dt.timedelta(seconds=1.25)
    delivered = client.put(f"{job['href']}/result", json={"result": [2]}, headers=headers)
    assert (delivered.status_code, delivered.json) == (200, {"state": "succeeded"})
    history = client.get(f"/jobber/jobs/{job_id}/history", headers=headers).json["history"]
    assert [row["to"] for row in history] == ["queued", "locked", "succeeded"]


def test_the_first_migration_is_complete_and_the_second_empty(site: Site) -> None:
    """It makes, in a fresh process, what create_all makes; the app works on it; it goes back."""
    expected = made_at_once(site)
    site.run("init", "migrate")
    site.run("upgrade", "check")
    assert site.schema() == expected
    do_one_job(site)
    site.run("downgrade")
    with site.engine() as engine:
        assert sa.inspect(engine).get_table_names() == ["alembic_version"]


def test_a_migration_names_nothing_of_this_package(sqlite_url: str, tmp_path: pathlib.Path) -> None:
    """It still runs when the package has moved on, or has gone."""
    site = Site(tmp_path, sqlite_url, named=False)
    site.run("init", "migrate")
    (migration,) = (tmp_path / "migrations" / "versions").glob("*.py")
    text = migration.read_text()
    assert "flask_jobber" not in text
    # Everything that a bare name stands for is imported.
    namespace: dict[str, t.Any] = {}
    exec(compile(text, migration.name, "exec"), namespace)
    assert set(re.findall(r"(?<![\w.])(\w+)\.[A-Z]", text)) <= namespace.keys()
    site.close()
