"""Limits of claims: so many at once, or in so many seconds, of a type, of a queue, by a login."""

from __future__ import annotations

import datetime as dt
import itertools
import time
import typing as t

import pytest
import sqlalchemy as sa

from conftest import MakeWorld
from flask_jobber import Invalid
from race_support import start, together
from support import World
from test_claim_plan import cost
from test_waiting import Statements, wait_for


def claim(world: World, locker: str = "worker", **wish: t.Any) -> list[str]:
    with world.session():
        return [one.type for one in world.jobber.claim(locker, **{"limit": 10, **wish})]


def fill(world: World, **counts: int) -> None:
    with world.session():
        specs = [{"type": type_} for type_, count in counts.items() for _ in range(count)]
        world.jobber.enqueue_many(specs)


def let_pass(world: World, seconds: float) -> None:
    """Let so much time pass for all limits."""
    meter = world.jobber.Meter
    with world.session() as session:
        for row in session.scalars(sa.select(meter)):
            row.ready_at -= dt.timedelta(seconds=seconds)


def test_a_rate_hands_out_one_by_one(world: World) -> None:
    """Others are not held up by it, and what is waited for is told."""
    world.jobber.limit(type="mail", rate=5, per_seconds=100)
    fill(world, mail=10, work=3)
    assert claim(world) == ["mail"]
    assert claim(world) == ["work"] * 3
    assert claim(world) == []
    let_pass(world, 19)
    assert claim(world, types=["mail"]) == []
    let_pass(world, 1)
    assert claim(world, types=["mail", "work"]) == ["mail"]
    let_pass(world, 1000)
    assert claim(world) == ["mail"]  # what was not used is not saved up


def test_a_burst_goes_together(world: World) -> None:
    """After a pause, and no more than so many."""
    world.jobber.limit(type="mail", rate=5, per_seconds=100, burst=3)
    fill(world, mail=10)
    assert claim(world) == ["mail"] * 3
    assert claim(world) == []
    let_pass(world, 40)
    assert claim(world) == ["mail"] * 2
    let_pass(world, 1000)
    assert claim(world) == ["mail"] * 3


def test_so_many_at_once(world: World) -> None:
    """Of a queue; the end of one makes room for another, a lapse too."""
    world.jobber.limit(queue="gpu", at_once=2)
    with world.session():
        world.jobber.enqueue_many([{"type": "train", "queue": "gpu"}] * 4 + [{"type": "work"}])
        first, second = world.jobber.claim("worker", limit=10)
        assert [one.type for one in world.jobber.claim("worker", limit=10)] == ["work"]
        assert world.jobber.claim("worker", queues=["gpu"]) == []
        world.jobber.deliver("worker", first.id, 1)
        assert len(world.jobber.claim("worker", limit=10)) == 1
        assert world.jobber.claim("worker") == []
        late = sa.update(world.Job).where(world.Job.id == second.id)
        world.db.session.execute(late.values(locked_until=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)))
        (again,) = world.jobber.claim("worker", limit=10)
        assert again.id in (second.id, second.id + 2)
        assert world.jobber.claim("worker", limit=10) == [] or again.id != second.id


def test_what_is_held_is_counted_where_the_limit_is_near(world: World) -> None:
    """Not by each claim; and now and then anyway, as others may have handed out who know nothing of it."""
    world.jobber.limit(type="work", at_once=5)
    fill(world, work=20)

    def counts() -> bool:
        with Statements(world) as statements:
            claimed.append(len(claim(world, limit=1)))
        return any("count(" in one for one in statements.seen)

    claimed = list[int]()
    assert [counts() for _ in range(6)] == [True] + [False] * 4 + [True]
    assert claimed == [1] * 5 + [0]
    with world.session():
        held = world.db.session.scalars(sa.select(world.Job.id).filter_by(state="locked")).all()
        for job_id in held[:3]:
            world.jobber.deliver("worker", job_id, 1)
    claimed.clear()
    assert [counts() for _ in range(4)] == [True, False, False, True]
    assert claimed == [1] * 3 + [0]
    with world.session() as session:
        held_yet = sa.update(world.Job).where(world.Job.state == "locked")
        session.execute(held_yet.values(state="queued", locked_until=None, locked_by=None))
        session.execute(
            sa.update(world.jobber.Meter).values(counted_at=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
        )
    assert [counts() for _ in range(2)] == [True, False]


def test_what_is_held_is_counted_by_an_index(make_world: MakeWorld, postgres_url: str) -> None:
    """The jobs that are finished are not read for it."""
    world = make_world(postgres_url)
    world.jobber.limit(type="work", at_once=5)
    with world.session() as session:
        now = dt.datetime.now(dt.UTC)
        given = {"type": "work", "state": "succeeded", "max_attempts": 1, "run_at": now, "finished_at": now}
        session.execute(sa.insert(world.Job.__table__), [given] * 20_000)
    with world.session() as session:
        session.execute(sa.text("ANALYZE job"))
    fill(world, work=1)
    plans = list[str]()

    def explain(connection: t.Any, _: t.Any, statement: str, values: t.Any, *__: t.Any) -> None:
        if statement.startswith("SELECT count(CASE"):
            plans.extend(connection.exec_driver_sql(f"EXPLAIN {statement}", values).scalars())

    with world.app.app_context():
        engine = world.db.engine
    sa.event.listen(engine, "before_cursor_execute", explain)
    assert len(claim(world, limit=1)) == 1
    assert plans
    assert not any("Seq Scan on job" in line for line in plans), plans


def test_a_lease_that_is_revived_is_held_again(world: World) -> None:
    """What has lapsed when it is counted makes room for one who claims then, and for nobody later."""
    world.jobber.limit(type="work", at_once=5)
    fill(world, work=20)
    with world.session():
        mine = world.jobber.claim("worker", limit=3)
    lapse = sa.update(world.Job).where(world.Job.state == "locked")
    with world.session() as session:
        session.execute(lapse.values(locked_until=dt.datetime(2020, 1, 1, tzinfo=dt.UTC)))
        session.execute(sa.update(world.jobber.Meter).values(counted_at=None))
    assert len(claim(world, "other", limit=1)) == 1  # one of them
    for one in mine[1:]:
        with world.session():
            world.jobber.extend("worker", one.id, one.attempt)
    assert sum(len(claim(world, "third", limit=1)) for _ in range(8)) == 2


def test_each_login_has_its_rate(world: World) -> None:
    """On whatever node; one of them may have another besides."""
    world.jobber.limit(locker="*", rate=2, per_seconds=3600, burst=2)
    world.jobber.limit(locker="bob", rate=1, per_seconds=3600)
    fill(world, work=20)
    assert len(claim(world, "ann/a")) == 2
    assert claim(world, "ann/b") == []
    assert len(claim(world, "bob")) == 1
    assert len(claim(world, "eve")) == 2


@pytest.fixture
def patient(make_world: MakeWorld, db_url: str) -> World:
    """An app whose requests may wait, for nothing but what they hear."""
    return make_world(db_url, JOBBER_MAX_WAITERS=10, JOBBER_IDLE_SECONDS=3600)


def test_an_empty_claim_is_told_when_there_is_room(patient: World) -> None:
    """And a claim that waits gets it then, without asking before."""
    patient.jobber.limit(type="work", rate=1, per_seconds=1.5)
    fill(patient, work=3)
    ann = patient.client("ann")
    assert len(ann.claim()) == 1
    begun = time.monotonic()
    answer = ann.post("/claims", {}).json
    assert answer is not None
    assert answer["jobs"] == []
    assert 0 < answer["retry_after"] <= 1.5
    with Statements(patient) as statements:
        assert len(ann.claim(wait_seconds=20)) == 1
    assert time.monotonic() - begun < 10
    assert sum("job_meter" in one for one in statements.seen) <= 12


def test_the_end_of_one_wakes_who_waits(patient: World) -> None:
    """When it is counted what is held."""
    patient.jobber.limit(type="work", at_once=1)
    fill(patient, work=2)
    ann, bob = patient.client("ann"), patient.client("bob")
    (first,) = ann.claim()
    waits = start(lambda: bob.claim(wait_seconds=30))
    wait_for(patient, 1)
    begun = time.monotonic()
    ann.deliver(first, 1)
    assert len(waits.result(30)) == 1
    assert time.monotonic() - begun < 20


def test_it_holds_under_threads(world: World) -> None:
    """By the database's clock no hand-out comes before its time, and never are more held than may be."""
    world.jobber.limit(type="work", rate=20, per_seconds=1)
    world.jobber.limit(type="held", at_once=2)
    fill(world, work=100, held=40)
    until, most = time.monotonic() + 2.5, list[int]()

    def act(number: int) -> None:
        while time.monotonic() < until:
            with world.session() as session:
                claims = world.jobber.claim(f"worker{number}", limit=3)
                session.commit()
                c = world.Job.__table__.c
                held = sa.select(sa.func.count()).where(c.state == "locked", c.type == "held")
                most.append(session.scalar(held))
                session.commit()
                for one in claims:
                    world.jobber.deliver(f"worker{number}", one.id, one.attempt)
                    session.commit()

    together(8, act)
    assert max(most) <= 2
    h, c = world.jobber.History, world.Job
    with world.session() as session:
        claimed = sa.select(h.at).join(c, c.id == h.job_id).where(c.type == "work", h.reason == "claim")
        times = session.scalars(claimed.order_by(h.at)).all()
    assert 5 <= len(times) <= 60
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(times)]
    assert min(gaps) >= 0.05


def test_settling_and_claiming_at_once_never_locks_up(world: World) -> None:
    """Threads that exchange, of which each waits for what the others count."""
    world.jobber.limit(type="work", at_once=3)
    fill(world, work=60)
    codes = list[int]()

    def act(number: int) -> None:
        client, done = world.client(f"u{number}"), list[t.Any]()
        for _ in range(8):
            results = [{"id": job["id"], "attempt": job["attempt"], "result": 1} for job in done]
            answer = client.post("/exchange", {"results": results, "claim": {"limit": 1}})
            codes.append(answer.status_code)
            done = answer.json["jobs"] if answer.status_code == 200 and answer.json else []

    together(6, act)
    assert set(codes) == {200}


def test_without_limits_a_claim_costs_what_it_did(world: World) -> None:
    """Not one statement more; nor when those that there are do not concern it."""
    fill(world, work=8, mail=1)
    claim(world, limit=1)
    plain = cost(world, lambda: claim(world, limit=1, types=["work"]))
    world.jobber.limit(type="mail", rate=1, per_seconds=3600)
    other = cost(world, lambda: claim(world, limit=1, types=["work"]))
    assert len(other._statements) == len(plain._statements)


def test_meters_are_forgotten(world: World) -> None:
    """When there has been room for a day."""
    world.jobber.limit(locker="*", rate=1, per_seconds=1)
    fill(world, work=2)
    claim(world, "ann")
    let_pass(world, 100_000)
    claim(world, "bob")
    with world.session() as session:
        world.jobber.prune()
        assert session.scalars(sa.select(world.jobber.Meter.name)).all() == ["locker:*bob"]


WRONG: dict[str, dict[str, t.Any]] = {
    "of nothing": {"rate": 1},
    "of two things": {"type": "a", "queue": "b", "rate": 1},
    "nothing": {"type": "a"},
    "no name": {"type": "a b", "rate": 1},
    "no rate": {"type": "a", "rate": 0},
    "no length": {"type": "a", "rate": 1, "per_seconds": 0},
    "no burst": {"type": "a", "rate": 1, "burst": 0},
    "lockers at once": {"locker": "*", "at_once": 1},
    "rate of a key": {"key": "a", "rate": 1},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_no_limit(lite: World, wrong: str) -> None:
    """It is refused when it is said."""
    with pytest.raises(Invalid):
        lite.jobber.limit(**WRONG[wrong])
