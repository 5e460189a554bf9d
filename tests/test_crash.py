"""Nothing that was acknowledged is lost: servers are killed under load, and databases go away."""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
import typing as t

import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from conftest import MakeWorld
from race_support import LIMIT, ask_until, engine_of, kill_connections, start, until, watching
from served import Remote, Server, Unacknowledged, make_served
from support import Client, World, load_user
from tables import renew
from wire import wire_to

# -- kill -9 -----------------------------------------------------------------------------------


class Ledger:
    """What clients were told."""

    def __init__(self) -> None:
        self.enqueued: dict[int, int] = {}
        self.claimed: set[tuple[int, int, str]] = set()
        self.delivered: dict[int, tuple[str, dict[str, int]]] = {}
        self.in_doubt: list[Unacknowledged] = []

    @property
    def size(self) -> int:
        return len(self.enqueued) + len(self.claimed) + len(self.delivered)


def _work(port: int, number: int, ledger: Ledger, stop: threading.Event) -> None:
    """Enqueue, claim and deliver until told to stop, whatever happens to the server."""
    remote, user = Remote(port, f"u{number}"), f"user_u{number}"
    numbers, held = itertools.count(1000 * number), list[dict[str, t.Any]]()
    while not stop.is_set():
        try:
            n = next(numbers)
            job = remote.expect(201, "POST", "/jobs", {"type": "work", "data": {"n": n}})
            ledger.enqueued[job["id"]] = n
            for job in remote.claim(limit=2):
                ledger.claimed.add((job["id"], job["attempt"], user))
            # Those of an answer that was lost are among them.
            held = remote.expect(200, "GET", "/claims")["jobs"]
            for job in held:
                result = {"n": job["data"]["n"], "by": number}
                status, answer = remote.ask("PUT", f"{job['href']}/result", {"result": result})
                assert status in (200, 202), answer
                ledger.delivered[job["id"]] = (user, result)
        except Unacknowledged as lost:
            ledger.in_doubt.append(lost)


def test_nothing_acknowledged_is_lost_when_servers_are_killed(db_url: str) -> None:
    """Jobs, hand-outs and results that clients were told of are there, and each effect is there once."""
    world, effects = make_served(db_url)
    with world.app.app_context():
        renew(world.db)
    ledger, stop, server = Ledger(), threading.Event(), Server(db_url)
    try:
        _serve_and_kill(server, ledger, stop)
    finally:
        stop.set()
        server.close()
    assert ledger.in_doubt, "nobody was asking when it was killed"
    _check_jobs(world, ledger)
    _check_hand_outs(world, ledger)
    _check_effects(world, effects)
    world.pass_time(3600)
    with world.app.app_context():
        assert world.jobber.process_submitted(1000) > 0
    _check_effects(world, effects)
    engine_of(world).dispose()


def _serve_and_kill(server: Server, ledger: Ledger, stop: threading.Event, kills: int = 3) -> None:
    workers = [start(lambda n=n: _work(server.port, n, ledger, stop)) for n in range(6)]  # type: ignore[misc]
    for turn in range(kills + 1):
        enough = ledger.size + 60
        server.start()
        until(lambda: ledger.size >= enough or any(w.done() for w in workers), "enough work")  # noqa: B023
        if turn < kills:
            server.kill()
    stop.set()
    for worker in workers:
        worker.result(LIMIT)


def _check_jobs(world: World, ledger: Ledger) -> None:
    with world.session() as session:
        jobs = {job.id: job for job in session.scalars(sa.select(world.Job))}
        assert {job_id: jobs[job_id].data["n"] for job_id in ledger.enqueued} == ledger.enqueued
        states = collections.Counter(jobs[job_id].state for job_id in ledger.delivered)
        assert states.keys() == {"succeeded", "submitted"}
        stored = {job_id: (jobs[job_id].locked_by, jobs[job_id].result) for job_id in ledger.delivered}
        assert stored == ledger.delivered


def _check_hand_outs(world: World, ledger: Ledger) -> None:
    h = world.jobber.History
    with world.session() as session:
        claims = sa.select(h.job_id, h.attempt, h.locker).where(h.to_state == "locked")
        rows = [tuple(row) for row in session.execute(claims)]
        jobs = sa.select(world.Job.id, world.Job.attempts)
        attempts = {row.id: row.attempts for row in session.execute(jobs)}
    assert ledger.claimed <= set(rows)
    numbers = collections.defaultdict[int, list[int]](list)
    for job_id, attempt, _ in sorted(rows):
        numbers[job_id].append(attempt)
    assert numbers == {job_id: list(range(1, last + 1)) for job_id, last in attempts.items() if last}


def _check_effects(world: World, effects: sa.Table) -> None:
    """Check that what processors wrote is what the jobs say, each once."""
    with world.session() as session:
        succeeded = session.scalars(sa.select(world.Job).where(world.Job.state == "succeeded"))
        expected = sorted((job.id, str(job.result["n"])) for job in succeeded)
        written = session.execute(sa.select(effects.c.job_id, effects.c.result))
        assert sorted(tuple(row) for row in written) == expected


# -- the database goes away --------------------------------------------------------------------

Away = t.Callable[[], contextlib.AbstractContextManager[object]]


class Shaky(t.NamedTuple):
    """A world whose database can be away for a while."""

    world: World
    away: Away


@pytest.fixture
def shaky(make_world: MakeWorld, db_url: str) -> t.Iterator[Shaky]:
    url = sa.make_url(db_url)
    if url.get_backend_name() == "sqlite":
        yield Shaky(make_world(f"{db_url}?timeout=0.05"), lambda: _locked(db_url))
        return
    with wire_to(db_url) as wire:
        yield Shaky(make_world(wire.url), wire.cut)


@contextlib.contextmanager
def _locked(url: str) -> t.Iterator[None]:
    """Hold SQLite's lock that keeps out readers too."""
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        yield
        connection.exec_driver_sql("ROLLBACK")


def _assert_busy(answer: TestResponse) -> None:
    assert (answer.status_code, answer.mimetype) == (503, "application/problem+json"), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    body = answer.json or {}
    assert (body["code"], body["retryable"]) == ("busy", True)


def _item(job: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {"id": job["id"], "attempt": job["attempt"], "result": 1}


def _calls(client: Client, job: t.Mapping[str, t.Any]) -> list[t.Callable[[], TestResponse]]:
    return [
        lambda: client.post("/claims"),
        lambda: client.get("/claims"),
        lambda: client.get(job["href"]),
        lambda: client.extend(job),
        lambda: client.deliver(job, 1),
        lambda: client.fail(job),
        lambda: client.release(job),
        lambda: client.post("/exchange", {"results": [_item(job)], "claim": {}}),
        lambda: client.get("/jobs"),
        lambda: client.get(f"/jobs/{job['id']}"),
        lambda: client.get(f"/jobs/{job['id']}/history"),
        lambda: client.post("/jobs", {"type": "work"}),
        lambda: client.post("/jobs", {"type": "work", "unique_key": "key"}),
        lambda: client.post(f"/jobs/{job['id']}/cancel"),
        lambda: client.post(f"/jobs/{job['id']}/retry"),
    ]


def test_while_the_database_is_away_every_call_is_told_to_come_again(shaky: Shaky) -> None:
    """503 busy, not an accident; when it is back, all is as it was and the same call goes well."""
    world, root = shaky.world, shaky.world.client("root")
    world.enqueue()
    [job] = root.claim()
    before = world.history(job["id"])
    with shaky.away():
        for call in _calls(root, job):
            _assert_busy(call())
    assert world.history(job["id"]) == before
    assert root.deliver(job, 1).status_code == 200


def test_a_login_that_needs_the_database_is_told_to_come_again_too(shaky: Shaky) -> None:
    """The user loader fails before any view runs; a path that is not there is no exception either."""
    world = shaky.world

    def look_up(request: t.Any) -> t.Any:
        world.db.session.execute(sa.select(world.Job.id).limit(1))
        return load_user(request)

    login = t.cast(t.Any, world.app).login_manager
    login.request_loader(look_up)
    client = world.client()
    missing: list[t.Callable[[], TestResponse]] = [
        lambda: client.get("/nothing"),
        lambda: client.delete("/claims"),
    ]
    with shaky.away():
        for call in [*_calls(client, {"id": 1, "attempt": 1, "href": "/jobs/1/attempts/1"}), *missing]:
            _assert_busy(call())
        assert client.get("/openapi.json").status_code == 200
    assert client.get("/claims").status_code == 200
    assert client.get("/nothing").status_code == 404


def test_a_login_by_cookie_is_not_lost_while_the_database_is_away(shaky: Shaky) -> None:
    """Nobody is told to log in because his login could not be looked up."""
    world = shaky.world

    def look_up(user_id: str) -> t.Any:
        world.db.session.execute(sa.select(world.Job.id).limit(1))
        return load_user(_Bearer(user_id))

    login = t.cast(t.Any, world.app).login_manager
    login.user_loader(look_up)
    browser = world.app.test_client()
    with browser.session_transaction() as session:
        session["_user_id"] = "ann"
    client = Client(browser, None)
    with shaky.away():
        _assert_busy(client.get("/claims"))
    assert client.get("/claims").status_code == 200


class _Bearer:
    def __init__(self, token: str) -> None:
        self.headers = {"Authorization": f"Bearer {token}"}


@pytest.fixture(params=["postgresql", "mariadb"])
def server_url(request: pytest.FixtureRequest) -> str:
    fixture = {"postgresql": "postgres_url", "mariadb": "mariadb_url"}[request.param]
    return t.cast(str, request.getfixturevalue(fixture))


@pytest.mark.parametrize("moment", ["lock", "commit"])
def test_a_connection_that_breaks_in_a_claim_hands_out_nothing(
    make_world: MakeWorld, server_url: str, moment: str
) -> None:
    """Whether at its statement or at its commit: busy, and the job is as it was."""
    with wire_to(server_url) as wire:
        world = make_world(wire.url)
        job_id, client = world.enqueue(), world.client()
        cuts: list[str] = []

        def cut(*facts: t.Any) -> None:
            if not cuts and (moment == "commit" or "FOR UPDATE" in facts[2]):
                cuts.append(moment)
                wire.close()

        sa.event.listen(engine_of(world), "commit" if moment == "commit" else "before_cursor_execute", cut)
        _assert_busy(client.post("/claims"))
        _assert_busy(client.post("/claims"))
        assert cuts == [moment]
        wire.mend()
        # The server may need a moment to hear that nobody is there to commit.
        claimed = ask_until(bool, client.claim, "the job")
        assert [(job["id"], job["attempt"]) for job in claimed] == [(job_id, 1)]
        assert [reason for *_, reason in world.history(job_id)] == ["enqueue", "claim"]


def test_connections_that_are_ended_while_idle_cost_one_answer(
    make_world: MakeWorld, server_url: str
) -> None:
    """Those in the pool are dead: the first request is told to come again, the second goes well."""
    world = make_world(server_url)
    world.enqueue()
    client = world.client()
    assert client.get("/claims").status_code == 200
    kill_connections(world)
    _assert_busy(client.post("/claims"))
    assert len(client.claim()) == 1


def test_a_request_that_is_ended_while_it_waits_is_told_to_come_again(
    make_world: MakeWorld, server_url: str
) -> None:
    """An administrator ends connections of which one waits for a lock: 503, and nothing is changed."""
    world = make_world(server_url)
    world.enqueue()
    client = world.client()
    [job] = client.claim()
    rival = sa.create_engine(server_url, poolclass=sa.NullPool)
    with watching(world) as watch, rival.connect() as connection:
        connection.execute(sa.select(world.Job.id).with_for_update())
        delivery = start(lambda: client.deliver(job, 1))
        watch.until_waits(delivery)
        kill_connections(world)
        _assert_busy(delivery.result(LIMIT))
        connection.invalidate()
    assert client.deliver(job, 1).status_code == 200


#: How long a lock is waited for.
_SHORT = {
    "postgresql": {"options": "-c lock_timeout=100"},
    "mariadb": {"init_command": "SET innodb_lock_wait_timeout=1"},
}


def test_a_lock_that_is_not_given_in_time_is_no_accident(
    make_world: MakeWorld, server_url: str, request: pytest.FixtureRequest
) -> None:
    """The row is locked by someone who takes longer than the database lets others wait."""
    short = _SHORT[request.node.callspec.params["server_url"]]
    world = make_world(server_url, SQLALCHEMY_ENGINE_OPTIONS={"connect_args": short})
    world.enqueue()
    client = world.client()
    [job] = client.claim()
    with world.session() as session:
        session.execute(sa.select(world.Job.id).with_for_update())
        _assert_busy(start(lambda: client.deliver(job, 1)).result(LIMIT))
        _assert_busy(start(lambda: client.post("/exchange", {"results": [_item(job)]})).result(LIMIT))
    assert client.deliver(job, 1).status_code == 200
