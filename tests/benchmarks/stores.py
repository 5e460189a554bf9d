"""Where jobs are kept during one run: fresh for each."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
import typing as t

import sqlalchemy as sa

from . import cpu
from .servers import wait_for


@contextlib.contextmanager
def postgres(url: str, name: str = "worker") -> t.Iterator[str]:
    """Make a database beside the given one, whose name ends in the one given."""
    given = sa.make_url(url)
    name = f"{given.database}_{name}"
    with sa.create_engine(given, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
        fresh = given.set(drivername="postgresql", database=name)
        try:
            yield fresh.render_as_string(hide_password=False)
        finally:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@contextlib.contextmanager
def redis(_: str) -> t.Iterator[str]:
    """Run a server of its own, with its defaults."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--dir", folder], stdout=subprocess.DEVNULL
        )
        try:
            wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()
            server.wait()


STORES = {"postgres": postgres, "redis": redis}
#: How their processes are called.
PROGRAMS = {"postgres": cpu.POSTGRES, "redis": "redis-server"}
