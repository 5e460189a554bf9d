"""Results and what the app does with them: schemas, processors, rejections, failures."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
import sqlite3
import typing as t

import pytest
import sqlalchemy as sa
from marshmallow import Schema, fields, validates_schema

from conftest import MakeWorld
from flask_jobber import Constant, InvalidResult, Jobber, ResultRejected, SetupError, State
from flask_jobber.core.states import Verb
from situations import ERROR, LOCKER, ago, assert_legal, put, stored
from support import Client, World

Job = dict[str, t.Any]
RESULT = {"size": 3, "name": "x"}


class Result(Schema):
    size = fields.Integer(required=True, strict=True)
    name = fields.String()
    at = fields.Date()


def _hold(world: World, **spec: t.Any) -> tuple[Client, Job]:
    """Enqueue a job and let ann claim it."""
    job_id = world.enqueue(**spec)
    ann = world.client("ann")
    [job] = ann.claim()
    assert job["id"] == job_id
    return ann, job


def _process(world: World) -> int:
    """Run the processors of submitted results again, when they are due."""
    world.pass_time(100_000)
    with world.app.app_context():
        return world.jobber.process_submitted()


class Breaker:
    """A processor that writes, and breaks as long as it is told to."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.error: Exception | None = RuntimeError("no space left")
        self.seen: list[tuple[str, t.Any]] = []
        world.jobber.processor("work", backoff=Constant(100))(self)

    def __call__(self, job: t.Any, result: t.Any) -> None:
        self.seen.append((job.state, result))
        job.written = f"call {len(self.seen)}"
        self.world.jobber.enqueue("next")
        self.world.db.session.flush()
        if self.error is not None:
            raise self.error


def _count(world: World, type_: str) -> int:
    with world.session() as session:
        return int(session.scalar(sa.select(sa.func.count()).where(world.Job.type == type_)))


# -- schema, then processor, in one transaction ----------------------------------------------


def test_a_result_that_does_not_fit_its_schema_is_refused_and_counts_nothing(world: World) -> None:
    """The lease is kept, the processor is not asked, and a corrected result is taken."""
    loaded: list[t.Any] = []
    world.jobber.processor("work", schema=Result)(lambda job, result: loaded.append(result))
    ann, job = _hold(world)
    before = stored(world, job["id"])

    misfits: list[t.Any] = [{"size": "3"}, {}, None, [], {"size": 3, "colour": "red"}]
    for wrong in misfits:
        answer = ann.deliver(job, wrong)
        assert answer.status_code == 422
        assert answer.json is not None
        assert answer.json["code"] == "invalid_result"
        assert list(answer.json["errors"]) == ["result"]
    assert stored(world, job["id"]) == before
    assert loaded == []

    assert ann.deliver(job, {"size": 3, "at": "2030-01-02"}).json == {"state": "succeeded"}
    assert loaded == [{"size": 3, "at": dt.date(2030, 1, 2)}]
    assert world.job(job["id"]).result == {"size": 3, "at": "2030-01-02"}


def test_processor_and_change_of_state_are_one_transaction(world: World) -> None:
    """While it runs others see nothing of it; the job is as before; afterwards all is there."""
    seen: list[t.Any] = []

    @world.jobber.processor("work")
    def look(job: t.Any, result: t.Any) -> None:
        seen.append((job.state, job.result, job.extras, job.attempts, job.locked_by))
        job.written = "done"
        world.jobber.enqueue("next")
        world.db.session.flush()
        table = world.Job.__table__
        with world.db.engine.connect() as rival:
            seen.append(rival.execute(sa.select(table.c.type, table.c.state, table.c.written)).all())

    ann, job = _hold(world)
    assert ann.deliver(job, RESULT, extras={"host": "x"}).json == {"state": "succeeded"}

    assert seen == [
        (State.LOCKED, None, {"host": "x"}, 1, LOCKER),
        [("work", State.LOCKED, None)],
    ]
    after = world.job(job["id"])
    assert (after.state, after.written, after.result, after.extras) == (
        State.SUCCEEDED, "done", RESULT, {"host": "x"},
    )  # fmt: skip
    assert _count(world, "next") == 1


def test_a_type_without_a_processor_just_keeps_its_result(world: World) -> None:
    """A schema alone is asked; of a type that nobody spoke of, anything is kept."""
    world.jobber.job_type("checked", schema=Result)
    ann, plain = _hold(world, type="plain")
    assert ann.deliver(plain, [None]).json == {"state": "succeeded"}
    ann, checked = _hold(world, type="checked")
    assert ann.deliver(checked, [None]).status_code == 422
    assert ann.deliver(checked, RESULT).json == {"state": "succeeded"}

    assert [world.job(job["id"]).result for job in (plain, checked)] == [[None], RESULT]


def test_what_a_processor_does_to_its_argument_is_its_own_affair(world: World) -> None:
    """The result is stored as it was delivered, and so it is known when it comes again."""

    @world.jobber.processor("work")
    def consume(job: t.Any, result: t.Any) -> None:
        result["at"] = dt.datetime.now()
        del result["size"], job.extras["host"]

    ann, job = _hold(world)
    for _ in range(2):
        assert ann.deliver(job, dict(RESULT), extras={"host": "x"}).json == {"state": "succeeded"}

    assert (world.job(job["id"]).result, world.job(job["id"]).extras) == (RESULT, {"host": "x"})


def test_a_processor_may_call_other_verbs(world: World) -> None:
    """Also one that ends another job failed, whose failure processor has a savepoint of its own."""
    failed: list[int] = []
    world.jobber.on_failure("child")(lambda job, error: failed.append(job.id))

    @world.jobber.processor("work")
    def give_up(job: t.Any, result: t.Any) -> None:
        [child] = world.jobber.claim(LOCKER, types=["child"])
        world.jobber.fail(LOCKER, child.id, child.attempt, ERROR, permanent=True)
        job.written = "gave up"

    child = world.enqueue("child", priority=-1)
    ann, job = _hold(world)

    assert ann.deliver(job).json == {"state": "succeeded"}
    assert (world.job(child).state, failed, world.job(job["id"]).written) == ("failed", [child], "gave up")


def test_async_hooks_and_processors_work(lite: World) -> None:
    """``async def`` may stand wherever a plain function may."""
    called: list[str] = []

    @lite.jobber.locker_name
    async def locker_name() -> str:
        called.append("locker_name")
        return "someone"

    @lite.jobber.processor("work")
    async def processor(job: t.Any, result: t.Any) -> None:
        called.append("processor")
        job.written = "async"
        if result == "bad":
            raise ResultRejected("bad", then="correct")

    @lite.jobber.on_failure("work")
    async def on_failure(job: t.Any, error: t.Any) -> None:
        called.append("on_failure")

    ann, job = _hold(lite, max_attempts=1)
    assert ann.deliver(job, "bad").status_code == 422
    assert ann.deliver(job, "good").json == {"state": "succeeded"}
    assert (lite.job(job["id"]).locked_by, lite.job(job["id"]).written) == ("someone", "async")
    ann, job = _hold(lite, max_attempts=1)
    ann.fail(job)
    assert set(called) == {"locker_name", "processor", "on_failure"}


# -- processors that break --------------------------------------------------------------------


def test_a_broken_processor_loses_its_own_work_only(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The result is kept, the client is told 202, and the server calls it again until it works."""
    breaker = Breaker(world)
    ann, job = _hold(world)

    for _ in range(2):
        answer = ann.deliver(job, RESULT, extras={"host": "x"})
        assert (answer.status_code, answer.json) == (202, {"state": "submitted"})
    submitted = world.job(job["id"])
    assert (submitted.state, submitted.result, submitted.written) == (State.SUBMITTED, RESULT, None)
    assert (submitted.failures, submitted.locked_by) == (0, LOCKER)
    assert 50 < (submitted.run_at - dt.datetime.now(dt.UTC)).total_seconds() <= 100
    assert _count(world, "next") == 0
    assert len(breaker.seen) == 1
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert (record.name, record.job_id) == ("flask_jobber", job["id"])  # type: ignore[attr-defined]

    with world.app.app_context():
        assert world.jobber.process_submitted() == 0
    assert _process(world) == 1
    assert world.job(job["id"]).state == State.SUBMITTED
    breaker.error = None
    assert _process(world) == 1

    after = world.job(job["id"])
    assert (after.state, after.result, after.written) == (State.SUCCEEDED, RESULT, "call 3")
    assert breaker.seen == [(State.LOCKED, RESULT), (State.SUBMITTED, RESULT), (State.SUBMITTED, RESULT)]
    assert _count(world, "next") == 1
    answer = ann.deliver(job, RESULT, extras={"host": "x"})
    assert (answer.status_code, answer.json) == (200, {"state": "succeeded"})
    assert len(breaker.seen) == 3
    assert world.history(job["id"])[2:] == [
        (State.LOCKED, State.SUBMITTED, Verb.DELIVER),
        (State.SUBMITTED, State.SUBMITTED, Verb.PROCESS),
        (State.SUBMITTED, State.SUCCEEDED, Verb.PROCESS),
    ]
    errors = [row["error"] for row in stored(world, job["id"])[1] if row["error"]]
    assert [(error["type"], error["message"]) for error in errors] == [("RuntimeError", "no space left")] * 2
    assert "in __call__" in errors[0]["traceback"]


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_a_processor_that_never_works_is_given_up(make_world: MakeWorld, db_url: str, attempts: int) -> None:
    """After ``PROCESSOR_ATTEMPTS`` calls in all; the result is kept, and a retry goes back to it."""
    world = make_world(db_url, JOBBER_PROCESSOR_ATTEMPTS=attempts)
    breaker = Breaker(world)
    told: list[t.Any] = []
    world.jobber.on_failure("work")(lambda job, error: told.append(error["type"]))
    ann, job = _hold(world)
    ann.deliver(job, RESULT)
    while world.job(job["id"]).state == State.SUBMITTED:
        assert _process(world) == 1

    assert len(breaker.seen) == attempts
    assert told == ["RuntimeError"]
    failed = world.job(job["id"])
    assert (failed.state, failed.result) == (State.FAILED, RESULT)
    assert ann.deliver(job, RESULT).json == {"state": "failed"}
    with world.session():
        world.jobber.retry(job["id"])
    assert world.job(job["id"]).state == State.SUBMITTED
    if attempts == 3:  # it has all its calls again
        assert [_process(world), world.job(job["id"]).state] == [1, State.SUBMITTED]
    breaker.error = None
    assert _process(world) == 1
    assert world.job(job["id"]).state == State.SUCCEEDED
    assert_legal(world.history(job["id"]))


def _unprintable() -> Exception:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text either")

    return Unprintable()


@pytest.mark.parametrize(
    "end",
    [
        lambda session: session.commit(),
        lambda session: session.rollback(),
        lambda session: session.close(),
        lambda session: session.remove(),
        lambda session: session.begin(),
        lambda session: session.execute(sa.text("SELECT nothing FROM nowhere")),
        lambda session: (_ for _ in ()).throw(_unprintable()),
    ],
    ids=["commit", "rollback", "close", "remove", "begin", "bad SQL", "unprintable"],
)
def test_a_processor_that_ends_or_breaks_the_transaction_is_broken(
    world: World, end: t.Callable[[t.Any], object]
) -> None:
    """Nothing of its work leaks, and the result is kept."""

    @world.jobber.processor("work")
    def leak(job: t.Any, result: t.Any) -> None:
        job.written = "leaked"
        world.jobber.enqueue("leaked")
        end(world.db.session)

    ann, job = _hold(world)
    answer = ann.deliver(job, RESULT)

    assert (answer.status_code, answer.json) == (202, {"state": "submitted"})
    after = world.job(job["id"])
    assert (after.state, after.written, after.result) == (State.SUBMITTED, None, RESULT)
    assert _count(world, "leaked") == 0


def _swallow_refused_flush(session: t.Any, job: t.Any) -> None:
    job.unique_key = "taken"
    with contextlib.suppress(sa.exc.IntegrityError):
        session.flush()


def _swallow_bad_sql(session: t.Any, job: t.Any) -> None:
    with contextlib.suppress(sa.exc.SQLAlchemyError):
        session.execute(sa.text("SELECT nothing FROM nowhere"))


@pytest.mark.parametrize("swallow", [_swallow_refused_flush, _swallow_bad_sql])
def test_a_processor_that_swallows_an_error_of_the_database_loses_no_result(
    world: World, swallow: t.Callable[[t.Any, t.Any], None]
) -> None:
    """Whether anything can follow is the engine's business; its result is there either way."""

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        swallow(world.db.session, job)

    ann, job = _hold(world)
    world.enqueue(unique_key="taken")
    answer = ann.deliver(job, RESULT)
    states = {200: State.SUCCEEDED, 202: State.SUBMITTED}
    assert (world.job(job["id"]).state, world.job(job["id"]).result) == (states[answer.status_code], RESULT)


@pytest.mark.parametrize("raises", [True, False])
def test_nothing_stands_of_a_transaction_that_mariadb_has_ended(
    make_world: MakeWorld, mariadb_url: str, raises: bool
) -> None:
    """As by a deadlock, even if the processor caught the error: what was told before is told again."""
    world, broken = make_world(mariadb_url), [True]

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        if result == "second" and broken:
            world.db.session.connection().exec_driver_sql("ROLLBACK")
            if broken.pop() and raises:
                raise ValueError("after all")

    with world.session():
        world.jobber.enqueue_many([{"type": "work"}] * 2)
    ann = world.client("ann")
    results = zip(ann.claim(limit=2), ("first", "second"), strict=True)
    items = [{"id": job["id"], "attempt": 1, "result": result} for job, result in results]
    assert ann.post("/exchange", {"results": items}).status_code == 503
    assert {world.job(item["id"]).state for item in items} == {State.LOCKED}
    assert ann.post("/exchange", {"results": items}).status_code == 200
    assert {world.job(item["id"]).state for item in items} == {State.SUCCEEDED}


def test_a_processor_that_changes_another_job_of_its_exchange_spoils_nothing(world: World) -> None:
    """What it did to the other one is what is true of that one."""

    @world.jobber.processor("lead")
    def process(job: t.Any, result: t.Any) -> None:
        world.jobber.cancel(result)

    for kind in ("lead", "plain", "plain"):
        world.enqueue(type=kind)
    ann = world.client("ann")
    lead, *others = sorted(ann.claim(limit=3), key=lambda job: job["type"])
    items = [{"id": job["id"], "attempt": 1, "result": others[0]["id"]} for job in (lead, *others)]
    answer = ann.post("/exchange", {"results": items})
    assert answer.json is not None
    told = [(one["status"], one.get("code")) for one in answer.json["outcomes"]]
    assert told == [(200, None), (409, "cancelled"), (200, None)]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("server", "kill"),
    [
        ("postgres_url", "SELECT pg_terminate_backend(pg_backend_pid())"),
        ("mariadb_url", "KILL CONNECTION_ID()"),
    ],
)
def test_a_database_that_goes_away_under_a_processor_is_busy(
    make_world: MakeWorld, request: pytest.FixtureRequest, server: str, kill: str, wrapped: bool
) -> None:
    """The client keeps its result and sends it again, though the app wrapped up the error."""
    world, broken = make_world(request.getfixturevalue(server)), [True]

    @world.jobber.processor("work")
    def process(job: t.Any, result: t.Any) -> None:
        if broken and broken.pop():
            try:
                world.db.session.execute(sa.text(kill))
            except sa.exc.DBAPIError as error:
                if wrapped:
                    raise RuntimeError("the app's own") from error
                raise

    ann, job = _hold(world)
    assert ann.deliver(job, RESULT).status_code == 503
    assert ann.deliver(job, RESULT).status_code == 200


def test_whatever_a_processor_raises_can_be_kept(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Texts are cut and made storable; the traceback keeps its end, where the cause stands."""
    caplog.set_level(logging.CRITICAL + 1, "flask_jobber")  # pytest-xdist dies of a lone surrogate
    breaker = Breaker(world)
    for error in (ValueError("\0\ud800🦉" + "x" * 30_000), type("E" * 300, (Exception,), {})(), ValueError()):
        breaker.error = error
        ann, job = _hold(world)
        assert ann.deliver(job, RESULT).json == {"state": "submitted"}

        said = stored(world, job["id"])[1][-1]["error"]
        assert said["type"] == type(error).__name__[:200]
        assert len(said["message"]) <= 2_000
        assert len(said["traceback"]) <= 20_000
        assert said["traceback"].rstrip().endswith(("x" * 100, "E" * 100, "ValueError"))
        assert "\0" not in str(said)
        assert world.client("root").get(f"/jobs/{job['id']}/history").status_code == 200


def _set_state(world: World, job: t.Any) -> None:
    job.state = "queued"


@pytest.mark.parametrize(
    "meddle",
    [
        lambda world, job: world.jobber.cancel(job),
        lambda world, job: world.jobber.release(LOCKER, job.id, job.attempts),
        _set_state,
    ],
    ids=["cancel", "release", "state"],
)
def test_a_processor_that_changes_its_own_jobs_state_is_broken(
    world: World, meddle: t.Callable[[World, t.Any], None]
) -> None:
    """Row, history and answer say the same; the result is kept."""
    world.jobber.processor("work")(lambda job, result: meddle(world, job))
    ann, job = _hold(world)

    assert ann.deliver(job, RESULT).json == {"state": "submitted"}
    after = world.job(job["id"])
    assert (after.state, after.result) == (State.SUBMITTED, RESULT)
    assert world.history(job["id"])[2:] == [(State.LOCKED, State.SUBMITTED, Verb.DELIVER)]


@pytest.mark.parametrize("breaks", ["code", "sql"])
def test_a_schema_that_breaks_is_the_servers_failure(world: World, breaks: str) -> None:
    """Not the client's: the result is kept like that of a broken processor."""

    class Broken(Schema):
        size = fields.Integer()

        @validates_schema
        def check(self, data: t.Any, **kwargs: t.Any) -> None:
            if breaks == "sql":
                world.db.session.execute(sa.text("SELECT nothing FROM nowhere"))
            raise KeyError("a mistake")

    world.jobber.job_type("work", schema=Broken)
    ann, job = _hold(world)

    answer = ann.deliver(job, {"size": 1})

    assert (answer.status_code, answer.json) == (202, {"state": "submitted"})
    assert world.job(job["id"]).result == {"size": 1}


def test_a_result_kept_under_an_older_schema_is_not_lost(lite: World) -> None:
    """When a submitted result fits no more, it stays submitted: nobody is there to correct it."""
    strict = False

    class Growing(Schema):
        size = fields.Integer(required=True)

        @validates_schema
        def check(self, data: t.Any, **kwargs: t.Any) -> None:
            if strict:
                Result().load({})

    breaker = Breaker(lite)
    lite.jobber.job_type("work", schema=Growing)
    ann, job = _hold(lite)
    ann.deliver(job, {"size": 1})
    strict, breaker.error = True, None

    assert _process(lite) == 1
    assert (lite.job(job["id"]).state, lite.job(job["id"]).result) == (State.SUBMITTED, {"size": 1})
    assert len(breaker.seen) == 1


def test_a_busy_database_of_a_processors_own_loses_no_result(lite: World) -> None:
    """It is kept like that of any processor that breaks; the client need not come again."""
    breaker = Breaker(lite)
    cause = sqlite3.OperationalError("database is locked")
    cause.sqlite_errorname = "SQLITE_BUSY"
    breaker.error = sa.exc.OperationalError("UPDATE", {}, cause)
    ann, job = _hold(lite)

    answer = ann.deliver(job, RESULT)
    assert (answer.status_code, answer.json) == (202, {"state": "submitted"})

    breaker.error = None
    lite.pass_time(100_000)
    assert _process(lite) == 1
    assert lite.job(job["id"]).state == State.SUCCEEDED


def test_a_submitted_job_may_be_cancelled_and_taken_up_again(world: World) -> None:
    """Its holder hears of it; with a retry the kept result goes to its processor once more."""
    breaker = Breaker(world)
    ann, job = _hold(world)
    ann.deliver(job, RESULT)
    with world.session():
        world.jobber.cancel(job["id"])

    answer = ann.deliver(job, RESULT)
    assert answer.json is not None
    assert (answer.status_code, answer.json["code"]) == (409, "cancelled")
    assert _process(world) == 0
    with world.session():
        world.jobber.retry(job["id"])
    breaker.error = None
    assert _process(world) == 1
    assert ann.deliver(job, RESULT).json == {"state": "succeeded"}
    assert len(breaker.seen) == 2
    assert_legal(world.history(job["id"]))


def test_process_submitted_takes_what_is_due_and_no_more_than_asked(world: World) -> None:
    """The earliest first; each is committed by itself, so one that breaks takes no other along."""
    breaker = Breaker(world)
    ann = world.client("ann")
    ids = [world.enqueue() for _ in range(3)]
    for job in ann.claim(limit=3):
        ann.deliver(job, job["id"])
    with world.session():
        for place, job_id in enumerate(ids):
            put(world, job_id, run_at=ago(60 + place))
    breaker.seen.clear()

    with world.app.app_context():
        assert world.jobber.process_submitted(limit=2) == 2
        breaker.error = None
        assert world.jobber.process_submitted() == 1

    assert [result for _, result in breaker.seen] == [ids[2], ids[1], ids[0]]
    assert [world.job(job_id).state for job_id in ids] == [State.SUCCEEDED, "submitted", "submitted"]


# -- rejections -------------------------------------------------------------------------------


class Reject(t.NamedTuple):
    """What a rejection says, does and counts."""

    then: t.Any
    said: str
    state: State
    failures: int
    max_attempts: int = 3


REJECTIONS = [
    Reject("release", "release", State.SCHEDULED, 1),
    Reject("exclude", "exclude", State.SCHEDULED, 1),
    Reject("correct", "correct", State.LOCKED, 0),
    Reject("correct", "correct", State.LOCKED, 0, max_attempts=1),
    Reject("release", "failed", State.FAILED, 1, max_attempts=1),
    Reject("exclude", "failed", State.FAILED, 1, max_attempts=1),
]


def test_a_rejected_result_goes_the_way_the_processor_says(world: World) -> None:
    """Its reason is told, its work undone, and one failure counted unless it may be corrected."""
    wish = "release"
    told: list[t.Any] = []
    world.jobber.on_failure("work")(lambda job, error: told.append((job.id, error["message"])))

    @world.jobber.processor("work", backoff=Constant(100))
    def judge(job: t.Any, result: t.Any) -> None:
        job.written = "leaked"
        if result == "bad":
            raise ResultRejected(f"too small for {wish}", then=wish)  # type: ignore[arg-type]

    for then, said, state, failures, max_attempts in REJECTIONS:
        wish = then
        ann, job = _hold(world, max_attempts=max_attempts)
        answer = ann.deliver(job, "bad")
        assert answer.status_code == 422
        assert answer.json is not None
        assert answer.json["code"] == "result_rejected"
        assert (answer.json["then"], answer.json["detail"]) == (said, f"too small for {then}")

        after = world.job(job["id"])
        assert (after.state, after.failures, after.result, after.written) == (state, failures, None, None)
        assert after.not_for == (["user_ann"] if then == "exclude" else None)
        assert ((job["id"], f"too small for {then}") in told) == (state == State.FAILED)
        if state == State.LOCKED:
            assert after.locked_until is not None
            assert ann.deliver(job, "good").json == {"state": "succeeded"}
            assert world.job(job["id"]).failures == 0
        else:
            assert stored(world, job["id"])[1][-1]["error"] == {
                "type": "ResultRejected", "message": f"too small for {then}", "traceback": None,
            }  # fmt: skip
            again = ann.deliver(job, "bad")
            assert again.json is not None
            assert again.json["code"] == "lease_lost"
        if state == State.SCHEDULED:
            assert 50 < (after.run_at - dt.datetime.now(dt.UTC)).total_seconds() <= 100


def test_an_excluded_login_never_gets_the_job_again(world: World) -> None:
    """On whatever node; anyone else does, and a retry forgets it. Earlier exclusions stay."""

    @world.jobber.processor("work")
    def refuse(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("not from you", then="exclude")

    job_id = world.enqueue(not_for="user_cid", max_attempts=2)
    [job] = world.client("ann", "left").claim()
    assert world.client("ann", "left").deliver(job).status_code == 422
    world.pass_time(100_000)

    assert world.job(job_id).not_for == ["user_ann", "user_cid"]
    for user, node in (("ann", "left"), ("ann", "right"), ("ann", None), ("cid", None), ("cid", "left")):
        assert world.client(user, node).claim() == [], (user, node)
    [job] = world.client("bob", "left").claim()
    assert world.client("bob", "left").deliver(job).status_code == 422
    assert world.job(job_id).state == State.FAILED
    with world.session():
        world.jobber.retry(job_id)
    assert [job["id"] for job in world.client("ann").claim()] == [job_id]


@pytest.mark.parametrize("then", ["release", "correct", "exclude"])
def test_a_late_rejection_is_a_release(world: World, then: t.Any) -> None:
    """Nobody is there to correct a submitted result: the job goes back to the pool without it."""
    breaker = Breaker(world)
    ann, job = _hold(world, max_attempts=2)
    ann.deliver(job, RESULT, extras={"host": "x"})
    breaker.error = ResultRejected("too small", then=then)

    assert _process(world) == 1

    after = world.job(job["id"])
    assert (after.state, after.failures, after.written) == (State.SCHEDULED, 1, None)
    assert (after.result, after.extras, after.not_for, after.locked_by) == (None, None, None, None)
    world.pass_time(100_000)
    [again] = ann.claim()
    assert (again["id"], again["attempt"]) == (job["id"], 2)
    assert ann.get(again["href"]).status_code == 200
    breaker.error = None
    assert ann.deliver(again, RESULT).json == {"state": "succeeded"}


def test_a_late_rejection_at_the_limit_ends_the_job(lite: World) -> None:
    """It is failed without a result, so a retry starts over."""
    breaker = Breaker(lite)
    ann, job = _hold(lite, max_attempts=1)
    ann.deliver(job, RESULT)
    breaker.error = ResultRejected("too small")

    assert _process(lite) == 1
    assert (lite.job(job["id"]).state, lite.job(job["id"]).result) == (State.FAILED, None)
    with lite.session():
        lite.jobber.retry(job["id"])
    assert lite.job(job["id"]).state == State.QUEUED


def test_a_rejection_says_one_of_three_things() -> None:
    """A word that is none of them is a mistake of the app's, told where it is made."""
    with pytest.raises(ValueError, match="release"):
        ResultRejected("no", then="retry")  # type: ignore[arg-type]


# -- on_failure -------------------------------------------------------------------------------


def test_a_failure_processor_is_told_once_when_the_job_has_ended(world: World) -> None:
    """Not while there are attempts left; what it writes is part of the same transaction."""
    told: list[tuple[str, t.Any]] = []

    @world.jobber.on_failure("work")
    def note(job: t.Any, error: t.Any) -> None:
        told.append((job.state, error))
        job.written = "failed"
        world.jobber.enqueue("apology")

    ann, job = _hold(world, max_attempts=2)
    ann.fail(job, "first")
    assert told == []
    world.pass_time(100_000)
    [job] = ann.claim()
    for _ in range(2):
        assert ann.fail(job, "second").json == {"state": "failed", "run_at": None}

    assert told == [(State.FAILED, {"type": "Error", "message": "second", "traceback": None})]
    assert world.job(job["id"]).written == "failed"
    assert _count(world, "apology") == 1


def test_a_broken_failure_processor_changes_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and recorded, its work undone, and the job is failed all the same."""

    @world.jobber.on_failure("work")
    def break_(job: t.Any, error: t.Any) -> None:
        job.written = "leaked"
        world.db.session.commit()

    ann, job = _hold(world, max_attempts=1)
    for _ in range(2):
        assert ann.fail(job, "no luck").json == {"state": "failed", "run_at": None}

    after = world.job(job["id"])
    assert (after.state, after.failures, after.written) == (State.FAILED, 1, None)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR] == [
        "a failure processor broke"
    ]
    rows = stored(world, job["id"])[1]
    assert [row["error"] and row["error"]["type"] for row in rows] == [None, None, "Error", "RuntimeError"]
    assert rows[-1]["to_state"] == State.FAILED


def test_an_expired_or_cancelled_job_has_not_failed(lite: World) -> None:
    """The failure processor hears of failures only."""
    told: list[t.Any] = []
    lite.jobber.on_failure("work")(lambda job, error: told.append(job.id))
    expiring, cancelled = lite.enqueue(expires_at=ago(-5)), lite.enqueue()
    with lite.session():
        put(lite, expiring, expires_at=ago(5))
        assert lite.jobber.expire() == 1
        lite.jobber.cancel(cancelled)

    assert told == []


# -- registration -----------------------------------------------------------------------------


def _ignore(*args: t.Any) -> None: ...


@pytest.mark.parametrize(
    "twice",
    [
        lambda jobber: jobber.processor("work")(_ignore),
        lambda jobber: jobber.on_failure("work")(_ignore),
        lambda jobber: jobber.job_type("work", schema=Result),
        lambda jobber: jobber.job_type("work", data_schema=Result),
        lambda jobber: jobber.job_type("work", backoff=Constant(1)),
        lambda jobber: jobber.scope(_ignore),
        lambda jobber: jobber.locker_name(_ignore),
        lambda jobber: jobber.permission(_ignore),
    ],
)
def test_everything_is_said_once(make_world: MakeWorld, sqlite_url: str, twice: t.Any) -> None:
    """A second processor, hook or schema raises an error that says what is there already."""
    jobber = make_world(sqlite_url, scoped=False).jobber
    twice(jobber)

    with pytest.raises(SetupError, match="already"):
        twice(jobber)


def test_what_is_known_of_a_type_may_be_said_in_parts(lite: World) -> None:
    """Schemas here, the processor there; another type is another matter."""
    lite.jobber.job_type("work", schema=Result)
    lite.jobber.processor("work", data_schema=Result)(_ignore)
    lite.jobber.on_failure("work")(_ignore)
    lite.jobber.processor("other")(_ignore)

    ann, job = _hold(lite, data=RESULT)
    assert ann.deliver(job, RESULT).status_code == 200


@pytest.mark.parametrize(
    "register",
    [
        lambda jobber: jobber.processor("new")(_ignore),
        lambda jobber: jobber.on_failure("new")(_ignore),
        lambda jobber: jobber.job_type("new"),
        lambda jobber: jobber.locker_name(_ignore),
        lambda jobber: jobber.scope(_ignore),
    ],
)
def test_the_first_request_closes_the_registry(
    make_world: MakeWorld, sqlite_url: str, register: t.Callable[[Jobber], object]
) -> None:
    """Later registrations would hold for some requests only; the error says what to do."""
    world = make_world(sqlite_url, scoped=False)
    world.client("ann").claim()

    with pytest.raises(SetupError, match="before the first request"):
        register(world.jobber)


def test_what_is_registered_stays_what_it_was(make_world: MakeWorld, sqlite_url: str) -> None:
    """The decorators return the function itself, to be called and tested like any other."""
    jobber = make_world(sqlite_url, scoped=False).jobber
    for decorate in (
        jobber.scope, jobber.locker_name, jobber.permission, jobber.processor("a"), jobber.on_failure("a"),
    ):  # fmt: skip
        assert decorate(_ignore) is _ignore


def test_a_name_that_no_job_can_have_is_refused(lite: World) -> None:
    """A processor for it would wait forever."""
    for register in (lite.jobber.processor, lite.jobber.on_failure, lite.jobber.job_type):
        with pytest.raises(Exception, match="name matches"):
            register("no such/type")


def test_the_servers_own_delivery_raises_what_http_answers(lite: World) -> None:
    """An unfit result is an ``InvalidResult``; a rejection is a change that is to be committed."""

    @lite.jobber.processor("work", schema=Result)
    def judge(job: t.Any, result: t.Any) -> None:
        raise ResultRejected("too small")

    job_id = lite.enqueue()
    with lite.session():
        lite.jobber.claim(LOCKER)
        with pytest.raises(InvalidResult):
            lite.jobber.deliver(LOCKER, job_id, 1, None)
        with pytest.raises(ResultRejected, match="too small"):
            lite.jobber.deliver(LOCKER, job_id, 1, RESULT)

    assert lite.job(job_id).state == State.SCHEDULED
