"""``flask jobber lockers …``: the records of logins."""

from __future__ import annotations

import dataclasses
import datetime as dt
import typing as t

import click

from ..core.lockers import Record
from . import table, told
from .accounts import Told, as_json, why
from .root import group, one_of_them, the_jobber

if t.TYPE_CHECKING:
    from ..extension import Jobber

_LISTED = ("LOGIN", "CLAIMS", "VALID", "INVALID", "LAPSES", "MEDIAN", "BLOCKED")
_MOMENT = click.DateTime(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z"])
T = t.TypeVar("T")
F = t.TypeVar("F", bound=t.Callable[..., t.Any])


@group.group("lockers")
def lockers() -> None:
    """Look after those who work on jobs: their records, their answers."""


def _of_one(command: F) -> F:
    """Add the arguments of a command that is about one login."""
    return click.argument("login", metavar="LOGIN")(as_json(one_of_them(command)))


@lockers.command("list")
@as_json
@one_of_them
def list_(as_json: bool, name: str | None) -> None:
    """List the logins of which there are records."""
    found = the_jobber(name).lockers()
    if as_json:
        click.echo(told.document({"lockers": [dataclasses.asdict(one) for one in found]}))
    elif found:
        for line in table.lines(_LISTED, [_cells(one) for one in found], soft={"LOGIN"}):
            click.echo(line)


def _cells(one: Record) -> list[str]:
    median = "" if one.median_seconds is None else f"{one.median_seconds:.1f}s"
    counts = (one.claims, one.valid, one.invalid, one.lapses)
    return [one.login, *map(str, counts), median, told.fact(one.blocked_at) if one.blocked_at else ""]


@lockers.command()
@_of_one
def show(login: str, as_json: bool, name: str | None) -> None:
    """Show the record of a login."""
    facts = dataclasses.asdict(the_jobber(name).record(login))
    _tell(facts, as_json, [f"{key}: {told.fact(value)}" for key, value in facts.items() if value is not None])


@lockers.command()
@_of_one
def block(login: str, as_json: bool, name: str | None) -> None:
    """Hand a login nothing any more. What it holds is back; what it has delivered stands."""
    jobber = the_jobber(name)
    released = _change(jobber, lambda: jobber.block(login))
    _tell({"blocked": login, "released": released}, as_json, [f"{login}: blocked, {released} released"])


@lockers.command()
@_of_one
def unblock(login: str, as_json: bool, name: str | None) -> None:
    """Hand a login jobs again."""
    jobber = the_jobber(name)
    _change(jobber, lambda: jobber.unblock(login))
    _tell({"unblocked": login}, as_json, [f"{login}: unblocked"])


@lockers.command()
@click.option("--since", type=_MOMENT, help="Only what it delivered then or later: 2026-01-31T12:00+0000.")
@click.option("--until", type=_MOMENT, help="Only what it delivered before.")
@_of_one
def revoke(
    login: str, since: dt.datetime | None, until: dt.datetime | None, as_json: bool, name: str | None
) -> None:
    """Take back what a login has delivered: those jobs are open again, for others."""
    jobber = the_jobber(name)
    count = _change(jobber, lambda: jobber.revoke(login, since=since, until=until))
    _tell({"revoked": count}, as_json, [f"{login}: {count} taken back"])


def _change(jobber: Jobber, verb: t.Callable[[], T]) -> T:
    """Do something in a transaction of its own. :raises ClickException: when it is refused."""
    session = jobber.db.session
    try:
        done = verb()
        session.commit()
    except Exception as error:  # the app's own, of on_revoked, too
        session.rollback()
        raise click.ClickException(why(error)) from error
    return done


def _tell(facts: Told, as_json: bool, lines: t.Sequence[str]) -> None:
    click.echo(told.document(facts) if as_json else "\n".join(lines))
