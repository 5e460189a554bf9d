"""Jobs that do nothing, by one worker process: ours and those of other queues, side by side."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import mmap
import os
import signal
import statistics
import subprocess
import tempfile
import time
import typing as t

import sqlalchemy as sa

from . import cpu
from .environments import ROOT
from .peers import PEERS, Peer
from .rows import vacuum
from .stores import PROGRAMS, STORES
from .table import Line, Report, Table, ratio

# Seconds for a worker to do all of its jobs.
PATIENCE = 120
# So many jobs are enqueued one by one.
SINGLES = 200
# Jobs a second of ours, as a multiple of theirs.
TARGET = 1
# Against PgQueuer's by 100 stands ours by 200.
OURS, OURS_WIDE = "flask_jobber", "flask_jobber, 200"
BEHIND = {
    **dict.fromkeys(("Celery", "RQ", "Dramatiq", "Huey", "arq", "SAQ", "taskiq"), OURS),
    **dict.fromkeys(("Procrastinate", "Chancy", "pg-boss"), OURS),
    "PgQueuer, 100": OURS_WIDE,
}
COLUMNS = ("bulk/s", "singly/s", "worker ms", "store ms", "ours by 10", "ours by 200", "version")


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one round saw of a peer: jobs a second; milliseconds of processor time for each job.

    :param many: enqueued as is recommended for many; ``alone``: one by one.
    """

    executed: float
    many: float
    alone: float
    worker: float
    store: float


def main(arguments: argparse.Namespace, tables: Report) -> None:
    """Print a table of medians, spreads and ratios."""
    table = tables.table(
        "jobs that do nothing: executed by one worker process, enqueued in bulk and singly; ours / theirs",
        "jobs/s",
        columns=COLUMNS,
        settings={"jobs": arguments.jobs, "singly": SINGLES, "rounds": arguments.worker_rounds},
    )
    programs = {peer: program for peer in PEERS if (program := install(peer, table.leave_out))}
    seen: dict[Peer, list[Seen]] = {peer: [] for peer in programs}
    measure(
        PEERS[0], programs[PEERS[0]], arguments
    )  # nobody's first run reads files that the next finds read
    for _ in range(arguments.worker_rounds):
        for peer in list(seen):
            try:
                seen[peer].append(measure(peer, programs[peer], arguments))
            except (OSError, TimeoutError, subprocess.SubprocessError) as error:
                table.leave_out(peer.name, error)
                del seen[peer]
    report(seen, table)


def install(peer: Peer, leave_out: t.Callable[[str, object], None] = print) -> str:
    """Return the program that runs it, or nothing when it cannot be installed."""
    try:
        return peer.install()
    except (OSError, subprocess.SubprocessError) as error:
        leave_out(peer.name, error)
        return ""


# -- one run ----------------------------------------------------------------------------------


def measure(peer: Peer, program: str, arguments: argparse.Namespace) -> Seen:
    """Enqueue jobs, and see how they are executed, from the first on."""
    with STORES[peer.store](arguments.url) as url, noted(arguments.jobs) as (ticks, path):
        environment = os.environ | {"BENCH_URL": url, "BENCH_TICKS": path}
        singles = min(SINGLES, arguments.jobs // 2)
        alone, many = enqueue(peer, program, range(arguments.jobs), environment, singles)
        if peer.store == "postgres":  # with statistics no plan is a guess
            engine = sa.make_url(url).set(drivername="postgresql+psycopg")
            vacuum(sa.create_engine(engine, poolclass=sa.NullPool))
        with work(peer, program, environment) as worker:
            wanted = min(arguments.jobs, peer.most or arguments.jobs)
            executed, spent = follow(peer, worker, ticks, wanted)
    rates = executed, (arguments.jobs - singles) / many, singles / alone
    return Seen(*rates, spent["worker_ms"], spent["store_ms"])


def follow(
    peer: Peer, worker: subprocess.Popen[bytes], ticks: memoryview, wanted: int
) -> tuple[float, dict[str, float]]:
    """Return jobs a second from the first to the last that is wanted, and what each cost."""
    wait_until_done(worker, ticks, 1)
    begun = count(ticks)
    whose = {
        "worker": lambda: cpu.family(worker.pid),
        "store": lambda: cpu.named(PROGRAMS[peer.store]),
    }
    with cpu.spent(**whose) as spent:
        wait_until_done(worker, ticks, wanted)
        ended = count(ticks)
    instants = sorted(filter(None, ticks))[:wanted]
    return (wanted - 1) / (instants[-1] - instants[0]), spent.per_job(ended - begun)


def enqueue(
    peer: Peer, program: str, numbers: range, environment: dict[str, str], singles: int = 0
) -> tuple[float, float]:
    """Return the seconds it took, of those one by one and of the others."""
    command = [program, *peer.fill(numbers.start, numbers.stop, singles)]
    run = subprocess.run(
        command, cwd=ROOT, env=environment | peer.environment(), check=True, stdout=subprocess.PIPE
    )
    alone, many = map(float, run.stdout.split())
    return alone, many


@contextlib.contextmanager
def noted(jobs: int) -> t.Iterator[tuple[memoryview, str]]:
    """Yield the instants at which jobs were executed, 0 for not yet, and the file they are in."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(jobs * 8)
        yield memoryview(mmap.mmap(file.fileno(), 0)).cast("d"), file.name


@contextlib.contextmanager
def work(peer: Peer, program: str, environment: dict[str, str]) -> t.Iterator[subprocess.Popen[bytes]]:
    """Run its worker, with what it starts; it is ended at once."""
    command = [program, *peer.work(environment["BENCH_URL"])]
    quiet = subprocess.DEVNULL
    worker = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment | peer.environment(),
        stdout=quiet,
        stderr=quiet,
        start_new_session=True,
    )
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def count(ticks: memoryview) -> int:
    return len(ticks) - ticks.tolist().count(0)


def wait_until_done(
    worker: subprocess.Popen[bytes], ticks: memoryview, wanted: int | None = None, seconds: float = PATIENCE
) -> None:
    """Wait until so many jobs were executed, or all."""
    deadline = time.monotonic() + seconds
    while count(ticks) < (len(ticks) if wanted is None else wanted):
        if worker.poll() is not None:
            raise ChildProcessError(f"its worker ended with code {worker.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"it has not done its jobs within {seconds} s")
        time.sleep(0.02)


# -- the table --------------------------------------------------------------------------------


def report(seen: dict[Peer, list[Seen]], table: Table) -> None:
    by_name = {peer.name: [each.executed for each in rounds] for peer, rounds in seen.items()}
    ours, wide = (Line(name, by_name[name], {}) for name in (OURS, OURS_WIDE))
    for peer, rounds in seen.items():
        line = Line(peer.name, by_name[peer.name], {})
        times = {"ours by 10": ratio(ours, line), "ours by 200": ratio(wide, line)}
        table.add(peer.name, line.seen, **figures(rounds), **times, version=peer.version())
    for name, mine in BEHIND.items():
        if name in by_name:
            times_theirs = ratio(Line(mine, by_name[mine], {}), Line(name, by_name[name], {}))
            table.check(f"{mine} as a multiple of {name}", times_theirs, least=TARGET)


def figures(rounds: t.Sequence[Seen]) -> dict[str, float]:
    """Return the columns that are medians of all rounds."""
    fields = dict(zip(COLUMNS, ("many", "alone", "worker", "store"), strict=False))
    return {
        column: statistics.median(getattr(each, field) for each in rounds) for column, field in fields.items()
    }
