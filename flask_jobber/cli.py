"""``flask jobber …``"""

from __future__ import annotations

import datetime as dt
import typing as t

import click
from flask import Flask, current_app
from flask.cli import AppGroup

if t.TYPE_CHECKING:
    from .extension import Jobber

group = AppGroup("jobber", help="Look after the jobs of this app.")
_one_of_them = click.option("--name", help="Only the Jobber of this name; all of the app's otherwise.")


def add_commands(app: Flask) -> None:
    """Add the group to an app, once for all its Jobbers."""
    app.cli.add_command(group)


def _jobbers(name: str | None) -> list[Jobber]:
    known: dict[str, Jobber] = current_app.extensions["jobber"]
    if name is not None and name not in known:
        raise click.BadParameter(
            f"there is no Jobber {name!r}; this app has {', '.join(known)}", param_hint="--name"
        )
    return [known[name]] if name is not None else list(known.values())


@group.command()
@click.option("--limit", default=1000, show_default=True, help="Results to try at the most, of each Jobber.")
@_one_of_them
def process(limit: int, name: str | None) -> None:
    """Call processors again on the submitted results that are due."""
    for jobber in _jobbers(name):
        click.echo(f"{jobber.name}: {jobber.process_submitted(limit)} processed")


@group.command()
@_one_of_them
def tidy(name: str | None) -> None:
    """Process submitted results, expire and prune."""
    for jobber in _jobbers(name):
        done = jobber.tidy()
        click.echo(f"{jobber.name}: {done.processed} processed, {done.expired} expired, {done.pruned} pruned")


@group.command()
@click.option("--older-than-days", type=float, help="Age since the end; KEEP_FINISHED_DAYS otherwise.")
@_one_of_them
def prune(older_than_days: float | None, name: str | None) -> None:
    """Delete finished jobs, all that are old enough."""
    age = None if older_than_days is None else dt.timedelta(days=older_than_days)
    for jobber in _jobbers(name):
        click.echo(f"{jobber.name}: {_prune_all(jobber, age)} pruned")


def _prune_all(jobber: Jobber, age: dt.timedelta | None) -> int:
    total = 0
    while pruned := jobber.prune(older_than=age):
        jobber.db.session.commit()
        total += pruned
    return total
