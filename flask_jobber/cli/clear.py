"""``flask jobber clear``: forget jobs, whatever has become of them."""

from __future__ import annotations

import typing as t

import click

from ..core import prune as prune_verbs
from ..core import queries
from .root import group, narrowing, one_of_them, the_jobber

if t.TYPE_CHECKING:
    from ..extension import Jobber

#: Jobs that one transaction deletes.
_BATCH = 1000


@group.command()
@narrowing
@click.option("--yes", is_flag=True, help="Do not ask.")
@one_of_them
def clear(yes: bool, name: str | None, **equals: str | None) -> None:
    """Delete jobs with their history, all or some, unfinished ones too. Who holds one hears 404."""
    jobber = the_jobber(name)
    count, last = queries.extent(jobber.store(), **equals)
    jobber.db.session.rollback()  # nothing waits for the answer
    if count and not yes:
        click.confirm(f"Delete {count} jobs of {jobber.name}{_told(equals)} for good?", abort=True)
    click.echo(f"{jobber.name}: {_clear_all(jobber, last, equals)} cleared")


def _told(equals: t.Mapping[str, str | None]) -> str:
    said = ", ".join(f"{key} {value}" for key, value in equals.items() if value is not None)
    return said and f" ({said})"


def _clear_all(jobber: Jobber, last: int, equals: t.Mapping[str, str | None]) -> int:
    """Delete in batches those that there were when the operator was asked."""
    total, after = 0, 0
    while after < last:
        cleared, after = prune_verbs.clear(jobber.store(), after, last, limit=_BATCH, **equals)
        jobber.db.session.commit()
        total += cleared
    return total
