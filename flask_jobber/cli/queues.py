"""``flask jobber queue …``: declare queues, and look after them."""

from __future__ import annotations

import contextlib
import typing as t

import click
from sqlalchemy.exc import SQLAlchemyError

from ..core import queries
from ..core.models import QueueMixin
from ..core.queues import Said, Stats
from ..errors import Invalid, JobberError
from . import table, told
from .root import group, one_of_them, the_jobber

if t.TYPE_CHECKING:
    from ..extension import Jobber

F = t.TypeVar("F", bound=t.Callable[..., t.Any])
#: Jobs that one transaction cancels.
_BATCH = 1000
_LISTED = ("NAME", "DECLARED", "CAPACITY", "UNFINISHED", "PAUSED", "PRIORITY", "LEASE")
_COUNTED = (
    "NAME", "WAITING", "SCHEDULED", "LOCKED", "SUBMITTED", "BLOCKED", "FINISHED", "CAPACITY", "PAUSED",
    "OLDEST",
)  # fmt: skip
_SOFT = frozenset({"NAME"})
_SETTINGS = ("name", "declared", "capacity", "paused", "priority", "lease_for")
_COUNTS = ("waiting", "scheduled", "locked", "submitted", "blocked", "finished", "oldest_seconds")
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
_queue = click.argument("queue", metavar="NAME")
_WRONGLY = 2


@group.group()
def queue() -> None:
    """Declare queues, change, pause, count, empty and destroy them."""


def _or_none(kind: t.Any) -> t.Any:
    """Return what reads a value of a type, or the word ``none``."""

    def read(context: click.Context, param: click.Parameter, value: t.Any) -> t.Any:
        return value if value in (None, "none") else kind.convert(value, param, context)

    return read


def _default(option: str, name: str, kind: t.Any) -> t.Callable[[F], F]:
    metavar, said = f"{kind.name.upper()}|none", "Of jobs that say none of their own."
    return click.option(option, name, metavar=metavar, callback=_or_none(kind), help=said)


def _settings(command: F) -> F:
    """Add the options for what may be said of a queue."""
    for option in (
        _default("--lease-seconds", "lease_for", click.FLOAT),
        _default("--priority", "priority", click.INT),
        click.option("--capacity", type=click.IntRange(0), help="Unfinished jobs it may hold; 0: no limit."),
    ):
        command = option(command)
    return command


def _said(given: t.Mapping[str, t.Any]) -> Said:
    said = {key: None if value == "none" else value for key, value in given.items() if value is not None}
    return t.cast(Said, said)


@queue.command()
@_queue
@_settings
@_as_json
@one_of_them
def create(queue: str, as_json: bool, name: str | None, **given: t.Any) -> None:
    """Declare a queue. Jobs may be in it already."""
    with _acting(name, queue) as jobber:
        made = jobber.queues.create(queue, **_said(given))
    _tell("created", made, as_json)


@queue.command()
@_queue
@_settings
@_as_json
@one_of_them
def change(queue: str, as_json: bool, name: str | None, **given: t.Any) -> None:
    """Change what is said of a queue; ``none`` takes a priority or a lease back."""
    said = _said(given)
    if not said:
        raise click.UsageError("Say what is to change: --capacity, --priority or --lease-seconds.")
    with _acting(name, queue) as jobber:
        changed = jobber.queues.change(queue, **said)
    _tell("changed", changed, as_json)


@queue.command()
@_queue
@_as_json
@one_of_them
def pause(queue: str, as_json: bool, name: str | None) -> None:
    """Hand out no jobs of a queue; those that are held go on."""
    with _acting(name, queue) as jobber:
        paused = jobber.queues.pause(queue)
    _tell("paused", paused, as_json)


@queue.command()
@_queue
@_as_json
@one_of_them
def resume(queue: str, as_json: bool, name: str | None) -> None:
    """Hand out the jobs of a queue again."""
    with _acting(name, queue) as jobber:
        resumed = jobber.queues.resume(queue)
    _tell("resumed", resumed, as_json)


@queue.command()
@_queue
@click.option(
    "--force", is_flag=True, help="Though there are unfinished jobs: they go on, unbounded and unpaused."
)
@_as_json
@one_of_them
def destroy(queue: str, force: bool, as_json: bool, name: str | None) -> None:
    """Forget what is declared of a queue. Its name is then that of an ordinary one."""
    with _acting(name, queue) as jobber:
        jobber.queues.destroy(queue, force=force)
    click.echo(told.document({"destroyed": queue}) if as_json else f"{queue}: destroyed")


@queue.command()
@_queue
@click.option("--yes", is_flag=True, help="Do not ask.")
@_as_json
@one_of_them
def empty(queue: str, yes: bool, as_json: bool, name: str | None) -> None:
    """Cancel the waiting jobs of a queue. Those that are held stay, and those of a series."""
    with _acting(name, queue) as jobber:
        (before,) = jobber.queues.stats(queue, finished=False)
        _, last = queries.extent(jobber.store(), queue=queue)
    waiting = before.waiting + before.scheduled
    if waiting and not yes:
        click.confirm(f"Cancel up to {waiting} jobs that wait in {queue}?", abort=True, err=True)
    cancelled = 0
    while done := _empty_some(name, queue, last):
        cancelled += done
    with _acting(name, queue) as jobber:
        (after,) = jobber.queues.stats(queue, finished=False)
    if as_json:
        click.echo(told.document({"name": queue, "cancelled": cancelled, "unfinished": after.unfinished}))
    else:
        click.echo(f"{queue}: {cancelled} cancelled, {after.unfinished} unfinished")


def _empty_some(name: str | None, queue: str, last: int) -> int:
    """Cancel a batch of those that there were when the operator was asked."""
    with _acting(name, queue) as jobber:
        return jobber.queues.empty(queue, _BATCH, last)


@queue.command("list")
@_as_json
@one_of_them
def list_(as_json: bool, name: str | None) -> None:
    """List the queues: those that are declared, and those that unfinished jobs are in."""
    found = the_jobber(name).queues.stats(finished=False)
    if as_json:
        click.echo(told.document({"queues": [_listed(one) for one in found]}))
    elif found:
        _print(table.lines(_LISTED, [_listed_cells(one) for one in found], soft=_SOFT))


@queue.command()
@click.argument("queue", metavar="[NAME]", required=False)
@_as_json
@one_of_them
def stats(queue: str | None, as_json: bool, name: str | None) -> None:
    """Count the jobs of each queue, or of one, finished ones too."""
    with _acting(name, queue or "") as jobber:
        found = jobber.queues.stats(queue)
    if as_json:
        click.echo(told.document({"queues": [_counted(one) for one in found]}))
    elif found:
        _print(table.lines(_COUNTED, [_counted_cells(one) for one in found], soft=_SOFT))


@contextlib.contextmanager
def _acting(name: str | None, queue: str) -> t.Iterator[Jobber]:
    """Commit at the end. What is refused is said on stderr, and ends the command with 1, or with 2."""
    jobber = the_jobber(name)
    try:
        yield jobber
        jobber.db.session.commit()
    except (JobberError, SQLAlchemyError) as error:
        jobber.db.session.rollback()
        click.echo(f"{table.printable(queue)}: {_why(error)}", err=True)
        click.get_current_context().exit(_WRONGLY if isinstance(error, Invalid) else 1)


def _why(error: Exception) -> str:
    if isinstance(error, Invalid):
        return " ".join(f"{field}: {said}" for field, messages in error.errors.items() for said in messages)
    return str(error)


def _print(lines: t.Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


def _tell(done: str, made: QueueMixin, as_json: bool) -> None:
    values = {key: getattr(made, key) for key in _SETTINGS if key != "declared"} | {"declared": True}
    click.echo(told.document({key: values[key] for key in _SETTINGS}) if as_json else f"{made.name}: {done}")


def _listed(one: Stats) -> told.Told:
    return {key: getattr(one, key) for key in (*_SETTINGS, "unfinished")}


def _counted(one: Stats) -> told.Told:
    return {key: getattr(one, key) for key in (*_SETTINGS, "unfinished", *_COUNTS)}


def _listed_cells(one: Stats) -> list[str]:
    """Return what is to be said of a queue; what is as ever leaves its column empty."""
    return [
        one.name,
        "" if one.declared else "no",
        str(one.capacity or ""),
        str(one.unfinished),
        "paused" if one.paused else "",
        "" if one.priority is None else str(one.priority),
        "" if one.lease_for is None else f"{one.lease_for:g}",
    ]


def _counted_cells(one: Stats) -> list[str]:
    numbers = [str(getattr(one, key)) for key in _COUNTS if key != "oldest_seconds"]
    oldest = "" if one.oldest_seconds is None else f"{one.oldest_seconds:.0f} s"
    return [one.name, *numbers, str(one.capacity or ""), "paused" if one.paused else "", oldest]
