"""Jobs got and finished by workers on other machines: ours over HTTP, and what else they could ask."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import typing as t

from . import cpu, environments
from .environments import ROOT
from .remotes import jobber
from .servers import wait_for
from .table import Line, Report, Table, ratio

CLIENTS, ROUNDS = 8, 3
PATIENCE = 60
# Jobs a second of ours as a multiple of Prefect's, which like ours keeps each of them and what became of it.
TARGET = 1
COLUMNS = ("ours", *cpu.COLUMNS, "jobs", "version", "login", "scope", "history")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remote:
    """A server, and how it is asked.

    :param module: of :mod:`.remotes`.
    :param jobs: so many wait at the beginning of a round, and are done in it.
    :param by: how many are got at a time.
    :param requires: what its clients need.
    :param lacks: what it cannot do about workers that are not trusted. *login*: to know each worker apart and
        refuse strangers; *scope*: to ask the app which jobs it may have; *history*: to tell who did what.
    """

    name: str
    module: str
    serve: str
    jobs: int
    by: int = 1
    requires: str = ""
    lacks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Server:
    """A process that listens, with what it starts.

    :param database: how the processes of its database are called, when that is another program.
    """

    port: int
    pid: int
    version: str
    database: str = ""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What one round saw: jobs a second, and milliseconds of processor time for each job."""

    rate: float
    spent: t.Mapping[str, float]


REMOTES = (
    Remote(name="flask_jobber", module="jobber", serve="jobber", jobs=1000),
    Remote(name="flask_jobber, 100", module="jobber_exchange", serve="jobber", jobs=10_000, by=100),
    Remote(name="Prefect", module="prefect", serve="prefect", jobs=40, lacks=("login", "scope")),
    Remote(name="Luigi", module="luigi", serve="luigi", jobs=400, lacks=("login", "scope", "history")),
    Remote(
        name="NATS", module="nats", serve="nats", jobs=4000, requires="nats-py", lacks=("scope", "history")
    ),
    Remote(
        name="NATS, 100",
        module="nats",
        serve="nats",
        jobs=20_000,
        by=100,
        requires="nats-py",
        lacks=("scope", "history"),
    ),
    Remote(
        name="beanstalkd",
        module="beanstalkd",
        serve="beanstalkd",
        jobs=8000,
        lacks=("login", "scope", "history"),
    ),
)
OURS = {1: REMOTES[0].name, 100: REMOTES[1].name}


def main(arguments: argparse.Namespace, tables: Report) -> None:
    """Print a table of medians, spreads and ratios."""
    os.environ["BENCH_URL"] = arguments.url
    table = tables.table(
        "get + finish by remote workers; ours as a multiple of theirs",
        "jobs/s",
        columns=COLUMNS,
        settings={"clients": CLIENTS, "rounds": ROUNDS},
    )
    with contextlib.ExitStack() as stack:
        servers = serve_all(stack, table)
        rounds: dict[Remote, list[Seen]] = {each: [] for each in REMOTES if each.serve in servers}
        for number in range(1 + ROUNDS):
            for each in list(rounds):
                try:
                    seen = measure(each, servers[each.serve])
                except (OSError, subprocess.SubprocessError) as error:
                    table.leave_out(each.name, error)
                    del rounds[each]
                else:
                    rounds[each] += [seen] if number else []  # the first warms up
    report(rounds, servers, table)


# -- servers ----------------------------------------------------------------------------------


def serve_all(stack: contextlib.ExitStack, table: Table) -> dict[str, Server]:
    servers = {}
    for name, serve in SERVERS.items():
        try:
            servers[name] = stack.enter_context(serve())
        except (OSError, subprocess.SubprocessError) as error:
            table.leave_out(name, error)
    return servers


@contextlib.contextmanager
def started(
    command: t.Sequence[str], port: int, environment: t.Mapping[str, str] | None = None
) -> t.Iterator[subprocess.Popen[bytes]]:
    """Run a server until it listens; end it at last with what it has started."""
    quiet = subprocess.DEVNULL
    variables = os.environ | dict(environment or {})
    server = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        wait_for(port)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def said(*command: str) -> str:
    """Return the last word that a program says, which is its version."""
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return run.stdout.split()[-1].removeprefix("v")


@contextlib.contextmanager
def serve_jobber() -> t.Iterator[Server]:
    """Run our app under gunicorn with one process of eight threads, on PostgreSQL."""
    jobber.set_up()
    port = free_port()
    options = f"--threads 8 --bind 127.0.0.1:{port} tests.benchmarks.apps:create_app()"
    version = environments.python_version(sys.executable, "flask-jobber")
    with started([sys.executable, "-m", "gunicorn", *options.split()], port) as server:
        yield Server(port, server.pid, version, cpu.POSTGRES)


@contextlib.contextmanager
def serve_prefect() -> t.Iterator[Server]:
    """Run Prefect's server on SQLite, which is its default; without what it does besides on a schedule."""
    python = environments.python("prefect fastapi<0.120")  # it breaks with later versions of FastAPI
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = f"-m prefect server start --no-services --host 127.0.0.1 --port {port}"
        settings = {"PREFECT_HOME": folder, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        with started([python, *options.split()], port, settings) as server:
            yield Server(port, server.pid, environments.python_version(python, "prefect"))


@contextlib.contextmanager
def serve_luigi() -> t.Iterator[Server]:
    """Run Luigi's scheduler, which holds all in memory."""
    python = environments.python("luigi")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = f"--address 127.0.0.1 --port {port} --state-path {folder}/state"
        command = [python, "-c", "from luigi.cmdline import luigid; luigid()", *options.split()]
        with started(command, port) as server:
            yield Server(port, server.pid, environments.python_version(python, "luigi"))


@contextlib.contextmanager
def serve_nats() -> t.Iterator[Server]:
    """Run NATS with JetStream, on disk."""
    program, port = program_of("nats-server"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        with started([program, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder], port) as server:
            yield Server(port, server.pid, said(program, "--version"))


@contextlib.contextmanager
def serve_beanstalkd() -> t.Iterator[Server]:
    """Run beanstalkd with its log on disk."""
    program, port = program_of("beanstalkd"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        with started([program, "-l", "127.0.0.1", "-p", str(port), "-b", folder], port) as server:
            yield Server(port, server.pid, said(program, "-v"))


def program_of(name: str) -> str:
    """Return where a program is.

    :raises FileNotFoundError: when it is not installed.
    """
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        raise FileNotFoundError(f"there is no {name}")
    return found


SERVERS: dict[str, t.Callable[[], contextlib.AbstractContextManager[Server]]] = {
    "jobber": serve_jobber,
    "prefect": serve_prefect,
    "luigi": serve_luigi,
    "nats": serve_nats,
    "beanstalkd": serve_beanstalkd,
}


# -- one round --------------------------------------------------------------------------------


def measure(remote: Remote, server: Server) -> Seen:
    """Enqueue jobs, and let clients do them."""
    run_clients(remote, server, clients=0)
    whose = {
        "server": lambda: cpu.family(server.pid),
        "database": lambda: cpu.named(server.database) if server.database else (),
    }
    with cpu.spent(**whose) as spent:
        seconds, client = run_clients(remote, server, clients=CLIENTS)
    costs = {"client_ms": 1000 * client / remote.jobs, **spent.per_job(remote.jobs)}
    return Seen(remote.jobs / seconds, costs)


def run_clients(remote: Remote, server: Server, *, clients: int) -> list[float]:
    """Return the seconds it took, and those of processor time; nothing when jobs are enqueued."""
    python = environments.python(remote.requires) if remote.requires else sys.executable
    what = (remote.module, server.port, remote.jobs, clients, remote.by)
    command = [python, "-m", "tests.benchmarks.remotes.drain", *map(str, what)]
    run = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=PATIENCE)
    return [float(word) for word in run.stdout.split()]


# -- the table --------------------------------------------------------------------------------


def report(
    rounds: t.Mapping[Remote, t.Sequence[Seen]], servers: t.Mapping[str, Server], table: Table
) -> None:
    lines = {
        remote.name: Line(remote.name, [each.rate for each in seen], {}) for remote, seen in rounds.items()
    }
    for remote, seen in rounds.items():
        line = lines[remote.name]
        costs = {
            column: statistics.median(each.spent[column.replace(" ", "_")] for each in seen)
            for column in cpu.COLUMNS
        }
        facts = {"ours": ratio(lines[OURS[remote.by]], line), "version": servers[remote.serve].version}
        lacks = dict.fromkeys(remote.lacks, "no")
        table.add(remote.name, line.seen, jobs=remote.jobs, **costs, **facts, **lacks)
    if "Prefect" in lines:
        times = ratio(lines[OURS[1]], lines["Prefect"])
        table.check("ours as a multiple of Prefect's", times, least=TARGET)
