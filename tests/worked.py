"""The app whose jobs worker processes do."""

from __future__ import annotations

import json
import os
import typing as t

import sqlalchemy as sa
from flask import Flask

import worked_handlers
from race_support import add_effects
from support import World

#: The environment variable that tells a process the app's database.
URL = "SERVED_URL"
#: Those that tell it more settings, in JSON, and a file for the statements that it executes.
CONFIG, STATEMENTS = "WORKED_CONFIG", "WORKED_STATEMENTS"


def make_worked(url: str) -> tuple[World, sa.Table]:
    """Return a world with the handlers, and the table to which its processors write what is delivered."""
    config = {
        "JOBBER_TIDY_SECONDS": 0,
        "JOBBER_IDLE_SECONDS": 0.2,
        **json.loads(os.environ.get(CONFIG, "{}")),
    }
    world = World(url, scoped=False, **config)
    effects = add_effects(world.db.metadata)
    world.jobber.permission(lambda action, job: True)
    world.jobber.handlers.update(worked_handlers.handlers)

    def process(job: t.Any, result: int) -> None:
        world.db.session.execute(sa.insert(effects).values(job_id=job.id, result=str(result)))

    for type in worked_handlers.handlers.types:
        world.jobber.processor(type)(process)
    return world, effects


def create_app() -> Flask:
    """Return the app of a worker beside the database, or of a server."""
    if STATEMENTS in os.environ:
        sa.event.listen(sa.Engine, "before_cursor_execute", _note)
    return make_worked(os.environ[URL])[0].app


def _note(connection: t.Any, cursor: t.Any, statement: str, *args: object) -> None:
    with open(os.environ[STATEMENTS], "a") as file:
        file.write(" ".join(statement.split()) + "\n")


def create_app_without_handlers() -> Flask:
    return World(os.environ[URL]).app
