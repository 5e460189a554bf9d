"""Enqueue: what may become a job, in whose transaction, and who gets it first."""

from __future__ import annotations

import datetime as dt
import typing as t

import pytest
import sqlalchemy as sa
from marshmallow import Schema, fields

from conftest import MakeWorld
from flask_jobber import Constant, DuplicateJob, Invalid, State, TooLarge, job_enqueued
from flask_jobber.core.states import Verb
from situations import ERROR, LOCKER, ago, put, shared_world, stored
from support import World

TOKYO = dt.timezone(dt.timedelta(hours=9))


def _count(world: World) -> tuple[int, int]:
    """Return how many jobs and rows of history there are."""
    with world.session() as session:
        tables = (world.Job.__table__, world.jobber.History.__table__)
        jobs, rows = (session.scalar(sa.select(sa.func.count()).select_from(table)) for table in tables)
        return jobs, rows


# -- the arguments ----------------------------------------------------------------------------


def test_a_plain_job_has_the_apps_defaults(make_world: MakeWorld, db_url: str) -> None:
    """It is flushed, so it has its id; it is queued, due now, and its history has begun."""
    world = make_world(db_url, JOBBER_MAX_ATTEMPTS=4)
    with world.session() as session:
        job = world.jobber.enqueue("work")
        assert isinstance(job, world.Job)
        assert job.id > 0
        assert sa.inspect(job).persistent
        now = session.scalar(sa.select(sa.func.max(world.Job.created_at)))
        assert (job.created_at, job.run_at) == (now, now)
        job_id = job.id

    row, history = stored(world, job_id)
    assert {name: row[name] for name in ("type", "queue", "priority", "state", "max_attempts")} == {
        "type": "work", "queue": "default", "priority": 0, "state": "queued", "max_attempts": 4,
    }  # fmt: skip
    assert (row["attempts"], row["failures"]) == (0, 0)
    unset = {
        "data", "result", "extras", "backoff", "lease_for", "expires_at", "unique_key", "only_for", "not_for",
        "only_for_until", "on_success", "on_failure", "every", "series", "slot", "owner_ref", "has_files",
        "batch_id", "copy_of", "shown_as", "trust",
        "locked_by", "locked_at", "locked_until", "lease_seconds", "progress", "note", "finished_at",
        "user_id", "written", "later_turn", "concurrency_key", "seated",
    }  # fmt: skip
    assert {name for name, value in row.items() if value is None} == unset
    assert [(r["from_state"], r["to_state"], r["attempt"], r["locker"], r["reason"]) for r in history] == [
        (None, State.QUEUED, 0, None, Verb.ENQUEUE)
    ]


def test_every_keyword_is_stored(world: World) -> None:
    """Lengths may be timedeltas, instants are kept to the microsecond, and the app's columns are filled."""
    run_at = dt.datetime(2040, 2, 29, 23, 59, 59, 999_999, tzinfo=TOKYO)
    job_id = world.enqueue(
        "resize:v2.big-1", {"url": "…", "n": [1, 2.5, None, True]}, queue="fast", priority=-7, run_at=run_at,
        expires_at=run_at + dt.timedelta(days=1), max_attempts=2, backoff=Constant(9),
        lease_for=dt.timedelta(minutes=3), unique_key="résumé 1", only_for="user_ann/left",
        not_for=["user_bob", "right", "user_bob"], user_id="ann", written="w",
    )  # fmt: skip

    job = world.job(job_id)

    assert (job.type, job.queue, job.priority) == ("resize:v2.big-1", "fast", -7)
    assert job.data == {"url": "…", "n": [1, 2.5, None, True]}
    assert (job.run_at, job.run_at.utcoffset()) == (run_at, dt.timedelta())
    assert (job.expires_at - job.run_at, job.state) == (dt.timedelta(days=1), State.SCHEDULED)
    assert (job.max_attempts, job.lease_for, job.unique_key) == (2, 180, "résumé 1")
    assert job.backoff == {"strategy": "constant", "first": 9, "jitter": 0}
    assert (job.only_for, job.not_for) == ("user_ann/left", ["right", "user_bob"])
    assert (job.user_id, job.written) == ("ann", "w")


@pytest.mark.parametrize(
    ("spec", "state", "seconds"),
    [
        ({"after": 90}, State.SCHEDULED, 90),
        ({"after": dt.timedelta(hours=1)}, State.SCHEDULED, 3600),
        ({"after": 0}, State.QUEUED, 0),
        ({"run_at": dt.timedelta(hours=1)}, State.SCHEDULED, 3600),
        ({"run_at": dt.timedelta(hours=-1)}, State.QUEUED, -3600),
        ({"run_at": None, "after": None, "queue": None, "unique_key": None}, State.QUEUED, 0),
    ],
    ids=str,
)
def test_a_job_is_scheduled_when_it_is_to_run_later(
    lite: World, spec: dict[str, t.Any], state: State, seconds: float
) -> None:
    """Otherwise it is queued, an instant that has passed included; ``None`` is as good as not given."""
    start = dt.datetime.now(dt.UTC)
    if spec.get("run_at"):
        spec = {"run_at": start + spec["run_at"]}
    job = lite.job(lite.enqueue(**spec))

    assert job.state == state
    assert abs((job.run_at - start).total_seconds() - seconds) < 60


def test_instants_come_back_aware_in_utc(world: World) -> None:
    """From the object, from a select of the column, and from one of the table, on every engine."""
    run_at = dt.datetime(2031, 5, 6, 7, 8, 9, 123_456, tzinfo=TOKYO)
    job_id = world.enqueue(run_at=run_at)

    with world.session() as session:
        table = world.Job.__table__
        read = [
            session.get(world.Job, job_id).run_at,
            session.scalar(sa.select(world.Job.run_at)),
            session.scalar(sa.select(sa.func.max(world.Job.run_at))),
            session.scalar(sa.select(table.c.run_at)),
            session.scalar(sa.select(world.Job.run_at).where(world.Job.run_at == run_at)),
            session.scalar(sa.select(world.Job.run_at).where(world.Job.run_at <= run_at.astimezone(dt.UTC))),
        ]
        times = session.scalars(sa.select(world.Job)).one()
        read_now = [times.created_at, times.updated_at]

    assert [instant.isoformat() for instant in read] == ["2031-05-05T22:08:09.123456+00:00"] * 6
    for instant in read_now:
        assert instant.utcoffset() == dt.timedelta()
        assert abs(instant - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)


# Who enqueues 100 deep may; the 101st is one too many.
_DEEPEST: list[t.Any] = []
for _ in range(99):
    _DEEPEST = [_DEEPEST]
_LOOP: list[t.Any] = []
_LOOP.append(_LOOP)
_DAYS = dt.timedelta(days=1)

BAD: list[dict[str, t.Any]] = [
    {"type": None}, {"type": ""}, {"type": "a b"}, {"type": "a/b"}, {"type": "a" * 101}, {"type": "ä"},
    {"type": "a\n"}, {"type": 5}, {"queue": ""}, {"queue": "a b"}, {"queue": "a" * 101}, {"queue": 5},
    {"data": float("nan")}, {"data": [float("inf")]}, {"data": {"a": -float("inf")}}, {"data": b"x"},
    {"data": {1: 2}}, {"data": [{"a": {None: 1}}]}, {"data": {True: 1}}, {"data": {1, 2}}, {"data": _DAYS},
    {"data": [_DEEPEST]}, {"data": {"a": _DEEPEST}}, {"data": _LOOP}, {"data": "a\0"}, {"data": {"\0": 1}},
    {"data": "\ud800"}, {"data": 10**5000}, {"data": object()},
    {"priority": 1.5}, {"priority": "1"}, {"priority": True}, {"priority": 2**31}, {"priority": -(2**40)},
    {"run_at": dt.datetime(2040, 1, 1)}, {"run_at": "2040-01-01T00:00:00Z"}, {"run_at": 5},
    {"run_at": dt.datetime.max.replace(tzinfo=dt.UTC)}, {"run_at": dt.datetime.min.replace(tzinfo=TOKYO)},
    {"run_at": dt.date(2040, 1, 1)}, {"after": -1}, {"after": -_DAYS}, {"after": "5"},
    {"after": float("nan")}, {"after": float("inf")}, {"after": 1e12}, {"after": True},
    {"after": 5, "run_at": ago(0)},
    {"expires_at": dt.datetime(2040, 1, 1)}, {"expires_at": 5}, {"expires_at": dt.datetime.max},
    {"max_attempts": 0}, {"max_attempts": -1}, {"max_attempts": 1.0}, {"max_attempts": 2**31},
    {"backoff": "weekly"}, {"backoff": 5}, {"backoff": {"strategy": []}}, {"backoff": {"first": 5}},
    {"backoff": {"strategy": "linear", "first": -1}}, {"backoff": {"strategy": "linear", "factor": 2}},
    {"lease_for": 0}, {"lease_for": -5}, {"lease_for": -_DAYS}, {"lease_for": 86_401}, {"lease_for": "5"},
    {"lease_for": float("nan")}, {"lease_for": True},
    {"unique_key": ""}, {"unique_key": "k" * 201}, {"unique_key": 5}, {"unique_key": "a\0"},
    {"unique_key": " k"}, {"unique_key": "k "}, {"unique_key": "a\nb"}, {"unique_key": "\udfff"},
    {"only_for": ""}, {"only_for": ["ann"]}, {"only_for": 5}, {"only_for": "a" * 400}, {"only_for": "ann "},
    {"not_for": 5}, {"not_for": ["ann", 5]}, {"not_for": ["ann", None]}, {"not_for": "ann\nbob"},
    {"not_for": [""]}, {"not_for": b"ann"}, {"not_for": "a" * 400},
    {"not_for": ["a" * 300 + str(number) for number in range(200)]},
    {"only_for_seconds": 5}, {"only_for_seconds": 0, "only_for": "ann"},
    {"only_for_seconds": "5", "only_for": "ann"}, {"only_for_seconds": 1e12, "only_for": "ann"},
    {"only_for_until": ago(0)},
    {"colour": "red"}, {"colour": None}, {"state": "locked"}, {"id": 5}, {"attempts": 3},
    {"locked_by": "ann"}, {"lease_seconds": 5}, {"created_at": ago(0)}, {"result": 1}, {"metadata": 1},
    {"query": 1}, {"__dict__": 1},
]  # fmt: skip


def _named(spec: dict[str, t.Any]) -> str:
    return "-".join(f"{key}={type(value).__name__}" for key, value in spec.items())


@pytest.mark.parametrize("spec", BAD, ids=_named)
def test_a_bad_value_is_refused_at_the_producer(bad_values: World, spec: dict[str, t.Any]) -> None:
    """With the name of its argument, before anything is written; the transaction goes on."""
    with bad_values.app.app_context():
        before = bad_values.jobber.enqueue("work").id
        for enqueue in (
            lambda: bad_values.jobber.enqueue(**{"type": "work", **spec}),
            lambda: bad_values.jobber.enqueue_many([{"type": "work"}, {"type": "work", **spec}]),
        ):
            with pytest.raises(Invalid) as refused:
                enqueue()
            assert list(refused.value.errors) == [next(iter(spec))]
        assert bad_values.jobber.enqueue("work").id == before + 1


@pytest.fixture(scope="module")
def bad_values(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[World]:
    with shared_world(tmp_path_factory.mktemp("bad")) as world:
        yield world


def test_the_largest_values_are_still_taken(world: World) -> None:
    """What is refused is one more than this; every engine stores it as it is."""
    spec: dict[str, t.Any] = {
        "type": "t" * 100, "queue": "q" * 100, "data": _DEEPEST, "priority": 2**31 - 1,
        "max_attempts": 2**31 - 1, "lease_for": 86_400.0, "unique_key": "🦉" * 200,
        "only_for": "ä" * 255 + "/" + "n" * 60, "not_for": ["z" * 316],
        "run_at": dt.datetime(1000, 1, 2, tzinfo=dt.UTC),
        "expires_at": dt.datetime(9000, 1, 1, tzinfo=dt.UTC),
    }  # fmt: skip

    row, _ = stored(world, world.enqueue(**spec))

    assert {name: row[name] for name in spec} == spec
    assert world.job(world.enqueue(priority=-(2**31) + 1)).priority == -(2**31) + 1


def test_data_is_measured_in_bytes_of_canonical_json(make_world: MakeWorld, sqlite_url: str) -> None:
    """A text of ``MAX_DATA_BYTES`` is one too large by its quotes; letters may take several bytes."""
    world = make_world(sqlite_url, JOBBER_MAX_DATA_BYTES=20)

    for fits in ("a" * 18, "ä" * 9, [1, 2, 3, 4, 5], {"b": 1, "a": "xyzuvw"}):
        world.enqueue(data=fits)
    for too_large in ("a" * 19, "ä" * 10, {"b": 1, "a": "xyzuvwt"}, list(range(10))):
        with world.app.app_context(), pytest.raises(TooLarge, match="20"):
            world.jobber.enqueue("work", too_large)


def test_data_must_fit_its_types_schema(world: World) -> None:
    """The error comes at the producer, with the schema's own messages; other types are free."""

    class Data(Schema):
        url = fields.Url(required=True)

    world.jobber.job_type("resize", data_schema=Data)
    with world.session():
        bad: list[t.Any] = [{}, None, [], {"url": "x"}, {"url": "https://example.org", "size": 1}]
        for wrong in bad:
            with pytest.raises(Invalid) as refused:
                world.jobber.enqueue_many([{"type": "other"}, {"type": "resize", "data": wrong}])
            assert list(refused.value.errors) == ["data"]
        world.jobber.enqueue("resize", {"url": "https://example.org"})
        world.jobber.enqueue("other", [])

    assert _count(world) == (2, 2)


# -- the caller's transaction -----------------------------------------------------------------


def test_a_job_joins_its_callers_transaction(world: World) -> None:
    """A roll-back leaves nothing: no job, no history, no signal."""
    sent: list[t.Any] = []

    def receive(sender: object, **facts: t.Any) -> None:
        sent.append(facts["job_id"])

    with job_enqueued.connected_to(receive, sender=world.jobber):
        with world.app.app_context():
            world.jobber.enqueue("work")
            world.jobber.enqueue("work", unique_key="k")
            world.jobber.enqueue_many([{"type": "work"}] * 3)
            world.db.session.rollback()
        assert (_count(world), sent) == ((0, 0), [])

        with world.session() as session:
            kept = int(world.jobber.enqueue("work").id)
            savepoint = session.begin_nested()
            world.jobber.enqueue("work", unique_key="k")
            savepoint.rollback()
            assert sent == []

    assert (_count(world), sent) == ((1, 1), [kept])


def test_a_taken_key_leaves_the_callers_transaction_whole(world: World) -> None:
    """``DuplicateJob`` is raised at once, and what was done before and after it is committed."""
    first = world.enqueue("work", unique_key="k")
    with world.session() as session:
        before = world.jobber.enqueue("before")
        session.add(world.Job(type="own", max_attempts=1))
        with pytest.raises(DuplicateJob, match="unique_key"):
            world.jobber.enqueue("work", unique_key="k")
        after = world.jobber.enqueue("after", unique_key="K")
        assert (before.type, after.type) == ("before", "after")

    with world.session() as session:
        assert sorted(session.scalars(sa.select(world.Job.type))) == ["after", "before", "own", "work"]
    assert world.job(first).unique_key == "k"


def test_keys_are_told_apart_byte_by_byte(world: World) -> None:
    """Case, accents and forms of the same letter make different keys on every engine."""
    keys = ["key", "Key", "kéy", "ke\u0301y", "k éy", "straße", "strasse", "\uff4b\uff45\uff59"]
    for key in keys:
        world.enqueue(unique_key=key)

    assert _count(world) == (len(keys), len(keys))
    for key in keys:
        with world.app.app_context(), pytest.raises(DuplicateJob):
            world.jobber.enqueue("work", unique_key=key)


def _end_failed(world: World, job_id: int) -> None:
    world.jobber.claim(LOCKER)
    world.jobber.fail(LOCKER, job_id, 1, ERROR, permanent=True)


def _end_succeeded(world: World, job_id: int) -> None:
    world.jobber.claim(LOCKER)
    world.jobber.deliver(LOCKER, job_id, 1)


def _end_cancelled(world: World, job_id: int) -> None:
    world.jobber.cancel(job_id)


def _end_expired(world: World, job_id: int) -> None:
    put(world, job_id, expires_at=ago(5))
    assert world.jobber.expire() == 1


def _end_lapsed(world: World, job_id: int) -> None:
    world.jobber.claim(LOCKER)
    put(world, job_id, locked_until=ago(5), max_attempts=1)
    assert world.jobber.claim(LOCKER) == []


def test_a_key_is_free_again_when_its_job_has_ended(world: World) -> None:
    """However it ended; and a retry of the old job does not take the key from the new one."""
    for end in (_end_failed, _end_succeeded, _end_cancelled, _end_expired, _end_lapsed):
        job_id = world.enqueue(unique_key="k")
        with world.session():
            end(world, job_id)
            other = world.jobber.enqueue("work", unique_key="k").id
            assert other != job_id
        with world.session():
            if world.job(job_id).state != State.SUCCEEDED:
                world.jobber.retry(job_id)
                world.jobber.cancel(job_id)
            assert world.job(other).unique_key == "k"
            world.jobber.cancel(other)
        assert world.job(job_id).unique_key is None


def test_a_key_is_taken_in_every_unfinished_state(lite: World) -> None:
    """Held, scheduled or submitted, the job has not ended."""

    @lite.jobber.processor("work")
    def break_(job: t.Any, result: t.Any) -> None:
        raise RuntimeError

    job_id = lite.enqueue(unique_key="k")
    for act in (
        lambda: lite.jobber.claim(LOCKER),
        lambda: lite.jobber.release(LOCKER, job_id, 1, delay_seconds=60),
        lambda: put(lite, job_id, run_at=ago(1)),
        lambda: lite.jobber.claim(LOCKER),
        lambda: lite.jobber.deliver(LOCKER, job_id, 2),
    ):
        with lite.session():
            act()
            with pytest.raises(DuplicateJob):
                lite.jobber.enqueue("work", unique_key="k")

    assert lite.job(job_id).state == State.SUBMITTED


# -- many at once -----------------------------------------------------------------------------


def test_many_jobs_are_enqueued_at_once(world: World) -> None:
    """Each a mapping of the same arguments; they have their ids, in order, and a history each."""
    with world.session():
        jobs = world.jobber.enqueue_many(
            {"type": "work", "data": n, "user_id": "ann", "unique_key": f"k{n}"} for n in range(250)
        )
        assert world.jobber.enqueue_many([]) == []
        assert [job.data for job in jobs] == list(range(250))
        ids = [job.id for job in jobs]
    assert ids == sorted(set(ids))
    assert _count(world) == (250, 250)


def test_of_many_jobs_all_are_enqueued_or_none(world: World) -> None:
    """One bad one among them spoils all, and nothing else of the transaction."""
    world.enqueue(unique_key="taken")
    bad: list[tuple[dict[str, t.Any], type[Exception]]] = [
        ({"type": "a b"}, Invalid),
        ({}, Invalid),
        ({"type": "work", "unique_key": "taken"}, DuplicateJob),
        ({"type": "work", "unique_key": "twin"}, DuplicateJob),
    ]
    with world.session():
        world.jobber.enqueue("before")
        for spec, error in bad:
            with pytest.raises(error):
                world.jobber.enqueue_many([{"type": "work", "unique_key": "twin"}, {"type": "work"}, spec])
        world.jobber.enqueue("after", unique_key="twin")

    assert _count(world) == (3, 3)


# -- who gets it ------------------------------------------------------------------------------


def test_the_highest_priority_runs_first_then_the_earliest_then_the_first(world: World) -> None:
    """Whether queued, scheduled and due, or lapsed."""
    early, late = ago(300), ago(200)
    specs: list[dict[str, t.Any]] = [
        {"run_at": late}, {"run_at": early}, {"run_at": early}, {"priority": 5}, {"priority": -5},
        {"priority": 5, "run_at": late}, {"priority": 5, "run_at": ago(-500)}, {"priority": 3},
    ]  # fmt: skip
    with world.session():
        ids = [job.id for job in world.jobber.enqueue_many({"type": "work", **spec} for spec in specs)]
        # One of each kind among them: scheduled before it was due, and lapsed.
        put(world, ids[1], state=State.SCHEDULED)
        put(world, ids[7], state=State.LOCKED, attempts=1, locked_by=LOCKER, locked_until=ago(1))

    ann = world.client("ann")
    order = [job["id"] for job in (*ann.claim(limit=3), *ann.claim(), *ann.claim(limit=10))]

    assert order == [ids[place] for place in (5, 3, 7, 1, 2, 0, 4)]


NAMES = [
    # (who, node, only_for, whether it may have the job)
    ("ann", None, "user_ann", True),
    ("ann", "left", "user_ann", True),
    ("ann", "left", "user_ann/left", True),
    ("ann", "left", "left", True),
    ("bob", "left", "left", True),
    ("ann", None, "user_ann/left", False),
    ("ann", "right", "user_ann/left", False),
    ("ann", None, "left", False),
    ("ann", "left", "Left", False),
    ("Ann", None, "user_ann", False),
    ("ann", None, "user_Ann", False),
    ("ann", None, "user_an", False),
    ("annie", None, "user_ann", False),
    ("ann", "lef", "left", False),
    ("ann", None, "user_än", False),
]


def test_a_preference_ends_and_then_others_may_have_the_job(world: World) -> None:
    """Its time begins when the job is due; whom ``not_for`` names stays away all the same."""
    now = world.enqueue(only_for="user_ann", only_for_seconds=60, not_for="user_cat")
    due = ago(-3600)
    later = world.enqueue(only_for="user_ann", only_for_seconds=dt.timedelta(minutes=1), run_at=due)
    assert world.job(later).only_for_until == due + dt.timedelta(seconds=60)

    assert world.client("bob").claim() == []
    world.pass_time(61)
    assert world.client("cat").claim() == []
    assert [job["id"] for job in world.client("bob").claim(limit=5, lease_seconds=9000)] == [now]
    world.pass_time(3600 - 61)
    assert world.client("bob").claim() == []
    assert [job["id"] for job in world.client("ann").claim()] == [later]


@pytest.mark.parametrize("column", ["only_for", "not_for"])
def test_names_match_the_whole_locker_the_login_or_the_node(world: World, column: str) -> None:
    """Byte by byte on every engine; ``not_for`` keeps away exactly whom ``only_for`` would let in."""
    for user, node, name, matches in NAMES:
        job_id = world.enqueue(**{column: name})
        got = [job["id"] for job in world.client(user, node).claim()]
        expected = [job_id] if matches == (column == "only_for") else []
        assert got == expected, (user, node, name)
        with world.session():
            world.jobber.cancel(job_id)


def test_several_names_may_be_kept_away(world: World) -> None:
    """Each of a list; a part of a name is no name, and the jobs behind are found."""
    world.enqueue(not_for=["user_ann", "user_bobby", "left"])
    other = world.enqueue(priority=-1)

    assert [job["id"] for job in world.client("ann").claim()] == [other]
    assert world.client("bob", "left").claim() == []
    assert len(world.client("bob").claim()) == 1
