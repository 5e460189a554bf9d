"""Claim and deliver over HTTP, against a pair of views written by hand, on one server in one run."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
import typing as t

import sqlalchemy as sa

from . import load

# Jobs a second of each shape, as a part of the hand-written pair's.
TARGETS = {"single": 0.7, "exchange1": 1.3}


def main(arguments: argparse.Namespace) -> None:
    """Print a table of medians, spreads and ratios."""
    os.environ["BENCH_URL"] = arguments.url
    engine = sa.create_engine(arguments.url)
    fill(16_000 * arguments.rounds * arguments.seconds)
    rates: dict[str, list[float]] = {shape: [] for shape in load.SHAPES}
    with serve() as port:
        for shape in rates:  # warm up
            measure(port, shape, arguments.clients, 0.5)
        for _ in range(arguments.rounds):
            for shape, seen in rates.items():
                vacuum(engine)  # the dead rows of one shape are no burden of the next
                seen.append(measure(port, shape, arguments.clients, arguments.seconds))
    report(rates, arguments)


def fill(jobs: float) -> None:
    """Make tables with enough jobs to take from, in one statement each."""
    from . import apps

    with apps.create_app().app_context():
        apps.db.drop_all()
        apps.db.create_all()
        apps.db.session.add(apps.User(id=1))
        apps.db.session.commit()
        series = f"FROM generate_series(1, {int(jobs)}) AS n"
        for statement in (
            insert_jobs("'queued'", "now()", series=series),
            "INSERT INTO bench_plain (state, priority, type, data)"
            f" SELECT 'queued', 0, 'work', '{{}}' {series}",
        ):
            apps.db.session.execute(sa.text(statement))
        apps.db.session.commit()
        vacuum(apps.db.engine)


def insert_jobs(
    state: str, run_at: str, *, series: str, user: str = "1", priority: str = "0", type_: str = "'work'"
) -> str:
    """Return a statement that makes jobs by the million."""
    finished = "now()" if state == "'succeeded'" else "NULL"
    return (
        "INSERT INTO bench_job (type, queue, priority, run_at, attempts, failures, max_attempts, state, data,"
        f" created_at, updated_at, finished_at, user_id) SELECT {type_}, 'default', {priority}, {run_at}, 0,"
        f" 0, 10, {state}, '{{}}', now(), now(), {finished}, {user} {series}"
    )


def vacuum(engine: sa.Engine) -> None:
    """Bring the statistics up to date."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE")


@contextlib.contextmanager
def serve() -> t.Iterator[int]:
    """Run the app under gunicorn with one process of eight threads."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [
        "gunicorn",
        "--threads",
        "8",
        "--bind",
        f"127.0.0.1:{port}",
        "tests.benchmarks.apps:create_app()",
    ]
    server = subprocess.Popen([sys.executable, "-m", *command], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield port
    finally:
        server.terminate()
        server.wait()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError("the server did not start")


def measure(port: int, shape: str, clients: int, seconds: float) -> float:
    """Return jobs a second, counted by clients in a process of their own."""
    command = [sys.executable, "-m", "tests.benchmarks.load", str(port), shape, str(clients), str(seconds)]
    done, took = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return int(done) / float(took)


def report(rates: dict[str, list[float]], arguments: argparse.Namespace) -> None:
    medians = {shape: statistics.median(seen) for shape, seen in rates.items()}
    print(f"claim + deliver over HTTP, {arguments.clients} clients, {arguments.rounds} rounds, PostgreSQL")
    print(f"{'shape':14}{'jobs/s':>9}{'min':>9}{'max':>9}{'of plain':>10}{'target':>9}")
    for shape, seen in rates.items():
        ratio = statistics.median(a / b for a, b in zip(seen, rates["plain"], strict=True))
        target = TARGETS.get(
            shape, 5 * medians["single"] / medians["plain"] if shape == "exchange100" else None
        )
        wanted = "" if target is None else f">= {target:.2f}"
        print(f"{shape:14}{medians[shape]:9.0f}{min(seen):9.0f}{max(seen):9.0f}{ratio:10.2f}{wanted:>9}")
