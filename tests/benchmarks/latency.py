"""From the commit of a job to its receipt by a client that waits, and what that asks of the database."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
import urllib.request

from . import workers
from .environments import ROOT
from .peers import PEERS, Peer
from .proc import size
from .servers import wait_for
from .stores import STORES, postgres, redis
from .table import Report, Table

THEIRS = ("PgQueuer", "Procrastinate", "RQ")
# The first jobs are not counted: statements are built, connections made.
WARM = 20
# Jobs one by one; those of a second, and for how many seconds.
SINGLE, RATE, SECONDS = 200, 100, 3
CROWD = 1000
# Milliseconds past the fastest of theirs; times our own p95 with one waiter; statements for each job.
MOST_BEHIND, MOST_TIMES, MOST_STATEMENTS = 20, 5, 4
# So that as many may wait as are asked to.
GEVENT = f"-c python:tests.benchmarks.collected -k gevent --worker-connections {2 * CROWD}"
# The last three are statements for each job.
COLUMNS = ("p95", "p99", "version", "waiters", "jobs", "to enqueue", "to claim", "statements")


@dataclasses.dataclass(frozen=True)
class Load:
    """What one run asks for.

    :param by: how many jobs are enqueued at a time.
    :param rate: jobs a second; with 0 one after another.
    """

    waiters: int = 1
    jobs: int = SINGLE
    by: int = 1
    rate: float = 0

    def __str__(self) -> str:
        return f"{self.rate:g}/s by {self.by}" if self.rate else "one by one"


@dataclasses.dataclass(frozen=True)
class Run:
    """What was seen.

    :param took: milliseconds of each job.
    :param asked: statements for each job: of those who enqueue, of those who wait and claim.
    """

    name: str
    load: Load
    took: t.Sequence[float]
    asked: tuple[float, float] | None = None

    def percentile(self, part: int) -> float:
        return statistics.quantiles(self.took, n=100, method="inclusive")[part - 1]


STEADY = functools.partial(Load, jobs=RATE * SECONDS, rate=RATE)
LOADS = (Load(), STEADY(100), STEADY(CROWD), STEADY(CROWD, by=10))


def main(arguments: argparse.Namespace, tables: Report) -> None:
    """Print a table, and whether it is as it should be; and the memory of those that wait."""
    title = "from commit to receipt; theirs to the start of the job, in a worker beside the store"
    load = {"load of the machine": round(os.getloadavg()[0], 1)}
    table = tables.table(title, "ms", columns=COLUMNS, settings=load)
    theirs, ours, sizes = list[Run](), list[Run](), dict[str, float]()
    for peer in PEERS:
        if peer.name in THEIRS and (run := run_peer(table, peer, arguments.url)):
            theirs.append(run)
    run_peer(table, PEERS[0], arguments.url)  # a worker of ours, as theirs
    for name, way in WAYS.items():
        with way(arguments.url) as environment:
            seen, sizes[name] = measure(name, os.environ | environment)
            ours += seen
        for run in seen:
            add(table, run)
    check(table, theirs, ours)
    memory = tables.table("a server, for each that waits", "KiB", settings={"waiting": CROWD})
    for name, each in sizes.items():
        memory.add(name, [each])


# -- theirs -----------------------------------------------------------------------------------


def run_peer(table: Table, peer: Peer, url: str) -> Run | None:
    """Add a line for a peer, or say why there is none."""
    python = workers.install(peer, table.leave_out)
    if not python:
        return None
    try:
        run = measure_peer(peer, python, url)
    except (OSError, TimeoutError, subprocess.SubprocessError) as error:
        table.leave_out(peer.name, error)
        return None
    add(table, run, version=peer.version())
    return run


def measure_peer(peer: Peer, python: str, url: str) -> Run:
    """Measure its worker, which starts each job as soon as it hears of it."""
    with STORES[peer.store](url) as store, workers.noted(2 * SINGLE) as (ticks, path):
        environment = os.environ | {"BENCH_URL": store, "BENCH_TICKS": path}
        workers.enqueue(peer, python, range(0), environment)
        with workers.work(peer, python, environment):
            send(python, peer.app, Load(), environment)
            return Run(peer.name, Load(), took(ticks))


def send(python: str, module: str, load: Load, environment: dict[str, str]) -> str:
    """Send jobs from a process of their own; return what it says."""
    what = (module, load.jobs, load.by, load.rate)
    command = [python, "-m", "tests.benchmarks.peers.sender", *map(str, what)]
    run = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
    return run.stdout.decode()


def took(ticks: memoryview) -> list[float]:
    jobs = len(ticks) // 2
    return [1000 * (ticks[number] - ticks[jobs + number]) for number in range(WARM, jobs)]


# -- ours -------------------------------------------------------------------------------------


@contextlib.contextmanager
def by_notify(url: str) -> t.Iterator[dict[str, str]]:
    with postgres(url) as store:
        yield {"BENCH_APP_URL": store.replace("://", "+psycopg://")}


@contextlib.contextmanager
def by_redis(url: str) -> t.Iterator[dict[str, str]]:
    with by_notify(url) as environment, redis(url) as broker:
        yield environment | {"BENCH_WAKEUP_URL": broker}


@contextlib.contextmanager
def by_sockets(_: str) -> t.Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        yield {"BENCH_APP_URL": f"sqlite:///{folder}/jobs.db"}


WAYS = {"PostgreSQL NOTIFY": by_notify, "Redis, PostgreSQL": by_redis, "SQLite, sockets": by_sockets}


def measure(name: str, environment: dict[str, str]) -> tuple[list[Run], float]:
    """Measure each load, and the KiB that each of the crowd takes."""
    create_all(environment)
    runs, each = [], 0.0
    for load in LOADS:
        with serve(environment) as server:
            run, more = measure_load(name, load, server, environment)
        runs.append(run)
        each = more / CROWD if load.waiters == CROWD else each
    return runs, each


def create_all(environment: dict[str, str]) -> None:
    """Make the tables of the app."""
    command = [sys.executable, "-m", "tests.benchmarks.waited", "create_all"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)


class Server(t.NamedTuple):
    """One process of gunicorn's, by its number, and where it is to be asked."""

    pid: int
    port: int

    def see(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/seen") as answer:
            return t.cast(dict[str, int], json.load(answer))


@contextlib.contextmanager
def serve(environment: dict[str, str], how: str = GEVENT) -> t.Iterator[Server]:
    """Run the app in one process of gunicorn's, with these options."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    options = f"{how} --log-level error --bind 127.0.0.1:{port}"
    app = "tests.benchmarks.waited:create_app()"
    command = [sys.executable, "-m", "gunicorn", *options.split(), app]
    with ended(subprocess.Popen(command, cwd=ROOT, env=environment)) as gunicorn:
        wait_for(port)
        Server(0, port).see()  # answered by the process that gunicorn starts
        children = pathlib.Path(f"/proc/{gunicorn.pid}/task/{gunicorn.pid}/children")
        yield Server(int(children.read_text().split()[0]), port)


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> t.Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def measure_load(name: str, load: Load, server: Server, environment: dict[str, str]) -> tuple[Run, float]:
    """Measure one load, and the KiB by which the server grows when all of them wait."""
    with workers.noted(2 * load.jobs) as (ticks, path):
        environment = environment | {"BENCH_TICKS": path}
        with grown(server, load.waiters, environment) as more:
            asked = server.see()["statements"]
            said = send(sys.executable, "tests.benchmarks.waited", load, environment)
            wait_until(lambda: all(ticks) and server.see()["waiting"] == load.waiters)
            claims = (server.see()["statements"] - asked) / load.jobs
            return Run(name, load, took(ticks), (int(said) / load.jobs, claims)), more


@contextlib.contextmanager
def grown(server: Server, waiters: int, environment: dict[str, str]) -> t.Iterator[float]:
    """Let so many clients wait; yield the KiB by which that makes the server grow."""
    server.see()
    before = size(server.pid)["Pss"]
    with crowd(server, waiters, environment):
        yield 1024 * (size(server.pid)["Pss"] - before)


@contextlib.contextmanager
def crowd(server: Server, waiters: int, environment: dict[str, str]) -> t.Iterator[None]:
    """Let so many clients wait."""
    command = [sys.executable, "-m", "tests.benchmarks.waiters", str(server.port), str(waiters)]
    clients = subprocess.Popen(command, cwd=ROOT, env=environment)
    with ended(clients):
        wait_until(lambda: server.see()["waiting"] == waiters)
        yield


def wait_until(holds: t.Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.1)


# -- the table --------------------------------------------------------------------------------


def add(table: Table, run: Run, version: str | None = None) -> None:
    """Add a line."""
    sent, claimed = run.asked or (None, None)
    table.add(
        run.name, run.took, p95=run.percentile(95), p99=run.percentile(99), version=version,
        waiters=run.load.waiters, jobs=str(run.load), to_enqueue=sent, to_claim=claimed,
        statements=run.asked and sum(run.asked),
    )  # fmt: skip


def check(table: Table, theirs: t.Sequence[Run], ours: t.Sequence[Run]) -> None:
    """Say which targets are reached."""
    alone = {run.name: run.percentile(95) for run in ours if run.load == Load()}
    fastest = min((run.percentile(95) for run in theirs), default=0.0)
    for name, seen in alone.items():
        table.check(
            f"{name}: p95 of one waiter past the fastest of theirs, ms", seen - fastest, most=MOST_BEHIND
        )
    for run in ours:
        if run.load.waiters == CROWD and run.asked is not None:
            times, what = run.percentile(95) / alone[run.name], f"{run.name}, {run.load}"
            table.check(f"{what}: p95 as a multiple of one waiter's", times, most=MOST_TIMES)
            table.check(f"{what}: statements for each job", sum(run.asked), most=MOST_STATEMENTS)
