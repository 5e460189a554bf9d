"""What the commands about workers share: whose they are, and how a change is made and told."""

from __future__ import annotations

import typing as t

import click
from flask import current_app
from sqlalchemy.exc import SQLAlchemyError

from ..errors import Invalid, JobberError
from . import told
from .root import one_of_them, the_jobber

if t.TYPE_CHECKING:
    from ..accounts import Workers

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
Told = dict[str, t.Any]
T = t.TypeVar("T")
F = t.TypeVar("F", bound=t.Callable[..., t.Any])


def of_one(command: F) -> F:
    """Add the arguments of a command that is about one worker."""
    return click.argument("worker_name", metavar="NAME")(as_json(one_of_them(command)))


def the_workers(name: str | None) -> Workers:
    """Return the workers of the Jobber that is meant.

    :raises UsageError: when it has none.
    """
    jobber = the_jobber(name)
    # By the name that accounts/login.py gives it: importing that would need the extra.
    known: dict[str, Workers] = current_app.extensions.get("jobber_workers", {})
    if jobber.name not in known:
        raise click.UsageError(
            f"The Jobber {jobber.name!r} has no workers with accounts: make Workers(jobber),"
            " and register its blueprint."
        )
    return known[jobber.name]


def change(workers: Workers, verb: t.Callable[[], T]) -> T:
    """Do something in a transaction of its own.

    :raises ClickException: when it is refused; nothing is changed then.
    """
    session = workers.jobber.db.session
    try:
        done = verb()
        session.commit()
    except (JobberError, SQLAlchemyError) as error:
        session.rollback()
        raise click.ClickException(why(error)) from error
    return done


def do_each(
    workers: Workers,
    verb: t.Callable[[str], Told],
    names: t.Sequence[str],
    *,
    done: str,
    as_json: bool,
) -> None:
    """Do something to each of several workers; one that cannot be stops no other.

    Ends with 1 when there was such a one.

    :param verb: returns what is to be told of it beside its name.
    :param done: the word for what has been done.
    """
    did, refused = list[Told](), list[Told]()
    for name in dict.fromkeys(names):
        try:
            did.append({"name": name, **change(workers, lambda name=name: verb(name))})  # type: ignore[misc]
        except click.ClickException as error:
            refused.append({"name": name, "error": error.message})
            click.echo(error.message, err=True)
    if as_json:
        click.echo(told.document({done: did, "errors": refused}))
    else:
        for one in did:
            click.echo(", ".join([f"{one['name']}: {done}", *_facts(one)]))
    click.get_current_context().exit(1 if refused else 0)


def _facts(one: Told) -> list[str]:
    return [f"{value} {name}" for name, value in one.items() if isinstance(value, int)]


def why(error: Exception) -> str:
    """Return what an operator is told of an error."""
    if isinstance(error, Invalid):
        return " ".join(message for messages in error.errors.values() for message in messages)
    return str(error)
