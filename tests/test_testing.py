"""What an app's own tests are given."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
import threading
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask, has_request_context
from flask_login import LoginManager, UserMixin, current_user, login_required
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Session

from conftest import MakeWorld
from flask_jobber import Cancel, Constant, Fail, Jobber, ResultRejected, Retry, Snooze, State
from flask_jobber.testing import (
    Drained,
    FakeSource,
    LoggedIn,
    ProcessorBroke,
    Refusal,
    drain,
    inline,
    login,
    travel,
)
from flask_jobber.worker.feed import Supply
from flask_jobber.worker.job import Job
from flask_jobber.worker.plan import Orders
from flask_jobber.worker.run import Failed, Released, Succeeded, run
from flask_jobber.worker.source import Away, Beat, Settlement, Source, Wish
from flask_jobber.worker.worker import Worker
from situations import make_one_of_each, states, stored
from support import PREFIX, User, World


class Broke(Exception):
    """What a handler raises."""


def double(world: World) -> None:
    """Give the world a handler."""

    @world.jobber.handlers("double")
    def double(job: Job) -> t.Any:
        return job.data * 2


# -- drain --------------------------------------------------------------------------------


def test_drain_does_all_jobs_that_are_due(world: World) -> None:
    """The best first, each by its handler; what is not due or has no handler stays."""
    double(world)
    order: list[t.Any] = []

    @world.jobber.handlers("note")
    def note(job: Job) -> None:
        order.append(job.data)

    one, two = world.enqueue("note", 1), world.enqueue("note", 2, priority=5)
    three, later = world.enqueue("double", 3), world.enqueue("double", 4, after=60)
    foreign = world.enqueue("foreign")

    with world.session():
        assert drain(world.jobber) == Drained(succeeded=3)
        assert drain(world.jobber) == Drained()
    assert order == [2, 1]
    done, waiting = State.SUCCEEDED, {later: State.SCHEDULED, foreign: State.QUEUED}
    assert states(world) == {one: done, two: done, three: done} | waiting
    assert world.job(three).result == 6
    assert world.history(three) == [
        (None, "queued", "enqueue"),
        ("queued", "locked", "claim"),
        ("locked", "succeeded", "deliver"),
    ]
    assert world.job(three).locked_by == "worker/testing"
    world.pass_time(60)
    with world.session():
        assert drain(world.jobber) == Drained(succeeded=1)


def test_drain_stops_at_its_limit(lite: World) -> None:
    """And with nothing to do it, nothing is done."""
    with lite.session():
        lite.jobber.enqueue_many([{"type": "double", "data": n} for n in range(3)])
        assert drain(lite.jobber) == Drained()
    double(lite)
    with lite.session():
        assert drain(lite.jobber, 0) == Drained()
        assert drain(lite.jobber, 2) == Drained(succeeded=2)
        assert drain(lite.jobber, 2) == Drained(succeeded=1)


def test_a_job_sees_what_a_worker_would_show_it(lite: World) -> None:
    """Its facts, callbacks, errbacks, extras; what it enqueues is done too."""
    seen: list[t.Any] = []

    @lite.jobber.handlers("first")
    def first(job: Job) -> int:
        seen.append((job.id, job.type, job.data, job.attempt, job.failures, job.node, has_request_context()))
        job.extras["by"] = "first"
        job.enqueue("second", 2, priority=3)
        return 1

    @first.callback
    def more(job: Job, result: int) -> int:
        return result + 1

    @lite.jobber.handlers("second")
    async def second(job: Job) -> str:
        return "async"

    @lite.jobber.processor("first")
    def process(job: t.Any, result: t.Any) -> None:
        job.written = f"{job.extras['by']} {result}"

    job_id = lite.enqueue("first", {"a": 1})
    with lite.session():
        assert drain(lite.jobber) == Drained(succeeded=2)
    assert seen == [(job_id, "first", {"a": 1}, 1, 0, "testing", False)]
    assert (lite.job(job_id).result, lite.job(job_id).written) == (2, "first 2")
    assert (lite.job(job_id + 1).result, lite.job(job_id + 1).priority) == ("async", 3)


VERDICTS: list[tuple[Exception, dict[str, int], State]] = [
    (Broke("no"), {"failed": 1}, State.SCHEDULED),
    (Retry("later", after=1000), {"failed": 1}, State.SCHEDULED),
    (Fail("never"), {"failed": 1}, State.FAILED),
    (Snooze(after=60), {"released": 1}, State.SCHEDULED),
    (Cancel("unwanted"), {"cancelled": 1}, State.CANCELLED),
]


@pytest.mark.parametrize(("verdict", "counts", "state"), VERDICTS, ids=lambda value: type(value).__name__)
def test_drain_does_what_handlers_say(
    world: World, verdict: Exception, counts: dict[str, int], state: State
) -> None:
    """Each verdict leads where a worker would lead it, and failures keep their error."""

    @world.jobber.handlers("work")
    def work(job: Job) -> None:
        raise verdict

    job_id = world.enqueue()
    with world.session():
        done = drain(world.jobber)
    failed = bool(counts.get("failed"))
    assert done == Drained(**counts, errors=(verdict,) if failed else ())
    job = world.job(job_id)
    assert (job.state, job.failures) == (state, int(failed))
    if isinstance(verdict, Retry):
        assert job.run_at > dt.datetime.now(dt.UTC) + dt.timedelta(seconds=900)


@pytest.mark.parametrize(
    ("raised", "counts", "state"),
    [
        (RuntimeError("disk"), {"submitted": 1}, State.SUBMITTED),
        (ResultRejected("no"), {"rejected": 1}, State.SCHEDULED),
        (ResultRejected("no", then="exclude"), {"rejected": 1}, State.SCHEDULED),
        (ResultRejected("no", then="correct"), {"failed": 1}, State.SCHEDULED),
    ],
)
def test_drain_tells_what_processors_said(
    world: World, raised: Exception, counts: dict[str, int], state: State
) -> None:
    """With the error of each; nothing stays locked."""
    double(world)

    @world.jobber.processor("double")
    def process(job: t.Any, result: t.Any) -> None:
        raise raised

    job_id = world.enqueue("double", 1)
    with world.session():
        done = drain(world.jobber)
    assert done == Drained(**counts, errors=done.errors)
    assert str(raised) in str(done.errors[0])
    assert world.job(job_id).state == state


def test_a_processor_that_breaks_once_too_often_is_told_too(make_world: MakeWorld, sqlite_url: str) -> None:
    """Its job has failed."""
    world = make_world(sqlite_url, JOBBER_PROCESSOR_ATTEMPTS=1)
    double(world)

    @world.jobber.processor("double")
    def process(job: t.Any, result: t.Any) -> None:
        raise Broke("disk")

    world.enqueue("double", 1)
    with world.session():
        done = drain(world.jobber)
    assert (done.failed, type(done.errors[0])) == (1, ProcessorBroke)
    assert "Broke: disk\nTraceback" in str(done.errors[0])


@pytest.mark.parametrize("what", ["result", "job"])
def test_what_cannot_be_stored_is_a_failure(world: World, what: str) -> None:
    """A result that is no JSON, a job that is none: neither is half done."""
    processed: list[t.Any] = []

    @world.jobber.handlers("work")
    def work(job: Job) -> t.Any:
        if what == "job":
            job.enqueue("no name")
        return object() if what == "result" else 1

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        job.written = "processed"
        processed.append(result)

    job_id = world.enqueue()
    with world.session():
        assert drain(world.jobber).failed == 1
    assert (world.job(job_id).state, world.job(job_id).written) == (State.SCHEDULED, None)
    assert states(world).keys() == {job_id}


def test_work_that_is_for_nothing_is_dropped(lite: World) -> None:
    """As when the app cancels a job that is being done."""

    @lite.jobber.handlers("work")
    def work(job: Job) -> None:
        lite.jobber.cancel(job.id)
        lite.db.session.commit()

    job_id = lite.enqueue()
    with lite.session():
        assert drain(lite.jobber) == Drained(dropped=1)
    assert lite.job(job_id).state == State.CANCELLED


def test_a_handler_has_a_session_of_its_own(lite: World) -> None:
    """What it leaves uncommitted is lost, as in a worker; what it commits is not."""

    @lite.jobber.handlers("work")
    def work(job: Job) -> None:
        lite.db.session.get(lite.Job, job.id).written = "kept"
        lite.db.session.commit()
        lite.db.session.get(lite.Job, job.id).written = "lost"
        lite.db.session.flush()

    job_id = lite.enqueue()
    with lite.session() as session:
        held = session.get(lite.Job, job_id)
        assert drain(lite.jobber) == Drained(succeeded=1)
        assert (held.written, held.state) == ("kept", State.SUCCEEDED)


def test_who_drains_may_be_named(lite: World) -> None:
    """For jobs that are only for some."""
    double(lite)
    for name in ("worker", "testing", "other"):
        lite.enqueue("double", 1, only_for=name)

    with lite.session():
        assert drain(lite.jobber) == Drained(succeeded=2)
        assert drain(lite.jobber, locker="user_1/other") == Drained(succeeded=1)


# -- inline -------------------------------------------------------------------------------


def test_inline_does_a_job_when_its_transaction_commits(world: World) -> None:
    """Not before, not after a roll-back, and not outside the block."""
    double(world)
    stored_results: list[t.Any] = []

    @world.jobber.processor("double")
    def process(job: t.Any, result: t.Any) -> None:
        stored_results.append(result)
        job.written = "processed"

    with world.session() as session:
        before = world.jobber.enqueue("double", 0).id
        session.commit()
        with inline(world.jobber):
            job = world.jobber.enqueue("double", 1)
            assert stored_results == []
            session.commit()
            assert stored_results == [2]
            assert (job.state, job.result, job.written) == (State.SUCCEEDED, 2, "processed")
            world.jobber.enqueue("double", 2)
            session.rollback()
            session.commit()
            later = world.jobber.enqueue("double", 3, after=60).id
            foreign = world.jobber.enqueue("foreign").id
            session.commit()
        after = world.jobber.enqueue("double", 4).id
        session.commit()
    assert stored_results == [2]
    waiting = {State.QUEUED, State.SCHEDULED}
    assert {states(world)[job_id] for job_id in (before, later, foreign, after)} <= waiting


def test_inline_raises_what_a_handler_raised(world: World) -> None:
    """From the commit, which has happened; the failure is counted."""

    @world.jobber.handlers("work", backoff=Constant(60))
    def work(job: Job) -> None:
        raise Broke(job.data)

    with world.session() as session, inline(world.jobber):
        job_id = world.jobber.enqueue("work", "one").id
        with pytest.raises(Broke, match="one"):
            session.commit()
        assert session.get(world.Job, job_id).failures == 1

        world.jobber.enqueue_many([{"type": "work", "data": "two"}, {"type": "work", "data": "three"}])
        with pytest.raises(ExceptionGroup) as caught:
            session.commit()
        assert [str(error) for error in caught.value.exceptions] == ["two", "three"]
    assert set(states(world).values()) == {State.SCHEDULED}
    assert len(states(world)) == 3


@pytest.mark.parametrize("verdict", [Snooze(after=60), Cancel()])
def test_inline_raises_no_verdict_that_is_no_failure(lite: World, verdict: Exception) -> None:
    """A handler that puts its job off has not failed."""

    @lite.jobber.handlers("work")
    def work(job: Job) -> None:
        raise verdict

    with lite.session() as session, inline(lite.jobber):
        lite.jobber.enqueue("work")
        session.commit()
    assert set(states(lite).values()) <= {State.SCHEDULED, State.CANCELLED}


@pytest.mark.parametrize("raised", [RuntimeError("disk"), ResultRejected("too wide")])
def test_inline_raises_what_a_processor_raised(lite: World, raised: Exception) -> None:
    """Nothing that goes wrong in a test goes unheard."""
    double(lite)

    @lite.jobber.processor("double")
    def process(job: t.Any, result: t.Any) -> None:
        raise raised

    with lite.session() as session, inline(lite.jobber):
        lite.jobber.enqueue("double", 1)
        with pytest.raises((ProcessorBroke, ResultRejected), match=str(raised)):
            session.commit()


def test_inline_does_what_jobs_enqueue(world: World) -> None:
    """By handlers and by processors; before the first commit returns."""
    done: list[t.Any] = []

    @world.jobber.handlers("count")
    def count(job: Job) -> int:
        if job.data > 0:
            job.enqueue("count", job.data - 1)
        return t.cast(int, job.data)

    @world.jobber.processor("count")
    def process(job: t.Any, result: int) -> None:
        done.append(result)
        if result == 0:
            world.jobber.enqueue("last")

    @world.jobber.handlers("last")
    def last(job: Job) -> None:
        done.append("last")

    with world.session() as session, inline(world.jobber):
        world.jobber.enqueue("count", 3)
        session.commit()
        assert done == [3, 2, 1, 0, "last"]


def test_functions_as_jobs_are_done_too(world: World) -> None:
    """Inline and drained: they are jobs like others."""
    calls: list[int] = []

    @world.jobber.later
    def count(number: int) -> None:
        calls.append(number)

    with world.session() as session:
        with inline(world.jobber):
            count(1)
            session.commit()
        count(2)
        assert drain(world.jobber) == Drained(succeeded=1)
    assert calls == [1, 2]


def test_inline_works_within_a_request(lite: World) -> None:
    """A view's commit does the job; what its handler raised is the view's."""
    double(lite)

    @lite.app.post("/order/<int:number>")
    def order(number: int) -> t.Any:
        job = lite.jobber.enqueue("double", number if number else None)
        lite.db.session.commit()
        return {"result": job.result}

    client = lite.app.test_client()
    with inline(lite.jobber):
        assert client.post("/order/4").get_json() == {"result": 8}
        with pytest.raises(TypeError):
            client.post("/order/0")
    assert client.post("/order/4").get_json() == {"result": None}


def test_inline_is_for_one_jobber_and_ends(lite: World) -> None:
    """Another Jobber's jobs stay, and so does what is enqueued after a block that raised."""
    mail = Jobber(lite.db, name="mail")
    mail.init_app(lite.app)
    done: list[int] = []
    for jobber in (lite.jobber, mail):
        jobber.handlers("work")(lambda job: done.append(job.id))
    listeners = len(Session().dispatch.after_transaction_end)

    with lite.session() as session:
        lite.db.create_all()
        lite.jobber.enqueue("work")
        session.commit()
        with inline(lite.jobber):
            assert mail.enqueue("work").id == 1
            session.commit()
        with pytest.raises(ZeroDivisionError), inline(lite.jobber):
            1 / 0  # noqa: B018
        lite.jobber.enqueue("work")
        session.commit()
    assert done == []
    assert len(Session().dispatch.after_transaction_end) == listeners


def test_inline_works_in_the_thread_that_commits(lite: World) -> None:
    """Each thread does its own."""
    threads: list[tuple[int, str]] = []
    first, second = threading.Event(), threading.Event()

    @lite.jobber.handlers("work")
    def work(job: Job) -> None:
        threads.append((job.data, threading.current_thread().name))
        if job.data == 1:
            first.set()
            assert second.wait(30)

    def enqueue(number: int) -> None:
        with lite.session():
            lite.jobber.enqueue("work", number)

    with inline(lite.jobber):
        thread = threading.Thread(target=enqueue, args=(1,), name="other")
        thread.start()
        assert first.wait(30)
        enqueue(2)  # while the other's is being done
        assert threads == [(1, "other"), (2, threading.current_thread().name)]
        second.set()
        thread.join()
    assert set(states(lite).values()) == {State.SUCCEEDED}


def test_all_of_it_works_in_memory(make_world: MakeWorld) -> None:
    """Where many an app's tests keep their database, all threads and sessions on one connection."""
    world = make_world("sqlite://")
    double(world)
    with world.session() as session:
        with inline(world.jobber):
            job = world.jobber.enqueue("double", 1)
            session.commit()
            assert job.result == 2
        world.jobber.enqueue("double", 2, after=60)
        travel(world.jobber, 60)
        assert drain(world.jobber) == Drained(succeeded=1)


# -- travel -------------------------------------------------------------------------------


def test_travel_moves_every_instant(world: World) -> None:
    """Of the jobs and of the history; what has none gets none."""
    ids = make_one_of_each(world, expires_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=5))
    before = {job_id: stored(world, job_id) for job_id in ids.values()}

    with world.session():
        travel(world.jobber, dt.timedelta(hours=1))
    for job_id, (row, history) in before.items():
        row_now, history_now = stored(world, job_id)
        for was, now in zip([row, *history], [row_now, *history_now], strict=True):
            for name, value in was.items():
                if isinstance(value, dt.datetime):
                    assert abs(value - now[name] - dt.timedelta(hours=1)) < dt.timedelta(milliseconds=2), name
                else:
                    assert now[name] == value


def test_time_travel_ends_leases_and_waiting(world: World) -> None:
    """What would happen later happens now."""
    soon, held = world.enqueue("soon", after=100), world.enqueue("held")
    client = world.client()
    client.claim(types=["held"], lease_seconds=100)

    with world.session():
        travel(world.jobber, 90)
    assert world.client("bob").claim(limit=5) == []
    with world.session():
        travel(world.jobber, 11)
    claimed = world.client("bob").claim(limit=5)
    assert {job["id"]: job["failures"] for job in claimed} == {soon: 0, held: 1}


@pytest.mark.parametrize("seconds", [60, -60])
def test_travel_moves_series_by_a_step(world: World, seconds: float) -> None:
    """A job comes to stand where another one stood, whichever is moved first."""
    with world.session():
        world.jobber.schedule("often", "work", every=60)
    for _ in range(2):
        with world.session():
            [claim] = world.jobber.claim("worker/testing")
            world.jobber.deliver("worker/testing", claim.id, claim.attempt)
        with world.app.app_context():
            travel(world.jobber, 60)
    with world.session() as session:  # one that is written last is read last
        session.get(world.Job, 1).priority = 1
    before = _slots(world)
    with world.app.app_context():
        travel(world.jobber, seconds)
    assert [slot + dt.timedelta(seconds=seconds) for slot in _slots(world)] == before


def _slots(world: World) -> list[dt.datetime]:
    with world.session() as session:
        return list(session.scalars(sa.select(world.Job.slot).order_by(world.Job.id)))


def test_travel_shows_in_what_a_test_holds(lite: World) -> None:
    """Also when its session keeps objects as they are; what it has not committed is committed."""
    with lite.session() as session:
        session().expire_on_commit = False
        job = lite.jobber.enqueue("work")
        was = job.created_at
        travel(lite.jobber, 10)
        assert abs(was - job.created_at - dt.timedelta(seconds=10)) < dt.timedelta(milliseconds=2)
        session.rollback()
        assert session.scalar(sa.select(sa.func.count()).select_from(lite.Job)) == 1


# -- login --------------------------------------------------------------------------------


@pytest.fixture
def cookies(lite: World) -> World:
    """A world whose users may log in by session too, as strictly as Flask-Login can."""
    manager = t.cast(LoginManager, lite.app.login_manager)  # type: ignore[attr-defined]
    manager.user_loader(User)
    manager.session_protection = "strong"

    @lite.app.get("/page")
    @login_required
    def page() -> str:
        return t.cast(str, current_user.id)

    return lite


@pytest.mark.parametrize("user", [User("ann"), "ann"], ids=["session", "token"])
def test_a_client_is_logged_in(cookies: World, user: t.Any) -> None:
    """By session as a browser is, or by token; with every verb, and Flask's own."""
    client = login(cookies.app, user, node="lap")
    ids = [cookies.enqueue(data=n) for n in range(5)]
    assert isinstance(client, LoggedIn)

    assert client.get("/page").text == "ann"
    a, b, c, d = client.claim(limit=4, types=["work"])
    assert [job["id"] for job in (a, b, c, d)] == ids[:4]
    assert cookies.job(a["id"]).locked_by == "user_ann/lap"
    assert client.extend(a, lease_seconds=30, progress=0.5) == {"lease_seconds": 30.0}
    assert client.deliver(a, {"n": 1}, extras={"x": 1}) == {"state": "succeeded"}
    assert client.fail(b, Broke("bad"), permanent=True)["state"] == "failed"
    assert client.fail(c)["state"] == "scheduled"
    client.release(d, delay_seconds=0.5)
    done = client.exchange(claim={"limit": 1}, results=[{"id": a["id"], "attempt": 1, "result": {"n": 1}}])
    assert [outcome["status"] for outcome in done["outcomes"]] == [409]
    assert [job["id"] for job in done["jobs"]] == ids[4:]
    assert client.claim() == []
    assert cookies.history(b["id"])[-1] == ("locked", "failed", "fail")
    assert stored(cookies, b["id"])[1][-1]["error"]["type"] == "Broke"
    assert cookies.job(d["id"]).state == State.SCHEDULED


def test_a_refusal_is_raised_with_its_code(cookies: World) -> None:
    """For the verbs; what Flask's client sends is answered as ever."""
    cookies.enqueue()
    ann, bob = login(cookies.app, User("ann")), login(cookies.app, User("bob"))
    [job] = ann.claim()

    with pytest.raises(Refusal) as caught:
        bob.deliver(job)
    assert (caught.value.status, caught.value.code) == (409, "lease_lost")
    assert caught.value.problem["retryable"] is False
    assert bob.put(f"{job['href']}/result", json={}).status_code == 409
    with pytest.raises(Refusal, match="422 invalid"):
        ann.claim(limit=0)


def test_each_login_is_its_own(cookies: World) -> None:
    """Clients share neither cookies nor names; the app has no client logged in by default."""
    login(cookies.app, User("ann"))
    assert login(cookies.app, User("bob")).get("/page").text == "bob"
    assert cookies.app.test_client().get("/page").status_code == 401


def test_who_may_not_log_in_is_not(cookies: World) -> None:
    """Rather than to be found out by a 401 later."""

    class Gone(User):
        is_active = False

    with pytest.raises(ValueError, match="not active"):
        login(cookies.app, Gone("ann"))


def test_a_client_works_for_the_jobber_that_is_meant(cookies: World) -> None:
    """When there are several, for one that is named."""
    mail = Jobber(cookies.db, name="mail")
    cookies.app.register_blueprint(mail.blueprint, url_prefix="/deep/mail")
    with cookies.session():
        cookies.db.create_all()
        mail.enqueue("letter")

    with pytest.raises(ValueError, match="say which"):
        login(cookies.app, User("ann"))
    client = login(cookies.app, User("ann"), jobber=mail)
    assert client.prefix == "/deep/mail"
    assert [job["type"] for job in client.claim()] == ["letter"]
    assert login(cookies.app, User("ann"), jobber=cookies.jobber).prefix == PREFIX


def test_an_app_of_ones_own() -> None:
    """With nothing of this suite's: an app, a user in its database, a client, a lapse."""
    app = Flask("own")
    app.config.update(SECRET_KEY="x", SQLALCHEMY_DATABASE_URI="sqlite://", TESTING=True)
    db, manager = SQLAlchemy(app), LoginManager(app)
    jobber = Jobber(db)

    class Person(UserMixin, db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.Integer, primary_key=True)

    manager.user_loader(lambda user_id: db.session.get(Person, int(user_id)))
    app.register_blueprint(jobber.blueprint, url_prefix="/jobs")
    with app.app_context():
        db.create_all()
        db.session.add(Person(id=7))
        jobber.enqueue("work")
        db.session.commit()
        client = login(app, db.session.get(Person, 7))
    [job] = client.claim(lease_seconds=60)
    with app.app_context():
        travel(jobber, 61)
    with app.app_context():
        assert [claim.id for claim in jobber.claim("other")] == [job["id"]]
        db.session.commit()
    with pytest.raises(Refusal, match="lease_lost"):
        client.deliver(job)
    with app.app_context():
        db.engine.dispose()


# -- the fake source ----------------------------------------------------------------------

WISH = Wish(10, ("work",))


def take(source: FakeSource, wish: Wish = WISH) -> list[Job]:
    return source.exchange([], [], wish).jobs


def settle(source: FakeSource, job: Job, outcome: t.Any) -> str | None:
    [told] = source.exchange([Settlement(job, outcome)], [], None).told
    assert told.job is job
    return told.code


def failure(**said: t.Any) -> Failed:
    return Failed({"type": "Error", "message": "broke", "traceback": None}, **said)


def test_the_fake_source_is_a_source() -> None:
    """It has all that the loop asks for."""
    source: Source = FakeSource()
    assert source.held() == []
    assert source.waiting(WISH) == 0
    assert source.tidy() is None
    source.close()


def test_the_fake_source_hands_out_what_is_wished_for() -> None:
    """By type, queue and priority, the best first, no more than the limit."""
    source = FakeSource(node="me", lease_seconds=30, max_attempts=3)
    low, high = source.add("work", 1, queue="a"), source.add("work", 2, priority=5, queue="b")
    source.add("other")

    assert source.waiting(WISH) == 2
    assert take(source, Wish(10, ("work",), queues=("c",))) == []
    assert take(source, Wish(10, ("work",), min_priority=6)) == []
    [job] = take(source, Wish(1, ("work",)))
    assert (job.id, job.data, job.attempt, job.node) == (high, 2, 1, "me")
    assert (job.lease_seconds, job.max_attempts) == (30, 3)
    assert [job.id for job in take(source, Wish(10, ("work",), queues=("a",), max_priority=0))] == [low]
    assert take(source) == []
    assert {job.id for job in source.held()} == {low, high}


@pytest.mark.parametrize(
    ("outcome", "left", "wait", "failures"),
    [
        (Succeeded(1), False, None, 0),
        (failure(), True, 0, 1),
        (failure(retry_seconds=60), True, 60, 1),
        (failure(permanent=True), False, None, 1),
        (failure(cancel=True), False, None, 0),
        (Released(30), True, 30, 0),
    ],
)
def test_the_fake_source_does_with_a_job_what_a_server_does(
    outcome: t.Any, left: bool, wait: float | None, failures: int
) -> None:
    """It ends, or comes again when its time has come."""
    source = FakeSource()
    job_id = source.add("work")
    [job] = take(source)

    assert settle(source, job, outcome) is None
    assert settle(source, job, outcome) in ("lease_lost", "already_settled")
    assert source.outcomes == {job_id: outcome}
    assert source.left == ([job_id] if left else [])
    if wait:
        source.travel(wait - 1)
        assert take(source) == []
        source.travel(1)
    again = take(source)
    assert [(job.attempt, job.failures) for job in again] == ([] if wait is None else [(2, failures)])


def test_the_fake_source_ends_a_job_that_fails_too_often() -> None:
    """At ``max_attempts``."""
    source = FakeSource(max_attempts=2)
    source.add("work")
    for _ in range(2):
        [job] = take(source)
        assert settle(source, job, failure()) is None
    assert take(source) == []
    assert source.left == []


def test_the_fake_source_takes_jobs_away() -> None:
    """As an operator and time do: heartbeats and results hear of it."""
    source = FakeSource()
    cancelled, lapsed, held = (source.add("work") for _ in range(3))
    jobs = {job.id: job for job in take(source)}
    source.cancel(cancelled)
    source.lapse(lapsed)

    beats = [Beat(jobs[job_id], progress=0.5) for job_id in (cancelled, lapsed, held)]
    told = source.exchange([], beats, None).told
    assert [(one.code, one.held) for one in told] == [
        ("cancelled", False),
        ("lease_lost", False),
        (None, True),
    ]
    assert source.beats == beats[2:]
    assert settle(source, jobs[cancelled], Succeeded()) == "cancelled"
    [again] = take(source)
    assert (again.id, again.attempt) == (lapsed, 2)
    assert settle(source, jobs[lapsed], Succeeded()) == "lease_lost"
    assert settle(source, again, Succeeded()) is None


def test_the_fake_source_goes_away() -> None:
    """For as many calls as it is told; nothing is taken meanwhile."""
    source = FakeSource()
    source.add("work")
    [job] = take(source)
    source.go_away(3)

    for call in (source.held, source.tidy, lambda: settle(source, job, Succeeded())):
        with pytest.raises(Away):
            call()
    assert (source.settled, source.tidied) == ([], 0)
    assert settle(source, job, Succeeded(enqueued=({"type": "work", "data": 2, "after": 5},))) is None
    assert take(source) == []
    source.travel(5)
    assert [job.data for job in take(source)] == [2]


def test_the_fake_source_rings_who_listens() -> None:
    """When there may be a job: a new one, one that is due, one that was given back."""
    source, rings = FakeSource(), list[str]()
    source.listen(lambda: rings.append("!"))
    assert source.exchange([], [], WISH).retry_after == math.inf
    source.add("work")
    assert rings.pop() == "!"
    [job] = take(source)
    settle(source, job, Released(30))
    source.travel(30)
    assert rings == ["!", "!"]
    assert source.rest() == []


def test_a_handler_can_be_tested_without_any_database() -> None:
    """By the fake source's jobs."""
    jobber = Jobber(SQLAlchemy())

    @jobber.handlers("work")
    def work(job: Job) -> t.Any:
        return job.data + 1

    source = FakeSource()
    source.add("work", 1)
    [job] = take(source)
    assert run(jobber.handlers["work"], job) == Succeeded(2)


def test_a_worker_can_be_tested_without_any_database() -> None:
    """The loop does the fake source's jobs as it does any."""
    jobber = Jobber(SQLAlchemy())

    @jobber.handlers("work")
    def work(job: Job) -> t.Any:
        if job.data == 1:
            job.enqueue("work", 2)
        if job.data == 3:
            raise Fail("three")
        return job.data

    source = FakeSource()
    one, three = source.add("work", 1), source.add("work", 3)
    assert Worker([Supply(source, jobber.handlers)], Orders(burst=True)).run() == 0
    assert source.left == []
    assert source.outcomes[one].result == 1
    assert source.outcomes[three].permanent
    assert source.outcomes[three + 1] == Succeeded(2)


# -- the module ---------------------------------------------------------------------------


def test_the_helpers_need_no_test_runner_and_no_extra() -> None:
    """An app's tests may run on whatever they like."""
    absent = ("pytest", "httpx2", "anyio", "psycopg", "pymysql", "asgiref", "jsonschema")
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import flask_jobber.testing"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_nothing_of_the_package_needs_the_helpers() -> None:
    """They are loaded by tests alone."""
    code = "import sys, flask_jobber; print([m for m in sys.modules if m.startswith('flask_jobber.testing')])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"
