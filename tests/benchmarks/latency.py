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
from .http_pair import wait_for
from .memory import size
from .peers import PEERS, Peer
from .stores import STORES, postgres, redis

THEIRS = ("PgQueuer", "Procrastinate", "RQ")
# The first jobs are not counted: statements are built, connections made.
WARM = 20
# Jobs one by one; those of a second, and for how many seconds.
SINGLE, RATE, SECONDS = 200, 100, 3
CROWD = 1000
# Milliseconds past the fastest of theirs; times our own p95 with one waiter; statements for each job.
MOST_BEHIND, MOST_TIMES, MOST_STATEMENTS = 20, 5, 4


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


def main(arguments: argparse.Namespace) -> None:
    """Print a table, and whether it is as it should be."""
    report_head()
    theirs, ours, sizes = list[Run](), list[Run](), dict[str, float]()
    for peer in PEERS:
        python = workers.install(peer) if peer.name in THEIRS else ""
        if python:
            theirs.append(report(measure_peer(peer, python, arguments.url)))
    report(measure_peer(PEERS[0], sys.executable, arguments.url))  # a worker of ours, as theirs
    for name, way in WAYS.items():
        with way(arguments.url) as environment:
            seen, sizes[name] = measure(name, os.environ | environment)
            ours += seen
    check(theirs, ours)
    for name, each in sizes.items():
        print(f"{name}: {each:.0f} KiB of memory for each of {CROWD} that wait")


# -- theirs -----------------------------------------------------------------------------------


def measure_peer(peer: Peer, python: str, url: str) -> Run:
    """Measure its worker, which starts each job as soon as it hears of it."""
    with STORES[peer.store](url) as store, workers.noted(2 * SINGLE) as (ticks, path):
        environment = os.environ | {"BENCH_URL": store, "BENCH_TICKS": path}
        workers.enqueue(peer, python, range(0), environment)
        with workers.work(peer, python, environment):
            send(python, workers.app(peer), Load(), environment)
            return Run(peer.name, Load(), took(ticks))


def send(python: str, module: str, load: Load, environment: dict[str, str]) -> str:
    """Send jobs from a process of their own; return what it says."""
    what = (module, load.jobs, load.by, load.rate)
    command = [python, "-m", "tests.benchmarks.peers.sender", *map(str, what)]
    run = subprocess.run(command, cwd=workers.ROOT, env=environment, check=True, stdout=subprocess.PIPE)
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
    subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.waited", "create_all"],
        cwd=workers.ROOT, env=environment, check=True,
    )  # fmt: skip
    runs, each = [], 0.0
    for load in LOADS:
        with serve(environment) as server:
            run, grown = measure_load(name, load, server, environment)
        runs.append(report(run))
        each = grown / CROWD if load.waiters == CROWD else each
    return runs, each


class Server(t.NamedTuple):
    """One process of gunicorn's, by its number, and where it is to be asked."""

    pid: int
    port: int

    def see(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/seen") as answer:
            return t.cast(dict[str, int], json.load(answer))


@contextlib.contextmanager
def serve(environment: dict[str, str]) -> t.Iterator[Server]:
    """Run the app under gevent."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    options = f"-k gevent --worker-connections {2 * CROWD} --log-level error --bind 127.0.0.1:{port}"
    app = "tests.benchmarks.waited:create_app()"
    command = [sys.executable, "-m", "gunicorn", *options.split(), app]
    with ended(subprocess.Popen(command, cwd=workers.ROOT, env=environment)) as gunicorn:
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
    with workers.noted(2 * load.jobs) as (ticks, path), contextlib.ExitStack() as stack:
        environment = environment | {"BENCH_TICKS": path}
        server.see()
        before = size(server.pid)["Pss"]
        stack.enter_context(crowd(server, load.waiters, environment))
        grown = 1024 * (size(server.pid)["Pss"] - before)
        asked = server.see()["statements"]
        said = send(sys.executable, "tests.benchmarks.waited", load, environment)
        wait_until(lambda: all(ticks) and server.see()["waiting"] == load.waiters)
        claims = (server.see()["statements"] - asked) / load.jobs
        return Run(name, load, took(ticks), (int(said) / load.jobs, claims)), grown


@contextlib.contextmanager
def crowd(server: Server, waiters: int, environment: dict[str, str]) -> t.Iterator[None]:
    """Let so many clients wait."""
    command = [sys.executable, "-m", "tests.benchmarks.waiters", str(server.port), str(waiters)]
    clients = subprocess.Popen(command, cwd=workers.ROOT, env=environment)
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


def report_head() -> None:
    print("from commit to receipt, ms; theirs to the start of the job, in a worker beside the store")
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    head = f"{'':20}{'waiters':>8}  {'jobs':14}{'p50':>8}{'p95':>8}{'p99':>8}"
    print(f"{head}   statements: enqueue, wait, all", flush=True)


def report(run: Run) -> Run:
    """Print a line of the table."""
    figures = "".join(f"{run.percentile(part):8.1f}" for part in (50, 95, 99))
    asked = [*run.asked, sum(run.asked)] if run.asked else []
    told = "".join(f"{each:8.2f}" for each in asked)
    print(f"{run.name:20}{run.load.waiters:8}  {run.load!s:14}{figures}{'':12}{told}".rstrip(), flush=True)
    return run


def check(theirs: t.Sequence[Run], ours: t.Sequence[Run]) -> None:
    """Print which targets hold."""
    alone = {run.name: run.percentile(95) for run in ours if run.load == Load()}
    fastest = min((run.percentile(95) for run in theirs), default=0.0)
    for name, seen in alone.items():
        tell(f"{name}: p95 of one waiter past the fastest of theirs, ms", seen - fastest, MOST_BEHIND)
    for run in ours:
        if run.load.waiters == CROWD and run.asked is not None:
            times = run.percentile(95) / alone[run.name]
            tell(f"{run.name}, {run.load}: p95 as a multiple of one waiter's", times, MOST_TIMES)
            tell(f"{run.name}, {run.load}: statements for each job", sum(run.asked), MOST_STATEMENTS)


def tell(what: str, seen: float, most: float) -> None:
    print(f"{what}: {seen:.2f}, {'under' if seen < most else 'NOT under'} {most}")
