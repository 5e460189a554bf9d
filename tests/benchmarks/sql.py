"""The same claim and delivery without HTTP and Python's SQL: by pgbench, and by SQLite's own module."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import shutil
import sqlite3
import subprocess
import time

import sqlalchemy as sa

_QUEUED = "state = 'queued' AND type = 'work'"
_FREE = f"SELECT id FROM bench_plain WHERE {_QUEUED} ORDER BY priority DESC, id LIMIT {{by}}"
_LOCK = (
    "UPDATE bench_plain SET state = 'locked', locked_by = 'user_1', locked_until = {until} WHERE id {which}"
    " RETURNING id, type, data"
)
_SETTLE = (
    """UPDATE bench_plain SET state = 'succeeded', result = '{{"answer": 42}}'"""
    " WHERE id {which} AND state = 'locked' AND locked_by = 'user_1'"
)


# -- PostgreSQL -------------------------------------------------------------------------------


def find_pgbench() -> str | None:
    """Return where it is; Debian keeps it out of the path."""
    beside = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    return shutil.which("pgbench") or next(map(str, reversed(beside)), None)


def pgbench_version(program: str) -> str:
    said = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return said.split()[2]


def pgbench_script(by: int) -> str:
    """Return a script of two transactions: a claim of so many jobs, and their delivery."""
    free = _FREE.format(by=by) + " FOR UPDATE SKIP LOCKED"
    until = "now() + interval '600 seconds'"
    if by == 1:
        claim = _LOCK.format(until=until, which=f"= ({free})")
        settle = _SETTLE.format(which="= :id")
    else:
        taken = _LOCK.format(until=until, which=f"= ANY (ARRAY({free}))")
        # It keeps one row in variables.
        claim = f"WITH taken AS ({taken}) SELECT array_agg(id) AS ids, json_agg(data) AS data FROM taken"
        settle = _SETTLE.format(which="= ANY (:ids::bigint[])")
    return f"{claim} \\gset\n{settle};\n"


class Pgbench:
    """Runs a script by several clients; its statements are prepared, as psycopg's soon are.

    It knows only whole seconds: it is told how often, by how fast it was the last time.

    :param by: how many jobs a script does.
    """

    def __init__(self, program: str, script: pathlib.Path, by: int, url: str, clients: int) -> None:
        database = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        options = f"--no-vacuum --protocol prepared --client {clients}"
        self._command = [program, *options.split(), "--file", str(script), database]
        self._by, self._clients = by, clients
        self._rate = 200.0

    def __call__(self, seconds: float) -> tuple[float, float]:
        """Return jobs and seconds. :raises OSError: with its message, when it fails."""
        times = max(round(self._rate * seconds / self._clients), 5)
        ran = subprocess.run([*self._command, "--transactions", str(times)], capture_output=True, text=True)
        rate = re.search(r"^tps = ([\d.]+)", ran.stdout, re.MULTILINE)
        if ran.returncode or rate is None:
            raise OSError(ran.stderr.partition("\n")[0])
        self._rate = float(rate[1])
        done = times * self._clients
        return self._by * done, done / self._rate


# -- SQLite -----------------------------------------------------------------------------------


def run_sqlite(path: str, by: int, journal: str, seconds: float) -> tuple[int, float]:
    """Claim and settle in this thread; return how many jobs were done and how long it took."""
    done, start = 0, time.perf_counter()
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal}")
        while time.perf_counter() - start < seconds:
            done += claim_and_settle(connection, by)
    return done, time.perf_counter() - start


def claim_and_settle(connection: sqlite3.Connection, by: int) -> int:
    until = "datetime('now', '600 seconds')"
    with connection:
        claim = _LOCK.format(until=until, which=f"IN ({_FREE.format(by=by)})")
        jobs = connection.execute(claim).fetchall()
    if len(jobs) < by:
        raise OSError("there are no rows left")
    with connection:
        ids = json.dumps([job[0] for job in jobs])
        settle = _SETTLE.format(which="IN (SELECT value FROM json_each(?))")
        return connection.execute(settle, [ids]).rowcount
