"""Claimers that meet, holders that are late, operators at once: on every engine one of them wins."""

from __future__ import annotations

import collections
import concurrent.futures
import datetime as dt
import functools
import multiprocessing
import pathlib
import threading
import typing as t

import pytest
import sqlalchemy as sa
from werkzeug.test import TestResponse

from conftest import ENGINES, MakeWorld
from flask_jobber import Constant, DuplicateJob, ResultRejected
from race_support import (
    LIMIT,
    Answer,
    add_effects,
    ask_until,
    compete,
    drain,
    drain_in_process,
    engine_of,
    on_sqlite,
    paused,
    server_claimer,
    start,
    together,
    until,
    watching,
)
from support import Client, World
from tables import drop

RESULT = {"n": 1}
ERROR = {"type": "Error", "message": "broke"}
USERS = ("ann", "bob", "cat")


@pytest.fixture(scope="module")
def arenas() -> t.Iterator[dict[str, World]]:
    """Worlds by engine, each for many tests: making tables takes longer than most of these."""
    worlds: dict[str, World] = {}
    yield worlds
    for world in worlds.values():
        engine_of(world).dispose()


@pytest.fixture(params=ENGINES)
def arena(
    request: pytest.FixtureRequest, arenas: dict[str, World], tmp_path_factory: pytest.TempPathFactory
) -> World:
    """A world on each engine, with nothing in its tables, for tests that register nothing."""
    if request.param not in arenas:
        servers = {"postgresql": "postgres_url", "mariadb": "mariadb_url"}
        file = tmp_path_factory.mktemp("arena") / "test.db"
        known = request.param in servers
        url = request.getfixturevalue(servers[request.param]) if known else f"sqlite:///{file}"
        arenas[request.param] = World(url)
        drop(engine_of(arenas[request.param]))
    world = arenas[request.param]
    with world.session() as session:
        world.db.create_all()
        for model in (world.Job, world.jobber.History):
            session.execute(sa.delete(model))
    return world


# -- many claim at once ------------------------------------------------------------------------


def fill(world: World, each: int, users: t.Sequence[str | None] = (None,)) -> dict[str | None, set[int]]:
    """Make so many lapsed, so many due and so many queued jobs of each user; return their ids."""
    jobber = world.jobber
    with world.session():
        specs: list[dict[str, t.Any]] = [
            {"type": "work", "user_id": user, "priority": number % 3}
            for number in range(each)
            for user in users
        ]
        made = jobber.enqueue_many(specs)
        while jobber.claim("user_old", limit=50, lease_seconds=1):
            pass
        made += jobber.enqueue_many([{**spec, "after": 1} for spec in specs])
    world.pass_time(60)
    ids: dict[str | None, set[int]] = {user: set() for user in users}
    with world.session() as session:
        jobber.enqueue_many(specs)
        for job in session.execute(sa.select(world.Job.id, world.Job.user_id)):
            ids[job.user_id].add(job.id)
    assert all(len(mine) == 3 * each for mine in ids.values())
    return ids


def check(answers: t.Iterable[Answer], jobs: set[int]) -> None:
    """Check that each job was handed out once, and that none was free when a claimer heard of none."""
    answers = list(answers)
    handed_out = collections.Counter(job_id for answer in answers for job_id, _ in answer.jobs)
    assert set(handed_out.values()) == {1}, "handed out twice"
    assert set(handed_out) == jobs, "left over"
    for told_none in (answer for answer in answers if not answer.jobs):
        # Nobody who got the others had even asked: they were free all the time.
        perhaps_gone = sum(len(answer.jobs) for answer in answers if answer.began < told_none.ended)
        assert perhaps_gone == len(jobs), f"{len(jobs) - perhaps_gone} jobs were free"


def http_claimer(client: Client, limit: int) -> t.Callable[[], list[tuple[int, int]]]:
    return lambda: [(job["id"], job["attempt"]) for job in client.claim(limit=limit)]


def test_threads_of_several_users_share_out_the_jobs_over_http(arena: World) -> None:
    """Each gets jobs of its own scope only, none twice, and is never told "none" while there are some."""
    ids = fill(arena, 20, USERS)
    clients = [(user, arena.client(user, f"node-{limit}"), limit) for user in USERS for limit in (1, 1, 4)]
    drains = [functools.partial(drain, http_claimer(client, limit)) for _, client, limit in clients]
    answers = together(len(clients), lambda number: drains[number]())
    for user in USERS:
        mine = [a for (owner, *_), some in zip(clients, answers, strict=True) if owner == user for a in some]
        check(mine, ids[user])


def test_threads_of_server_code_share_out_the_jobs(arena: World) -> None:
    """The verb is as good as the request, with and without a limit over 1."""
    ids = fill(arena, 40)
    claimers = [server_claimer(arena, f"user_{number}", limit) for number, limit in enumerate((1, 7) * 4)]
    answers = together(len(claimers), lambda number: drain(claimers[number]))
    check([answer for some in answers for answer in some], ids[None])


@pytest.fixture(scope="module")
def processes() -> t.Iterator[concurrent.futures.Executor]:
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(3, mp_context=spawn) as pool:
        yield pool


def test_processes_share_out_the_jobs(
    arena: World, processes: concurrent.futures.Executor, tmp_path: pathlib.Path
) -> None:
    """What makes a claim atomic is the database, not a lock in one process."""
    ids = fill(arena, 40)
    url = engine_of(arena).url.render_as_string(hide_password=False)
    meeting = tmp_path / "meeting"
    meeting.mkdir()
    tasks = [processes.submit(drain_in_process, url, str(meeting), f"p{n}") for n in range(3)]
    until(lambda: len(list(meeting.iterdir())) == 3 or any(task.done() for task in tasks), "the processes")
    (meeting / "go").touch()
    check([answer for task in tasks for answer in task.result(2 * LIMIT)], ids[None])


@pytest.mark.parametrize("limit", [1, 10, 50])
def test_an_open_claim_hides_only_the_jobs_it_took(arena: World, limit: int) -> None:
    """Nor does its writer wait for others, whatever the part of a small table that it takes."""
    with arena.session():
        arena.jobber.enqueue_many([{"type": "work"}] * 60)
    rest = compete(
        arena,
        lambda: arena.jobber.claim("user_ann", limit=limit),
        lambda: arena.client("bob").claim(limit=60),
        waits=False,
    )
    assert len(rest) == 60 - limit


def test_a_claim_looks_past_all_that_rivals_took_while_it_looked(arena: World) -> None:
    """All it saw was locked by one who commits before it looks again; the jobs behind are still free."""
    with arena.session():
        arena.jobber.enqueue_many([{"type": "work"}] * 60)
    looks: list[str] = []

    def comes_after_a_look(statement: str) -> bool:
        if threading.current_thread() is threading.main_thread():
            return False
        looks.append(statement)
        return "SKIP LOCKED" in "".join(looks[:-1])

    with paused(engine_of(arena), comes_after_a_look) as pause, watching(arena) as watch:
        with arena.session():
            arena.jobber.claim("user_ann", limit=50)
            task = start(arena.client("bob").claim)
            until(lambda: task.done() or pause.reached.is_set() or watch.sees_a_waiter(), "a second look")
        pause.go.set()
        assert len(task.result(LIMIT)) == 1


# -- one after another -------------------------------------------------------------------------


def _say(response: TestResponse) -> str:
    """Return an answer in short: the status, and the code or the state."""
    body = response.json if response.data else None
    word = body and (body.get("code") or body.get("state"))
    return f"{response.status_code} {word}" if word else str(response.status_code)


def _as_server(world: World, job_id: int) -> dict[str, t.Callable[[], object]]:
    """Return what can be done to a job that ann holds, as server code in an open transaction."""
    jobber, held = world.jobber, ("user_ann", job_id, 1)
    return {
        "claim": lambda: jobber.claim("user_bob"),
        "deliver": lambda: jobber.deliver(*held, RESULT),
        "fail": lambda: jobber.fail(*held, ERROR),
        "extend": lambda: jobber.extend(*held, lease_seconds=600),
        "release": lambda: jobber.release(*held),
        "cancel": lambda: jobber.cancel(job_id),
        "retry": lambda: jobber.retry(job_id),
        "expire": lambda: jobber.expire(),
        "prune": lambda: jobber.prune(older_than=dt.timedelta()),
    }


def _as_client(world: World, job_id: int) -> dict[str, t.Callable[[], str]]:
    """Return the same over HTTP, by ann, who may not know that it is too late, bob and root."""
    ann, bob, root = (world.client(user) for user in ("ann", "bob", "root"))
    job = {"href": f"/jobs/{job_id}/attempts/1"}

    def tidy(verb: t.Callable[..., int], **how: t.Any) -> str:
        with world.session():
            return f"{verb(**how)} jobs"

    return {
        "claim": lambda: f"{len(bob.claim())} jobs",
        "deliver": lambda: _say(ann.deliver(job, RESULT)),
        "deliver another": lambda: _say(ann.deliver(job, "another")),
        "fail": lambda: _say(ann.put(f"{job['href']}/failure", {"error": ERROR})),
        "extend": lambda: _say(ann.extend(job)),
        "release": lambda: _say(ann.release(job)),
        "cancel": lambda: _say(root.post(f"/jobs/{job_id}/cancel")),
        "retry": lambda: _say(root.post(f"/jobs/{job_id}/retry")),
        "expire": lambda: tidy(world.jobber.expire),
        "prune": lambda: tidy(world.jobber.prune, older_than=dt.timedelta()),
    }


#: What looks past a row that is locked, instead of waiting for it.
_SKIPS = ("claim", "expire", "prune")
#: Who comes first, who second, what the second is told; then the job's state and failures.
Meeting = tuple[str, str, str, str, int]


def _meet(world: World, job_id: int, meeting: Meeting) -> None:
    first, second, told, state, failures = meeting
    with world.session():
        before = world.job(job_id).failures
    loser = _as_client(world, job_id)[second]
    assert compete(world, _as_server(world, job_id)[first], loser, waits=second not in _SKIPS) == told
    if state == "gone":
        assert world.history(job_id) == []
        return
    job, history = world.job(job_id), world.history(job_id)
    assert (job.state, job.failures) == (state, failures), before
    assert [to for _, to, _ in history[:-1]] == [was for was, _, _ in history[1:]], history


def _lapsed(world: World, **spec: t.Any) -> int:
    """Return a job whose holder, ann, is late."""
    job_id = world.enqueue(**spec)
    with world.session():
        assert [job.id for job in world.jobber.claim("user_ann", lease_seconds=1)] == [job_id]
    world.pass_time(60)
    return job_id


_LATE: list[Meeting] = [
    ("claim", "deliver", "409 lease_lost", "locked", 1),
    ("claim", "fail", "409 lease_lost", "locked", 1),
    ("claim", "extend", "409 lease_lost", "locked", 1),
    ("claim", "release", "409 lease_lost", "locked", 1),
    ("claim", "cancel", "200 cancelled", "cancelled", 1),
    ("claim", "claim", "0 jobs", "locked", 1),
    ("deliver", "claim", "0 jobs", "succeeded", 0),
    ("deliver", "deliver", "200 succeeded", "succeeded", 0),
    ("deliver", "deliver another", "409 already_settled", "succeeded", 0),
    ("deliver", "fail", "409 already_settled", "succeeded", 0),
    ("deliver", "release", "409 already_settled", "succeeded", 0),
    ("deliver", "cancel", "409 illegal_transition", "succeeded", 0),
    ("fail", "claim", "0 jobs", "scheduled", 1),
    ("fail", "fail", "200 scheduled", "scheduled", 1),
    ("fail", "deliver", "409 lease_lost", "scheduled", 1),
    ("fail", "cancel", "200 cancelled", "cancelled", 1),
    ("extend", "claim", "0 jobs", "locked", 0),
    ("extend", "deliver", "200 succeeded", "succeeded", 0),
    ("release", "deliver", "409 lease_lost", "queued", 0),
    ("release", "release", "409 lease_lost", "queued", 0),
    ("cancel", "claim", "0 jobs", "cancelled", 0),
    ("cancel", "deliver", "409 cancelled", "cancelled", 0),
    ("cancel", "fail", "409 cancelled", "cancelled", 0),
    ("cancel", "extend", "409 cancelled", "cancelled", 0),
    ("cancel", "cancel", "409 illegal_transition", "cancelled", 0),
]


def _name(meeting: Meeting) -> str:
    return f"{meeting[0]}-{meeting[1]}".replace(" ", "_")


@pytest.mark.parametrize("meeting", _LATE, ids=_name)
def test_the_first_to_lock_a_late_holders_job_decides(arena: World, meeting: Meeting) -> None:
    """Whoever comes second is told what is true once the first has committed, and changes nothing."""
    _meet(arena, _lapsed(arena), meeting)


_EXHAUSTED: list[Meeting] = [
    ("claim", "deliver", "409 lease_lost", "failed", 1),
    ("expire", "deliver", "409 lease_lost", "failed", 1),
    ("expire", "extend", "409 lease_lost", "failed", 1),
    ("expire", "claim", "0 jobs", "failed", 1),
    ("expire", "expire", "0 jobs", "failed", 1),
    ("deliver", "claim", "0 jobs", "succeeded", 0),
    ("deliver", "expire", "0 jobs", "succeeded", 0),
    ("extend", "expire", "0 jobs", "locked", 0),
    ("cancel", "expire", "0 jobs", "cancelled", 0),
]


@pytest.mark.parametrize("meeting", _EXHAUSTED, ids=_name)
def test_a_last_attempt_ends_by_its_lapse_or_by_its_holder(arena: World, meeting: Meeting) -> None:
    """A lapse that ends a job and a late holder exclude each other, and the lapse counts once."""
    _meet(arena, _lapsed(arena, max_attempts=1), meeting)


_ENDED: list[Meeting] = [
    ("retry", "retry", "409 illegal_transition", "queued", 0),
    ("retry", "prune", "0 jobs", "queued", 0),
    ("prune", "retry", "404 not_found", "gone", 0),
    ("prune", "prune", "0 jobs", "gone", 0),
]


@pytest.mark.parametrize("meeting", _ENDED, ids=_name)
def test_an_ended_job_is_retried_once_or_forgotten(arena: World, meeting: Meeting) -> None:
    """Two operators cannot both retry it, nor one retry what is being pruned."""
    job_id = _lapsed(arena, max_attempts=1)
    with arena.session():
        assert arena.jobber.expire() == 1
    arena.pass_time(60)
    _meet(arena, job_id, meeting)


def test_a_released_job_is_free_when_its_release_is_committed(arena: World) -> None:
    """A claim that comes before that looks past it or waits; the next one gets it, nothing counted."""
    job_id, bob = _lapsed(arena), arena.client("bob")
    seen = compete(arena, _as_server(arena, job_id)["release"], bob.claim, waits=False)
    [job] = seen or bob.claim()
    assert (job["id"], job["attempt"], job["failures"]) == (job_id, 2, 0)


def test_operators_who_act_at_once_are_told_who_was_first(arena: World) -> None:
    """Of four who retry, and of four who cancel, the same job one is obeyed and three are refused."""
    root = [arena.client("root") for _ in range(4)]
    for _ in range(5):
        job_id = arena.enqueue()
        for verb in ("cancel", "retry"):
            answers = together(4, lambda n, path=f"/jobs/{job_id}/{verb}": root[n].post(path))  # type: ignore[misc]
            told = collections.Counter(_say(answer) for answer in answers)
            assert told.pop("409 illegal_transition") == 3, told
            assert [status[:3] for status in told] == ["200"]


def test_a_result_delivered_twice_at_once_is_processed_once(world: World) -> None:
    """The second waits for the processor that runs for the first, and is told the same."""
    running, go, calls = threading.Event(), threading.Event(), list[t.Any]()

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        calls.append(result)
        running.set()
        assert go.wait(LIMIT)

    world.enqueue()
    [job] = world.client().claim()
    with watching(world) as watch:
        first = start(lambda: world.client().deliver(job, RESULT))
        until(running.is_set, "the processor")
        second = start(lambda: world.client().deliver(job, RESULT))
        watch.until_waits(second)
        assert not second.done()
        go.set()
    assert [_say(first.result(LIMIT)), _say(second.result(LIMIT))] == ["200 succeeded"] * 2
    assert calls == [RESULT]
    assert [reason for *_, reason in world.history(job["id"])] == ["enqueue", "claim", "deliver"]


def test_a_job_can_be_seen_while_its_processor_runs(world: World) -> None:
    """Readers wait for no writer; they see the job as it was. SQLite's do, but for its commit."""
    running, go = threading.Event(), threading.Event()

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        running.set()
        assert go.wait(LIMIT)

    job_id = world.enqueue()
    [job] = world.client().claim()
    delivery = start(lambda: world.client().deliver(job, RESULT))
    until(running.is_set, "the processor")
    paths = (f"/jobs/{job_id}", f"/jobs/{job_id}/history", "/jobs", "/claims", job["href"])
    readers = [start(lambda path=path: world.client().get(path).status_code) for path in paths]  # type: ignore[misc]
    with watching(world) as watch:
        watch.until_waits(*readers)
        assert [reader.done() and reader.result() for reader in readers] == [200] * 5
    go.set()
    assert _say(delivery.result(LIMIT)) == "200 succeeded"


def _locks(statement: str) -> bool:
    return "FOR UPDATE" in statement or statement.startswith("UPDATE")


def test_who_was_excluded_while_it_looked_does_not_get_the_job(world: World) -> None:
    """A late result is rejected between the look of a claim by the same login and its lock."""

    @world.jobber.processor("work", backoff=Constant(0))
    def reject(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("wrong", then="exclude")

    job_id = _lapsed(world)
    late = {"href": f"/jobs/{job_id}/attempts/1"}
    with paused(engine_of(world), _locks) as pause:
        task = start(world.client("ann", "other").claim)
        until(pause.reached.is_set, "the lock")
        assert _say(world.client("ann").deliver(late)) == "422 result_rejected"
        pause.go.set()
        assert task.result(LIMIT) == []
    [job] = world.client("bob").claim()
    assert job["attempt"] == 2


def test_holders_who_exchange_wait_for_nobody_elses_jobs(world: World) -> None:
    """While the processor of one's results runs, another delivers as many and claims more."""
    running, go = threading.Event(), threading.Event()

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        if result == "slow":
            running.set()
            assert go.wait(LIMIT)

    with world.session():
        world.jobber.enqueue_many([{"type": "work"}] * 50)
    ann, bob = world.client("ann"), world.client("bob")

    def exchange(client: Client, jobs: list[dict[str, t.Any]], result: str) -> list[int]:
        items = [{"id": job["id"], "attempt": job["attempt"], "result": result} for job in jobs]
        body = client.post("/exchange", {"results": items, "claim": {"limit": 5}}).json
        assert body is not None
        return [outcome["status"] for outcome in body["outcomes"]] + [len(body["jobs"])]

    hers, his = ann.claim(limit=20), bob.claim(limit=20)
    with watching(world) as watch:
        slow = start(lambda: exchange(ann, hers, "slow"))
        until(running.is_set, "the processor")
        quick = start(lambda: exchange(bob, his, "quick"))
        watch.until_waits(quick)
        assert quick.done() is not on_sqlite(world)
        go.set()
    assert quick.result(LIMIT) == slow.result(LIMIT) == [200] * 20 + [5]


@pytest.mark.parametrize("engine", ["postgres_url", "mariadb_url"])
def test_what_is_told_after_a_deadlock_of_processors_is_stored(
    make_world: MakeWorld, request: pytest.FixtureRequest, engine: str
) -> None:
    """Of two that write to each other's jobs one dies; MariaDB undoes all that its exchange did before."""
    world, meet, runs = make_world(request.getfixturevalue(engine)), threading.Barrier(2), list[int]()

    @world.jobber.processor("work")
    def process(job: t.Any, result: int | None) -> None:
        if result is None:
            return
        runs.append(job.id)
        if len(runs) <= 2:
            meet.wait(LIMIT)
        world.db.session.get_one(world.Job, result).written = f"by {job.id}"
        world.db.session.flush()

    with world.session():
        ids = [job.id for job in world.jobber.enqueue_many([{"type": "work"}] * 4)]
    client = world.client()
    jobs = client.claim(limit=4)

    def exchange(number: int) -> tuple[list[int], list[int]]:
        """Deliver a harmless result and one that writes to the other's; return the ids and statuses."""
        mine = jobs[2 * number : 2 * number + 2]
        results = [None, ids[3 - 2 * number]]
        items = [
            {"id": job["id"], "attempt": 1, "result": result}
            for job, result in zip(mine, results, strict=True)
        ]
        answer = _insist(lambda: world.client().post("/exchange", {"results": items}))
        assert answer.json is not None
        return [job["id"] for job in mine], [outcome["status"] for outcome in answer.json["outcomes"]]

    told = {job_id: status for both in together(2, exchange) for job_id, status in zip(*both, strict=True)}
    states = {200: "succeeded", 202: "submitted"}
    assert {job_id: world.job(job_id).state for job_id in ids} == {n: states[told[n]] for n in ids}
    assert {job_id: len(world.history(job_id)) for job_id in ids} == dict.fromkeys(ids, 3)
    world.pass_time(60)
    with world.app.app_context():
        world.jobber.process_submitted()
    assert [world.job(n).written for n in ids] == [None, f"by {ids[3]}", None, f"by {ids[1]}"]
    assert {world.job(n).state for n in ids} == {"succeeded"}


def test_pruning_keeps_nobody_from_work(arena: World) -> None:
    """While old jobs are being forgotten, others are claimed and delivered."""
    with arena.session():
        ids = [job.id for job in arena.jobber.enqueue_many([{"type": "work"}] * 40)]
        for job_id in ids[:20]:
            arena.jobber.cancel(job_id)
    arena.pass_time(60)
    bob = arena.client("bob")
    prune = functools.partial(arena.jobber.prune, older_than=dt.timedelta())
    work = compete(
        arena, prune, lambda: [bob.deliver(job).status_code for job in bob.claim(limit=20)], waits=False
    )
    assert work == [200] * 20


# -- counted once ------------------------------------------------------------------------------


def _held(world: World) -> int:
    with world.session() as session:
        held = sa.select(sa.func.count()).where(world.Job.state == "locked")
        return int(session.execute(held).scalar_one())


def _insist(ask: t.Callable[[], TestResponse]) -> TestResponse:
    """Ask again while the server is busy, as a client would."""
    return ask_until(lambda answer: answer.status_code != 503, ask, "an answer")


def test_one_login_on_many_nodes_never_holds_more_than_it_may(make_world: MakeWorld, db_url: str) -> None:
    """Sixteen that claim at once, again and again from an empty hand, get what is allowed in all."""
    world = make_world(db_url, JOBBER_MAX_OPEN_CLAIMS=3)
    with world.session():
        world.jobber.enqueue_many([{"type": "work"}] * 40)
    clients = [world.client("ann", f"node-{n}" if n else None) for n in range(8)] * 2
    for _ in range(3):
        answers = together(16, lambda n: _insist(lambda: clients[n].post("/claims", {"limit": 1 + n % 2})))
        assert {answer.status_code for answer in answers} == {200, 429}
        assert _held(world) == 3
        for client in clients[:8]:
            for job in (client.get("/claims").json or {})["jobs"]:
                assert client.release(job).status_code == 204


def test_one_login_never_holds_more_than_it_may_while_it_works(make_world: MakeWorld, db_url: str) -> None:
    """Sixteen that claim and deliver until all is done; whenever one looks, at most three are held."""
    world = make_world(db_url, JOBBER_MAX_OPEN_CLAIMS=3)
    with world.session():
        world.jobber.enqueue_many([{"type": "work"}] * 32)

    def work(number: int) -> list[int]:
        client, seen = world.client("ann", f"node-{number}"), list[int]()
        while True:
            answer = _insist(lambda: client.post("/claims"))
            if answer.status_code == 429:
                continue
            jobs = t.cast(dict[str, t.Any], answer.json)["jobs"]
            if not jobs:
                return seen
            seen.append(_held(world))
            assert _say(_insist(lambda: client.deliver(jobs[0]))) == "200 succeeded"  # noqa: B023

    seen = [count for counts in together(16, work) for count in counts]
    assert len(seen) == 32
    assert max(seen) <= 3


def test_the_limit_holds_at_read_committed(make_world: MakeWorld, mariadb_url: str) -> None:
    """Apps on MariaDB often choose this isolation, where ranges of an index cannot be locked."""
    engine_options = {"isolation_level": "READ COMMITTED"}
    world = make_world(mariadb_url, JOBBER_MAX_OPEN_CLAIMS=1, SQLALCHEMY_ENGINE_OPTIONS=engine_options)
    with world.session():
        world.jobber.enqueue_many([{"type": "work"}] * 2)
    nodes = [world.client("ann", "one"), world.client("ann", "two")]
    with (
        paused(engine_of(world), lambda statement: "SKIP LOCKED" in statement) as pause,
        watching(world) as watch,
    ):
        first = start(lambda: nodes[0].post("/claims").status_code)
        until(pause.reached.is_set, "the first, having counted")
        second = start(lambda: nodes[1].post("/claims").status_code)
        watch.until_waits(second)
        pause.go.set()
        told = [first.result(LIMIT), second.result(LIMIT)]
    assert _held(world) == 1, told


def _break_until(world: World, healed: threading.Event, **how: t.Any) -> sa.Table:
    """Register a processor that breaks at first, then writes a row; return the table of these rows."""
    effects = add_effects(world.db.metadata)
    effects.create(engine_of(world))

    @world.jobber.processor("work", **how)
    def process(job: t.Any, result: t.Any) -> None:
        if not healed.is_set():
            raise RuntimeError("broken")
        world.db.session.execute(sa.insert(effects).values(job_id=job.id))

    return effects


def test_each_submitted_result_is_processed_by_one_of_many(world: World) -> None:
    """Six that process at once call each processor once, leave none, and write one effect for each."""
    healed = threading.Event()
    effects = _break_until(world, healed)
    with world.session():
        world.jobber.enqueue_many([{"type": "work"}] * 24)
    ann = world.client("ann")
    assert {ann.deliver(job).status_code for job in ann.claim(limit=24)} == {202}
    world.pass_time(3600)
    healed.set()

    def process(number: int) -> int:
        with world.app.app_context():
            return world.jobber.process_submitted()

    assert sum(together(6, process)) == 24
    with world.session() as session:
        assert set(session.scalars(sa.select(world.Job.state))) == {"succeeded"}
        rows = session.scalars(sa.select(effects.c.job_id).order_by(effects.c.job_id)).all()
        assert rows == session.scalars(sa.select(world.Job.id).order_by(world.Job.id)).all()


def test_a_broken_processor_is_called_as_often_as_is_said(make_world: MakeWorld, db_url: str) -> None:
    """Of two that process, the second counts what the first did after both had looked."""
    world = make_world(db_url, JOBBER_PROCESSOR_ATTEMPTS=3)
    _break_until(world, threading.Event(), backoff=Constant(0))
    job_id, ann = world.enqueue(), world.client("ann")
    assert [ann.deliver(job).status_code for job in ann.claim()] == [202]

    def process() -> int:
        with world.app.app_context():
            return world.jobber.process_submitted(limit=1)

    with paused(engine_of(world), _locks) as pause:
        late = start(process)
        until(pause.reached.is_set, "the lock")
        assert process() == 1
        assert world.job(job_id).state == "submitted"
        pause.go.set()
        assert late.result(LIMIT) == 1
    assert world.job(job_id).state == "failed"


# -- unique keys -------------------------------------------------------------------------------


def _count(world: World) -> dict[str, int]:
    """Return the number of jobs of each type, and of rows of history."""
    with world.session() as session:
        types = sa.select(world.Job.type, sa.func.count()).group_by(world.Job.type)
        rows = sa.select(sa.func.count()).select_from(world.jobber.History)
        return {**dict(session.execute(types).all()), "history": session.scalar(rows)}


#: InnoDB locks the gap below a key that is refused, where the next job without a key would stand.
#: It ends the whole transaction; a roll-back to a savepoint then finds none.
_DEADLOCK = (1213, 1305)


def test_one_of_many_takes_a_unique_key_and_the_others_go_on(arena: World) -> None:
    """The transaction of one who comes too late keeps what it did before, and what it does after."""

    def enqueue(number: int) -> bool:
        jobber = arena.jobber
        with arena.session():
            if number % 2:
                jobber.enqueue("before")
            won = True
            try:
                jobber.enqueue("work", unique_key="key")
            except DuplicateJob:
                won = False
            jobber.enqueue("after")
        return won

    def insist(number: int) -> bool:
        """Begin again when MariaDB ended the transaction for a deadlock, as any app must."""
        told: list[bool] = []
        while not told:
            try:
                told.append(enqueue(number))
            except sa.exc.OperationalError as error:
                if error.orig is None or error.orig.args[0] not in _DEADLOCK:
                    raise
        return told[0]

    assert sorted(together(16, insist)) == [False] * 15 + [True]
    assert _count(arena) == {"before": 8, "work": 1, "after": 16, "history": 25}


def test_a_rollback_undoes_a_job_with_a_unique_key(arena: World) -> None:
    """Its savepoint came first in the transaction, which the driver of SQLite would have committed."""
    with arena.app.app_context():
        arena.jobber.enqueue("work", unique_key="key")
        with pytest.raises(DuplicateJob):
            arena.jobber.enqueue("work", unique_key="key")
        arena.jobber.enqueue("work", unique_key="another")
        arena.jobber.enqueue("after")
        arena.db.session.rollback()
    assert _count(arena) == {"history": 0}
    arena.enqueue(unique_key="key")


def test_a_key_that_is_freed_at_the_last_moment_is_no_accident(arena: World) -> None:
    """The job that had the key ends after the insertion was refused: the second is taken, or a duplicate."""
    first = arena.enqueue(unique_key="key")
    refused, go = threading.Event(), threading.Event()

    def wait(context: sa.ExceptionContext) -> None:
        if not refused.is_set():
            refused.set()
            assert go.wait(LIMIT)

    def enqueue() -> str:
        try:
            arena.enqueue(unique_key="key")
        except DuplicateJob:
            return "duplicate"
        return "taken"

    def cancel() -> None:
        with arena.session():
            arena.jobber.cancel(first)

    sa.event.listen(engine_of(arena), "handle_error", wait)
    with watching(arena) as watch:
        second = start(enqueue)
        until(refused.is_set, "the refusal")
        cancelled = start(cancel)
        watch.until_waits(cancelled)
        go.set()
        assert second.result(LIMIT) in ("taken", "duplicate")
        cancelled.result(LIMIT)
    sa.event.remove(engine_of(arena), "handle_error", wait)
