"""``flask jobber queue hire`` and ``fire``: which workers work for a queue."""

from __future__ import annotations

import typing as t

import click

from .accounts import Told, as_json, do_each, the_workers
from .queues import queue
from .root import one_of_them

F = t.TypeVar("F", bound=t.Callable[..., t.Any])


def _several(command: F) -> F:
    """Add the arguments of a command that is about a queue and several workers."""
    names = click.argument("names", metavar="WORKER…", nargs=-1, required=True)
    return click.argument("queue")(names(as_json(one_of_them(command))))


@queue.command()
@_several
def hire(queue: str, names: tuple[str, ...], as_json: bool, name: str | None) -> None:
    """Let workers do the jobs of a queue."""
    workers = the_workers(name)

    def hire_one(worker: str) -> Told:
        workers.hire(queue, worker)
        return {"queue": queue}

    do_each(workers, hire_one, names, done="hired", as_json=as_json)


@queue.command()
@_several
def fire(queue: str, names: tuple[str, ...], as_json: bool, name: str | None) -> None:
    """Take a queue from workers. What they hold of it is back in it at once; nothing is counted."""
    workers = the_workers(name)

    def fire_one(worker: str) -> Told:
        had, released = workers.fire(queue, worker)
        if not had:
            raise click.ClickException(f"{worker!r} does not work for {queue!r}.")
        return {"queue": queue, "released": released}

    do_each(workers, fire_one, names, done="fired", as_json=as_json)
