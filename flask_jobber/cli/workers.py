"""``flask jobber worker …``: the accounts of workers."""

from __future__ import annotations

import dataclasses
import typing as t

import click

from . import table, told
from .accounts import Told, as_json, change, do_each, of_one, the_workers
from .root import group, one_of_them

if t.TYPE_CHECKING:
    from ..accounts import Credentials

F = t.TypeVar("F", bound=t.Callable[..., t.Any])
_LISTED = ("NAME", "STATE", "HELD", "LAST LOGIN", "QUEUES")


@group.group()
def worker() -> None:
    """Look after workers that have accounts."""


def _of_several(command: F) -> F:
    """Add the arguments of a command that does something to each of several workers."""
    names = click.argument("names", metavar="NAME…", nargs=-1, required=True)
    return names(as_json(one_of_them(command)))


@worker.command()
@of_one
def create(worker_name: str, as_json: bool, name: str | None) -> None:
    """Make an account. Its secret is printed this once."""
    workers = the_workers(name)
    _tell(change(workers, lambda: workers.create(worker_name)), as_json)


@worker.command()
@of_one
def reset(worker_name: str, as_json: bool, name: str | None) -> None:
    """Make a new secret, printed this once; those of before and all tokens are dead."""
    workers = the_workers(name)
    _tell(change(workers, lambda: workers.reset(worker_name)), as_json)


def _tell(credentials: Credentials, as_json: bool) -> None:
    facts = dataclasses.asdict(credentials)
    click.echo(told.document(facts) if as_json else "\n".join(_lines(facts)))


def _lines(facts: Told) -> list[str]:
    room = max(map(len, facts)) + 2
    return [f"{key:{room}}{value}" for key, value in facts.items()]


@worker.command("list")
@as_json
@one_of_them
def list_(as_json: bool, name: str | None) -> None:
    """List the accounts."""
    found = the_workers(name).seen()
    if as_json:
        click.echo(told.document({"workers": found}))
    elif found:
        _print(table.lines(_LISTED, [_cells(one) for one in found], soft={"QUEUES"}))


def _cells(one: Told) -> list[str]:
    return [
        one["name"],
        "locked" if one["locked"] else "",
        str(one["held"] or ""),
        told.fact(one["last_login_at"]) if one["last_login_at"] else "",
        ", ".join(one["queues"]),
    ]


def _print(lines: t.Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


@worker.command()
@of_one
def show(worker_name: str, as_json: bool, name: str | None) -> None:
    """Show an account: its queues, what it holds, when it logged in."""
    workers = the_workers(name)
    [found] = change(workers, lambda: workers.seen(worker_name))
    if as_json:
        click.echo(told.document(found))
        return
    facts = found | {"queues": ", ".join(found["queues"]), "locked": "yes" if found["locked"] else "no"}
    _print(_lines({key: told.fact(value) for key, value in facts.items() if value is not None}))


@worker.command()
@click.argument("worker_name", metavar="[NAME]", required=False)
@as_json
@one_of_them
def stats(worker_name: str | None, as_json: bool, name: str | None) -> None:
    """Count what workers hold, and what they have done as far as the history goes back."""
    workers = the_workers(name)
    found = change(workers, lambda: workers.stats(worker_name))
    if as_json:
        click.echo(told.document({"workers": found}))
    elif found:
        cells = [[str(value) for value in one.values()] for one in found]
        _print(table.lines([key.upper() for key in found[0]], cells, soft=()))


@worker.command()
@_of_several
def lock(names: tuple[str, ...], as_json: bool, name: str | None) -> None:
    """Shut workers out at once. Their tokens are dead, what they hold is back; nothing is counted."""
    workers = the_workers(name)
    do_each(workers, lambda one: {"released": workers.lock(one)}, names, done="locked", as_json=as_json)


@worker.command()
@_of_several
def unlock(names: tuple[str, ...], as_json: bool, name: str | None) -> None:
    """Let workers in again, with the secrets they had."""
    workers = the_workers(name)

    def unlock_one(one: str) -> Told:
        workers.unlock(one)
        return {}

    do_each(workers, unlock_one, names, done="unlocked", as_json=as_json)


@worker.command()
@_of_several
def destroy(names: tuple[str, ...], as_json: bool, name: str | None) -> None:
    """Delete accounts. Their tokens are dead, what they hold is back; nothing is counted."""
    workers = the_workers(name)
    do_each(workers, lambda one: {"released": workers.destroy(one)}, names, done="destroyed", as_json=as_json)
