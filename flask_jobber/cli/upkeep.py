"""``flask jobber process``, ``tidy`` and ``prune``: what an app's own requests do too, from time to time."""

from __future__ import annotations

import datetime as dt
import typing as t

import click

from ..core.files import SHARDS
from .root import any_of_them, group, jobbers

if t.TYPE_CHECKING:
    from ..extension import Jobber


@group.command()
@click.option("--limit", default=1000, show_default=True, help="Results to try at the most, of each Jobber.")
@any_of_them
def process(limit: int, name: str | None) -> None:
    """Call processors again on the submitted results that are due."""
    for jobber in jobbers(name):
        click.echo(f"{jobber.name}: {jobber.process_submitted(limit)} processed")


@group.command()
@any_of_them
def tidy(name: str | None) -> None:
    """Process submitted results, expire, prune, collect orphaned files and apply the schedules."""
    for jobber in jobbers(name):
        done = jobber.tidy()
        jobber.collect_orphans(SHARDS)
        click.echo(f"{jobber.name}: {done.processed} processed, {done.expired} expired, {done.pruned} pruned")


@group.command()
@click.option("--older-than-days", type=float, help="Age since the end; KEEP_FINISHED_DAYS otherwise.")
@any_of_them
def prune(older_than_days: float | None, name: str | None) -> None:
    """Delete finished jobs, all that are old enough."""
    age = None if older_than_days is None else dt.timedelta(days=older_than_days)
    for jobber in jobbers(name):
        click.echo(f"{jobber.name}: {_prune_all(jobber, age)} pruned")


def _prune_all(jobber: Jobber, age: dt.timedelta | None) -> int:
    total = 0
    while pruned := jobber.prune(older_than=age):
        jobber.db.session.commit()
        total += pruned
    return total
