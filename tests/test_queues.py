"""Queues that are declared: their room, their pauses, their defaults."""

from __future__ import annotations

import contextlib
import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa

from conftest import ENGINES, MakeWorld
from flask_jobber import (
    DuplicateQueue,
    Invalid,
    Jobber,
    NotFound,
    QueueFull,
    QueueInUse,
    State,
    job_cancelled,
    job_enqueued,
)
from flask_jobber.worker.database import DatabaseSource
from flask_jobber.worker.source import Wish
from race_support import LIMIT, compete, engine_of, start, together
from situations import LOCKER, SITUATIONS, ago, make_one_of_each, put, states, stored
from support import World
from test_claim_plan import claim_within_bounds, cost, settle_statistics
from test_claim_plan import fill as put_many

ERROR = {"type": "Error", "message": "broke"}
UNFINISHED = ("queued", "scheduled", "due", "locked", "lapsed", "submitted", "blocked")


def declare(world: World, name: str = "mail", **said: t.Any) -> None:
    with world.session():
        world.jobber.queues.create(name, **said)


def fill(world: World, number: int, queue: str = "mail") -> list[int]:
    with world.session():
        return [job.id for job in world.jobber.enqueue_many([{"type": "work", "queue": queue}] * number)]


def count(world: World, queue: str = "mail") -> int:
    """Return the number of unfinished jobs."""
    with world.session() as session:
        jobs = world.Job
        select = sa.select(sa.func.count(jobs.id)).where(jobs.queue == queue, jobs.finished_at.is_(None))
        return int(session.scalar(select))


# -- capacity ------------------------------------------------------------------------------------


def test_a_full_queue_takes_no_more(world: World) -> None:
    """``QueueFull`` at once; what was done before and after it in the transaction is committed."""
    declare(world, capacity=3)
    fill(world, 2)
    with world.session() as session:
        session.add(world.Job(type="own", max_attempts=1))
        world.jobber.enqueue("work", queue="mail")
        with pytest.raises(QueueFull, match="'mail'"):
            world.jobber.enqueue("work", queue="mail")
        world.jobber.enqueue("other")
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail", unique_key="k")
        world.jobber.enqueue("other", unique_key="k")

    assert (count(world), count(world, "default")) == (3, 3)


def test_nothing_comes_of_a_refused_enqueue(world: World) -> None:
    """No job, no history, no signal, however many and whatever queues it was for."""
    declare(world, "a", capacity=5)
    declare(world, "b", capacity=1)
    sent: list[t.Any] = []
    with job_enqueued.connected_to(lambda sender, **facts: sent.append(facts), sender=world.jobber):
        with world.session() as session:
            queues = ["a", "b", "default", "b"]
            with pytest.raises(QueueFull, match="'b'"):
                world.jobber.enqueue_many([{"type": "work", "queue": queue} for queue in queues])
            assert session.scalar(sa.select(sa.func.count(world.jobber.History.id))) == 0
    assert (count(world, "a"), count(world, "b"), sent) == (0, 0, [])

    with world.session():
        world.jobber.enqueue_many([{"type": "work", "queue": queue} for queue in [*"aaaaab", "c", "c"]])
    assert [count(world, queue) for queue in "abc"] == [5, 1, 2]


def test_many_at_once_fit_or_do_not(world: World) -> None:
    """The last place is taken; one more is too many."""
    declare(world, capacity=10)
    with world.session():
        with pytest.raises(QueueFull, match="room for 10 of 10"):
            world.jobber.enqueue_many([{"type": "work", "queue": "mail"}] * 11)
    fill(world, 4)
    with world.session():
        with pytest.raises(QueueFull, match="room for 6 of 10"):
            world.jobber.enqueue_many([{"type": "work", "queue": "mail"}] * 7)
        world.jobber.enqueue_many([{"type": "work", "queue": "mail"}] * 6)
    assert count(world) == 10


def test_one_by_one_in_one_transaction_counts_each(world: World) -> None:
    """The jobs of the transaction itself, and none of what it rolls back."""
    declare(world, capacity=4)
    fill(world, 1)
    with world.session() as session:
        world.jobber.enqueue("work", queue="mail")
        savepoint = session.begin_nested()
        world.jobber.enqueue("work", queue="mail")
        world.jobber.enqueue("work", queue="mail")
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail")
        savepoint.rollback()
        world.jobber.enqueue("work", queue="mail")
        world.jobber.enqueue("work", queue="mail")
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail")
    assert count(world) == 4


@pytest.mark.parametrize("state", SITUATIONS)
def test_unfinished_jobs_take_a_place_and_ended_ones_none(world: World, state: str) -> None:
    """In whatever state they wait, are held or have ended."""
    ids = make_one_of_each(world)
    with world.session():
        put(world, ids[state], queue="mail")
    declare(world, capacity=1)
    with world.session():
        if state in UNFINISHED:
            with pytest.raises(QueueFull):
                world.jobber.enqueue("work", queue="mail")
            world.jobber.cancel(ids[state])
        world.jobber.enqueue("work", queue="mail")


def test_an_undeclared_queue_has_no_bound_and_neither_has_a_capacity_of_zero(world: World) -> None:
    """Nor a name that differs in case, or an app's other queues."""
    declare(world, "none", capacity=0)
    declare(world, "other", capacity=1)
    for queue in ("Other", "none", "absent", "default"):
        fill(world, 5, queue)
    with world.session():
        world.jobber.queues.change("other", capacity=None)
    fill(world, 5, "other")


def test_a_smaller_capacity_throws_nothing_out(world: World) -> None:
    """It refuses until there is room again."""
    declare(world, capacity=5)
    ids = fill(world, 5)
    with world.session():
        world.jobber.queues.change("mail", capacity=2)
        for job_id in ids[:3]:
            with pytest.raises(QueueFull, match="room for 0 of 2"):
                world.jobber.enqueue("work", queue="mail")
            world.jobber.cancel(job_id)
    assert count(world) == 2
    with world.session():
        world.jobber.cancel(ids[3])
        world.jobber.enqueue("work", queue="mail")


def _producers(world: World, queues: t.Sequence[str], each: int) -> list[list[int]]:
    """Let twenty producers enqueue at once until each has tried so often; return what they got."""

    def produce(number: int) -> list[int]:
        made = []
        for turn in range(each):
            queue = queues[(number + turn) % len(queues)]
            with world.app.app_context():
                try:
                    made.append(int(world.jobber.enqueue("work", number, queue=queue).id))
                    world.db.session.commit()
                except QueueFull:
                    world.db.session.rollback()
        return made

    return together(20, produce)


#: More than the twenty need; on SQLite one writes at a time, and the others wait for it.
POOL = {"SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 25}}
SQLITE_POOL = {"SQLALCHEMY_ENGINE_OPTIONS": {"pool_size": 25, "connect_args": {"timeout": LIMIT}}}


@pytest.fixture
def crowd(make_world: MakeWorld, db_url: str) -> World:
    """A world whose pool and patience are enough for twenty."""
    world = make_world(db_url, **(SQLITE_POOL if db_url.startswith("sqlite") else POOL))
    if db_url.startswith("sqlite"):
        with engine_of(world).connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    return world


def test_twenty_producers_never_overfill_a_queue(crowd: World) -> None:
    """Of 160 jobs that come at once 100 get in, exactly: no more, and none is refused too early."""
    declare(crowd, capacity=100)
    made = [job_id for some in _producers(crowd, ["mail"], 8) for job_id in some]
    assert len(made) == len(set(made)) == 100
    assert count(crowd) == 100


def test_producers_of_several_queues_fill_each_to_the_brim(crowd: World) -> None:
    """Empty queues beside each other too: nobody dies of another's lock."""
    queues = [f"q{number}" for number in range(5)]
    for queue in queues:
        declare(crowd, queue, capacity=20)
    made = [job_id for some in _producers(crowd, queues, 8) for job_id in some]
    assert len(made) == 100
    assert [count(crowd, queue) for queue in queues] == [20] * 5


def test_producers_of_mixed_queues_wait_instead_of_dying(crowd: World) -> None:
    """In whatever order each names them; all of an enqueue get in or none."""
    for queue in "abc":
        declare(crowd, queue, capacity=50)

    def produce(number: int) -> int:
        order = ["abc", "cba", "bca", "cab"][number % 4]
        with crowd.session():
            for _ in range(4):
                try:
                    crowd.jobber.enqueue_many([{"type": "work", "queue": queue} for queue in order])
                except QueueFull:
                    return 0
        return 4

    assert sum(together(20, produce)) >= 48
    numbers = [count(crowd, queue) for queue in "abc"]
    assert numbers == [50] * 3


def test_producers_and_workers_at_once_never_overfill(crowd: World) -> None:
    """Nobody of either dies of a deadlock, though each settles and enqueues in one transaction."""
    declare(crowd, capacity=10)
    fill(crowd, 10)
    most: list[int] = []

    def act(number: int) -> int:
        done = 0
        for _ in range(6):
            with crowd.session():
                claims = crowd.jobber.claim(f"user_{number}")
            with crowd.session():
                for claim in claims:
                    crowd.jobber.deliver(f"user_{number}", claim.id, claim.attempt)
                    done += 1
                with contextlib.suppress(QueueFull):
                    crowd.jobber.enqueue("work", queue="mail")
            most.append(count(crowd))
        return done

    assert sum(together(10, act)) > 0
    assert max(most) <= 10


def test_a_transaction_that_has_looked_around_before_sees_the_others_all_the_same(world: World) -> None:
    """What came in since it began counts, though a plain read of its own may not show it."""
    declare(world, capacity=5)
    with world.session() as session:
        session.execute(sa.select(sa.func.count(world.Job.id))).all()  # a snapshot, where there are any
        start(lambda: fill(world, 4)).result(LIMIT)
        world.jobber.enqueue("work", queue="mail")
        for _ in range(2):
            with pytest.raises(QueueFull):
                world.jobber.enqueue("work", queue="mail")
        savepoint = session.begin_nested()
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail")
        savepoint.rollback()
    assert count(world) == 5


def test_a_second_enqueue_of_a_transaction_remembers_what_it_cannot_see(world: World) -> None:
    """The first has written the queue's counter, which hides what others did to it before."""
    declare(world, capacity=6)
    with world.session() as session:
        session.execute(sa.select(sa.func.count(world.Job.id))).all()
        start(lambda: fill(world, 3)).result(LIMIT)
        savepoint = session.begin_nested()
        world.jobber.enqueue("work", queue="mail")
        savepoint.rollback()
        for _ in range(3):
            world.jobber.enqueue("work", queue="mail")
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail")
    assert count(world) == 6
    ids = list(states(world))
    with world.session():  # what was remembered is forgotten with the transaction
        world.jobber.cancel(ids[0])
        world.jobber.enqueue("work", queue="mail")


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_other_levels_of_isolation_do_not_overfill(
    make_world: MakeWorld, request: pytest.FixtureRequest, engine: str, level: str
) -> None:
    """At worst one is told to try again."""
    url = request.getfixturevalue({"postgresql": "postgres_url"}.get(engine, "mariadb_url"))
    world = make_world(url, SQLALCHEMY_ENGINE_OPTIONS={"isolation_level": level, "pool_size": 10})
    declare(world, capacity=5)

    def produce(number: int) -> int:
        with world.app.app_context():
            try:
                world.jobber.enqueue("work", queue="mail")
                world.db.session.commit()
            except QueueFull:
                return 0
            except sa.exc.OperationalError:  # could not serialize
                assert (engine, level) == ("postgresql", "REPEATABLE READ")
                return 0
        return 1

    made = sum(together(8, produce))
    assert made == count(world) <= 5
    if (engine, level) != ("postgresql", "REPEATABLE READ"):
        assert made == 5


def test_who_enters_waits_for_who_is_entering(world: World) -> None:
    """The last place is given away when the first transaction commits, not before."""
    declare(world, capacity=1)

    def enter() -> str:
        with world.session():
            try:
                world.jobber.enqueue("work", queue="mail")
            except QueueFull:
                return "full"
        return "entered"

    assert compete(world, lambda: world.jobber.enqueue("work", queue="mail"), enter) == "full"
    with world.session():
        world.jobber.cancel(next(iter(states(world))))

    def undo() -> None:
        savepoint = world.db.session.begin_nested()
        world.jobber.enqueue("work", queue="mail")
        savepoint.rollback()

    assert compete(world, undo, enter, waits=False) == "entered"


def test_who_works_waits_for_nobody_who_enters(world: World) -> None:
    """Nor do producers of other queues: what is locked is the queue, not its jobs."""
    declare(world, capacity=50)
    declare(world, "other", capacity=50)
    fill(world, 4)
    (held, failing) = world.client("bob").claim(limit=2)

    def enter() -> None:
        for _ in range(3):
            world.jobber.enqueue("work", queue="mail")

    def work() -> list[t.Any]:
        bob = world.client("bob")
        (job,) = bob.claim(queues=["mail"])
        other = world.enqueue("work", queue="other")
        plain = world.enqueue("work")
        answers = [bob.deliver(held), bob.extend(job), bob.release(job), bob.fail(failing, permanent=True)]
        return [other > 0, plain > 0, *(answer.status_code for answer in answers)]

    assert compete(world, enter, work, waits=False) == [True, True, 200, 200, 204, 200]


def test_who_enters_waits_for_nobody_who_works(world: World) -> None:
    """A processor may take its time."""
    declare(world, capacity=5)
    fill(world, 2)
    (first, second) = world.client("ann").claim(limit=2)

    def settle() -> None:
        world.jobber.deliver("user_ann", first["id"], first["attempt"])
        world.jobber.fail("user_ann", second["id"], second["attempt"], ERROR, permanent=True)

    assert compete(world, settle, lambda: world.enqueue("work", queue="mail"), waits=False) > second["id"]


def test_an_undeclared_queue_costs_one_small_look(world: World) -> None:
    """However many jobs there are, and however many are enqueued at once."""
    fill(world, 500, "default")
    statements: list[str] = []

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        statements.append(statement)

    engine = engine_of(world)
    specs = [{"type": "work", "queue": queue} for queue in ("a", "b", "c") * 5]
    for enqueue in (lambda: world.jobber.enqueue("work"), lambda: world.jobber.enqueue_many(specs)):
        statements.clear()
        with world.session() as session:
            session.connection()
            sa.event.listen(engine, "before_cursor_execute", note)
            enqueue()
            sa.event.remove(engine, "before_cursor_execute", note)
        assert sum("job_queue" in statement for statement in statements) == 1
        assert sum(statement.lstrip().startswith("SELECT") for statement in statements) <= 1


def test_a_queue_that_is_declared_later_counts_from_its_first_job_on(world: World) -> None:
    """Though whoever enqueues has found it undeclared before."""
    before = [world.enqueue("work", queue="mail") for _ in range(2)]
    declare(world, capacity=3, priority=7)
    with world.session() as session:
        job = world.jobber.enqueue("work", queue="mail")
        assert (job.priority, job.id not in before) == (7, True)
        session.flush()
        recorded = session.scalars(sa.select(world.jobber.History.job_id)).all()
        assert recorded == [*before, job.id]
    with world.session(), pytest.raises(QueueFull):
        world.jobber.enqueue("work", queue="mail")
    with world.session():
        world.jobber.queues.destroy("mail", force=True)
    after = world.enqueue("work", queue="mail")
    assert count(world) == 4
    assert world.job(after).priority == 0


def test_a_single_job_for_a_queue_that_is_known_to_be_undeclared_is_not_looked_for(world: World) -> None:
    """Where the statement that records it can tell, it is the second and the last."""
    expected = {"sqlite": 3, "postgresql": 2, "mysql": 3}
    statements: list[str] = []
    engine = engine_of(world)
    world.enqueue("work")
    with world.session():
        sa.event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
        world.jobber.enqueue("work")
        assert len(statements) == expected[world.jobber.store().engine_name]


def test_a_capacity_is_counted_by_an_index(world: World) -> None:
    """At a cost that the capacity bounds, not the table."""
    with world.session() as session:
        jobs = world.Job.__table__
        ended = {
            "type": "work",
            "queue": "mail",
            "state": "succeeded",
            "max_attempts": 1,
            "finished_at": ago(1),
        }
        waiting = {"type": "work", "queue": "other", "max_attempts": 1}
        for columns in (ended, waiting):
            session.execute(sa.insert(jobs), [columns] * 10_000)
    declare(world, capacity=20)
    fill(world, 10)
    engine = engine_of(world)
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.exec_driver_sql("ANALYZE")
    work = cost(world, lambda: world.enqueue("work", queue="mail"))
    assert work.amount <= work.bound, (work.amount, work.plans)


# -- what is refused, and what is not ---------------------------------------------------------------


def test_a_successor_of_a_series_takes_the_place_of_the_one_that_ends(world: World) -> None:
    """A full queue ends no series, over its capacity neither."""
    declare(world, capacity=1)
    world.enqueue("tick", queue="mail", every=60)
    with world.session():
        world.jobber.queues.change("mail", capacity=1)
        (claim,) = world.jobber.claim(LOCKER)
        world.jobber.deliver(LOCKER, claim.id, claim.attempt)
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail")
    assert sorted(states(world).values()) == ["scheduled", "succeeded"]


def test_a_series_that_finds_its_queue_full_begins_another_time(world: World) -> None:
    """In code it is declared again and again, and stops no other; called in a context it is refused."""
    declare(world, capacity=1)
    (other,) = fill(world, 1)
    world.jobber.schedule("first", "tick", every=60, queue="mail")
    world.jobber.schedule("second", "tick", every=60)

    def apply() -> int:
        with world.session():
            world.jobber.apply_schedules()
        return count(world) + count(world, "default")

    assert [apply(), apply()] == [2, 2]
    with world.session():
        with pytest.raises(QueueFull):
            world.jobber.schedule("third", "tick", every=60, queue="mail")
        world.jobber.cancel(other)
    assert apply() == 2
    assert count(world) == 1


def test_a_retry_needs_room(world: World) -> None:
    """It brings an unfinished job back; refused, it changes nothing."""
    declare(world, capacity=1)
    (job_id,) = fill(world, 1)
    with world.session():
        world.jobber.cancel(job_id)
        world.jobber.enqueue("work", queue="mail")
        with pytest.raises(QueueFull):
            world.jobber.retry(job_id)
    assert world.job(job_id).state == State.CANCELLED

    refused = world.client("root").post(f"/jobs/{job_id}/retry")
    assert (refused.status_code, refused.json["code"]) == (429, "queue_full")
    with world.session():
        world.jobber.queues.change("mail", capacity=2)
        world.jobber.retry(job_id)
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail")
    assert world.job(job_id).state == State.QUEUED


def test_over_http_a_full_queue_says_when_to_come_again(make_world: MakeWorld, sqlite_url: str) -> None:
    """429 ``queue_full``, with ``Retry-After``; first comes what is final."""
    world = make_world(sqlite_url, JOBBER_IDLE_SECONDS=40)
    declare(world, capacity=1)
    root, body = world.client("root"), {"type": "work", "queue": "mail"}
    assert root.post("/jobs", body).status_code == 201

    refused = root.post("/jobs", body)
    assert refused.status_code == 429
    problem = refused.json
    assert (problem["code"], problem["retryable"]) == ("queue_full", True)
    assert "'mail'" in problem["detail"]
    assert 30 <= int(refused.headers["Retry-After"]) <= 50
    for user, wrong, code in (("ann", body, "forbidden"), ("root", {**body, "priority": "x"}, "invalid")):
        answer = world.client(user).post("/jobs", wrong)
        assert answer.json["code"] == code
    assert count(world) == 1


def test_a_permission_hook_sees_a_queues_defaults_and_may_choose_another(lite: World) -> None:
    """The room is that of the queue that it chose."""
    declare(lite, "mail", capacity=1, priority=7)
    declare(lite, "other", capacity=1)
    seen: list[t.Any] = []
    world = lite
    world.jobber.registry.hooks.pop("permission")

    @world.jobber.permission
    def may(action: str, job: t.Any) -> bool:
        seen.append(job.priority)
        job.queue = "other"
        return True

    root, body = world.client("root"), {"type": "work", "queue": "mail"}
    assert root.post("/jobs", body).status_code == 201
    assert root.post("/jobs", body).status_code == 429
    assert (seen, count(world), count(world, "other")) == ([7, 7], 0, 1)


def test_objects_and_calls_are_refused_too(lite: World) -> None:
    """Whatever way they are enqueued."""
    declare(lite, "calls", capacity=1)
    send = lite.jobber.later(queue="calls")(_nothing)
    with lite.session():
        send()
        with pytest.raises(QueueFull):
            send()
    assert count(lite, "calls") == 1


def _nothing() -> None:
    pass


# -- defaults ----------------------------------------------------------------------------------------


def test_a_job_that_says_nothing_has_its_queues_priority_and_lease(world: World) -> None:
    """What it says itself counts first, 0 too; what the app says, last."""
    declare(world, priority=5, lease_for=dt.timedelta(minutes=2))
    declare(world, "plain")
    said = [{}, {"priority": 0}, {"priority": -3, "lease_for": 7}, {"lease_for": 1.5}]
    with world.session():
        specs = [{"type": "work", "queue": queue, **spec} for queue in ("mail", "plain") for spec in said]
        jobs = world.jobber.enqueue_many(specs)
        facts = [(job.priority, job.lease_for) for job in jobs]
    assert facts == [
        (5, 120), (0, 120), (-3, 7), (5, 1.5),
        (0, None), (0, None), (-3, 7), (0, 1.5),
    ]  # fmt: skip
    (job,) = world.client("ann").claim()
    assert (job["priority"], job["lease_seconds"]) == (5, 120)
    (job,) = world.client("ann").claim(queues=["plain"], max_priority=0)
    assert job["lease_seconds"] == 600


def test_defaults_are_those_of_the_moment_of_the_enqueue(world: World) -> None:
    """A change is for the jobs that come; ``None`` takes it back."""
    declare(world, priority=5, lease_for=60)
    first = world.enqueue(queue="mail")
    with world.session():
        changed = world.jobber.queues.change("mail", priority=None, lease_for=None)
        assert (changed.priority, changed.lease_for) == (None, None)
    second = world.client("root").post("/jobs", {"type": "work", "queue": "mail"}).json["id"]
    assert [(world.job(i).priority, world.job(i).lease_for) for i in (first, second)] == [(5, 60), (0, None)]


# -- paused --------------------------------------------------------------------------------------------


def test_a_paused_queue_hands_out_nothing(world: World) -> None:
    """Queued, due or lapsed, to no client and no server code, by type, by queue or by chance."""
    ids = make_one_of_each(world, queue="mail")
    before = states(world)
    declare(world)
    with world.session():
        world.jobber.queues.pause("mail")

    ann = world.client("ann")
    for body in ({}, {"queues": ["mail"]}, {"types": list(SITUATIONS)}, {"max_priority": 5}, {"limit": 50}):
        assert ann.claim(**body) == []
    exchanged = ann.post("/exchange", {"claim": {}}).json
    assert exchanged["jobs"] == []
    with world.session():
        assert world.jobber.claim("user_bob", limit=10, queues=["mail", "default"]) == []
    source = DatabaseSource(world.app, world.jobber, "node")
    assert source.waiting(Wish(1, tuple(SITUATIONS))) == 0
    assert states(world) == before

    other = world.enqueue(priority=-9)
    assert [job["id"] for job in ann.claim(limit=9)] == [other]
    with world.session():
        world.jobber.queues.resume("mail")
    assert source.waiting(Wish(1, tuple(SITUATIONS))) == 3
    assert sorted(job["id"] for job in ann.claim(limit=9)) == [
        ids["queued"], ids["due"], ids["lapsed"]
    ]  # fmt: skip


def test_what_is_held_in_a_paused_queue_goes_on(world: World) -> None:
    """Heartbeats, results, failures, releases, and the processors of submitted results."""
    declare(world)
    fill(world, 4)
    ann = world.client("ann")
    jobs = ann.claim(limit=3)
    with world.session():
        world.jobber.queues.pause("mail")

    assert ann.extend(jobs[0]).status_code == 200
    assert ann.deliver(jobs[0]).status_code == 200
    assert ann.fail(jobs[1]).status_code == 200
    assert ann.release(jobs[2]).status_code == 204
    assert sorted(states(world).values()) == ["queued", "queued", "scheduled", "succeeded"]
    world.pass_time(9000)
    assert ann.claim(limit=9) == []


def test_a_paused_queue_is_filled_and_expires_like_any_other(world: World) -> None:
    """It holds back the hand-out, nothing else."""
    declare(world, capacity=2)
    with world.session():
        world.jobber.queues.pause("mail")
    late = world.enqueue(queue="mail")
    fill(world, 1)
    with world.session():
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="mail")
        put(world, late, expires_at=ago(5))
        assert world.jobber.expire() == 1
        world.jobber.enqueue("work", queue="mail")


def test_a_pause_counts_at_once(world: World) -> None:
    """For a session that has claimed before, in the next transaction; a roll-back pauses nothing."""
    declare(world)
    fill(world, 3)
    with world.session() as session:
        assert len(world.jobber.claim(LOCKER)) == 1
        session.commit()
        start(lambda: _pause(world)).result(LIMIT)
        assert world.jobber.claim(LOCKER) == []
        world.jobber.queues.resume("mail")
        session.rollback()
        assert world.jobber.claim(LOCKER) == []


def _pause(world: World) -> None:
    with world.session():
        world.jobber.queues.pause("mail")


def test_declared_queues_do_not_change_the_way_of_a_claim(world: World) -> None:
    """Nor do paused ones, however much waits in them behind."""
    put_many(world, queue="mail", priority=-1)
    put_many(world, queue="open")
    with world.session():
        for number in range(500):
            world.jobber.queues.create(f"q{number}")
        for name in ("mail", "other"):
            world.jobber.queues.create(name, capacity=5)
            world.jobber.queues.pause(name)
    best = [world.enqueue(queue="open", priority=1) for _ in range(2)]
    settle_statistics(world)
    assert claim_within_bounds(world.client("ann"), world)["id"] == best[0]
    assert claim_within_bounds(world.client("ann"), world, types=["work"])["id"] == best[1]
    claim_within_bounds(world.client("ann"), world)


# -- the verbs ---------------------------------------------------------------------------------------


def test_a_queue_is_declared_once(world: World) -> None:
    """A second declaration is refused, and the transaction goes on."""
    declare(world, capacity=2, priority=1, lease_for=30)
    with world.session():
        world.jobber.enqueue("before")
        with pytest.raises(DuplicateQueue, match="'mail'"):
            world.jobber.queues.create("mail", capacity=5)
        found = world.jobber.queues.find("mail")
        facts = (found.name, found.capacity, found.priority, found.lease_for, found.paused)
        assert facts == ("mail", 2, 1, 30, False)
        assert isinstance(found, world.jobber.Queue)
        assert abs(found.created_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
        world.jobber.queues.create("Mail")
    assert count(world, "default") == 1


def test_one_of_many_declares_a_queue(world: World) -> None:
    """At the same moment."""

    def create(number: int) -> int:
        with world.app.app_context():
            try:
                world.jobber.queues.create("mail")
                world.db.session.commit()
            except DuplicateQueue:
                return 0
        return 1

    assert sum(together(4, create)) == 1


BAD: list[tuple[str, dict[str, t.Any]]] = [
    ("name", {"name": "a b"}), ("name", {"name": ""}), ("name", {"name": "x" * 101}), ("name", {"name": 5}),
    ("name", {"name": "a\0"}), ("name", {"name": "ä"}), ("name", {"name": None}),
    ("capacity", {"capacity": -1}), ("capacity", {"capacity": 1.5}), ("capacity", {"capacity": "5"}),
    ("capacity", {"capacity": True}), ("capacity", {"capacity": 2**31}),
    ("priority", {"priority": 2**31}), ("priority", {"priority": "1"}), ("priority", {"priority": False}),
    ("lease_for", {"lease_for": 0}), ("lease_for", {"lease_for": -5}), ("lease_for", {"lease_for": 86_401}),
    ("lease_for", {"lease_for": float("nan")}), ("lease_for", {"lease_for": "5"}),
    ("colour", {"colour": "red"}), ("paused", {"paused": True}), ("admitted", {"admitted": 5}),
]  # fmt: skip


@pytest.mark.parametrize(("field", "wrong"), BAD)
def test_a_bad_setting_is_refused(lite: World, field: str, wrong: dict[str, t.Any]) -> None:
    """With its name, before anything is written; by a change too."""
    declare(lite, "there", capacity=3)
    with lite.session():
        with pytest.raises(Invalid) as refused:
            lite.jobber.queues.create(**{"name": "mail", **wrong})
        assert list(refused.value.errors) == [field]
        if field != "name":
            with pytest.raises(Invalid):
                lite.jobber.queues.change("there", **wrong)
        assert [one.name for one in lite.jobber.queues.stats()] == ["there"]
        assert lite.jobber.queues.find("there").capacity == 3


def test_the_largest_settings_are_still_taken(world: World) -> None:
    """On every engine."""
    name = "Aa0_.:-" * 14 + "zz"
    declare(world, name, capacity=2**31 - 1, priority=-(2**31) + 1, lease_for=86_400)
    fill(world, 2, name)
    with world.session():
        (one,) = world.jobber.queues.stats(name)
    assert (one.capacity, one.priority, one.lease_for, one.waiting) == (2**31 - 1, -(2**31) + 1, 86_400, 2)


def test_a_name_that_is_not_there_is_said(world: World) -> None:
    """By every verb; a name that has jobs can be emptied and counted all the same."""
    fill(world, 1, "undeclared")
    with world.session():
        queues = world.jobber.queues
        acts: dict[str, t.Callable[[str], object]] = {
            "find": queues.find, "change": lambda name: queues.change(name, capacity=1),
            "pause": queues.pause, "resume": queues.resume, "destroy": queues.destroy,
            "change nothing": queues.change, "empty": queues.empty, "stats": queues.stats,
        }  # fmt: skip
        for verb, act in acts.items():
            for name in ("absent", "Mail", "a b", ""):
                with pytest.raises(NotFound, match=repr(name)):
                    act(name)
            if verb not in ("empty", "stats"):
                with pytest.raises(NotFound, match="'undeclared'"):
                    act("undeclared")
        assert queues.stats("undeclared")[0].waiting == 1
        assert queues.empty("undeclared") == 1
        assert queues.empty("undeclared") == 0
        assert queues.stats("undeclared")[0].finished == 1
        assert queues.stats("undeclared", finished=False)[0].finished is None


def test_what_a_rollback_undoes_was_never_there(world: World) -> None:
    """The verbs join the caller's transaction."""
    declare(world, "kept", capacity=1)
    with world.app.app_context():
        world.jobber.queues.create("mail")
        world.jobber.queues.change("kept", capacity=9)
        world.jobber.queues.pause("kept")
        world.db.session.rollback()
        assert world.jobber.queues.find("kept").capacity == 1
        world.jobber.queues.destroy("kept")
        world.db.session.rollback()
        (kept,) = world.jobber.queues.stats()
    assert (kept.name, kept.paused, kept.capacity) == ("kept", False, 1)


def test_emptying_cancels_what_waits(world: World) -> None:
    """Held, submitted and blocked jobs stay, and those of other queues; the history says why."""
    ids = make_one_of_each(world, queue="mail")
    other = world.enqueue()
    before = states(world)
    cancelled: list[int] = []

    def note(sender: object, **facts: t.Any) -> None:
        cancelled.append(facts["job_id"])

    with job_cancelled.connected_to(note, sender=world.jobber), world.session():
        assert world.jobber.queues.empty("mail") == 3
        assert cancelled == []

    gone = [ids[name] for name in ("queued", "scheduled", "due")]
    assert sorted(cancelled) == sorted(gone)
    assert states(world) == before | dict.fromkeys(gone, "cancelled")
    row, history = stored(world, gone[0])
    assert (history[-1]["reason"], history[-1]["error"]["type"]) == ("cancel", "QueueEmptied")
    assert row["finished_at"] is not None
    with world.session():
        assert world.jobber.queues.empty("mail") == 0
        world.jobber.retry(gone[0])
    assert world.job(other).state == State.QUEUED


def test_emptying_frees_keys_and_room(world: World) -> None:
    """At once, within the transaction."""
    declare(world, capacity=1)
    world.enqueue(queue="mail", unique_key="k")
    with world.session():
        world.jobber.queues.empty("mail")
        world.jobber.enqueue("work", queue="mail", unique_key="k")
    assert count(world) == 1


def test_emptying_goes_in_batches(world: World) -> None:
    """The lowest ids first, and none over the last that it may have."""
    ids = fill(world, 7)
    with world.session():
        assert world.jobber.queues.empty("mail", limit=3) == 3
        assert world.jobber.queues.empty("mail", limit=3, up_to=ids[4]) == 2
        assert world.jobber.queues.empty("mail", up_to=ids[4]) == 0
    assert [job_id for job_id, state in states(world).items() if state == "queued"] == ids[5:]


def test_emptying_ends_no_series(world: World) -> None:
    """Its waiting job is its timetable, not a part of what has piled up."""
    with world.session():
        world.jobber.schedule("nightly", "tick", every=60, queue="mail")
    fill(world, 2)
    with world.session():
        assert world.jobber.queues.empty("mail") == 2
        assert world.jobber.unschedule("nightly")


def test_a_job_that_is_claimed_meanwhile_is_not_cancelled(world: World) -> None:
    """Who empties waits for who claims, and then leaves it alone."""
    fill(world, 3)

    def empty() -> int:
        with world.session():
            return world.jobber.queues.empty("mail")

    assert compete(world, lambda: world.jobber.claim(LOCKER), empty) == 2
    assert sorted(states(world).values()) == ["cancelled", "cancelled", "locked"]


def test_a_queue_with_unfinished_jobs_is_destroyed_by_force_only(world: World) -> None:
    """They go on then as in any queue: unbounded, and not paused."""
    declare(world, capacity=2)
    fill(world, 2)
    with world.session():
        world.jobber.queues.pause("mail")
        with pytest.raises(QueueInUse, match="2 unfinished"):
            world.jobber.queues.destroy("mail")
    assert world.client("ann").claim() == []
    with world.session():
        world.jobber.queues.destroy("mail", force=True)
    assert len(world.client("ann").claim(limit=5)) == 2
    fill(world, 5)
    declare(world, capacity=1)


def test_a_queue_whose_jobs_have_ended_is_destroyed(world: World) -> None:
    """Its finished jobs stay what they are."""
    declare(world)
    (job_id,) = fill(world, 1)
    with world.session():
        world.jobber.cancel(job_id)
        world.jobber.queues.destroy("mail")
        with pytest.raises(NotFound):
            world.jobber.queues.destroy("mail")
    assert world.job(job_id).queue == "mail"


def test_every_queue_is_counted(world: World) -> None:
    """Declared or not, by what its jobs wait for; and how long the oldest has waited."""
    make_one_of_each(world, queue="mail")
    declare(world, "bare", capacity=7)
    world.enqueue("work", queue="other", after=500)
    with world.session():
        put(world, 1, run_at=ago(100))
        everything = world.jobber.queues.stats()
        unfinished = world.jobber.queues.stats(finished=False)

    assert [one.name for one in everything] == ["bare", "mail", "other"]
    bare, mail, other = everything
    assert (mail.waiting, mail.scheduled, mail.locked, mail.submitted, mail.finished) == (2, 1, 2, 1, 4)
    assert (mail.blocked, mail.unfinished) == (1, 7)
    assert not mail.declared
    assert 95 < (mail.oldest_seconds or 0) < 160
    assert (other.waiting, other.scheduled, other.oldest_seconds) == (0, 1, None)
    assert (bare.declared, bare.capacity, bare.unfinished, bare.finished) == (True, 7, 0, 0)
    assert [(one.name, one.finished) for one in unfinished] == [
        ("bare", None),
        ("mail", None),
        ("other", None),
    ]
    world.pass_time(600)
    with world.session():
        assert [one.waiting for one in world.jobber.queues.stats("other")] == [1]


def test_several_jobbers_have_queues_of_their_own(make_world: MakeWorld, db_url: str) -> None:
    """The same name is another queue in each."""
    world = make_world(db_url)
    scratch = Jobber(world.db, name="scratch")
    scratch.init_app(world.app)
    with world.session() as session:
        world.db.create_all()
        scratch.queues.create("mail", capacity=1)
        scratch.queues.pause("mail")
        scratch.enqueue("work", queue="mail")
        with pytest.raises(QueueFull):
            scratch.enqueue("work", queue="mail")
        world.jobber.enqueue_many([{"type": "work", "queue": "mail"}] * 3)
        session.commit()
        assert len(world.jobber.claim(LOCKER, limit=5)) == 3
        assert scratch.claim(LOCKER) == []
