"""Processes that work off batches until nothing is left, and may be killed at any moment."""

from __future__ import annotations

import random
import typing as t

import sqlalchemy as sa

from flask_jobber import Cancelled, Constant, LeaseLost
from flask_jobber.core.engines import is_transient, undo
from race_support import add_effects
from support import World

#: Of so many tiles one fails, and one brings another.
FAILS, BRINGS = 7, 10


def make_world(url: str) -> tuple[World, sa.Table]:
    """Return a world and the table that the processors of batches write to, of which some break."""
    world = World(url, JOBBER_TIDY_SECONDS=0, JOBBER_PROCESSOR_ATTEMPTS=1000, JOBBER_MAX_ATTEMPTS=1000)
    effects, jobber = add_effects(world.db.metadata), world.jobber

    def write(job_id: int, result: str) -> None:
        world.db.session.execute(sa.insert(effects).values(job_id=job_id, result=result))

    @jobber.batch_processor("stitch")
    def stitch(batch: t.Any, results: t.Any) -> None:
        write(batch.id, f"{sum(1 for _ in results)} results")
        if random.random() < 0.3:
            raise RuntimeError("broken")

    @jobber.on_failure("stitch")
    def tell(job: t.Any, error: t.Any) -> None:
        write(job.id, "failed")

    @jobber.processor("tile")
    def add(job: t.Any, result: t.Any) -> None:
        if job.data % BRINGS == 3:
            jobber.enqueue("tile", 1, beside=job)

    jobber.job_type("stitch", backoff=Constant(0.05))
    return world, effects


def work(url: str, number: int) -> None:
    """Claim, settle, process and tidy until every job has ended."""
    world, _ = make_world(url)
    with world.app.app_context():
        world.db.session.connection()
        while not _turn(world, f"user_{number}"):
            pass


def _turn(world: World, locker: str) -> bool:
    """Do some of what there is; return whether nothing is left."""
    jobber, session = world.jobber, world.db.session
    try:
        claims = jobber.claim(locker, limit=3, lease_seconds=2)
        session.commit()
        for claim in claims:
            _settle(jobber, locker, claim)
            session.commit()
        jobber.process_submitted()
        jobber.tidy_batches()
        left = session.scalar(sa.select(sa.func.count()).where(world.Job.finished_at.is_(None)))
        session.commit()
    except Exception as error:
        undo(session())
        if not isinstance(error, Cancelled | LeaseLost) and not is_transient(error):
            raise
        return False
    return not left


def _settle(jobber: t.Any, locker: str, claim: t.Any) -> None:
    if claim.type == "tile" and claim.data % FAILS == 6:
        jobber.fail(locker, claim.id, claim.attempt, {"type": "Error", "message": "no"}, permanent=True)
    else:
        jobber.deliver(locker, claim.id, claim.attempt, claim.data)
