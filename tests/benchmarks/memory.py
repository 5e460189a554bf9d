"""Memory: of a server for each claim that waits and for a large result, of a worker after many jobs."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import typing as t
import urllib.request

import sqlalchemy as sa

from . import latency, workers
from .peers import PEERS
from .proc import peak, size
from .rows import insert_jobs
from .stores import postgres
from .table import Report

FEW, MANY, LONG = 1_000, 20_000, 100_000
# Seconds to do them, and to settle the last of them.
PATIENCE, REST = 900, 5
TARGET = 1.1
WAITERS, ROUNDS = 1_000, 2
THREAD = "-k gthread --threads 1"
SMALL, MIB, LARGE_ROUNDS = 20, 2**20, 5
#: Of one MiB of JSON, which is the most that the settings of an app let in.
RESULTS: dict[str, t.Any] = {"a text": "x" * (MIB - 2), "a list of numbers": [123456] * (MIB // 8)}


def main(arguments: argparse.Namespace, tables: Report) -> None:
    """Print three tables."""
    waiters(arguments.url, tables)
    requests(arguments.url, tables)
    worker(arguments.url, tables, LONG if arguments.long else MANY)


# -- a server ---------------------------------------------------------------------------------


def waiters(url: str, tables: Report) -> None:
    """Print by how much a server grows for each claim that waits."""
    table = tables.table("a server under gevent, for each that waits", "KiB", settings={"waiting": WAITERS})
    grown: dict[str, list[float]] = {name: [] for name in latency.WAYS}
    for _ in range(ROUNDS):
        for name, way in latency.WAYS.items():
            with way(url) as environment:
                grown[name].append(measure_waiters(os.environ | environment))
    for name, seen in grown.items():
        table.add(name, seen)


def measure_waiters(environment: dict[str, str]) -> float:
    latency.create_all(environment)
    with workers.noted(1) as (_, path):
        environment = environment | {"BENCH_TICKS": path}
        with latency.serve(environment) as server, latency.grown(server, WAITERS, environment) as kibibytes:
            return kibibytes / WAITERS


def requests(url: str, tables: Report) -> None:
    """Print by how much a result of 1 MiB lifts the peak of a server over that of small results."""
    title = "the peak of a server with one thread, for a result of 1 MiB of JSON past one of 15 B"
    table = tables.table(title, "KiB", settings={"server": f"gunicorn {THREAD}"})
    grown: dict[str, list[float]] = {name: [] for name in RESULTS}
    with latency.by_notify(url) as environment:
        environment = os.environ | environment
        latency.create_all(environment)
        insert(environment["BENCH_APP_URL"], len(RESULTS) * LARGE_ROUNDS * (SMALL + 1))
        for _ in range(LARGE_ROUNDS):
            for name, result in RESULTS.items():
                grown[name].append(measure_request(result, environment))
    for name, seen in grown.items():
        table.add(name, seen)


def insert(url: str, jobs: int) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            insert_jobs("'queued'", "now()", series=f"FROM generate_series(1, {jobs}) AS n")
        )


def measure_request(result: t.Any, environment: dict[str, str]) -> float:
    """Return KiB, seen in a server that has just started."""
    with latency.serve(environment, THREAD) as server:
        for _ in range(SMALL):
            deliver(server.port, {"answer": 42})
        before = peak(server.pid)
        deliver(server.port, result)
        return peak(server.pid) - before


def deliver(port: int, result: t.Any) -> None:
    """Claim a job and deliver the result."""
    job = call(port, "POST", "/jobber/claims", {"types": ["work"]})["jobs"][0]
    call(port, "PUT", f"{job['href']}/result", {"result": result})


def call(port: int, method: str, path: str, body: t.Any) -> t.Any:
    headers = {"Authorization": "Bearer 1", "Content-Type": "application/json"}
    content, url = json.dumps(body).encode(), f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(url, content, headers, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


# -- a worker ---------------------------------------------------------------------------------


def worker(url: str, tables: Report, jobs: int) -> None:
    """Print the resident and the proportional size after so many jobs that do nothing, against a few."""
    settings = {"jobs": jobs, "few": FEW, "python -m": PEERS[0].command.format(app="…")}
    few, many = measure_worker(url, jobs)
    table = tables.table("a worker after many jobs", "MiB", columns=("few", "ratio"), settings=settings)
    for kind in ("Rss", "Pss"):
        table.add(kind.upper(), [many[kind]], few=few[kind], ratio=many[kind] / few[kind])
        table.check(kind.upper(), many[kind] / few[kind], most=TARGET)


def measure_worker(url: str, jobs: int) -> list[dict[str, float]]:
    """Return its sizes after few jobs and after all of them."""
    ours, sizes = PEERS[0], []
    with postgres(url) as store, workers.noted(jobs) as (ticks, path):
        environment = os.environ | {"BENCH_URL": store, "BENCH_TICKS": path}
        workers.enqueue(ours, sys.executable, range(FEW), environment)
        with workers.work(ours, sys.executable, environment) as process:
            for first, end in ((0, FEW), (FEW, jobs)):
                if first:
                    workers.enqueue(ours, sys.executable, range(first, end), environment)
                workers.wait_until_done(process, ticks[:end], seconds=PATIENCE)
                time.sleep(REST)
                sizes.append(size(process.pid))
    return sizes
