"""Claims that wait on real servers: with threads, with greenlets, and on the development server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import time
import typing as t

import pytest

from served import Remote, Server
from streamed import Stream
from support import World
from waited import DEVELOPMENT, GEVENT, THREADS, Caller

LONG, SOON = 25, 4
PROGRAMS = {"threads": THREADS, "gevent": GEVENT, "development": DEVELOPMENT}
Serve = t.Callable[..., Server]
Call = t.Callable[..., list[Caller]]


@pytest.fixture
def store(make_world: t.Callable[..., World], db_url: str) -> World:
    """The database, as another process sees it."""
    return make_world(db_url, scoped=False)


@pytest.fixture
def serve(db_url: str, store: World) -> t.Iterator[Serve]:
    servers: list[Server] = []

    def start(program: t.Sequence[str], **settings: t.Any) -> Server:
        server = Server(db_url, program, WAITED_SETTINGS=json.dumps(settings))
        servers.append(server)
        server.start()
        Remote(server.port, "ann").expect(200, "GET", "/jobs")
        return server

    try:
        yield start
    finally:
        for server in servers:
            server.close()


@pytest.fixture(params=PROGRAMS)
def server(request: pytest.FixtureRequest, serve: Serve) -> Server:
    return serve(PROGRAMS[request.param], JOBBER_IDLE_SECONDS=1)


def told(server: Server, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=SOON)
    connection.request("GET", path)
    said = json.loads(connection.getresponse().read())
    connection.close()
    return int(said[path[1:]])


def until(condition: t.Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def call() -> t.Iterator[Call]:
    """Let users ask one after the other, or many at once; all hang up in the end."""
    made: list[Caller] = []

    def ask(server: Server, *users: str, at_once: bool = False) -> list[Caller]:
        callers: list[Caller] = []
        for user in users:
            callers.append(Caller(server.port, LONG, user))
            made.append(callers[-1])
            if not at_once:
                until(lambda: told(server, "/waiting") == len(callers))
        return callers

    yield ask
    for caller in made:
        caller.hang_up()


def test_a_job_of_another_process_is_heard_of(server: Server, store: World, call: Call) -> None:
    """By the database's own way, or by a look now and then where it has none."""
    [caller] = call(server, "ann")
    began = time.monotonic()
    job_id = store.enqueue()
    status, said = caller.answer()
    assert (status, [job["id"] for job in said["jobs"]]) == (200, [job_id])
    assert time.monotonic() - began < SOON


def test_who_hangs_up_frees_the_place_and_gets_nothing(server: Server, store: World, call: Call) -> None:
    """The next who waits gets the job."""
    first, second = call(server, "ann", "bob")
    first.hang_up()
    until(lambda: told(server, "/waiting") == 1)
    job_id = store.enqueue()
    assert [job["id"] for job in second.answer()[1]["jobs"]] == [job_id]
    assert store.job(job_id).locked_by == "user_bob"


@pytest.mark.parametrize("kind", ["threads", "gevent"])
def test_a_server_that_ends_answers_those_who_wait(kind: str, serve: Serve, call: Call) -> None:
    """With an empty list, not by hanging up."""
    server = serve(PROGRAMS[kind])
    callers = call(server, "ann", "bob")
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as stopping:
        stopped = stopping.submit(server.stop)
        assert [caller.answer()[0] for caller in callers] == [200, 200]
    assert stopped.result() == 0
    assert time.monotonic() - began < SOON + 2


def test_waiting_leaves_threads_for_others(serve: Serve, call: Call) -> None:
    """Of eight four, whoever else comes is told to come again."""
    server = serve(THREADS)
    call(server, *"abcd")
    began = time.monotonic()
    more = call(server, *map(str, range(20)), at_once=True)
    # All at once: gunicorn waits for each client to hang up after its answer.
    with concurrent.futures.ThreadPoolExecutor(20) as readers:
        answers = list(readers.map(Caller.answer, more))
    assert time.monotonic() - began < SOON
    assert {(status, len(said["jobs"])) for status, said in answers} == {(200, 0)}
    assert len({said["retry_after"] for _, said in answers}) == 20


def test_greenlets_wait_by_the_hundred(serve: Serve, store: World, call: Call) -> None:
    """In one process, with few connections to the database; each gets its job."""
    server = serve(GEVENT)
    callers = call(server, *(f"user{number}" for number in range(300)), at_once=True)
    until(lambda: told(server, "/waiting") == 300)
    before = told(server, "/asked")
    with store.session():
        store.jobber.enqueue_many([{"type": "work"}] * 300)
    with concurrent.futures.ThreadPoolExecutor(300) as readers:
        answers = [said["jobs"] for _, said in readers.map(Caller.answer, callers)]
    assert sorted(len(jobs) for jobs in answers) == [1] * 300
    # A claim is one statement on PostgreSQL, four on SQLite, nine on MariaDB, where one that rivals
    # got in the way of looks again; if each job woke everybody, there would be hundreds.
    assert told(server, "/asked") - before < 30 * 300


def test_a_killed_server_leaves_nothing_behind(serve: Serve, store: World, call: Call) -> None:
    """The clients of another go on waiting, and hear."""
    doomed, other = serve(THREADS, JOBBER_IDLE_SECONDS=1), serve(THREADS, JOBBER_IDLE_SECONDS=1)
    call(doomed, "ann")
    [caller] = call(other, "bob")
    doomed.kill()
    job_id = store.enqueue()
    assert [job["id"] for job in caller.answer()[1]["jobs"]] == [job_id]


def test_a_stream_of_events_under_greenlets(serve: Serve, store: World) -> None:
    """It hears of what another process does, and others are answered meanwhile."""
    server = serve(GEVENT, JOBBER_IDLE_SECONDS=1)
    with contextlib.closing(Stream(server.port, "/events", {"Authorization": "Bearer ann"})) as stream:
        job_id = store.enqueue()
        stream.job(job_id, state="queued")
        [job] = Remote(server.port, "bob").claim()
        stream.job(job["id"], state="locked")
