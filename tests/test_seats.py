"""Concurrency keys: so many jobs of one key are in the pool at once."""

from __future__ import annotations

import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa

from flask_jobber import DuplicateJob, Invalid
from race_support import together
from situations import ERROR, assert_legal
from support import World
from test_claim_plan import claim_within_bounds, cost, settle_statistics

KEY = "customer-7"
NOW = dt.datetime.now(dt.UTC)
HOUR = dt.timedelta(hours=1)


@pytest.fixture
def two(world: World) -> World:
    """A world in which two jobs of a customer may be in the pool."""
    world.jobber.limit(key="customer-*", at_once=2)
    return world


def add(world: World, count: int = 1, key: str | None = KEY, **spec: t.Any) -> list[int]:
    with world.session():
        given = {"type": "work", "concurrency_key": key, **spec}
        return [job.id for job in world.jobber.enqueue_many([given] * count)]


def states(world: World, *ids: int) -> list[str]:
    return [world.job(id).state for id in ids]


def claim(world: World, limit: int = 10, **wish: t.Any) -> list[t.Any]:
    with world.session():
        return list(world.jobber.claim("worker", limit=limit, **wish))


def deliver(world: World, *claims: t.Any) -> None:
    with world.session():
        for one in claims:
            world.jobber.deliver("worker", one.id, one.attempt)


def check_counts(world: World) -> None:
    """Check that the rows of keys say what the jobs are, and every history is legal."""
    c = world.Job.__table__.c
    counted = [sa.func.count(sa.case((c.seated == value, 1))) for value in (sa.true(), sa.false())]
    seat = world.jobber.Seat
    with world.session() as session:
        keyed = sa.select(c.concurrency_key, *counted).where(c.concurrency_key.is_not(None))
        said = {tuple(row) for row in session.execute(keyed.group_by(c.concurrency_key))}
        rows = {tuple(row) for row in session.execute(sa.select(seat.key, seat.taken, seat.waiting))}
        ids = session.scalars(sa.select(c.id)).all()
        wrong = sa.case((c.state == "blocked", 1), else_=0) == sa.case((c.seated, 1), else_=0)
        assert session.scalars(sa.select(c.id).where(c.seated.is_not(None), wrong)).all() == []
    assert {row for row in said if row[1:] != (0, 0)} == {row for row in rows if row[1:] != (0, 0)}
    for id in ids:
        assert_legal(world.history(id))


def test_only_so_many_are_in_the_pool(two: World) -> None:
    """The others are blocked, and let in one by one when others end."""
    ids = add(two, 4)
    assert states(two, *ids) == ["queued", "queued", "blocked", "blocked"]
    first, second = claim(two)
    assert [first.id, second.id] == ids[:2]
    assert claim(two) == []
    deliver(two, first)
    assert states(two, *ids[2:]) == ["queued", "blocked"]
    assert two.history(ids[2])[-1] == ("blocked", "queued", "admit")
    (third,) = claim(two)
    deliver(two, second, third)
    deliver(two, *claim(two))
    assert states(two, *ids) == ["succeeded"] * 4
    check_counts(two)


def test_a_key_without_a_limit_is_one_at_a_time(world: World) -> None:
    """The longest beginning that was said counts, and the key itself before all."""
    world.jobber.limit(key="a*", at_once=3)
    world.jobber.limit(key="ab*", at_once=2)
    world.jobber.limit(key="abc", at_once=4)
    for key, seats in {"z": 1, "a1": 3, "ab": 2, "abd": 2, "abc": 4, "abcd": 2}.items():
        assert states(world, *add(world, 5, key)).count("queued") == seats
    check_counts(world)


def test_the_best_is_let_in_first(world: World) -> None:
    """By priority, then by time, then by id."""
    add(world)
    low, late, early, high = (
        *add(world),
        *add(world, priority=1, run_at=NOW),
        *add(world, priority=1, run_at=NOW - HOUR),
        *add(world, priority=2),
    )
    order = list[int]()
    for _ in range(5):
        (one,) = claim(world)
        order.append(one.id)
        deliver(world, one)
    assert order[1:] == [high, early, late, low]
    check_counts(world)


BROKE = {**ERROR, "traceback": None}
ENDS: dict[str, t.Callable[[World, t.Any], object]] = {
    "deliver": lambda world, one: world.jobber.deliver("worker", one.id, one.attempt),
    "fail": lambda world, one: world.jobber.fail("worker", one.id, one.attempt, BROKE, permanent=True),
    "call off": lambda world, one: world.jobber.fail("worker", one.id, one.attempt, BROKE, cancel=True),
    "cancel": lambda world, one: world.jobber.cancel(one.id),
    "lapse": lambda world, one: lapse(world, one.id),
    "lapse and claim": lambda world, one: lapse(world, one.id, expire=False),
    "expire": lambda world, one: expire(world, one),
    "empty": lambda world, one: empty(world, one),
}


def lapse(world: World, job_id: int, *, expire: bool = True) -> None:
    past = {"locked_until": NOW - HOUR, "max_attempts": 1}
    world.db.session.execute(sa.update(world.Job).where(world.Job.id == job_id).values(past))
    world.jobber.expire() if expire else world.jobber.claim("other", types=["work"])


def expire(world: World, one: t.Any) -> None:
    world.jobber.release("worker", one.id, one.attempt)
    past = sa.update(world.Job).where(world.Job.id == one.id).values(expires_at=NOW - HOUR)
    world.db.session.execute(past)
    world.jobber.expire()


def empty(world: World, one: t.Any) -> None:
    world.jobber.release("worker", one.id, one.attempt)
    world.jobber.queues.empty("default")


@pytest.mark.parametrize("end", ENDS)
def test_every_end_frees_the_seat(world: World, end: str) -> None:
    """In the same transaction."""
    (first,) = add(world)
    second = add(world, queue="other")[0]
    (one,) = claim(world)
    assert one.id == first
    with world.session():
        ENDS[end](world, one)
    assert world.job(first).finished_at is not None
    # The claim that meets a dead one goes on, and may have it at once.
    assert world.job(second).state in ("queued", "locked")
    check_counts(world)


def test_back_off_gives_the_seat_to_one_that_is_due(world: World) -> None:
    """And gets it back, at the latest when it is due itself and the other is done."""
    first, second = add(world, 2)
    (one,) = claim(world)
    with world.session():
        state = world.jobber.fail("worker", one.id, 1, BROKE)
    assert state == "scheduled"
    assert states(world, first, second) == ["blocked", "queued"]
    assert world.history(first)[-2:] == [("locked", "scheduled", "fail"), ("scheduled", "blocked", "block")]
    deliver(world, *claim(world))
    assert states(world, first) == ["scheduled"]
    world.pass_time(3600)
    assert [again.id for again in claim(world)] == [first]
    check_counts(world)


def test_a_job_for_later_gives_its_seat_to_one_that_is_due(world: World) -> None:
    """And to one that is due before it; so that none waits for a seat that is not used."""
    far, near = add(world, run_at=NOW + 10 * HOUR)[0], add(world, run_at=NOW + HOUR)[0]
    assert states(world, far, near) == ["blocked", "scheduled"]
    (due,) = add(world)
    assert states(world, far, near, due) == ["blocked", "blocked", "queued"]
    deliver(world, *claim(world))
    assert states(world, far, near) == ["blocked", "scheduled"]
    world.pass_time(2 * 3600)
    (one,) = claim(world)
    assert one.id == near
    deliver(world, one)
    assert states(world, far) == ["scheduled"]
    check_counts(world)


def test_one_that_is_due_is_found_behind_urgent_ones_that_are_not(world: World) -> None:
    """Priority counts among those that are due."""
    add(world)
    add(world, run_at=NOW + HOUR, priority=5)
    (due,) = add(world)
    deliver(world, *claim(world))
    assert states(world, due) == ["queued"]
    check_counts(world)


def test_blocked_jobs_may_be_cancelled_and_expire(world: World) -> None:
    """They had no seat to leave."""
    held, first, second, third = add(world, 4)
    with world.session() as session:
        world.jobber.cancel(first)
        session.execute(sa.update(world.Job).where(world.Job.id == second).values(expires_at=NOW - HOUR))
        assert world.jobber.expire() == 1
    assert states(world, held, first, second, third) == ["queued", "cancelled", "expired", "blocked"]
    check_counts(world)


def test_retry_takes_a_seat_or_waits(world: World) -> None:
    """Never is there one more than the limit says."""
    first, second = add(world, 2)
    with world.session():
        world.jobber.cancel(first)
        world.jobber.retry(first)
    assert sorted(states(world, first, second)) == ["blocked", "queued"]
    check_counts(world)


def test_limits_are_changed(two: World) -> None:
    """More are let in by a tidying; of too many some leave."""
    ids = add(two, 5)
    two.jobber.limit(key="customer-*", at_once=4)
    with two.session():
        two.jobber.tidy()
    assert states(two, *ids).count("queued") == 4
    two.jobber.limit(key="customer-*", at_once=1)
    (one,) = claim(two, 1)
    with two.session():
        two.jobber.release("worker", one.id, one.attempt)
    assert states(two, *ids).count("queued") == 1
    check_counts(two)


def test_blocked_jobs_are_unfinished(world: World) -> None:
    """They count against the capacity of their queue, and are shown."""
    with world.session():
        world.jobber.queues.create("mail", capacity=3)
    add(world, 3, queue="mail")
    with world.session():
        (stats,) = world.jobber.queues.stats("mail")
    assert (stats.waiting, stats.blocked, stats.unfinished) == (1, 2, 3)


def test_a_series_keeps_to_the_limit(world: World) -> None:
    """Its next job has a seat, or waits for one."""
    with world.session():
        first = world.jobber.enqueue("tick", every=60, run_at=NOW - HOUR, concurrency_key=KEY).id
    (other,) = add(world)
    assert states(world, first, other) == ["queued", "blocked"]
    deliver(world, *claim(world))
    with world.session() as session:
        following = session.scalars(sa.select(world.Job.id).where(world.Job.id > other)).one()
    assert states(world, other, following) == ["queued", "blocked"]
    deliver(world, *claim(world))
    assert states(world, following) == ["scheduled"]
    check_counts(world)


def test_a_taken_unique_key_takes_no_seat(world: World) -> None:
    """What was counted for the job that is not there is undone with it."""
    with world.session():
        world.jobber.enqueue("work", unique_key="once", concurrency_key=KEY)
        with pytest.raises(DuplicateJob):
            world.jobber.enqueue("work", unique_key="once", concurrency_key="other")
        world.jobber.enqueue("work", concurrency_key="other")
    check_counts(world)


def test_cleared_jobs_leave_their_seats(world: World) -> None:
    """What an operator deletes holds no seat for ever."""
    first, second = add(world, 2)
    world.app.test_cli_runner().invoke(args=["jobber", "clear", "--type", "work", "--yes"])
    with world.session() as session:
        left = session.scalars(sa.select(world.Job.id)).all()
    assert left == []
    assert states(world, *add(world)) == ["queued"]
    assert (first, second) < tuple(left or (2**62,))
    check_counts(world)


def test_keys_are_forgotten(world: World) -> None:
    """When they have not been used in a long time, and nobody has a seat."""
    add(world)
    deliver(world, *claim(world))
    add(world, key="used")
    old = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    with world.session() as session:
        session.execute(sa.update(world.jobber.Seat).values(used_at=old))
    with world.session() as session:
        world.jobber.prune()
        assert session.scalars(sa.select(world.jobber.Seat.key)).all() == ["used"]


def test_over_http(world: World) -> None:
    """It is one more field for the permission hook to look at."""
    root = world.client("root")
    made = [root.post("/jobs", {"type": "work", "concurrency_key": KEY}).json for _ in range(2)]
    assert [job["state"] for job in made if job] == ["queued", "blocked"]
    assert world.client("ann").post("/jobs", {"type": "work", "concurrency_key": KEY}).status_code == 403
    assert root.post("/jobs", {"type": "work", "concurrency_key": ""}).status_code == 422
    listed = root.get("/jobs?state=blocked").json
    assert listed
    assert len(listed["jobs"]) == 1


def test_bad_limits(world: World) -> None:
    """They say what is wrong."""
    for wrong in ({"key": "", "at_once": 1}, {"key": "a", "at_once": 0}):
        with pytest.raises(Invalid):
            world.jobber.limit(**t.cast(t.Any, wrong))


@pytest.mark.parametrize("limit", [1, 3])
def test_never_more_than_the_limit_are_held(world: World, limit: int) -> None:
    """Under threads that enqueue, claim, deliver, fail, release and cancel; all end, no seat is lost."""
    world.jobber.limit(key="customer-*", at_once=limit)
    most = list[int]()

    def act(number: int) -> None:
        for turn in range(6):
            add(world, 2, f"customer-{(number + turn) % 2}")
            for one in claim(world, 2):
                with world.session() as session:
                    c = world.Job.__table__.c
                    held = sa.select(sa.func.count()).where(c.state == "locked").group_by(c.concurrency_key)
                    most.extend(session.scalars(held))
                with world.session():
                    if turn % 3 == 0:
                        world.jobber.fail("worker", one.id, one.attempt, BROKE)
                    elif turn % 3 == 1:
                        world.jobber.release("worker", one.id, one.attempt)
                    else:
                        world.jobber.deliver("worker", one.id, one.attempt)

    together(6, act)
    assert max(most) <= limit
    check_counts(world)
    for _ in range(200):
        world.pass_time(4000)
        claims = claim(world, 50)
        deliver(world, *claims)
        if not claims:
            break
    with world.session() as session:
        left = session.scalars(sa.select(world.Job.state).where(world.Job.finished_at.is_(None))).all()
    assert left == []
    check_counts(world)


def test_a_claim_never_reads_past_those_at_the_door(world: World) -> None:
    """Nor does the end of one look at all of them."""
    with world.session() as session:
        given = {
            "type": "work", "state": "blocked", "max_attempts": 3, "run_at": NOW, "priority": 5,
            "concurrency_key": KEY, "seated": False,
        }  # fmt: skip
        session.execute(sa.insert(world.Job.__table__), [given] * 10_000)
        session.add(world.jobber.Seat(key=KEY, taken=0, waiting=10_000))
    with world.session():
        world.jobber.tidy()
    (other,) = add(world, key=None)
    settle_statistics(world)
    root = world.client("root")
    found = [claim_within_bounds(root, world) for _ in range(2)]
    assert found[1]["id"] == other
    work = cost(world, lambda: root.deliver(found[0]))
    assert work.amount <= work.bound, work.plans
    assert world.job(found[0]["id"]).state == "succeeded"
