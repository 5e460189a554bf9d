"""The queues that are measured side by side: one module each, run by the Python that has it installed."""

from __future__ import annotations

import dataclasses
import typing as t


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A worker process of a queue.

    :param module: of this package; it has ``enqueue(numbers)``.
    :param command: its worker's, after ``python -m``; ``{app}`` is the module, ``{url}`` that of the store.
    :param requires: what is installed for it; nothing is what runs in this environment.
    :param part: of the jobs, for a slow one.
    """

    name: str
    module: str
    command: str
    requires: str = ""
    store: t.Literal["postgres", "redis"]
    part: float = 1


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
        command="celery -A {app} worker --concurrency 1",
    ),
    Peer(
        name="Celery, threads",
        module="celery",
        requires="celery[redis]",
        store="redis",
        command="celery -A {app} worker --pool threads --concurrency 10",
    ),
    Peer(
        name="RQ",
        module="rq",
        requires="rq",
        store="redis",
        part=0.1,
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
        name="Procrastinate",
        module="procrastinate",
        requires="procrastinate",
        store="postgres",
        part=0.4,
        command="procrastinate --app {app}.app --log-level warning worker",
    ),
    Peer(
        name="Procrastinate, 10",
        module="procrastinate",
        requires="procrastinate",
        store="postgres",
        part=0.4,
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
)
