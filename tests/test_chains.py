"""Chains: jobs that wait for others."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa

from conftest import MakeWorld
from flask_jobber import DuplicateJob, Invalid
from situations import ERROR, assert_legal
from support import World

LOCKER = "user_ann"


@pytest.fixture
def world(make_world: MakeWorld, db_url: str) -> World:
    """Nothing is tidied but by the test."""
    return make_world(db_url, JOBBER_TIDY_SECONDS=0)


def hand_out(world: World) -> list[t.Any]:
    with world.session():
        return list(world.jobber.claim(LOCKER, limit=100))


def deliver(world: World, *claims: t.Any) -> None:
    with world.session():
        for claim in claims:
            world.jobber.deliver(LOCKER, claim.id, claim.attempt)


def fail(world: World, claim: t.Any) -> None:
    with world.session():
        world.jobber.fail(LOCKER, claim.id, claim.attempt, ERROR, permanent=True)


def follower(world: World, *path: str) -> int:
    """Return the id of the only job of a type."""
    with world.session() as session:
        return t.cast(int, session.scalar(sa.select(world.Job.id).where(world.Job.type == path[-1])))


def work_off(world: World) -> list[str]:
    """Do all that there is, round by round; return the types in their order."""
    done = list[str]()
    while claims := hand_out(world):
        done += sorted(claim.type for claim in claims)
        deliver(world, *claims)
    return done


def test_one_job_follows_another(world: World) -> None:
    """It is blocked, and in the queue when the one before it has succeeded."""
    world.enqueue("fetch", then={"type": "resize", "data": 5, "priority": 3})
    resize = follower(world, "resize")
    assert world.job(resize).state == "blocked"
    (claim,) = hand_out(world)
    assert (claim.type, hand_out(world)) == ("fetch", [])
    deliver(world, claim)
    (claim,) = hand_out(world)
    assert (claim.id, claim.type, claim.data, claim.priority, claim.attempt) == (resize, "resize", 5, 3, 1)
    deliver(world, claim)
    assert [reason for *_, reason in world.history(resize)] == ["enqueue", "unblock", "claim", "deliver"]
    assert_legal(world.history(resize))


def test_a_chain_is_as_long_as_one_likes(world: World) -> None:
    """Each follows the one before it."""
    world.enqueue("a", then=[{"type": name} for name in "bcd"])
    assert work_off(world) == ["a", "b", "c", "d"]


def test_many_chains_are_enqueued_at_once(world: World) -> None:
    """And those that are none beside them."""
    with world.session():
        world.jobber.enqueue_many([{"type": "a", "then": {"type": "b"}}, {"type": "c"}] * 3)
    assert work_off(world) == [*"aaacccbbb"]


def test_a_job_waits_for_several(world: World) -> None:
    """Those that are there, whoever enqueued them; some may have ended."""
    ids = [world.enqueue("a") for _ in range(3)]
    deliver(world, hand_out(world)[0])
    with world.session():
        jobs = [world.db.session.get(world.Job, ids[1]), *ids]
        last = world.jobber.enqueue("b", wait_for=jobs).id
    assert world.job(last).state == "blocked"
    with world.session():
        for job_id in ids[1:]:
            world.jobber.deliver(LOCKER, job_id, 1)
    assert world.job(last).state == "queued"
    with world.session():
        assert world.jobber.find_batch(last).progress().total == 3


def test_a_job_that_waits_for_what_has_ended_is_not_blocked(world: World) -> None:
    """It is in the queue with the commit."""
    first = world.enqueue("a")
    deliver(world, *hand_out(world))
    assert world.job(world.enqueue("b", wait_for=first)).state == "queued"


def test_a_job_follows_a_batch(world: World) -> None:
    """When the batch has been processed."""
    with world.session(), world.jobber.batch("stitch", then={"type": "print"}) as batch:
        batch.enqueue("tile")
        batch.enqueue("tile", then={"type": "polish"})
    assert work_off(world) == ["tile", "tile", "polish"]
    with world.session():
        assert world.jobber.process_submitted() == 1
    assert work_off(world) == ["print"]


@pytest.mark.parametrize("end", ["failed", "cancelled", "expired"])
def test_what_follows_a_job_that_did_not_succeed_is_cancelled(world: World, end: str) -> None:
    """And what follows that; the history says why. One that goes on all the same is not."""
    first = world.enqueue("a", then=[{"type": "b"}, {"type": "c"}])
    second = world.enqueue("d", then={"type": "e", "if_failed": "go_on"})
    for job_id in (first, second):
        _end(world, job_id, end)
        assert world.job(job_id).state == end
    b, c, e = (follower(world, name) for name in "bce")
    assert [world.job(job_id).state for job_id in (b, c, e)] == ["cancelled", "cancelled", "queued"]
    with world.session() as session:
        h = world.jobber.History
        errors = sa.select(h.error).where(h.job_id.in_([b, c]), h.reason == "unblock").order_by(h.job_id)
        messages = {error["message"] for error in session.scalars(errors)}
    said = "which it waited for, ended"
    assert messages == {f"Job {first}, {said} {end}.", f"Job {b}, {said} cancelled."}
    for job_id in (b, c, e):
        assert_legal(world.history(job_id))


def _end(world: World, job_id: int, state: str) -> None:
    with world.session():
        if state == "cancelled":
            world.jobber.cancel(job_id)
        elif state == "failed":
            world.jobber.claim(LOCKER, types=[world.job(job_id).type])
            world.jobber.fail(LOCKER, job_id, 1, ERROR, permanent=True)
        else:
            jobs = world.Job.__table__
            late = sa.update(jobs).where(jobs.c.id == job_id).values(expires_at=jobs.c.created_at)
            world.db.session.execute(late)
            world.jobber.expire()


def test_what_waits_may_be_cancelled(world: World) -> None:
    """Over HTTP too, where it is to be seen; those that it waits for go on."""
    first = world.enqueue("a", then=[{"type": "b"}, {"type": "c"}])
    b, root = follower(world, "b"), world.client("root")
    listed = root.get("/jobs?state=blocked").json["jobs"]
    assert [job["type"] for job in listed] == ["c", "b"]
    assert root.post(f"/jobs/{b}/cancel").json["state"] == "cancelled"
    assert world.job(follower(world, "c")).state == "cancelled"
    assert world.job(first).state == "queued"
    assert work_off(world) == ["a"]


def test_a_cancelled_follower_may_have_another_life(world: World) -> None:
    """It is in the queue at once: what it waited for is over."""
    world.enqueue("a", then={"type": "b"})
    fail(world, *hand_out(world))
    with world.session():
        world.jobber.retry(follower(world, "b"))
    assert work_off(world) == ["b"]


def test_a_follower_keeps_its_time(world: World) -> None:
    """Unblocked before it, it is scheduled."""
    world.enqueue("a", then={"type": "b", "after": 3600})
    assert work_off(world) == ["a"]
    assert world.job(follower(world, "b")).state == "scheduled"
    world.pass_time(3601)
    assert work_off(world) == ["b"]


def test_a_chain_that_cannot_be_begun_leaves_nothing(world: World) -> None:
    """No job that nobody would unblock; the transaction goes on."""
    taken = world.enqueue("other", unique_key="key")
    waited = world.enqueue("a", then={"type": "b"})
    wrong: list[tuple[str, t.Callable[[], object]]] = [
        ("then", lambda: world.jobber.enqueue("a", then="b")),
        ("then", lambda: world.jobber.enqueue("a", then=[1])),
        ("then", lambda: world.jobber.enqueue("a", then={"type": "b", "then": {"type": "c"}})),
        ("then", lambda: world.jobber.enqueue("a", then=[{"type": "b"}] * 101)),
        ("type", lambda: world.jobber.enqueue("a", then={"type": "not a name"})),
        ("type", lambda: world.jobber.enqueue("", then={"type": "b"})),
        ("every", lambda: world.jobber.enqueue("a", then={"type": "b", "every": 60})),
        ("if_failed", lambda: world.jobber.enqueue("a", then={"type": "b", "if_failed": "stop"})),
        ("if_failed", lambda: world.jobber.enqueue("a", if_failed="go_on")),
        ("wait_for", lambda: world.jobber.enqueue("a", wait_for=[])),
        ("wait_for", lambda: world.jobber.enqueue("a", wait_for=77)),
        ("wait_for", lambda: world.jobber.enqueue("a", wait_for="1")),
        ("wait_for", lambda: world.jobber.enqueue("a", wait_for=waited)),
        ("batch", lambda: world.jobber.enqueue("a", every=60, then={"type": "b"})),
        ("then", lambda: world.jobber.schedule("name", "a", every=60, then={"type": "b"})),
    ]
    with world.session() as session:
        count = sa.select(sa.func.count(world.Job.id))
        before = session.scalar(count)
        for field, call in wrong:
            with pytest.raises(Invalid) as caught:
                call()
            assert [*caught.value.errors] == [field]
        with pytest.raises(DuplicateJob):
            world.jobber.enqueue("a", unique_key="key", then={"type": "c"})
        assert session.scalar(count) == before
        world.jobber.enqueue("after")
    assert world.job(taken).state == "queued"


@pytest.mark.parametrize("more", [{"results_wanted": 3}, {"adaptive": True}, {"concurrency_key": "k"}])
def test_what_waits_is_one_plain_job(world: World, more: dict[str, t.Any]) -> None:
    """Or it would be handed out before its time, and its end believed without a second answer."""
    first = world.enqueue("fetch")
    with world.session():
        for spec in ({"wait_for": first, **more}, {"then": {"type": "last", **more}}):
            with pytest.raises(Invalid):
                world.jobber.enqueue("work", **spec)
        with pytest.raises(Invalid), world.jobber.batch("sum", **more):
            pass
    assert [claim.type for claim in hand_out(world)] == ["fetch"]


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_job_that_is_there_does_not_become_a_member(world: World, policy: str) -> None:
    """The batch would be over before it; one that is a member already may be met again."""
    with world.session():
        world.jobber.enqueue("tile", unique_key="k")
        with pytest.raises(Invalid), world.jobber.batch("sum") as batch:
            batch.enqueue("tile", unique_key="k", on_conflict=policy)
        world.db.session.rollback()
    with world.session(), world.jobber.batch("sum") as batch:
        ids = {batch.enqueue("tile", unique_key="own", on_conflict=policy).id for _ in range(2)}
    with world.session():
        assert (len(ids), batch.progress().total) == (1, 1)


def test_what_several_answer_is_called_off_with_its_batch(world: World) -> None:
    """Its copies too: a holder is told so."""
    with world.session(), world.jobber.batch("sum") as batch:
        batch.enqueue("tile", results_wanted=2)
    (held,) = world.client("ann").claim()
    with world.session():
        batch.cancel()
    assert world.client("ann").deliver(held, 1).json["code"] == "cancelled"
    assert world.client("bob").claim() == []
