"""The group of commands, and what they share: which Jobber is meant, and which of its jobs."""

from __future__ import annotations

import typing as t

import click
from flask import Flask, current_app
from flask.cli import AppGroup

from ..core.payload import check_name
from ..core.states import State
from ..errors import Invalid

if t.TYPE_CHECKING:
    from ..extension import Jobber

F = t.TypeVar("F", bound=t.Callable[..., t.Any])
group = AppGroup("jobber", help="Look after the jobs of this app.")
#: For commands that go through all of the app's Jobbers, see :func:`jobbers`.
any_of_them = click.option("--name", help="Only the Jobber of this name; all of the app's otherwise.")
#: For commands that are about jobs of one Jobber, see :func:`the_jobber`.
one_of_them = click.option("--name", help="The Jobber of this name, when the app has several.")


def add_commands(app: Flask) -> None:
    """Add the group to an app, once for all its Jobbers."""
    app.cli.add_command(group)


def jobbers(name: str | None) -> list[Jobber]:
    """Return the Jobber of a name, or all of the app's. :raises BadParameter: when there is none."""
    known: dict[str, Jobber] = current_app.extensions["jobber"]
    if name is not None and name not in known:
        raise click.BadParameter(
            f"there is no Jobber {name!r}; this app has {', '.join(known)}", param_hint="--name"
        )
    return [known[name]] if name is not None else list(known.values())


def the_jobber(name: str | None) -> Jobber:
    """Return the one Jobber that is meant: the same id is another job in each.

    :raises BadParameter: when there is none of this name, or several and no name.
    """
    meant = jobbers(name)
    if len(meant) > 1:
        names = ", ".join(jobber.name for jobber in meant)
        raise click.BadParameter(f"this app has several: say which of {names}", param_hint="--name")
    return meant[0]


def _check_name(context: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return None if value is None else check_name(str(param.name), value)
    except Invalid as error:
        raise click.BadParameter(error.errors[str(param.name)][0]) from error


def narrowing(command: F) -> F:
    """Add the options ``--state --type --queue``."""
    for option in (
        click.option("--queue", callback=_check_name, help="Only jobs of this queue."),
        click.option("--type", callback=_check_name, help="Only jobs of this type."),
        click.option("--state", type=click.Choice([state.value for state in State]), help="Only these."),
    ):
        command = option(command)
    return command
