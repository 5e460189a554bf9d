"""Events: whoever may see a job hears of its changes, in order to show them."""

from __future__ import annotations

import contextlib
import http.client
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from flask_login import login_user, logout_user
from werkzeug.serving import make_server

from conftest import MakeWorld
from flask_jobber.api import events
from flask_jobber.client import Job, JobberClient, LoginRequired
from streamed import LIMIT, Event, Stream
from support import PREFIX, User, World


class Site:
    """A world behind a real port."""

    def __init__(self, world: World, stack: contextlib.ExitStack) -> None:
        self.world, self._stack = world, stack
        self.server = make_server("127.0.0.1", 0, world.app, threaded=True)
        self.port = self.server.port
        thread = threading.Thread(target=self.server.serve_forever)
        thread.start()
        stack.callback(thread.join)
        stack.callback(self.server.server_close)
        stack.callback(self.server.shutdown)
        stack.callback(self._end)

    def _end(self) -> None:
        with self.world.app.app_context():
            wakeup = self.world.jobber.wakeup
        wakeup.close()
        until(lambda: not len(wakeup.watchers) and wakeup._places == 0)
        until(lambda: wakeup._ear is None)

    @property
    def wakeup(self) -> t.Any:
        with self.world.app.app_context():
            return self.world.jobber.wakeup

    def open(self, query: str = "", user: str = "ann", **headers: str) -> Stream:
        headers = {"Authorization": f"Bearer {user}", **{n.replace("_", "-"): v for n, v in headers.items()}}
        stream = Stream(self.port, f"/events{query}", headers)
        self._stack.callback(stream.close)
        return stream

    def listening(self) -> None:
        """Return when whoever commits anywhere is heard."""
        until(lambda: self.wakeup._watching)


def until(condition: t.Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


MakeSite = t.Callable[..., Site]


@pytest.fixture
def make_site(make_world: MakeWorld) -> t.Iterator[MakeSite]:
    with contextlib.ExitStack() as stack:
        yield lambda url, **options: Site(make_world(url, **options), stack)


@pytest.fixture
def site(make_site: MakeSite, db_url: str) -> Site:
    """A site on each engine."""
    return make_site(db_url)


@pytest.fixture
def lite(make_site: MakeSite, sqlite_url: str) -> Site:
    return make_site(sqlite_url)


def test_each_change_is_told_as_the_job_is_seen(site: Site) -> None:
    """From the enqueue to the result, progress too."""
    world, client = site.world, site.world.client()
    stream = site.open()
    job_id = world.enqueue(user_id="ann")
    assert stream.job(job_id, state="queued").data == client.get(f"/jobs/{job_id}").json
    [job] = client.claim()
    stream.job(job_id, state="locked", progress=None)
    client.extend(job, progress=0.5, note="half")
    stream.job(job_id, progress=0.5, note="half")
    client.deliver(job, {"n": 1})
    told = stream.job(job_id, state="succeeded", result={"n": 1})
    assert told.data == client.get(f"/jobs/{job_id}").json


def test_the_answer_is_a_stream_that_nothing_keeps(lite: Site) -> None:
    stream = lite.open()
    headers = stream.response.headers
    assert headers["Content-Type"].partition(";")[0] == "text/event-stream"
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Accel-Buffering"] == "no"
    assert stream.begin is not None
    assert stream.begin.keys() == {"retry", "id"}


def test_a_new_stream_begins_now(site: Site) -> None:
    """What was before is not told, however short ago."""
    site.world.enqueue()
    stream = site.open()
    second = site.world.enqueue()
    stream.job(second)


def test_nobody_hears_of_what_is_out_of_scope(site: Site) -> None:
    """Nor sees a result that is another's to see."""
    world = site.world
    stream, root = site.open(), site.open(user="root")
    hidden = world.enqueue(user_id="bob")
    root.job(hidden)
    shown = world.enqueue()
    stream.job(shown)
    root.job(shown)
    bob = world.client("bob")
    [job] = [one for one in bob.claim(limit=2) if one["id"] == shown]
    stream.job(shown, state="locked")
    bob.deliver(job, "secret")
    stream.job(shown, state="succeeded", result=None)


def test_a_client_hears_of_what_it_asks_for(site: Site) -> None:
    """By ids, type and queue."""
    world = site.world
    first, second = world.enqueue(), world.enqueue()
    some = site.open(f"?job={second},{second + 7000}")
    typed, queued = site.open("?type=other"), site.open("?queue=mail&type=work")
    other, mail = world.enqueue("other"), world.enqueue(queue="mail")
    with world.session():
        world.jobber.cancel(first)
    with world.session():
        world.jobber.cancel(second)
    some.job(second, state="cancelled")
    typed.job(other)
    queued.job(mail)


@pytest.mark.parametrize(
    "query", ["?job=", "?job=x", "?job=1&job=2", "?job=" + ",".join("1" * 101), "?limit=3"]
)
def test_a_query_that_cannot_be_is_refused(lite: Site, query: str) -> None:
    assert lite.world.client().get(f"/events{query}").status_code == 422


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "9" * 19, "¹"])
def test_an_id_of_no_event_is_refused(lite: Site, cursor: str) -> None:
    response = lite.world.client().get("/events", headers={"Last-Event-ID": cursor})
    assert response.status_code == 422
    assert response.json is not None
    assert list(response.json["errors"]) == ["Last-Event-ID"]


def test_nobody_without_a_login_hears_anything(lite: Site) -> None:
    response = lite.world.client(None).get("/events")
    assert response.status_code == 401
    assert response.mimetype == "application/problem+json"


def test_a_stream_goes_on_where_another_ended(site: Site) -> None:
    """What changed meanwhile is told, by whichever process."""
    world = site.world
    stream = site.open()
    first = world.enqueue()
    cursor = stream.job(first).id
    stream.close()
    second = world.enqueue()
    again = site.open(Last_Event_ID=cursor)
    assert {again.job(first).data["id"], again.job(second).data["id"]} == {first, second}


@pytest.mark.parametrize("engine", ["postgres", "mariadb"])
def test_what_is_committed_late_is_not_lost(
    engine: str, make_site: MakeSite, request: pytest.FixtureRequest
) -> None:
    """A row of the history may come after one with a greater id, but in SQLite."""
    site = make_site(request.getfixturevalue(f"{engine}_url"))
    world = site.world
    with world.app.app_context():
        late = int(world.jobber.enqueue("late").id)
        early = enqueue_elsewhere(world)
        stream = site.open(Last_Event_ID="0")
        cursor = stream.job(early).id
        stream.close()
        world.db.session.commit()
    again = site.open(Last_Event_ID=cursor)
    assert {event.data["id"] for event in (again.next(), again.next()) if event} == {early, late}


def enqueue_elsewhere(world: World) -> int:
    """Enqueue by a thread, as another transaction."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(world.enqueue()))
    thread.start()
    thread.join()
    return found[0]


def test_progress_is_not_lost_either(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though a heartbeat leaves no row in the history."""
    monkeypatch.setattr(events.changes, "_BEFORE", 0)
    world, client = site.world, site.world.client()
    job_id = world.enqueue()
    [job] = client.claim()
    with world.app.app_context():
        cursor = world.db.session.scalar(sa.select(sa.func.max(world.jobber.History.id)))
    client.extend(job, progress=0.7)
    site.open(Last_Event_ID=str(cursor)).job(job_id, progress=0.7)


def test_too_much_is_a_reset(lite: Site) -> None:
    """As is an id that this history cannot know; what comes then is told again."""
    with lite.world.session():
        lite.world.jobber.enqueue_many([{"type": "work"}] * 1001)
    for cursor in ("0", "99999"):
        stream = lite.open(Last_Event_ID=cursor)
        event = stream.next()
        assert event is not None
        assert (event.name, event.data) == ("reset", {})
    new = lite.world.enqueue()
    assert stream.job(new)


def test_pages_of_changes_have_one_new_cursor(lite: Site) -> None:
    """Who is cut off in the midst hears all of it again."""
    with lite.world.session():
        lite.world.jobber.enqueue_many([{"type": "work"}] * 250)
    stream = lite.open(Last_Event_ID="0")
    told = [t.cast(Event, stream.next()) for _ in range(250)]
    assert len({event.data["id"] for event in told}) == 250
    assert {event.id for event in told[:-1]} == {"0"}
    assert told[-1].id != "0"


def test_a_burst_is_one_look(site: Site) -> None:
    """A hundred changes of a job are told a few times."""
    world, client = site.world, site.world.client()
    job_id = world.enqueue()
    [job] = client.claim()
    stream, began = site.open(), time.monotonic()
    for number in range(100):
        client.extend(job, progress=number / 100)
    client.deliver(job)
    told = 0
    while stream.next().data["state"] != "succeeded":  # type: ignore[union-attr]
        told += 1
    assert told <= 1 + (time.monotonic() - began) / events._SPACING
    assert world.job(job_id).state == "succeeded"


def test_a_stream_holds_no_connection_and_asks_nothing(site: Site) -> None:
    """Nor does the process for it."""
    world = site.world
    stream = site.open()
    site.listening()
    stream.job(world.enqueue())
    with world.app.app_context():
        engine = world.db.session.get_bind(world.Job)
        world.db.session.remove()
    until(lambda: engine.pool.checkedout() == 0)  # type: ignore[attr-defined]


def test_other_jobs_cost_a_stream_of_some_nothing(lite: Site) -> None:
    """By ids it is known without a query."""
    world = lite.world
    job_id = world.enqueue()
    stream = lite.open(f"?job={job_id}")
    lite.listening()
    until(lambda: not any(watcher.has_news for watcher in lite.wakeup.watchers._watchers))
    [watcher] = lite.wakeup.watchers._watchers
    world.enqueue()
    assert not watcher.has_news
    with world.session():
        world.jobber.cancel(job_id)
    stream.job(job_id, state="cancelled")


def test_without_a_stream_nothing_more_is_asked(make_world: MakeWorld, postgres_url: str) -> None:
    """A claim is one statement, so is a delivery; once in a while a process asks whether somebody watches."""
    world = make_world(postgres_url)
    for _ in range(2):
        world.enqueue()
    seen: list[str] = []
    with world.app.app_context():
        engine = world.db.session.get_bind(world.Job)
        sa.event.listen(engine, "before_cursor_execute", lambda *said: seen.append(said[2]))
        jobber, session = world.jobber, world.db.session
        [first] = jobber.claim("me")
        session.commit()
        counted = [len(seen)]
        jobber.deliver("me", first.id, first.attempt)
        session.commit()
        counted.append(len(seen) - counted[0])
    assert counted == [1, 1]
    assert not any("pg_locks" in statement or "notify" in statement for statement in seen)


def test_other_processes_learn_that_somebody_watches(make_site: MakeSite, postgres_url: str) -> None:
    """A process that asked before is heard late, by the look that follows; one that asks now, at once."""
    site = make_site(postgres_url)
    other = World(postgres_url)
    stale = other.enqueue("before")  # from now on it believes that nobody does
    stream = site.open()
    site.listening()
    with other.session():
        other.jobber.cancel(stale)
    stream.job(stale, state="cancelled")
    until(lambda: other_watched(other))
    began = time.monotonic()
    new = other.enqueue("after")
    stream.job(new)
    assert time.monotonic() - began < 1.5
    with other.app.app_context():
        other.db.engine.dispose()


def other_watched(world: World) -> bool:
    with world.app.app_context():
        return bool(world.jobber.wakeup.is_watched(world.jobber.store()))


def test_a_lost_connection_loses_no_change(make_site: MakeSite, postgres_url: str) -> None:
    """Who listens again looks for what it has not heard."""
    site = make_site(postgres_url)
    stream = site.open()
    site.listening()
    with site.world.session() as session:
        killed = sa.text(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%advisory%'"
        )
        assert session.scalar(killed) >= 1
    stream.job(site.world.enqueue())


def test_past_the_last_place_a_stream_ends_at_once(make_site: MakeSite, sqlite_url: str) -> None:
    """It tells what is new, and when to come again."""
    site = make_site(sqlite_url, JOBBER_MAX_WAITERS=1)
    stays = site.open()
    job_id = site.world.enqueue()
    brief = site.open(Last_Event_ID="0")
    assert brief.begin is not None
    assert 3750 <= int(brief.begin["retry"]) <= 6250
    cursor = brief.job(job_id).id
    assert brief.next() is None
    nothing = site.open()
    assert nothing.begin is not None
    assert nothing.begin["id"] == cursor
    assert nothing.next() is None
    stays.job(job_id)


def test_a_client_that_goes_away_frees_its_place(lite: Site) -> None:
    stream = lite.open()
    until(lambda: len(lite.wakeup.watchers) == 1)
    stream.close()
    until(lambda: lite.wakeup._places == 0 and not len(lite.wakeup.watchers))


def test_a_stream_ends_with_the_server(lite: Site) -> None:
    stream = lite.open()
    lite.wakeup.lookout._ending()
    assert stream.next() is None


def test_a_stream_ends_by_itself_and_goes_on(lite: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """With signs of life, and at the end the cursor of what it has seen of others' jobs."""
    monkeypatch.setattr(events, "_LIFE", 1.0)
    monkeypatch.setattr(events, "_SIGN", 0.2)
    stream = lite.open()
    lite.world.enqueue(user_id="bob")
    blocks = list(iter(stream.block, None))
    assert {"": ""} in blocks
    assert blocks[-1] == {"id": "1"}


@pytest.fixture
def let_in(lite: Site) -> Site:
    """A site with logins by cookie."""
    app = lite.world.app
    app.login_manager.user_loader(User)  # type: ignore[attr-defined]

    @app.get("/login")
    def login() -> str:
        login_user(User("ann"))
        return ""

    @app.get("/logout")
    def logout() -> str:
        logout_user()
        return ""

    return lite


def test_a_logout_ends_the_streams_of_its_user(let_in: Site) -> None:
    """And the claims that wait; others go on."""
    hers, his = let_in.open(), let_in.open(user="bob")
    visitor = let_in.world.app.test_client()
    visitor.get("/login")
    assert visitor.get("/logout").status_code == 200
    assert hers.next() is None
    his.job(let_in.world.enqueue())


def test_a_logout_does_not_fail_for_it(
    let_in: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged."""

    def fail(text: str) -> None:
        raise OSError("away")

    with let_in.world.app.app_context():
        monkeypatch.setattr(let_in.wakeup.transport, "say", fail)
    visitor = let_in.world.app.test_client()
    visitor.get("/login")
    assert visitor.get("/logout").status_code == 200
    until(lambda: "news could not be told" in caplog.text)


def test_a_head_takes_no_place(lite: Site) -> None:
    """There is nothing to be heard by it."""
    assert lite.world.client().open("HEAD", "/events").status_code == 200
    connection = http.client.HTTPConnection("127.0.0.1", lite.port, timeout=LIMIT)
    connection.request("HEAD", f"{PREFIX}/events", headers={"Authorization": "Bearer ann"})
    assert connection.getresponse().status == 200
    connection.close()
    assert lite.wakeup._places == 0


def test_a_login_that_has_ended_ends_the_stream(lite: Site) -> None:
    """Nobody need say so: it is asked for before each look."""
    stream = lite.open()
    gone = lite.world.app.login_manager  # type: ignore[attr-defined]
    gone.request_loader(lambda request: None)
    lite.world.enqueue()
    assert stream.next() is None


def test_an_app_that_lets_nobody_in_any_more_ends_the_stream(lite: Site) -> None:
    """By what it does before each request."""
    stream = lite.open()
    lite.world.app.before_request_funcs.setdefault(None, []).append(lambda: ("closed", 503))
    lite.world.enqueue()
    assert stream.next() is None


def test_the_scope_is_asked_for_again(lite: Site) -> None:
    """Before each look, with what the app does before each request."""
    world, allowed = lite.world, ["bob"]
    world.jobber.registry.hooks["scope"] = lambda: {"user_id": allowed}
    stream = lite.open()
    world.enqueue(user_id="ann")
    first = world.enqueue(user_id="bob")
    stream.job(first)
    allowed[:] = ["ann"]
    third = world.enqueue(user_id="bob")
    second = world.enqueue(user_id="ann")
    assert third not in stream.jobs_until(second)


def client_of(site: Site, **options: t.Any) -> JobberClient:
    return JobberClient(f"http://127.0.0.1:{site.port}{PREFIX}", auth="ann", **options)


def hear(stream: t.Iterator[Job], number: int) -> list[Job]:
    return [next(stream) for _ in range(number)]


def test_a_script_hears_and_goes_on_by_itself(lite: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the end of a stream too; leaving the loop frees the place."""
    monkeypatch.setattr(events, "_LIFE", 0.5)
    monkeypatch.setattr(events, "_RETRY", 0.01)
    job_id = lite.world.enqueue()
    told: list[Job] = []
    heard = threading.Semaphore(0)

    def listen() -> None:
        with client_of(lite) as client, contextlib.closing(client.events(job=job_id)) as stream:
            for job in stream:
                told.append(job)
                heard.release()
                if job.state == "cancelled":
                    break

    thread = threading.Thread(target=listen)
    thread.start()
    until(lambda: len(lite.wakeup.watchers) == 1)
    [job] = lite.world.client().claim()
    assert heard.acquire(timeout=LIMIT)
    [first] = lite.wakeup.watchers._watchers
    until(lambda: any(one is not first for one in list(lite.wakeup.watchers._watchers)))
    with lite.world.session():
        lite.world.jobber.cancel(job["id"])
    thread.join(LIMIT)
    assert told[0].state == "locked"
    assert told[-1].state == "cancelled"
    until(lambda: lite.wakeup._places == 0)


def test_a_script_lists_again_when_it_has_to(lite: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reset is every job that it asked for."""
    monkeypatch.setattr(events.changes, "MOST", 3)
    with client_of(lite) as client:
        stream = client.events(cursor="0")
        with lite.world.session():
            lite.world.jobber.enqueue_many([{"type": "work"}] * 5)
        assert [job.id for job in hear(stream, 5)] == [1, 2, 3, 4, 5]
        stream.close()


def test_a_script_is_told_that_nobody_knows_it(lite: Site) -> None:
    with JobberClient(f"http://127.0.0.1:{lite.port}{PREFIX}", patience=0) as client:
        with pytest.raises(LoginRequired):
            next(client.events())
