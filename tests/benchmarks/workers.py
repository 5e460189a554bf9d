"""Jobs that do nothing, by one worker process: ours and those of other queues, side by side."""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t
import venv

import sqlalchemy as sa

from .http_pair import vacuum
from .peers import PEERS, Peer
from .stores import STORES

ROOT = pathlib.Path(__file__).parent.parent.parent
# Seconds for a worker to do all of its jobs.
PATIENCE = 120
# Ours, as a multiple of theirs.
TARGETS = {"Celery": 2, "RQ": 2, "Procrastinate": 2, "PgQueuer": 1}


def main(arguments: argparse.Namespace) -> None:
    """Print a table of medians and spreads."""
    pythons = {peer: install(peer) for peer in PEERS}
    rates: dict[Peer, list[float]] = {peer: [] for peer, python in pythons.items() if python}
    for _ in range(arguments.rounds):
        for peer in list(rates):
            try:
                rates[peer].append(measure(peer, pythons[peer], arguments))
            except (OSError, TimeoutError, subprocess.SubprocessError) as error:
                print(f"{peer.name} is left out: {error}")
                del rates[peer]
    report(rates, pythons, arguments)


# -- environments of their own ----------------------------------------------------------------


def install(peer: Peer) -> str:
    """Return the Python that has it, or nothing when it cannot be installed."""
    if not peer.requires:
        return sys.executable
    home = ROOT / ".venv-peers" / peer.module
    python = str(home / "bin" / "python")
    try:
        if not version(peer, python):
            venv.create(home, with_pip=True, clear=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *peer.requires.split()], check=True)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"{peer.name} is left out: {error}")
        return ""
    return python


def version(peer: Peer, python: str) -> str:
    """Return the version that is installed, or nothing."""
    name = peer.requires.partition("[")[0] or "flask_jobber"
    look = f"from importlib.metadata import version; print(version({name!r}))"
    with contextlib.suppress(OSError):
        return subprocess.run([python, "-c", look], capture_output=True, text=True).stdout.strip()
    return ""


# -- one run ----------------------------------------------------------------------------------


def measure(peer: Peer, python: str, arguments: argparse.Namespace) -> float:
    """Return jobs a second, from the first's execution to the last's."""
    jobs = int(arguments.jobs * peer.part)
    with STORES[peer.store](arguments.url) as url, noted(jobs) as (ticks, path):
        environment = os.environ | {"BENCH_URL": url, "BENCH_TICKS": path}
        enqueue(peer, python, range(jobs), environment)
        if peer.store == "postgres":  # with statistics no plan is a guess
            engine = sa.make_url(url).set(drivername="postgresql+psycopg")
            vacuum(sa.create_engine(engine, poolclass=sa.NullPool))
        with work(peer, python, environment) as worker:
            wait_until_done(worker, ticks)
        return (jobs - 1) / (max(ticks) - min(ticks))


def enqueue(peer: Peer, python: str, numbers: range, environment: dict[str, str]) -> None:
    code = f"from {app(peer)} import enqueue; enqueue({numbers})"
    subprocess.run([python, "-c", code], cwd=ROOT, env=environment, check=True)


def app(peer: Peer) -> str:
    return f"tests.benchmarks.peers.{peer.module}"


@contextlib.contextmanager
def noted(jobs: int) -> t.Iterator[tuple[memoryview, str]]:
    """Yield the instants at which jobs were executed, 0 for not yet, and the file they are in."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(jobs * 8)
        yield memoryview(mmap.mmap(file.fileno(), 0)).cast("d"), file.name


@contextlib.contextmanager
def work(peer: Peer, python: str, environment: dict[str, str]) -> t.Iterator[subprocess.Popen[bytes]]:
    """Run its worker, with what it starts."""
    command = [python, "-m", *peer.command.format(app=app(peer), url=environment["BENCH_URL"]).split()]
    quiet = subprocess.DEVNULL
    worker = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield worker
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(10)
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def wait_until_done(worker: subprocess.Popen[bytes], ticks: memoryview, seconds: float = PATIENCE) -> None:
    """Wait until every job was executed."""
    deadline = time.monotonic() + seconds
    while not all(ticks):
        if worker.poll() is not None:
            raise ChildProcessError(f"its worker ended with code {worker.returncode}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"it has not done its jobs within {seconds} s")
        time.sleep(0.1)


# -- the table --------------------------------------------------------------------------------


def report(rates: dict[Peer, list[float]], pythons: dict[Peer, str], arguments: argparse.Namespace) -> None:
    ours = {peer.name: seen for peer, seen in rates.items() if not peer.requires}
    print(f"{arguments.jobs} jobs that do nothing, one worker process, {arguments.rounds} rounds")
    print("as multiples of theirs: by 10, what our default does; async, a coroutine function by 200")
    names = ("jobs/s", "min", "max", "by 10", "async", "target")
    print(f"{'queue':20}{'version':10}{''.join(f'{name:>8}' for name in names)}  python -m")
    for peer, seen in rates.items():
        mine = ours["flask_jobber"], ours["flask_jobber, async"]
        ratios = [statistics.median(a / b for a, b in zip(one, seen, strict=True)) for one in mine]
        target = f">= {TARGETS[peer.name]}" if peer.name in TARGETS else ""
        name, part = (
            f"{peer.name:20}{version(peer, pythons[peer]):10}",
            f"  {int(arguments.jobs * peer.part)}",
        )
        figures = f"{statistics.median(seen):8.0f}{min(seen):8.0f}{max(seen):8.0f}"
        figures += f"{ratios[0]:8.2f}{ratios[1]:8.2f}{target:>8}"
        print(f"{name}{figures}  {peer.command.format(app='…', url='…')}{part if peer.part != 1 else ''}")
