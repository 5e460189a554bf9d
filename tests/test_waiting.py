"""Claims that wait: they hear of jobs at once, and ask nothing meanwhile."""

from __future__ import annotations

import collections
import concurrent.futures
import datetime as dt
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from flask import request
from flask_login import current_user

from conftest import MakeWorld
from flask_jobber import Constant
from flask_jobber.core.news import Fresh, News
from flask_jobber.core.payload import MAX_ID
from support import User, World

#: Seconds for which a claim waits that is to be woken, and in which it is.
LONG, SOON = 20, 4
MANY = 200
Pool = concurrent.futures.ThreadPoolExecutor


class Statements:
    """Those that an engine gets meanwhile."""

    def __init__(self, world: World) -> None:
        with world.app.app_context():
            self._engine = world.db.session.get_bind(world.Job)
        self.seen: list[str] = []

    def __enter__(self) -> t.Self:
        sa.event.listen(self._engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sa.event.remove(self._engine, "before_cursor_execute", self._note)

    def _note(self, connection: t.Any, cursor: t.Any, statement: str, *args: object) -> None:
        self.seen.append(statement)


@pytest.fixture
def pool() -> t.Iterator[Pool]:
    with Pool(MANY) as pool:
        yield pool


@pytest.fixture
def patient(make_world: MakeWorld, db_url: str) -> World:
    """An app whose requests may wait, and on MariaDB too for nothing but what they hear."""
    return make_world(db_url, JOBBER_MAX_WAITERS=MANY, JOBBER_IDLE_SECONDS=3600)


def until(condition: t.Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def wait_for(world: World, number: int) -> None:
    """Return when so many have looked, and the process listens and has looked."""
    with world.app.app_context():
        wakeup = world.jobber.wakeup
    until(lambda: sum(one.looking is None for one in tuple(wakeup.room._waiters)) == number)
    until(lambda: wakeup._ear is not None and wakeup._full > 0)


class Waiting:
    """A claim that waits in a thread."""

    def __init__(self, world: World, pool: Pool, user: str = "ann", **body: t.Any) -> None:
        self._answer = pool.submit(world.client(user).post, "/claims", {"wait_seconds": LONG, **body})

    def response(self) -> t.Any:
        return self._answer.result(LONG)

    def jobs(self) -> list[int]:
        """Return the ids of what it got, soon."""
        began = time.monotonic()
        response = self.response()
        assert response.status_code == 200, response.text
        assert time.monotonic() - began < SOON
        return [job["id"] for job in response.json["jobs"]]

    @property
    def over(self) -> bool:
        return self._answer.done()


def start(world: World, pool: Pool, *users: str, **body: t.Any) -> list[Waiting]:
    """Begin to wait, one after the other."""
    waiting: list[Waiting] = []
    for user in users:
        waiting.append(Waiting(world, pool, user, **body))
        wait_for(world, len(waiting))
    return waiting


def test_a_new_job_goes_to_who_waits(patient: World, pool: Pool) -> None:
    """At once."""
    [waiting] = start(patient, pool, "ann")
    assert [patient.enqueue()] == waiting.jobs()


def test_what_is_there_is_not_waited_for(patient: World) -> None:
    """With an answer as without any waiting."""
    job_id = patient.enqueue()
    assert [job["id"] for job in patient.client().claim(wait_seconds=LONG)] == [job_id]


def test_the_wait_ends_with_an_empty_list(patient: World) -> None:
    """And says when to come again."""
    began = time.monotonic()
    response = patient.client().post("/claims", {"wait_seconds": 0.3})
    assert response.json["jobs"] == []
    assert response.json["retry_after"] > 0
    assert time.monotonic() - began >= 0.3


def test_a_wait_is_capped(make_world: MakeWorld, sqlite_url: str) -> None:
    """By the setting, not refused."""
    world = make_world(sqlite_url, JOBBER_MAX_WAITERS=1, JOBBER_MAX_WAIT_SECONDS=0.1)
    began = time.monotonic()
    assert world.client().claim(wait_seconds=10**6) == []
    assert time.monotonic() - began < SOON


def test_each_job_goes_to_one(patient: World, pool: Pool) -> None:
    """In the order in which they have come."""
    waiting = start(patient, pool, "ann", "bob", "cid")
    ids = []
    for one in waiting:
        ids.append(patient.enqueue())
        assert one.jobs() == ids[-1:]


def test_many_jobs_wake_many(patient: World, pool: Pool) -> None:
    """Of one transaction."""
    waiting = start(patient, pool, *["ann"] * 5)
    with patient.session():
        jobs = patient.jobber.enqueue_many([{"type": "work"}] * 5)
        ids = {job.id for job in jobs}
    assert {id for one in waiting for id in one.jobs()} == ids


def test_a_roll_back_wakes_nobody(patient: World, pool: Pool) -> None:
    """Nor does a savepoint's, in a transaction that commits."""
    [waiting] = start(patient, pool, "ann")
    with patient.app.app_context(), Statements(patient) as statements:
        patient.jobber.enqueue("work")
        patient.db.session.rollback()
        savepoint = patient.db.session.begin_nested()
        patient.jobber.enqueue("work")
        savepoint.rollback()
        patient.db.session.commit()
        looked = [one for one in statements.seen if "recursive" in one.lower()]
    assert looked == []
    assert not waiting.over
    assert waiting_gets_next(patient, waiting)


def test_what_a_listener_enqueues_at_the_commit_wakes_too(patient: World, pool: Pool) -> None:
    """Though all that was known then has been told."""
    own, late = start(patient, pool, "ann", "bob")
    with patient.app.app_context():
        session = patient.db.session()

        def enqueue(session: object) -> None:
            patient.jobber.enqueue("work", user_id="bob")

        sa.event.listen(session, "before_commit", enqueue, once=True)
        first = patient.jobber.enqueue("work", user_id="ann").id
        session.commit()
    assert own.jobs() == [first]
    assert len(late.jobs()) == 1


def waiting_gets_next(world: World, waiting: Waiting) -> bool:
    return [world.enqueue()] == waiting.jobs()


def test_idle_waiters_ask_nothing(patient: World, pool: Pool) -> None:
    """Two hundred of them, for ten seconds; then one job wakes one, not all."""
    waiting = [Waiting(patient, pool, f"user{number}") for number in range(MANY)]
    wait_for(patient, MANY)
    with Statements(patient) as statements:
        threading.Event().wait(10)
        assert statements.seen == []
        job_id = patient.enqueue()
        until(lambda: any(one.over for one in waiting))
        assert len(statements.seen) < 20
    assert [one.jobs() for one in waiting if one.over] == [[job_id]]
    with patient.session():
        patient.jobber.enqueue_many([{"type": "work"}] * (MANY - 1))
    assert all(len(one.jobs()) == 1 for one in waiting if not one.over)


def test_who_waits_holds_no_connection(patient: World, pool: Pool) -> None:
    """Nor a transaction."""
    start(patient, pool, "ann", "bob")
    with patient.app.app_context():
        assert patient.db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    patient.enqueue()
    patient.enqueue()


def test_a_job_of_another_wakes_nobody(patient: World, pool: Pool) -> None:
    """Not even for a query, when its columns tell."""
    [waiting] = start(patient, pool, "ann")
    with Statements(patient) as statements:
        patient.enqueue(user_id="bob")
        told = [one for one in statements.seen if "FOR UPDATE SKIP" in one or "UPDATE job SET" in one]
    assert (waiting.over, told) == (False, [])
    assert [patient.enqueue(user_id="ann")] == waiting.jobs()


def test_a_job_for_later_is_started_on_time(patient: World, pool: Pool) -> None:
    """By a timer; nobody looks before."""
    [waiting] = start(patient, pool, "ann")
    job_id = patient.enqueue(after=1.5)
    until(lambda: not scheduled_before(patient))
    with Statements(patient) as statements:
        threading.Event().wait(0.5)
        early = list(statements.seen)
    assert (waiting.jobs(), early) == ([job_id], [])


def scheduled_before(world: World) -> bool:
    """Whether the process has yet to hear of the timer."""
    with world.app.app_context():
        return bool(world.jobber.wakeup._due > time.monotonic() + 10)


def test_a_lapsed_lease_is_taken_over_on_time(patient: World, pool: Pool) -> None:
    """Of a client that says no more."""
    job_id = patient.enqueue()
    [job] = patient.client("bob").claim(lease_seconds=1.5)
    [waiting] = start(patient, pool, "ann")
    assert waiting.jobs() == [job_id] == [job["id"]]
    assert [row[2] for row in patient.history(job_id)] == ["enqueue", "claim", "lapse", "claim"]


def test_a_lease_that_is_given_while_others_wait_is_watched(patient: World, pool: Pool) -> None:
    """When it is shorter than the time after which all look for themselves."""
    first, second = start(patient, pool, "ann", "ann", lease_seconds=1)
    job_id = patient.enqueue()
    assert first.jobs() == [job_id]
    assert second.jobs() == [job_id]


def test_a_job_that_is_gone_is_not_looked_for_by_all(patient: World, pool: Pool) -> None:
    """Though each of them sees other jobs, and the one who was called found nothing."""
    start(patient, pool, *(f"user{number}" for number in range(20)))
    with patient.app.app_context():
        room = patient.jobber.wakeup.room
    with Statements(patient) as statements:
        room.hear(News(jobs={Fresh("work", "default", leads=(None,)): (MAX_ID,)}))
        # Whether the job is there: nothing else reads ids alone.
        until(lambda: any(statement.partition("\n")[0].endswith(".id ") for statement in statements.seen))
        threading.Event().wait(0.3)
    assert len(statements.seen) < 10
    with patient.session():  # else they would wait to the end
        patient.jobber.enqueue_many([{"type": "work"}] * 20)


def test_who_is_unblocked_hears_of_what_there_is(patient: World, pool: Pool) -> None:
    """It has waited meanwhile like one for whom there was nothing."""
    with patient.session():
        patient.jobber.block("user_ann")
    job_id = patient.enqueue()
    [waiting] = start(patient, pool, "ann")
    with patient.session():
        patient.jobber.unblock("user_ann")
    assert waiting.jobs() == [job_id]


def test_a_series_goes_on_on_time(patient: World, pool: Pool) -> None:
    """At its next slot, for who has waited since before it was there."""
    first, second = start(patient, pool, "ann", "ann", lease_seconds=60)
    with patient.session():
        patient.jobber.schedule("pulse", "work", every=2)
    [job_id] = first.jobs()
    patient.client().deliver({"href": f"/jobs/{job_id}/attempts/1"})
    assert second.jobs() > [job_id]


def test_a_failed_job_comes_back_after_its_back_off(patient: World, pool: Pool) -> None:
    """To who waits."""
    job_id = patient.enqueue(backoff=Constant(1))
    [job] = patient.client("bob").claim()
    [waiting] = start(patient, pool, "ann")
    patient.client("bob").fail(job)
    assert waiting.jobs() == [job_id]


def test_a_released_job_goes_to_who_waits(patient: World, pool: Pool) -> None:
    """At once."""
    job_id = patient.enqueue()
    [job] = patient.client("bob").claim()
    [waiting] = start(patient, pool, "ann")
    patient.client("bob").release(job)
    assert waiting.jobs() == [job_id]


def test_a_retried_job_goes_to_who_waits(patient: World, pool: Pool) -> None:
    """By an operator."""
    job_id = patient.enqueue()
    patient.client("root").post(f"/jobs/{job_id}/cancel")
    [waiting] = start(patient, pool, "ann")
    patient.client("root").post(f"/jobs/{job_id}/retry")
    assert waiting.jobs() == [job_id]


@pytest.mark.parametrize("conflict", ["replace", "reschedule"])
def test_a_job_that_is_brought_forward_goes_to_who_waits(patient: World, pool: Pool, conflict: str) -> None:
    """By who enqueues another one with its key."""
    job_id = patient.enqueue(unique_key="k", after=3600)
    [waiting] = start(patient, pool, "ann")
    assert patient.enqueue(unique_key="k", on_conflict=conflict) == job_id
    assert waiting.jobs() == [job_id]


def test_a_resumed_queue_wakes(patient: World, pool: Pool) -> None:
    """Whoever waits for what was in it."""
    with patient.session():
        patient.jobber.queues.create("slow")
        patient.jobber.queues.pause("slow")
    job_id = patient.enqueue(queue="slow")
    [waiting] = start(patient, pool, "ann")
    with patient.session():
        patient.jobber.queues.resume("slow")
    assert waiting.jobs() == [job_id]


def test_an_app_may_wake(patient: World, pool: Pool) -> None:
    """When something that a scope reads has changed."""
    job_id = patient.enqueue(user_id="bob")
    [waiting] = start(patient, pool, "ann")
    with patient.session() as session:
        session.execute(sa.update(patient.Job).values(user_id="ann"))
        patient.jobber.wake()
    assert waiting.jobs() == [job_id]


def test_a_wish_for_somebody_ends_on_time(patient: World, pool: Pool) -> None:
    """Then others are woken."""
    [waiting] = start(patient, pool, "ann")
    job_id = patient.enqueue(only_for="user_bob", only_for_seconds=1)
    assert waiting.jobs() == [job_id]


def test_affinity_decides_who_is_woken(patient: World, pool: Pool) -> None:
    """The one whose it is, though another has waited longer."""
    ann, bob = start(patient, pool, "ann", "bob")
    job_id = patient.enqueue(only_for="user_bob")
    assert bob.jobs() == [job_id]
    assert not ann.over
    assert waiting_gets_next(patient, ann)


def test_an_exchange_settles_before_it_waits(patient: World, pool: Pool) -> None:
    """What it settled is so while it waits, and is told at the end."""
    done = patient.enqueue()
    [job] = patient.client().claim()
    body = {
        "results": [{"id": job["id"], "attempt": job["attempt"], "result": 1}],
        "claim": {"wait_seconds": LONG},
    }
    answer = pool.submit(patient.client().post, "/exchange", body)
    wait_for(patient, 1)
    assert patient.job(done).state == "succeeded"
    job_id = patient.enqueue()
    said = answer.result(LONG).json
    assert [one["status"] for one in said["outcomes"]] == [200]
    assert [one["id"] for one in said["jobs"]] == [job_id]


def test_past_the_places_a_claim_is_answered_at_once(
    make_world: MakeWorld, sqlite_url: str, pool: Pool
) -> None:
    """With a time to come again, spread."""
    world = make_world(sqlite_url, JOBBER_MAX_WAITERS=1, JOBBER_IDLE_SECONDS=8)
    [waiting] = start(world, pool, "ann")
    began = time.monotonic()
    answers = [world.client("bob").post("/claims", {"wait_seconds": LONG}).json for _ in range(5)]
    assert time.monotonic() - began < SOON
    assert len({answer["retry_after"] for answer in answers}) == 5
    assert all(6 <= answer["retry_after"] <= 10 for answer in answers)
    assert waiting_gets_next(world, waiting)


def test_a_server_without_threads_lets_nobody_wait(make_world: MakeWorld, sqlite_url: str) -> None:
    """It could not answer who enqueues."""
    world = make_world(sqlite_url)
    began = time.monotonic()
    assert world.client().claim(wait_seconds=LONG) == []
    assert time.monotonic() - began < SOON


def test_the_login_is_asked_again(patient: World, pool: Pool) -> None:
    """One that has ended gets 401 at the next job, which goes to the next who waits."""
    fired: set[str] = set()
    patient.app.login_manager.request_loader(  # type: ignore[attr-defined]
        lambda request: None if (name := bearer()) in fired else User(name)
    )
    ann, bob = start(patient, pool, "ann", "bob")
    fired.add("ann")
    job_id = patient.enqueue()
    assert bob.jobs() == [job_id]
    refused = ann.response()
    assert (refused.status_code, refused.json["code"]) == (401, "login_required")


def bearer() -> str:
    return request.headers["Authorization"].removeprefix("Bearer ")


def test_the_scope_is_asked_again(make_world: MakeWorld, db_url: str, pool: Pool) -> None:
    """What it let through when the wait began may be none of the client's business now."""
    seen = {"ann": True}
    world = make_world(db_url, scoped=False, JOBBER_MAX_WAITERS=9)
    world.jobber.scope(lambda: seen.get(current_user.id, False))
    [waiting] = start(world, pool, "ann", wait_seconds=6)
    seen.clear()
    job_id = world.enqueue()
    assert waiting.response().json["jobs"] == []
    assert world.job(job_id).state == "queued"


def test_jobs_that_were_there_before_are_not_waited_for(patient: World, pool: Pool) -> None:
    """Between a waiter's look and the listening nothing is lost."""
    ids = [patient.enqueue() for _ in range(20)]
    waiting = [Waiting(patient, pool) for _ in range(20)]
    assert sorted(id for one in waiting for id in one.jobs()) == ids


def test_none_is_lost_while_all_come_and_go(patient: World, pool: Pool) -> None:
    """Producers and waiters at once: every job is handed out, each once, and nobody waits in vain."""
    got: collections.Counter[int] = collections.Counter()
    lock, total = threading.Lock(), 60

    def work(number: int) -> None:
        client = patient.client(f"user{number}")
        while sum(got.values()) < total:
            jobs = client.claim(wait_seconds=1, limit=1 + number % 3)
            with lock:
                got.update(job["id"] for job in jobs)

    began = dt.datetime.now(dt.UTC)
    workers = [pool.submit(work, number) for number in range(8)]
    for _ in range(total):
        patient.enqueue()
    for worker in workers:
        worker.result(LONG)
    assert len(got) == total
    assert set(got.values()) == {1}
    assert dt.datetime.now(dt.UTC) - began < dt.timedelta(seconds=LONG)
