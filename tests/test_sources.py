"""What the database and a server have in common for a worker, by one suite."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import math
import threading
import typing as t

import httpx2
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from werkzeug.serving import make_server

from conftest import ENGINES, MakeWorld
from flask_jobber import ResultRejected
from flask_jobber.client import JobberClient
from flask_jobber.core.payload import RESERVED
from flask_jobber.errors import Invalid
from flask_jobber.worker.crew import Place
from flask_jobber.worker.database import DatabaseSource
from flask_jobber.worker.feed import Supply
from flask_jobber.worker.http import HttpSource
from flask_jobber.worker.job import Job
from flask_jobber.worker.plan import Orders
from flask_jobber.worker.run import Failed, Outcome, Released, Succeeded
from flask_jobber.worker.source import Away, Beat, Refused, Settlement, Source, Told, Unheard, Wish
from flask_jobber.worker.worker import Worker
from race_support import until
from support import PREFIX, World
from tables import renew
from worker_support import handlers, load
from worker_support import quick as quick

NODE = "node-1"
WISH = Wish(10, ("work",))
LIMIT = 20


class Rig:
    """A world, and sources of its jobs for workers of some names."""

    def __init__(self, world: World, login: str, connect: t.Callable[[str], Source]) -> None:
        self.world, self.login, self._connect = world, login, connect
        self.sources: list[Source] = []
        self.source = self.connect(NODE)

    def connect(self, name: str) -> Source:
        self.sources.append(self._connect(name))
        return self.sources[-1]

    def take(self, *types: str, **wish: t.Any) -> list[Job]:
        return self.source.exchange([], [], Wish(**{"limit": 10, "types": types or ("work",)} | wish)).jobs

    def one(self, type: str = "work", **spec: t.Any) -> Job:
        """Enqueue a job and have it claimed."""
        self.world.enqueue(type, **spec)
        [job] = self.take(type)
        return job

    def settle(self, job: Job, outcome: Outcome, source: Source | None = None) -> Told:
        [told] = (source or self.source).exchange([Settlement(job, outcome)], [], None).told
        assert told.job is job
        return told

    def types(self) -> list[str]:
        with self.world.session() as session:
            return sorted(session.scalars(sa.select(self.world.Job.type)))


@contextlib.contextmanager
def served(world: World) -> t.Iterator[str]:
    server = make_server("127.0.0.1", 0, world.app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.port}{PREFIX}"
    server.shutdown()
    thread.join()
    server.server_close()


CONFIG: dict[str, t.Any] = {"JOBBER_TIDY_SECONDS": 0, "JOBBER_BACKOFF": "constant"}


DATABASES = [f"database on {engine}" for engine in ENGINES]
_URLS = {"database on postgresql": "postgres_url", "database on mariadb": "mariadb_url"}


@pytest.fixture(scope="module", params=[*DATABASES, "http"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> t.Iterator[tuple[World, str]]:
    """The database on each engine; a server on one, which is the same app, with its address."""
    url = f"sqlite:///{tmp_path_factory.mktemp('sources')}/test.db"
    if request.param in _URLS:
        url = request.getfixturevalue(_URLS[request.param])
    world = World(url, scoped=False, **CONFIG)
    world.jobber.permission(lambda action, job: True)
    register(world)
    with world.app.app_context():
        renew(world.db)
    with served(world) if request.param == "http" else contextlib.nullcontext("") as address:
        yield world, address
    with world.app.app_context():
        world.db.engine.dispose()


@pytest.fixture
def rig(place: tuple[World, str]) -> t.Iterator[Rig]:
    """A place without any jobs."""
    world, address = place
    with world.session() as session:
        for table in (world.jobber.History.__table__, world.Job.__table__, world.jobber.Queue.__table__):
            session.execute(sa.delete(table))
    rig = make_rig(world, address)
    yield rig
    for source in rig.sources:
        source.close()


def register(world: World) -> None:
    """Have the app look at the results of some types, and keep what it has seen."""
    seen = world.app.extensions["seen"] = []

    @world.jobber.processor("seen")
    def see(job: t.Any, result: t.Any) -> None:
        seen.append((job.id, result, job.extras))

    @world.jobber.processor("rejected")
    def reject(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("It is bad.", then=result)


def make_rig(world: World, address: str = "") -> Rig:
    """Return one for a server, if there is an address."""
    if not address:
        return Rig(world, "worker", lambda name: DatabaseSource(world.app, world.jobber, name))

    def connect(name: str) -> Source:
        return HttpSource(JobberClient(address, auth="robot", node=name, patience=0), name, address)

    return Rig(world, "user_robot", connect)


def failure(**said: t.Any) -> Failed:
    return Failed({"type": "Error", "message": "broke", "traceback": "where"}, **said)


# -- claims -------------------------------------------------------------------------------


def test_jobs_are_handed_out_with_all_there_is_to_know(rig: Rig) -> None:
    """To the worker by its name, as it is held then."""
    before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=60)
    job_id = rig.world.enqueue("work", {"n": [1]}, queue="q", priority=3, max_attempts=4, lease_for=50)
    [job] = rig.take()
    assert (job.id, job.type, job.data, job.queue, job.priority) == (job_id, "work", {"n": [1]}, "q", 3)
    assert (job.attempt, job.failures, job.max_attempts, job.lease_seconds) == (1, 0, 4, 50)
    assert (job.node, job.enqueued_at > before) == (NODE, True)
    assert rig.world.job(job_id).locked_by == f"{rig.login}/{NODE}"
    assert rig.take() == []


def test_what_a_worker_of_the_name_holds(rig: Rig) -> None:
    """After a restart it is found again; no other name has it, and what is done is not held."""
    jobs = [rig.one(), rig.one()]
    rig.settle(jobs[1], Succeeded())
    again = rig.connect(NODE)
    assert [(job.id, job.attempt, job.lease_seconds) for job in again.held()] == [(jobs[0].id, 1, 600)]
    assert rig.connect("node-2").held() == []
    assert rig.settle(jobs[0], Succeeded(), again).code is None
    assert rig.source.held() == []


def test_only_what_is_wished_for_is_handed_out(rig: Rig) -> None:
    """By type, queue, priority and number, the best first."""
    low, high = rig.world.enqueue("work", queue="a"), rig.world.enqueue("work", queue="b", priority=5)
    other, later = rig.world.enqueue("other"), rig.world.enqueue("work", after=600)
    assert [job.id for job in rig.take(limit=1)] == [high]
    assert rig.take(queues=("b", "c")) == rig.take(min_priority=1) == rig.take("none") == []
    assert [job.id for job in rig.take("work", "other", max_priority=0, queues=("a",))] == [low]
    assert [job.id for job in rig.take("work", "other")] == [other]
    assert rig.world.job(later).state == "scheduled"


def test_who_wishes_for_no_type_gets_nothing(rig: Rig) -> None:
    """Its results are taken all the same."""
    job = rig.one()
    rig.world.enqueue()
    answer = rig.source.exchange([Settlement(job, Succeeded())], [], Wish(10, ()))
    assert ([told.code for told in answer.told], answer.jobs) == ([None], [])


def test_a_source_says_when_to_ask_again(rig: Rig) -> None:
    """After a while when there was nothing, at once otherwise."""
    rig.world.enqueue()
    assert rig.source.exchange([], [], WISH).retry_after == 0
    assert 3 < rig.source.exchange([], [], WISH).retry_after < 7


def test_what_waits_is_told_where_it_is_known(rig: Rig) -> None:
    """By the database; a server tells nobody."""
    rig.world.enqueue()
    rig.world.enqueue(queue="q")
    rig.world.enqueue(priority=9)
    rig.world.enqueue(after=600)
    rig.world.enqueue("other")
    is_known = isinstance(rig.source, DatabaseSource)
    assert rig.source.waiting(WISH) == (3 if is_known else None)
    assert rig.source.waiting(Wish(1, ("work",), ("default",), 0, 8)) == (1 if is_known else None)


def test_jobs_for_others_are_left_to_them(rig: Rig) -> None:
    """A node has what is only for it, and not what is not for it."""
    rig.world.enqueue(only_for="node-2")
    rig.world.enqueue(not_for=NODE)
    mine = rig.world.enqueue(only_for=NODE)
    assert [job.id for job in rig.take()] == [mine]


# -- waiting ------------------------------------------------------------------------------


class Ring:
    """Counts how often it was called; a test may wait for it."""

    def __init__(self) -> None:
        self._rung = threading.Semaphore(0)

    def __call__(self) -> None:
        self._rung.release()

    def comes(self) -> bool:
        return self._rung.acquire(timeout=LIMIT)


def listen(rig: Rig) -> Ring:
    ring = Ring()
    rig.source.listen(ring)
    return ring


def test_a_source_that_is_listened_to_rings(rig: Rig) -> None:
    """After a claim that came back empty, and again after the next."""
    ring = listen(rig)
    for _ in range(2):
        assert rig.source.exchange([], [], WISH).retry_after == math.inf
        job_id = rig.world.enqueue()
        assert ring.comes()
        answer = rig.source.exchange([], [], WISH)
        assert [job.id for job in answer.jobs] == [job_id]


def test_heartbeats_and_results_go_on_meanwhile(rig: Rig) -> None:
    """Nothing of them ends the listening."""
    ring = listen(rig)
    job, other = rig.one(), rig.one()
    assert rig.source.exchange([], [], WISH).retry_after == math.inf
    [told, beat] = rig.source.exchange([Settlement(job, Succeeded())], [Beat(other)], None).told
    assert (told.code, beat.code) == (None, None)
    rig.world.enqueue()
    assert ring.comes()


def test_all_there_is_comes_at_the_ring(rig: Rig) -> None:
    """Not only the job for which it was rung, and no more than is wished for."""
    ring = listen(rig)
    rig.take()
    jobs = {rig.world.enqueue() for _ in range(4)}
    assert ring.comes()
    first = {job.id for job in rig.take(limit=3)}
    assert len(first) == 3
    assert first | {job.id for job in rig.take(limit=3)} == jobs


def test_who_rests_holds_nothing(rig: Rig) -> None:
    """What came meanwhile is told, to be given back, and others get what comes."""
    ring = listen(rig)
    rig.take()
    rig.world.enqueue()
    assert ring.comes()
    for job in rig.source.rest():
        assert rig.settle(job, Released()).code is None
    [job] = rig.connect("node-2").exchange([], [], WISH).jobs
    rig.take()
    assert rig.source.rest() == rig.source.rest() == []
    assert rig.source.held() == []


class Gateway:
    """Answers for a server without jobs; ``waits`` is what claims that wait get, in order."""

    def __init__(self, *waits: httpx2.Response) -> None:
        self._waits = list(waits)
        self.asked = threading.Semaphore(0)
        self.ring = Ring()
        transport = httpx2.MockTransport(self._answer)
        client = JobberClient("http://gateway/jobber", node=NODE, patience=0, transport=transport)
        self.source = HttpSource(client, NODE, "gateway")
        self.source.listen(self.ring)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        if "wait_seconds" in json.loads(request.content or b"{}"):
            self.asked.release()
            return self._waits.pop(0)
        empty = {"jobs": [], "outcomes": [], "retry_after": 7.0}
        return httpx2.Response(200, json=empty)

    def claim(self) -> float:
        return self.source.exchange([], [], WISH).retry_after


def test_where_no_wait_is_to_be_had_it_asks_as_told() -> None:
    """After a second failure at once: each is followed by a look at what is held, then it is tried again."""
    gateway = Gateway(*(httpx2.Response(504) for _ in range(3)))
    for _ in range(2):
        assert gateway.claim() == math.inf
        assert gateway.ring.comes()
        with pytest.raises(Unheard, match="504"):
            gateway.claim()
        assert gateway.source.held() == []
    assert gateway.claim() == 7
    assert gateway.claim() == math.inf
    assert gateway.ring.comes()
    gateway.source.close()


def test_a_server_that_does_not_wait_is_asked_as_told() -> None:
    """Not at once again."""
    nothing = {"jobs": [], "retry_after": 60}
    gateway = Gateway(httpx2.Response(200, json=nothing))
    assert gateway.claim() == math.inf
    assert gateway.asked.acquire(timeout=LIMIT)
    gateway.source.close()
    assert not gateway.asked.acquire(timeout=0)


def test_a_client_that_waits_is_stopped_soon(make_world: MakeWorld, sqlite_url: str) -> None:
    """It is not to wait to the end, and holds nothing."""
    world, stop = make_world(sqlite_url, scoped=False, **CONFIG), threading.Event()
    done: list[int] = []
    with served(world) as address, JobberClient(address, auth="robot") as client:
        work = threading.Thread(target=lambda: done.append(client.work({"work": str}, stop=stop)))
        work.start()
        job_id = world.enqueue()
        until(lambda: world.job(job_id).state == "succeeded", "the job's end")
        stop.set()
        work.join(5)
        assert (work.is_alive(), done) == (False, [1])
        assert client.claims() == []


# -- ends ---------------------------------------------------------------------------------


def test_a_result_is_taken_once(rig: Rig) -> None:
    """With its extras, which the app's processor sees; said again it is acknowledged again."""
    job = rig.one("seen")
    outcome = Succeeded({"n": 1}, {"engine": "e"})
    assert rig.settle(job, outcome).code is None
    assert rig.settle(job, outcome).code is None
    assert rig.settle(job, Succeeded({"n": 2})).code == "already_settled"
    row = rig.world.job(job.id)
    assert (row.state, row.result, row.extras) == ("succeeded", {"n": 1}, {"engine": "e"})
    seen = [one for one in rig.world.app.extensions["seen"] if one[0] == job.id]
    assert seen == [(job.id, {"n": 1}, {"engine": "e"})]


def test_failures_are_taken_as_they_are_meant(rig: Rig) -> None:
    """Once more, not sooner than, never again, unwanted; each with its error."""
    jobs = [rig.one() for _ in range(4)]
    kinds = (failure(), failure(retry_seconds=500), failure(permanent=True), failure(cancel=True))
    told = rig.source.exchange([*map(Settlement, jobs, kinds)], [], None).told
    assert [one.code for one in told] == [None] * 4
    rows = [rig.world.job(job.id) for job in jobs]
    assert [row.state for row in rows] == ["scheduled", "scheduled", "failed", "cancelled"]
    assert (rows[1].run_at - rows[0].run_at).total_seconds() > 300
    assert [row.failures for row in rows[:3]] == [1, 1, 1]
    with rig.world.session() as session:
        history = rig.world.jobber.History
        errors = session.scalars(sa.select(history.error).where(history.error.is_not(None))).all()
    assert errors == [{"type": "Error", "message": "broke", "traceback": "where"}] * 4


def test_a_cancelled_job_ends_its_series(rig: Rig) -> None:
    """A failed one does not."""
    first = rig.one(every=60, max_attempts=1)
    assert rig.settle(first, failure()).code is None
    rig.world.pass_time(61)
    [second] = rig.take()
    assert rig.settle(second, failure(cancel=True)).code is None
    rig.world.pass_time(600)
    assert rig.take() == []
    assert len(rig.types()) == 2


def test_a_job_is_given_back(rig: Rig) -> None:
    """At once or for a while; nothing is counted."""
    job, other = rig.one(), rig.one()
    assert rig.settle(job, Released()).code is None
    assert rig.settle(other, Released(60)).code is None
    assert [(again.id, again.attempt, again.failures) for again in rig.take()] == [(job.id, 2, 0)]
    rig.world.pass_time(61)
    assert [(again.id, again.failures) for again in rig.take()] == [(other.id, 0)]


def test_all_is_said_in_one_exchange(rig: Rig) -> None:
    """What is told is in the order of what was said, whatever kind it is; the next jobs come with it."""
    jobs = [rig.one() for _ in range(7)]
    outcomes = (Released(), failure(), Succeeded(1), Released(60), Succeeded(2), failure(permanent=True))
    next_id = rig.world.enqueue("next")
    settled = [*map(Settlement, jobs, outcomes)]
    settled[2] = Settlement(other_than(jobs[2], attempt=9), Succeeded(1))
    answer = rig.source.exchange(settled, [Beat(jobs[6], 0.5)], Wish(1, ("next",)))
    said = [*(one.job for one in settled), jobs[6]]
    assert [one.job for one in answer.told] == said
    assert [one.code for one in answer.told] == [None, None, "not_found", None, None, None, None]
    assert [job.id for job in answer.jobs] == [next_id]
    states = [rig.world.job(job.id).state for job in jobs]
    assert states == ["queued", "scheduled", "locked", "scheduled", "succeeded", "failed", "locked"]


def other_than(job: Job, **changes: t.Any) -> Job:
    return dataclasses.replace(job, **changes)


# -- heartbeats ---------------------------------------------------------------------------


def test_a_heartbeat_renews_a_lease(rig: Rig) -> None:
    """For as long as it was; progress is kept."""
    job = rig.one(lease_for=100)
    rig.world.pass_time(60)
    [told] = rig.source.exchange([], [Beat(job, 0.5, "half way")], None).told
    assert (told.job, told.code, told.lease_seconds) == (job, None, 100)
    rig.world.pass_time(60)
    assert rig.connect("node-2").exchange([], [], WISH).jobs == []
    row = rig.world.job(job.id)
    assert (row.progress, row.note) == (0.5, "half way")
    [told] = rig.source.exchange([], [Beat(job)], None).told
    assert (told.code, rig.world.job(job.id).progress) == (None, 0.5)


def test_who_lost_a_job_is_told(rig: Rig) -> None:
    """That it was cancelled, or given to another; what was done of it is not taken."""
    cancelled, lapsed, unknown = rig.one(), rig.one(lease_for=10), other_than(rig.one(), id=10**6)
    with rig.world.session():
        rig.world.jobber.cancel(cancelled.id)
    rig.world.pass_time(11)
    [again] = rig.connect("node-2").exchange([], [], WISH).jobs
    assert (again.id, again.attempt) == (lapsed.id, 2)
    jobs = [cancelled, lapsed, unknown]
    codes = ["cancelled", "lease_lost", "not_found"]
    beats = rig.source.exchange([], [Beat(job) for job in jobs], None).told
    assert [(told.code, told.held) for told in beats] == [(code, False) for code in codes]
    for outcome in (Succeeded(1), failure(), Released()):
        told = [rig.settle(job, outcome) for job in jobs]
        assert [(one.code, one.held) for one in told] == [(code, False) for code in codes]
    assert rig.world.job(lapsed.id).state == "locked"


def test_a_late_result_is_not_thrown_away(rig: Rig) -> None:
    """Until another has the job."""
    job = rig.one(lease_for=10)
    rig.world.pass_time(11)
    assert rig.settle(job, Succeeded(1)).code is None


# -- refusals -----------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["correct", "release", "exclude"])
def test_the_app_may_reject_a_result(rig: Rig, then: t.Any) -> None:
    """It is still held when it is to be corrected."""
    job = rig.one("rejected")
    told = rig.settle(job, Succeeded(then))
    assert (told.code, told.held) == ("result_rejected", then == "correct")
    assert "It is bad." in told.detail
    assert rig.world.job(job.id).state == ("locked" if then == "correct" else "scheduled")


@pytest.mark.parametrize(
    "outcome",
    [
        Succeeded(float("nan")),
        Succeeded({1, 2}),
        Succeeded(1, {"x": object()}),
        Succeeded("x" * 1_100_000),
        Succeeded("\ud800"),
        Released(10**8),
    ],
    ids=["nan", "set", "extras", "large", "surrogate", "far"],
)
def test_what_cannot_be_kept_is_refused_alone(rig: Rig, outcome: t.Any) -> None:
    """The job is still held; what was said beside it is done."""
    bad, fine = rig.one(), rig.one()
    told = rig.source.exchange([Settlement(bad, outcome), Settlement(fine, Succeeded())], [], None).told
    assert [one.job for one in told] == [bad, fine]
    assert (told[0].code in ("invalid", "too_large"), told[0].held) == (True, True)
    assert told[1].code is None
    assert [rig.world.job(job.id).state for job in (bad, fine)] == ["locked", "succeeded"]
    assert rig.settle(bad, failure()).code is None


def test_a_heartbeat_that_is_no_good_spoils_nothing(rig: Rig) -> None:
    """The job is held as before."""
    jobs = [rig.one(), rig.one()]
    told = rig.source.exchange([], [Beat(jobs[0], 0.5, "x\0"), Beat(jobs[1])], None).told
    assert [(one.code, one.lease_seconds) for one in told] == [("invalid", None), (None, 600)]
    assert rig.settle(jobs[0], Succeeded()).code is None


# -- jobs that a handler adds -------------------------------------------------------------


def test_what_a_handler_adds_comes_with_its_result(rig: Rig) -> None:
    """Once, also when the result is said again since its acknowledgement was lost."""
    job = rig.one()
    specs = (
        {"type": "index", "data": {"id": 5}, "only_for": "node-2"},
        {"type": "later", "data": None, "after": dt.timedelta(seconds=60), "priority": 3, "queue": "q"},
    )
    outcome = Succeeded(1, enqueued=specs)
    assert rig.settle(job, outcome).code is None
    assert rig.types() == ["index", "later", "work"]
    [index] = rig.connect("node-2").exchange([], [], Wish(10, ("index", "later"))).jobs
    assert index.data == {"id": 5}
    rig.world.pass_time(61)
    [later] = rig.take("later")
    assert (later.priority, later.queue) == (3, "q")


@pytest.mark.parametrize("place", DATABASES, indirect=True)
def test_what_a_handler_adds_comes_once(rig: Rig) -> None:
    """Though the acknowledgement of the commit is lost, and the result is said again."""
    world, job = rig.world, rig.one()
    outcome = Succeeded(1, enqueued=({"type": "index", "data": None},))
    commit, calls = world.db.session.commit, list[int]()

    def lose() -> None:
        commit()
        calls.append(1)
        raise OperationalError(
            "COMMIT", None, Exception("server closed the connection"), connection_invalidated=True
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.db.session, "commit", lose, raising=False)
        with pytest.raises(Away):
            rig.settle(job, outcome)
    assert calls == [1]
    assert rig.settle(job, outcome).code is None
    assert rig.types() == ["index", "work"]


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "no name"},
        {"type": "x", "prio": 1},
        {"type": "x", "data": object()},
        {"type": f"{RESERVED}x"},
    ],
    ids=["name", "keyword", "data", "reserved"],
)
def test_a_job_that_is_refused_keeps_its_result_back(rig: Rig, spec: dict[str, t.Any]) -> None:
    """Neither comes into being; the job is still held, and can fail."""
    job = rig.one()
    told = rig.settle(job, Succeeded(1, enqueued=({"data": None, **spec},)))
    assert (told.code, told.held) == ("invalid", True)
    assert rig.types() == ["work"]
    assert rig.world.job(job.id).state == "locked"
    assert rig.settle(job, failure()).code is None


def test_a_taken_key_keeps_a_result_back(rig: Rig) -> None:
    """The one that has it is not over."""
    rig.world.enqueue("index", unique_key="k")
    job = rig.one()
    spec = {"type": "index", "data": None, "unique_key": "k"}
    told = rig.settle(job, Succeeded(1, enqueued=(spec,)))
    assert (told.code, told.held) == ("duplicate", True)
    assert rig.types() == ["index", "work"]


def test_a_full_queue_keeps_a_result_back(rig: Rig) -> None:
    """That is a failure of this job, not an absence of the source: it may be this worker that makes room."""
    with rig.world.session():
        rig.world.jobber.queues.create("index", capacity=1)
    rig.world.enqueue("index", queue="index")
    job, fine, running = rig.one(), rig.one(), rig.one()
    spec = {"type": "index", "data": None, "queue": "index"}
    full = Settlement(job, Succeeded(1, enqueued=(spec,)))
    told = rig.source.exchange([full, Settlement(fine, Succeeded())], [Beat(running)], None).told
    assert [(one.code, one.held) for one in told] == [("queue_full", True), (None, False), (None, False)]
    assert rig.types() == ["index", "work", "work", "work"]

    [there] = rig.take("index")
    assert rig.settle(there, Succeeded()).code is None
    assert rig.settle(job, Succeeded(1, enqueued=(spec,))).code is None
    assert rig.types() == ["index", "index", "work", "work", "work"]


@pytest.mark.parametrize("place", DATABASES[1:], indirect=True)
def test_a_column_of_the_apps_own_may_refuse_a_job(rig: Rig) -> None:
    """That is the handler's failure, not the worker's end."""
    job, fine = rig.one(), rig.one()
    spec = {"type": "index", "data": None, "user_id": "x" * 100}
    bad = Settlement(job, Succeeded(1, enqueued=(spec,)))
    told = rig.source.exchange([bad, Settlement(fine, Succeeded())], [], None).told
    assert [(one.code, one.held) for one in told] == [("invalid", True), (None, False)]
    assert rig.types() == ["work", "work"]
    assert rig.settle(job, failure()).code is None


# -- a source that is away, or refuses ----------------------------------------------------


def test_a_database_that_is_away_is_away(lite: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the worker's end; anything else is."""
    source = DatabaseSource(lite.app, lite.jobber, NODE)

    def break_(*args: t.Any) -> None:
        raise error

    monkeypatch.setattr(lite.db.session, "commit", break_, raising=False)
    error: Exception = OperationalError("x", None, Exception("gone"), connection_invalidated=True)
    with pytest.raises(Away, match="busy or away"):
        source.held()
    error = sa.exc.ProgrammingError("x", None, Exception("no such table"))
    with pytest.raises(sa.exc.ProgrammingError):
        source.held()


def test_a_server_that_is_away_is_away() -> None:
    """Nobody listens there."""
    client = JobberClient("http://127.0.0.1:1/jobber", auth="robot", node=NODE, patience=0)
    source = HttpSource(client, NODE, "nowhere")
    for call in (source.held, lambda: source.exchange([], [], WISH)):
        with pytest.raises(Away):
            call()
    source.close()


def test_a_server_may_refuse_a_worker(make_world: MakeWorld, sqlite_url: str) -> None:
    """Who is not logged in, whose address is wrong, or who wants more than it gives."""
    world = make_world(sqlite_url, scoped=False, **CONFIG, JOBBER_MAX_CLAIM=5)
    with served(world) as address:
        for url, token in ((address, None), (f"{address}/x", "robot")):
            source = HttpSource(JobberClient(url, auth=token, node=NODE, patience=0), NODE, url)
            with pytest.raises(Refused):
                source.held()
            source.close()
        rig = make_rig(world, address)
        rig.world.enqueue()
        with pytest.raises(Refused, match="limit"):
            rig.take(limit=6)
        assert len(rig.take(limit=5)) == 1
        rig.source.close()


# -- end to end ---------------------------------------------------------------------------


def test_the_same_handlers_run_on_both(rig: Rig) -> None:
    """In threads, on the loop and in processes, with all that they may say."""
    kinds = ("thread", "loop", "process")
    ids = {
        (kind, said): rig.world.enqueue(kind, said, max_attempts=1)
        for kind in kinds
        for said in ("fine", "fail", "cancel", "snooze", "break")
    }
    supply = Supply(rig.connect(NODE), handlers, Place(loader=load))
    worker = Worker([supply], Orders(burst=True, concurrency=3))
    assert worker.run() == 0
    states = {key: rig.world.job(job_id).state for key, job_id in ids.items()}
    ends = {
        "fine": "succeeded", "fail": "failed", "cancel": "cancelled", "snooze": "scheduled", "break": "failed"
    }  # fmt: skip
    assert states == {(kind, said): ends[said] for kind in kinds for said in ends}
    fine = rig.world.job(ids["process", "fine"])
    assert (fine.result, fine.extras) == (
        {"is": "fine", "noted": True},
        {"seen": ["handler", "callback"]},
    )
    assert rig.types().count("index") == 3


def test_what_a_handler_adds_beside_its_job_is_in_its_batch(rig: Rig) -> None:
    """Which cannot end before it is there."""
    with rig.world.session(), rig.world.jobber.batch("several") as batch:
        batch.enqueue("work")
    [job] = rig.take()
    job.enqueue("work", 2, beside=job)
    job.enqueue("alone")
    assert rig.settle(job, Succeeded(None, {}, job.enqueued)).code is None
    [added, alone] = rig.take("work", "alone")
    assert (added.data, added.type, alone.type) == (2, "work", "alone")
    assert rig.world.job(batch.id).state == "blocked"
    assert rig.settle(added, Succeeded(None, {}, [])).code is None
    assert rig.world.job(batch.id).state == "submitted"


@pytest.mark.parametrize(
    "wish", [{"min_priority": 5, "max_priority": 1}, {"min_priority": 2**40}, {"queues": ()}]
)
def test_a_worker_that_wants_nonsense_is_told(lite: World, wish: dict[str, t.Any]) -> None:
    """Instead of finding nothing, for ever."""
    source = DatabaseSource(lite.app, lite.jobber, NODE)
    with pytest.raises(Invalid):
        source.exchange([], [], dataclasses.replace(WISH, **wish))
    with pytest.raises(Invalid):
        DatabaseSource(lite.app, lite.jobber, "no name\n/").exchange([], [], WISH)
