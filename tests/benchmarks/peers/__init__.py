"""The queues that are measured side by side: an app each, run by the Python or the Node that has it."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import typing as t

from .. import environments


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A worker of a queue, of one process where its defaults do not say otherwise.

    :param module: its app: of this package, as :mod:`.filler` has it, or a file beside it for Node.
    :param command: its worker's, after ``python -m`` or the file; ``{app}`` is the module,
        ``{url}`` that of the store.
    :param requires: what is installed for it; nothing is what runs in this environment.
    :param most: so many jobs are waited for at the most, from a slow one.
    """

    name: str
    module: str
    command: str
    requires: str = ""
    store: t.Literal["postgres", "redis"]
    most: int | None = None

    @property
    def app(self) -> str:
        return f"{__name__}.{self.module}"

    def install(self) -> str:
        """Return the program that runs it.

        :raises OSError, subprocess.SubprocessError: when it cannot be installed.
        """
        return environments.python(self.requires) if self.requires else sys.executable

    def version(self) -> str:
        name = environments.package(self.requires) or "flask_jobber"
        return environments.python_version(self.install(), name)

    def environment(self) -> dict[str, str]:
        """Return what its processes have in their environment besides."""
        return {}

    def fill(self, *numbers: int) -> list[str]:
        """Return the command that enqueues, after the program. :param numbers: see :mod:`.filler`."""
        return ["-m", f"{__name__}.filler", self.app, *map(str, numbers)]

    def work(self, url: str) -> list[str]:
        """Return the command of its worker, after the program."""
        return ["-m", *self.command.format(app=self.app, url=url).split()]


class NodePeer(Peer):
    """A worker by Node."""

    __slots__ = ()

    def install(self) -> str:
        return environments.node(self.requires)

    def version(self) -> str:
        return environments.node_version(self.requires)

    def environment(self) -> dict[str, str]:
        return {"BENCH_HOME": str(environments.HOME / self.requires)}

    @property
    def app(self) -> str:
        return str(pathlib.Path(__file__).parent / self.module)

    def fill(self, *numbers: int) -> list[str]:
        return [self.app, "fill", *map(str, numbers)]

    def work(self, url: str) -> list[str]:
        return [self.app, *self.command.split()]


# What they log is thrown away; those that would log every job are told not to, where they can be.
PEERS = (
    Peer(
        name="flask_jobber",
        module="jobber",
        store="postgres",
        command="flask --app {app} jobber work --concurrency 10",
    ),
    Peer(
        name="flask_jobber, 200",
        module="jobber",
        store="postgres",
        command="flask --app {app} jobber work --concurrency 200",
    ),
    Peer(
        name="flask_jobber, async",
        module="jobber_async",
        store="postgres",
        command="flask --app {app} jobber work --concurrency 200",
    ),
    Peer(
        name="Celery",
        module="celery",
        requires="celery[redis]",
        store="redis",
        most=1000,
        command="celery -A {app} worker --concurrency 1",
    ),
    Peer(
        name="Celery, threads",
        module="celery",
        requires="celery[redis]",
        store="redis",
        most=1000,
        command="celery -A {app} worker --pool threads --concurrency 10",
    ),
    Peer(
        name="RQ",
        module="rq",
        requires="rq",
        store="redis",
        most=60,
        command="rq.cli worker --quiet --url {url}",
    ),
    Peer(
        name="Dramatiq",
        module="dramatiq",
        requires="dramatiq[redis]",
        store="redis",
        command="dramatiq {app} --processes 1",
    ),
    Peer(
        name="Huey",
        module="huey",
        requires="huey[redis]",
        store="redis",
        command="huey.bin.huey_consumer {app}.huey --quiet",
    ),
    Peer(
        name="arq",
        module="arq",
        requires="arq",
        store="redis",
        most=300,
        command="arq {app}.Worker --custom-log-dict {app}.LOGS",
    ),
    Peer(
        name="SAQ",
        module="saq",
        requires="saq[redis] typing-extensions",
        store="redis",
        command="saq {app}.settings --quiet",
    ),
    Peer(
        name="taskiq",
        module="taskiq",
        requires="taskiq taskiq-redis",
        store="redis",
        command="taskiq worker {app}:broker --workers 1 --log-level WARNING",
    ),
    Peer(
        name="Procrastinate",
        module="procrastinate",
        requires="procrastinate",
        store="postgres",
        most=300,
        command="procrastinate --app {app}.app --log-level warning worker",
    ),
    Peer(
        name="Procrastinate, 10",
        module="procrastinate",
        requires="procrastinate",
        store="postgres",
        most=500,
        command="procrastinate --app {app}.app --log-level warning worker --concurrency 10",
    ),
    Peer(
        name="PgQueuer",
        module="pgqueuer",
        # Its command breaks with later versions of typer.
        requires="pgqueuer[asyncpg] typer<0.20",
        store="postgres",
        command="pgqueuer run {app}:main",
    ),
    Peer(
        name="PgQueuer, 100",
        module="pgqueuer",
        requires="pgqueuer[asyncpg] typer<0.20",
        store="postgres",
        command="pgqueuer run {app}:main --batch-size 100",
    ),
    Peer(
        name="Chancy",
        module="chancy",
        requires="chancy[cli]",
        store="postgres",
        most=3,
        command="chancy.cli.cli --app {app}.app worker start",
    ),
    Peer(
        name="Chancy, async, 100",
        module="chancy_async",
        requires="chancy[cli]",
        store="postgres",
        command="chancy.cli.cli --app {app}.app worker start",
    ),
    NodePeer(
        name="pg-boss",
        module="pgboss.mjs",
        requires="pg-boss",
        store="postgres",
        most=2,
        command="work",
    ),
    NodePeer(
        name="pg-boss, 100",
        module="pgboss.mjs",
        requires="pg-boss",
        store="postgres",
        most=201,
        command="work 100 0.5",
    ),
    NodePeer(
        name="graphile-worker",
        module="graphile.mjs",
        requires="graphile-worker",
        store="postgres",
        most=1000,
        command="work",
    ),
    NodePeer(
        name="graphile-worker, 10",
        module="graphile.mjs",
        requires="graphile-worker",
        store="postgres",
        command="work 10",
    ),
)
