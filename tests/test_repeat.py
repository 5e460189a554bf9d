"""Jobs that are repeated so long after they have ended."""

from __future__ import annotations

import contextlib
import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa

from flask_jobber import Cancelled, IllegalTransition, Invalid, LeaseLost, job_enqueued
from flask_jobber.core import cadence
from race_support import together
from situations import ERROR, ago, assert_legal, put
from support import World

LOCKER = "user_ann"


def rows(world: World) -> list[t.Any]:
    """Return all jobs by id, detached."""
    with world.session() as session:
        jobs = session.scalars(sa.select(world.Job).order_by(world.Job.id)).all()
        for job in jobs:
            session.refresh(job)
            session.expunge(job)
        return list(jobs)


def claim(world: World) -> t.Any:
    with world.session():
        (claim,) = world.jobber.claim(LOCKER)
    return claim


def succeed(world: World) -> None:
    held = claim(world)
    with world.session():
        world.jobber.deliver(LOCKER, held.id, held.attempt, 1)


def fail(world: World, **how: t.Any) -> None:
    held = claim(world)
    with world.session():
        world.jobber.fail(LOCKER, held.id, held.attempt, ERROR, **how)


def expire(world: World) -> None:
    with world.session():
        put(world, rows(world)[-1].id, expires_at=ago(5))
    with world.session():
        assert world.jobber.expire() == 1


def lapse(world: World) -> None:
    """Let the lease of the only try end."""
    held = claim(world)
    with world.session():
        put(world, held.id, max_attempts=1, locked_until=ago(5))
    with world.session():
        assert world.jobber.expire() == 1


ENDS: dict[str, tuple[t.Callable[[World], None], str]] = {
    "succeeded": (succeed, "repeat_after_success"),
    "failed": (lambda world: fail(world, permanent=True), "repeat_after_failure"),
    "lapsed": (lapse, "repeat_after_failure"),
    "expired": (expire, "repeat_after_failure"),
}
BOTH = ("repeat_after_success", "repeat_after_failure")


@pytest.mark.parametrize("end", ENDS)
def test_an_end_makes_a_new_row_so_long_after_it(world: World, end: str) -> None:
    """Linked by its series, with all that was said of the first; counted from the end, not the beginning."""
    act, keyword = ENDS[end]
    said = {"queue": "q", "priority": 3, "user_id": "ann", "written": "by the app", "only_for": LOCKER}
    world.enqueue("work", {"n": 1}, **said, **{keyword: dt.timedelta(minutes=5)})
    world.pass_time(1000)
    heard: list[int] = []

    def hear(sender: t.Any, **facts: t.Any) -> None:
        heard.append(facts["job_id"])

    with job_enqueued.connected_to(hear):
        act(world)
    old, new = rows(world)
    assert old.finished_at is not None
    assert (new.state, new.type, new.data, new.series) == ("scheduled", "work", {"n": 1}, old.series)
    assert {name: getattr(new, name) for name in said} == said
    assert new.run_at - old.finished_at == dt.timedelta(minutes=5)
    assert (new.attempts, new.failures, new.result, new.finished_at) == (0, 0, None, None)
    assert heard == [new.id]
    assert world.history(new.id) == [(None, "scheduled", "enqueue")]
    assert_legal(world.history(old.id))


@pytest.mark.parametrize("end", ENDS)
def test_the_other_end_is_the_last(world: World, end: str) -> None:
    """Who repeats after success stops at a failure, and the other way round."""
    act, keyword = ENDS[end]
    (other,) = set(BOTH) - {keyword}
    world.enqueue(**{other: 5})
    act(world)
    (job,) = rows(world)
    assert job.finished_at is not None


def test_both_go_on_whatever_happens(world: World) -> None:
    """Each with its own length; failures that are tried again are no end."""
    world.enqueue(repeat_after_success=60, repeat_after_failure=5, backoff="constant")
    succeed(world)
    world.pass_time(61)
    fail(world)
    assert len(rows(world)) == 2
    world.pass_time(60)
    fail(world, permanent=True)
    world.pass_time(6)
    succeed(world)
    jobs = rows(world)
    assert [job.state for job in jobs] == ["succeeded", "failed", "succeeded", "scheduled"]
    assert len({job.series for job in jobs}) == 1
    slots = [job.slot for job in jobs]
    assert slots == sorted(set(slots))


def test_at_once_is_a_length_too(world: World) -> None:
    """0 seconds: due immediately."""
    world.enqueue(repeat_after_success=0)
    for _ in range(3):
        succeed(world)
    assert [job.state for job in rows(world)] == ["succeeded"] * 3 + ["scheduled"]


def test_cancel_ends_the_chain(world: World) -> None:
    """The waiting job, and one that is being worked on."""
    for held in (False, True):
        world.enqueue(repeat_after_success=0, repeat_after_failure=0)
        if held:
            claim(world)
        with world.session():
            world.jobber.cancel(rows(world)[-1].id)
    assert [job.state for job in rows(world)] == ["cancelled"] * 2


def test_a_retried_job_runs_alone(world: World) -> None:
    """The chain has gone on without it."""
    world.enqueue(repeat_after_success=60, repeat_after_failure=60)
    fail(world, permanent=True)
    with world.session():
        world.jobber.retry(rows(world)[0].id)
    succeed(world)
    assert [job.state for job in rows(world)] == ["succeeded", "scheduled"]


def test_expires_at_keeps_its_distance(world: World) -> None:
    """Each job has as long to begin as the first."""
    world.enqueue(repeat_after_failure=60, expires_at=ago(-600))
    old = rows(world)[0]
    fail(world, permanent=True)
    new = rows(world)[1]
    assert new.expires_at - new.slot == old.expires_at - old.slot


def test_an_expired_job_is_repeated_by_the_claim_that_meets_it(world: World) -> None:
    """No sweeper is needed; the new one is handed out when it is due."""
    world.enqueue(repeat_after_failure=0, expires_at=ago(-600))
    world.pass_time(601)
    with world.session():
        handed_out = world.jobber.claim(LOCKER) or world.jobber.claim(LOCKER)
    old, new = rows(world)
    assert (old.state, new.state) == ("expired", "locked")
    assert [one.id for one in handed_out] == [new.id]


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"repeat_after_success": -1}, "repeat_after_success"),
        ({"repeat_after_failure": "soon"}, "repeat_after_failure"),
        ({"repeat_after_failure": float("nan")}, "repeat_after_failure"),
        ({"repeat_after_success": 1e12}, "repeat_after_success"),
        ({"repeat_after_success": True}, "repeat_after_success"),
        ({"repeat_after_success": 5, "every": 60}, "repeat_after_success"),
        ({"repeat_after_failure": 5, "every": "0 3 * * *"}, "repeat_after_failure"),
        ({"repeat_after_success": 5, "unique_key": "mine"}, "unique_key"),
        ({"repeat_after_failure": 5, "expires_at": ago(5)}, "expires_at"),
        ({"repeat_after_failure": 5, "expires_at": ago(-5), "after": 60}, "expires_at"),
    ],
)
def test_what_cannot_be_is_refused(lite: World, spec: dict[str, t.Any], field: str) -> None:
    """Where it is enqueued, so that no end breaks and none leads to endless ends."""
    with lite.session(), pytest.raises(Invalid) as refused:
        lite.jobber.enqueue("work", **spec)
    assert list(refused.value.errors) == [field]
    assert rows(lite) == []


def test_slots_only_grow() -> None:
    """Whatever the clocks say."""
    slot = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    early = slot - dt.timedelta(hours=1)
    every = {"repeat_after_success": 5.0}
    following = cadence.after_end(every, slot, early, early, well=True)
    assert following is not None
    assert following > slot


def test_an_end_and_a_cancel_at_once_make_one_next_job_or_none(world: World) -> None:
    """Whichever comes first."""
    for _ in range(6):
        with world.session() as session:
            session.execute(sa.delete(world.Job.__table__))
        world.enqueue(repeat_after_success=0, repeat_after_failure=0)
        held = claim(world)
        acts: list[t.Callable[[], t.Any]] = [
            lambda held=held: world.jobber.deliver(LOCKER, held.id, held.attempt, 1),  # type: ignore[misc]
            lambda held=held: world.jobber.deliver(LOCKER, held.id, held.attempt, 1),  # type: ignore[misc]
            lambda held=held: world.jobber.cancel(held.id),  # type: ignore[misc]
        ]

        def act(number: int, acts: t.Any = acts) -> None:
            with contextlib.suppress(IllegalTransition, Cancelled, LeaseLost), world.session():
                acts[number]()

        together(3, act)
        first, *more = rows(world)
        assert (first.state, len(more)) in {("succeeded", 1), ("cancelled", 0)}
