"""Equal unique keys at the same moment: one unfinished job, and nothing that was asked is lost."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import pathlib
import random
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from conftest import MakeWorld
from flask_jobber import DuplicateJob
from flask_jobber.core.engines import is_transient, undo
from flask_jobber.core.states import TERMINAL
from race_support import LIMIT, add_effects, compete, engine_of, on_sqlite, start, together, until, watching
from support import World

KEY = {"unique_key": "k"}
POLICIES = ("skip", "replace", "reschedule")
T = t.TypeVar("T")


@pytest.fixture
def arena(make_world: MakeWorld, db_url: str) -> World:
    return make_world(db_url)


def insist(world: World, act: t.Callable[[], T]) -> T:
    """Act in a transaction; begin again when MariaDB has ended it for a deadlock, as any app must."""
    while True:
        with world.app.app_context():
            try:
                told = act()
                world.db.session.commit()
            except OperationalError as error:
                undo(world.db.session())
                if not is_transient(error) or on_sqlite(world):
                    raise
            else:
                return told


def unfinished(world: World) -> list[int]:
    with world.session() as session:
        c = world.Job.__table__.c
        return list(session.scalars(sa.select(c.id).where(c.state.not_in(TERMINAL))))


# -- threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("conflict", POLICIES)
def test_of_many_one_makes_the_job_and_all_have_it(arena: World, conflict: str) -> None:
    """And each goes on with what it does besides."""

    def enqueue(number: int) -> int:
        arena.jobber.enqueue("before")
        job_id = int(arena.jobber.enqueue("work", number, on_conflict=conflict, **KEY).id)
        arena.jobber.enqueue("after")
        return job_id

    [job_id] = set(together(12, lambda number: insist(arena, lambda: enqueue(number))))
    assert len(unfinished(arena)) == 25
    changes = [] if conflict == "skip" else [conflict] * 11
    assert [reason for *_, reason in arena.history(job_id)] == ["enqueue", *changes]


@pytest.mark.parametrize("conflict", POLICIES)
def test_who_comes_second_meets_the_job_of_the_first(arena: World, conflict: str) -> None:
    """It waits for the transaction that is making the job."""
    made: list[int] = []

    def second() -> int:
        with arena.session():
            return int(arena.jobber.enqueue("second", on_conflict=conflict, **KEY).id)

    def first() -> None:
        made.append(arena.jobber.enqueue("first", on_conflict=conflict, **KEY).id)

    assert compete(arena, first, second) == made[0]
    assert arena.job(made[0]).type == ("second" if conflict == "replace" else "first")


@pytest.mark.parametrize("conflict", POLICIES)
def test_who_meets_a_job_that_is_ending_makes_another(arena: World, conflict: str) -> None:
    """It waits for the holder's transaction: the one that is there would not do what is asked now."""
    old = arena.enqueue(**KEY)
    with arena.session():
        arena.jobber.claim("user_ann")

    def enqueue() -> int:
        with arena.session():
            return int(arena.jobber.enqueue("new", on_conflict=conflict, **KEY).id)

    new = compete(arena, lambda: arena.jobber.deliver("user_ann", old, 1), enqueue)
    assert new != old
    assert unfinished(arena) == [new]


def test_a_job_that_somebody_counts_on_is_not_begun(arena: World) -> None:
    """Until their transaction ends: who begins it then sees what was written along with the request."""
    job_id = arena.enqueue(**KEY)

    def claim() -> list[int]:
        with arena.session():
            return [claim.id for claim in arena.jobber.claim("user_ann")]

    with arena.session():
        arena.jobber.enqueue("work", on_conflict="skip", **KEY)
        task = start(claim)
        if on_sqlite(arena):
            with watching(arena) as watch:
                watch.until_waits(task)
        else:
            assert task.result(LIMIT) == []
    assert (task.result(LIMIT) or claim()) == [job_id]


def test_many_at_once_in_any_order_wait_for_each_other(arena: World) -> None:
    """They insert in the order of keys: nobody who meets another dies of it on PostgreSQL."""
    keys = [f"k{n:02}" for n in range(20)]

    def enqueue(number: int) -> list[int]:
        mine = random.Random(number).sample(keys, len(keys))
        specs = [{"type": "work", "unique_key": key, "on_conflict": "skip"} for key in mine]
        jobs = arena.jobber.enqueue_many(specs)
        return [int(job.id) for job in sorted(jobs, key=lambda job: str(job.unique_key))]

    def once(number: int) -> list[int]:
        if engine_of(arena).dialect.name != "postgresql":
            return insist(arena, lambda: enqueue(number))
        with arena.session():
            return enqueue(number)

    told = together(6, once)
    assert all(ids == told[0] for ids in told)
    assert sorted(unfinished(arena)) == sorted(told[0])


def test_a_deadlock_is_a_busy_database(mariadb_url: str, make_world: MakeWorld) -> None:
    """MariaDB ends the whole transaction, while a savepoint is open: 503 ``busy``, and nothing is done."""
    world = make_world(mariadb_url)
    headers = {"Idempotency-Key": "once"}

    def post() -> t.Any:
        return world.client("root").post("/jobs", {"type": "work", **KEY}, headers=headers)

    with watching(world) as watch, world.session() as session:
        session.execute(sa.select(sa.func.count(world.Job.id)))
        world.jobber.enqueue_many([{"type": "work"}] * 200)  # who has written less is the one to die
        world.jobber.enqueue("work", **KEY)
        task = start(post)
        watch.until_waits(task)
        session.execute(sa.select(world.jobber.IdempotencyKey.__table__.c.digest).with_for_update()).all()
    busy = task.result(LIMIT)
    assert (busy.status_code, busy.json["code"], busy.json["retryable"]) == (503, "busy", True)
    assert len(unfinished(world)) == 201
    assert post().json["code"] == "duplicate"


# -- processes ------------------------------------------------------------------------------------

_EACH, _KEYS = 25, 3


def _produce(world: World, name: int) -> None:
    """Write down what is to be done, and ask for a job that does it, in one transaction."""
    todo, rnd = _todo(world), random.Random(name)

    def ask(number: int) -> None:
        key = rnd.randrange(_KEYS)
        world.db.session.execute(sa.insert(todo).values(job_id=key, result=f"{name}.{number}"))
        conflict = rnd.choice(["skip", "reschedule", "replace"])
        world.jobber.enqueue("work", key, unique_key=f"k{key}", on_conflict=conflict)

    for number in range(_EACH):
        insist(world, lambda number=number: ask(number))  # type: ignore[misc]


def _consume(world: World) -> int:
    """Begin a job, do all that is written down for it, and end it, in one transaction."""
    todo = _todo(world)

    def work() -> int:
        claims = world.jobber.claim("user_worker")
        for claim in claims:
            world.db.session.execute(sa.delete(todo).where(todo.c.job_id == claim.data))
            world.jobber.deliver("user_worker", claim.id, claim.attempt)
        return len(claims)

    return insist(world, work)


def _todo(world: World) -> sa.Table:
    known = world.db.metadata.tables.get("effect")
    return add_effects(world.db.metadata) if known is None else known


def _run(url: str, meeting: str, name: int) -> None:
    world, place = World(url), pathlib.Path(meeting)
    (place / str(name)).touch()
    until((place / "go").exists, "the others")
    if name % 2:
        _produce(world, name)
    else:
        while len(list(place.glob("done.*"))) < 2:
            _consume(world)
    if name % 2:
        (place / f"done.{name}").touch()
    engine_of(world).dispose()


def test_processes_lose_nothing(db_url: str, make_world: MakeWorld, tmp_path: pathlib.Path) -> None:
    """Two ask for jobs while two others end them: whatever was written down is done in the end."""
    world = make_world(db_url)
    todo = _todo(world)
    with world.app.app_context():
        todo.create(world.db.engine)
    url = engine_of(world).url.render_as_string(hide_password=False)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(4, mp_context=context) as pool:
        tasks = [pool.submit(_run, url, str(meeting), name) for name in range(4)]
        until(
            lambda: len(list(meeting.iterdir())) == 4 or any(task.done() for task in tasks), "the processes"
        )
        (meeting / "go").touch()
        for task in tasks:
            task.result(2 * LIMIT)
    while _consume(world):
        pass
    with world.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(todo)) == 0
        h = world.jobber.History
        asked = sa.select(sa.func.count()).where(h.reason.in_(["enqueue", "replace", "reschedule"]))
        assert session.scalar(asked) > _KEYS
    assert unfinished(world) == []


def test_begun_jobs_are_the_only_duplicates(arena: World) -> None:
    """Whoever is told so met a job that was begun, or said ``raise``; all others have their job."""

    def enqueue(number: int) -> str:
        try:
            arena.jobber.enqueue("work", number, on_conflict="replace", **KEY)
        except DuplicateJob as error:
            return str(error)
        return "done"

    def act(number: int) -> set[str]:
        if number == 0:
            return {str(_claim_and_end(arena)) for _ in range(20)}
        return {insist(arena, lambda: enqueue(number)) for _ in range(20)}

    _, *told = together(4, act)
    assert set().union(*told) <= {
        "done",
        "The job with this unique_key has been begun, or waits for others: it is not changed now.",
    }
    assert len(unfinished(arena)) <= 1


def _claim_and_end(world: World) -> None:
    claims = insist(world, lambda: world.jobber.claim("user_worker"))
    for claim in claims:
        insist(world, lambda claim=claim: world.jobber.deliver("user_worker", claim.id, claim.attempt))  # type: ignore[misc]
