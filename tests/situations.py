"""Jobs in every situation, and everything that is stored about one."""

from __future__ import annotations

import contextlib
import datetime as dt
import pathlib
import typing as t

import sqlalchemy as sa

from flask_jobber import State
from flask_jobber.core import chains
from flask_jobber.core.states import TRANSITIONS, Verb
from support import World

#: Who holds, delivered or gave up each job that was ever handed out, on attempt 1.
HOLDER = "ann"
LOCKER = f"user_{HOLDER}"
RESULT = {"n": 1}
ERROR = {"type": "Error", "message": "broke"}
#: The situations of a job, each with its state and what its old or present holder is told
#: who says something new about attempt 1; ``None``: it holds the job.
SITUATIONS: t.Mapping[str, tuple[State, str | None]] = {
    "queued": (State.QUEUED, "not_found"),
    "scheduled": (State.SCHEDULED, "not_found"),
    "due": (State.SCHEDULED, "not_found"),
    "locked": (State.LOCKED, None),
    "lapsed": (State.LOCKED, None),
    "submitted": (State.SUBMITTED, "already_settled"),
    "blocked": (State.BLOCKED, "not_found"),
    "succeeded": (State.SUCCEEDED, "already_settled"),
    "failed": (State.FAILED, "lease_lost"),
    "cancelled": (State.CANCELLED, "cancelled"),
    "expired": (State.EXPIRED, "not_found"),
}


def make_one_of_each(world: World, **spec: t.Any) -> dict[str, int]:
    """Make a job in each situation, its type named after it; return their ids.

    The submitted one is due; its processor breaks once.
    """
    calls: list[t.Any] = []

    @world.jobber.processor("submitted")
    def break_once(job: t.Any, result: t.Any) -> None:
        calls.append(result)
        if len(calls) == 1:
            raise RuntimeError("broke once")

    jobber = world.jobber
    with world.session():
        later: dict[str, dict[str, t.Any]] = {name: {"after": 3600} for name in ("scheduled", "due")}
        waits: dict[str, t.Any] = {"processed": False, "if_failed": "cancel", "open": True}
        ids = {
            name: int(
                chains.begin(jobber.store(), {"type": name, **spec}, **waits).id
                if name == "blocked"
                else jobber.enqueue(name, **spec, **later.get(name, {})).id
            )
            for name in SITUATIONS
        }
        handed_out = ["locked", "lapsed", "submitted", "succeeded", "failed", "cancelled"]
        for claim in jobber.claim(LOCKER, types=handed_out, limit=10):
            if claim.type in ("submitted", "succeeded"):
                jobber.deliver(LOCKER, claim.id, claim.attempt, RESULT)
        jobber.fail(LOCKER, ids["failed"], 1, ERROR, permanent=True)
        jobber.cancel(ids["cancelled"])
        put(world, ids["expired"], expires_at=ago(60))
        assert jobber.expire() == 1
        put(world, ids["due"], run_at=ago(60))
        put(world, ids["submitted"], run_at=ago(60))
        put(world, ids["lapsed"], locked_until=ago(60))
    assert states(world) == {ids[name]: state for name, (state, _) in SITUATIONS.items()}
    return ids


def states(world: World) -> dict[int, str]:
    """Return the state of every job."""
    with world.session() as session:
        rows = session.execute(sa.select(world.Job.id, world.Job.state))
        return {row.id: row.state for row in rows}


@contextlib.contextmanager
def shared_world(directory: pathlib.Path) -> t.Iterator[World]:
    """Make a world for many tests, which commit nothing to it."""
    world = World(f"sqlite:///{directory / 'test.db'}")
    with world.app.app_context():
        world.db.create_all()
    yield world
    with world.app.app_context():
        world.db.engine.dispose()


def ago(seconds: float) -> dt.datetime:
    return dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)


def put(world: World, job_id: int, **columns: t.Any) -> None:
    """Write columns past all verbs, in the session that is open."""
    table = world.Job.__table__
    world.db.session.execute(sa.update(table).where(table.c.id == job_id).values(columns))


def stored(world: World, job_id: int) -> tuple[dict[str, t.Any], list[dict[str, t.Any]]]:
    """Return the row of a job and those of its history, all columns."""
    jobs, history = world.Job.__table__, world.jobber.History.__table__
    with world.session() as session:
        row = session.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
        rows = session.execute(sa.select(history).where(history.c.job_id == job_id).order_by(history.c.id))
        return dict(row._mapping), [dict(row._mapping) for row in rows]


def assert_legal(history: t.Sequence[tuple[str | None, str, str]]) -> None:
    """Check that a history is a path through the table of transitions."""
    at: str | None = None
    for was, to, reason in history:
        row = TRANSITIONS[Verb(reason)]
        assert was == at, f"{history}: from {was}, but the job was {at}"
        assert was in row.from_states or (was is None and not row.from_states), history
        assert to in row.to_states, history
        at = to
