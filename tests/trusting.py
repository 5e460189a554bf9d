"""Processes that do copies of jobs, and may be killed at any moment."""

from __future__ import annotations

import itertools
import typing as t
import zlib

import sqlalchemy as sa

from flask_jobber.core.engines import is_transient
from race_support import add_effects
from support import World


def make_trusting(url: str) -> tuple[World, sa.Table]:
    """Return a world, and the table that its processor writes to."""
    world = World(url, scoped=False, JOBBER_TIDY_SECONDS=0, JOBBER_GOLD_RATE=0.2)
    effects = add_effects(world.db.metadata)

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        world.db.session.execute(sa.insert(effects).values(job_id=job.id, result=str(result)))

    return world, effects


def open_originals(world: World) -> int:
    """Count the jobs that wait for answers, which gold does for ever."""
    job = world.Job
    waiting = sa.select(sa.func.count()).where(job.state.in_(["blocked", "submitted"]), job.result.is_(None))
    return int(world.db.session.execute(waiting).scalar_one())


def answer_of(login: str, n: int) -> str:
    """Return what a login says: one answer in eight is wrong, and like no other."""
    return f"{login} {n}" if zlib.crc32(f"{login}/{n}".encode()) % 8 == 0 else str(n * 2)


def work(url: str, login: str) -> None:
    """Do copies until nothing is open, on two nodes by turns."""
    world, _ = make_trusting(url)
    with world.app.app_context():
        for turn in itertools.count():
            try:
                if not _turn(world, login, f"{login}/{turn % 2}"):
                    return
            except Exception as error:
                if not is_transient(error):
                    raise
                world.db.session.rollback()


def _turn(world: World, login: str, locker: str) -> int:
    jobber, job = world.jobber, world.Job
    jobber.claim(locker, limit=3)
    world.db.session.commit()
    # Those that it held when it was killed are among them.
    mine = sa.select(job.id, job.attempts, job.data).where(job.state == "locked", job.locked_by == locker)
    for row in world.db.session.execute(mine).all():
        jobber.deliver(locker, row.id, row.attempts, answer_of(login, row.data["n"]))
        world.db.session.commit()
    left = open_originals(world)
    world.db.session.commit()
    return left
