"""``flask jobber jobs …``: see jobs, and do to them what an operator may."""

from __future__ import annotations

import typing as t

import click
import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from ..core import queries
from ..core.states import State
from ..errors import AlreadySettled, Cancelled, IllegalTransition, JobberError, LeaseLost, NotFound
from . import told
from .root import group, narrowing, one_of_them, the_jobber

if t.TYPE_CHECKING:
    from ..extension import Jobber

# Whoever may run commands is not known by a login.
_BY = "flask jobber"
F = t.TypeVar("F", bound=t.Callable[..., t.Any])
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@group.group()
def jobs() -> None:
    """See jobs, retry, cancel and release them."""


@jobs.command("list")
@narrowing
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Jobs to list.")
@click.option("--cursor", type=click.IntRange(0), default=0, help="Go on after the job of this id.")
@_as_json
@one_of_them
def list_(limit: int, cursor: int, as_json: bool, name: str | None, **equals: str | None) -> None:
    """List jobs by id."""
    store = the_jobber(name).store()
    rows = queries.visible(store, sa.true(), after=cursor, limit=limit + 1, **equals)
    page = rows[:limit]
    errors = queries.last_errors(store, [row.id for row in page])
    found = [{**told.job(row), "error": told.error(errors.get(row.id))} for row in page]
    following = page[-1].id if len(rows) > limit else None
    if as_json:
        click.echo(told.document({"jobs": found, "cursor": following}))
    elif found:
        _print(told.listed(found))
    if following is not None and not as_json:
        click.echo(f"There are more: --cursor {following}", err=True)


def _print(lines: t.Iterable[str]) -> None:
    for line in lines:
        click.echo(line)


@jobs.command()
@click.argument("id", type=click.IntRange(1))
@_as_json
@one_of_them
@click.pass_context
def show(context: click.Context, id: int, as_json: bool, name: str | None) -> None:
    """Show everything about a job, with its whole history."""
    store = the_jobber(name).store()
    row = queries.whole(store, id)
    if row is None:
        _complain(id, NotFound())
        context.exit(1)
    one = told.job(row) | {"history": [told.transition(row) for row in queries.history(store, id)]}
    if as_json:
        click.echo(told.document(one))
    else:
        _print(told.shown(one))


def _several(command: F) -> F:
    """Add the arguments of a command that does something to each of several jobs."""
    ids = click.argument("ids", metavar="ID…", type=click.IntRange(1), nargs=-1, required=True)
    return ids(_as_json(one_of_them(command)))


@jobs.command()
@_several
def retry(**said: t.Any) -> None:
    """Give failed, cancelled or expired jobs another life."""
    _do_each("retried", lambda jobber, job_id: jobber.retry(job_id, by=_BY), **said)


@jobs.command()
@_several
def cancel(**said: t.Any) -> None:
    """End unfinished jobs. Who holds one hears of it at its next call."""
    _do_each("cancelled", lambda jobber, job_id: jobber.cancel(job_id, by=_BY), **said)


@jobs.command()
@_several
def release(**said: t.Any) -> None:
    """Give locked jobs back into the pool, whoever holds them; nothing is counted."""
    _do_each("released", _release, **said)


def _release(jobber: Jobber, job_id: int) -> None:
    row = queries.whole(jobber.store(), job_id)
    if row is None:
        raise NotFound
    if row.state != State.LOCKED:
        raise IllegalTransition(f"release is not for a job that is {row.state}.")
    try:
        jobber.release(row.locked_by, job_id, row.attempts, by=_BY)
    except (LeaseLost, Cancelled, AlreadySettled) as error:  # since it was looked at, or by LATE_RESULTS
        raise IllegalTransition("its holder holds it no longer.") from error


def _do_each(
    done: str,
    verb: t.Callable[[Jobber, int], None],
    ids: tuple[int, ...],
    as_json: bool,
    name: str | None,
) -> None:
    """Do something to each job, in a transaction of its own; one that cannot be stops no other.

    Ends with 1 when there was such a one.
    """
    jobber = the_jobber(name)
    errors = {job_id: error for job_id in dict.fromkeys(ids) if (error := _try(jobber, verb, job_id))}
    did = [job_id for job_id in dict.fromkeys(ids) if job_id not in errors]
    if as_json:
        refused = [{"id": job_id, "error": _why(error)} for job_id, error in errors.items()]
        click.echo(told.document({done: did, "errors": refused}))
    elif did:
        click.echo(f"{done}: {', '.join(map(str, did))}")
    for job_id, error in errors.items():
        _complain(job_id, error)
    click.get_current_context().exit(1 if errors else 0)


def _try(jobber: Jobber, verb: t.Callable[[Jobber, int], None], job_id: int) -> Exception | None:
    try:
        verb(jobber, job_id)
        jobber.db.session.commit()
    except (JobberError, SQLAlchemyError) as error:
        jobber.db.session.rollback()
        return error
    return None


def _complain(job_id: int, error: Exception) -> None:
    click.echo(f"{job_id}: {_why(error)}", err=True)


def _why(error: Exception) -> str:
    return "There is no such job." if isinstance(error, NotFound) else str(error)
