from __future__ import annotations

import os
import pathlib
import typing as t

import pytest
import sqlalchemy as sa

from flask_jobber.core import front
from support import World
from tables import renew

ENGINES = ("sqlite", "postgresql", "mariadb")
_SERVERS = {"postgresql": "TEST_POSTGRES_URL", "mariadb": "TEST_MARIADB_URL"}


def missing(what: str) -> t.NoReturn:
    """Skip on a developer's machine; in CI nothing may be missing."""
    if os.environ.get("CI"):
        pytest.fail(f"{what} is required in CI")
    pytest.skip(f"{what} is not there")


def server_url(engine: str, worker_id: str) -> str:
    """Return the URL of a database of this test process's own."""
    variable = _SERVERS[engine]
    if not os.environ.get(variable):
        missing(variable)
    url = sa.make_url(os.environ[variable])
    name = f"flask_jobber_{worker_id}"
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name}")
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    return url.set(database=name).render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def worker() -> str:
    return os.environ.get("PYTEST_XDIST_WORKER", "main")


@pytest.fixture(scope="session")
def postgres_url(worker: str) -> str:
    return server_url("postgresql", worker)


@pytest.fixture(scope="session")
def mariadb_url(worker: str) -> str:
    return server_url("mariadb", worker)


@pytest.fixture(params=ENGINES)
def db_url(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> str:
    """A database on each engine, with nothing of a test before in it once tables are made."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    fixture = "postgres_url" if request.param == "postgresql" else "mariadb_url"
    return t.cast(str, request.getfixturevalue(fixture))


@pytest.fixture
def sqlite_url(tmp_path: pathlib.Path) -> str:
    return f"sqlite:///{tmp_path / 'test.db'}"


MakeWorld = t.Callable[..., World]


@pytest.fixture
def make_world() -> t.Iterator[MakeWorld]:
    """Make worlds with fresh tables; their connections are closed afterwards."""
    made: list[World] = []

    def make(url: str, kind: type[World] = World, **options: t.Any) -> World:
        world = kind(url, **options)
        made.append(world)
        with world.app.app_context():
            renew(world.db)
        return world

    yield make
    for world in made:
        with world.app.app_context():
            world.jobber.wakeup.close()
            world.db.session.remove()
            for engine in world.db.engines.values():
                engine.dispose()


@pytest.fixture
def world(make_world: MakeWorld, db_url: str) -> World:
    """A world on each engine."""
    return make_world(db_url)


@pytest.fixture
def lite(make_world: MakeWorld, sqlite_url: str) -> World:
    """A world on SQLite, for what has nothing to do with the engine."""
    return make_world(sqlite_url)


@pytest.fixture
def early_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places of claims are remembered from the first claim on, and for good."""
    monkeypatch.setattr(front, "_MANY", 0)
    monkeypatch.setattr(front, "_FRESH", 3600)
