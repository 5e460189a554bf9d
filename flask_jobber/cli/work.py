"""``flask jobber work``: a worker beside the database."""

from __future__ import annotations

import functools
import typing as t

import click
from flask import Flask, current_app
from flask.cli import ScriptInfo

from ..worker.child import Context
from ..worker.crew import Place
from ..worker.database import DatabaseSource
from ..worker.feed import Supply
from ..worker.handlers import Handlers
from ..worker.options import options, run, what
from .root import group, jobbers

if t.TYPE_CHECKING:
    from ..extension import Jobber

_jobber = click.option("--jobber", help="Only the Jobber of this name; all of the app's otherwise.")


@group.command()
@options
@_jobber
@click.pass_obj
def work(script: ScriptInfo, /, jobber: str | None, **how: t.Any) -> None:
    """Do the app's jobs, by the handlers of its Jobbers."""
    _work(script, jobber, how)


@group.command("work-off")
@click.argument("number", type=click.IntRange(1))
@what
@_jobber
@click.pass_obj
def work_off(script: ScriptInfo, /, number: int, jobber: str | None, **how: t.Any) -> None:
    """Do NUMBER jobs, or fewer when there are no more, and leave."""
    _work(script, jobber, how | {"burst": True, "max_jobs": number})


def _work(script: ScriptInfo, name: str | None, how: dict[str, t.Any]) -> None:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    meant = [jobber for jobber in jobbers(name) if name or len(jobber.handlers)]

    def supplies(worker: str) -> list[Supply]:
        return [_supply(script, app, jobber, worker) for jobber in meant]

    run(supplies, **how)


def _supply(script: ScriptInfo, app: Flask, jobber: Jobber, worker: str) -> Supply:
    loader = functools.partial(load_in_process, script.app_import_path, jobber.name)
    return Supply(DatabaseSource(app, jobber, worker), jobber.handlers, Place(app.app_context, loader))


def load_in_process(path: str | None, name: str) -> tuple[Handlers, Context]:
    """Return the handlers of a Jobber, and what they run in, in a process of their own."""
    app = ScriptInfo(path).load_app()
    return app.extensions["jobber"][name].handlers, app.app_context
