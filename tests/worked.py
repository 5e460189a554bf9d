"""The app whose jobs worker processes do."""

from __future__ import annotations

import os
import typing as t

import sqlalchemy as sa
from flask import Flask

import worked_handlers
from race_support import add_effects
from support import World

#: The environment variable that tells a process the app's database.
URL = "SERVED_URL"


def make_worked(url: str) -> tuple[World, sa.Table]:
    """Return a world with the handlers, and the table to which its processors write what is delivered."""
    world = World(url, scoped=False, JOBBER_TIDY_SECONDS=0, JOBBER_IDLE_SECONDS=0.2)
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
    return make_worked(os.environ[URL])[0].app


def create_app_without_handlers() -> Flask:
    return World(os.environ[URL]).app
