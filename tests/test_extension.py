"""The extension: its apps, its tables, its settings, its commands, and when it tidies."""

from __future__ import annotations

import threading
import time
import typing as t

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_login import LoginManager
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from conftest import MakeWorld
from flask_jobber import Constant, Jobber, JobMixin, SetupError, State, Tidied
from situations import LOCKER, ago, put, states
from support import PREFIX, Client, World, load_user

MakeApp = t.Callable[..., Flask]


@pytest.fixture
def make_app(tmp_path: t.Any) -> t.Iterator[MakeApp]:
    """Make apps around a db and the Jobbers on it, each app with a database of its own."""
    made: list[tuple[Flask, SQLAlchemy]] = []

    def make(db: SQLAlchemy, *jobbers: Jobber, **config: t.Any) -> Flask:
        app = Flask(f"app{len(made)}")
        url = f"sqlite:///{tmp_path / app.name}.db"
        app.config.update(SECRET_KEY="test", SQLALCHEMY_DATABASE_URI=url, TESTING=True, **config)
        LoginManager(app).request_loader(load_user)
        db.init_app(app)
        for place, jobber in enumerate(jobbers):
            app.register_blueprint(jobber.blueprint, url_prefix=f"{PREFIX}{place or ''}")
        made.append((app, db))
        with app.app_context():
            db.create_all()
        return app

    yield make
    for app, db in made:
        with app.app_context():
            for engine in db.engines.values():
                engine.dispose()


def _database() -> SQLAlchemy:
    class Base(DeclarativeBase):
        pass

    return SQLAlchemy(model_class=Base)


def _enqueue(app: Flask, jobber: Jobber, type_: str = "work") -> int:
    with app.app_context():
        job_id = int(jobber.enqueue(type_).id)
        jobber.db.session.commit()
        return job_id


def _ann(app: Flask) -> Client:
    return Client(app.test_client(), "ann")


# -- apps and Jobbers -------------------------------------------------------------------------


def test_one_jobber_serves_several_apps(make_app: MakeApp) -> None:
    """Each with its own database and settings; hooks and processors are the Jobber's."""
    jobber = Jobber(_database())
    seen: list[t.Any] = []
    jobber.processor("work")(lambda job, result: seen.append((jobber.settings.lease_seconds, result)))
    first = make_app(jobber.db, jobber, JOBBER_LEASE_SECONDS=11)
    second = make_app(jobber.db, jobber, JOBBER_LEASE_SECONDS=22)
    _enqueue(first, jobber)

    assert _ann(second).claim() == []
    [job] = _ann(first).claim()
    assert job["lease_seconds"] == 11
    _enqueue(second, jobber)
    [other] = _ann(second).claim()
    assert other["lease_seconds"] == 22
    assert _ann(first).deliver(job, "a").status_code == 200
    assert _ann(second).get("/claims").json == {"jobs": [other]}
    assert _ann(second).deliver(other, "b").status_code == 200
    assert seen == [(11, "a"), (22, "b")]


def test_an_app_factory_may_be_called_again_and_again(make_app: MakeApp) -> None:
    """The Jobber, its hooks and its blueprint are made once, as a module's globals are."""
    jobber = Jobber(_database())
    jobber.locker_name(lambda: "me")

    for _ in range(3):
        app = make_app(jobber.db, jobber)
        _enqueue(app, jobber)
        assert len(_ann(app).claim()) == 1


def test_several_jobbers_serve_one_app_with_different_storages(make_app: MakeApp) -> None:
    """Each with its tables, its settings, its hooks and its place among the URLs."""
    db = _database()
    durable = Jobber(db, settings={"LEASE_SECONDS": 11})
    scratch = Jobber(db, name="scratch", bind_key="memory", settings={"LEASE_SECONDS": 22})
    scratch.locker_name(lambda: "someone")
    done: list[str] = []
    durable.processor("work")(lambda job, result: done.append("durable"))
    scratch.processor("work")(lambda job, result: done.append("scratch"))
    app = make_app(db, durable, scratch, SQLALCHEMY_BINDS={"memory": "sqlite://"})

    with app.app_context():
        tables = {key: set(sa.inspect(engine).get_table_names()) for key, engine in db.engines.items()}
        ids = [durable.enqueue("work").id, scratch.enqueue("work").id]
        db.session.commit()
    own = (
        "job", "history", "queue", "idempotency_key", "attachment", "batch", "turn", "seat", "meter",
        "locker",
    )  # fmt: skip
    assert tables[None] - {"sqlite_sequence"} == {f"jobber_{name}" for name in own}
    assert tables["memory"] - {"sqlite_sequence"} == {f"scratch_{name}" for name in own}

    ann = _ann(app)
    claims = [ann.post(f"{PREFIX}{place}/claims").json for place in ("", "1")]
    [[job], [other]] = [answer["jobs"] for answer in claims if answer is not None]
    assert ([job["id"], other["id"]], job["lease_seconds"], other["lease_seconds"]) == (ids, 11, 22)
    assert (job["href"], other["href"]) == (f"{PREFIX}/jobs/1/attempts/1", f"{PREFIX}1/jobs/1/attempts/1")
    assert [ann.deliver(handed_out).status_code for handed_out in (job, other)] == [200, 200]
    assert done == ["durable", "scratch"]
    with app.app_context():
        lockers = [db.session.get_one(jobber.Job, 1).locked_by for jobber in (durable, scratch)]
        histories = [db.session.query(jobber.History).count() for jobber in (durable, scratch)]
        db.session.remove()
    assert lockers == ["user_ann", "someone"]
    assert histories == [3, 3]


def test_two_jobbers_of_one_name_are_refused(make_app: MakeApp) -> None:
    """The error says what to do."""
    db = _database()
    first = Jobber(db)
    app = make_app(db, first)
    first.init_app(app)

    with pytest.raises(SetupError, match="name="):
        Jobber(_database()).init_app(app)


def test_an_app_that_the_jobber_never_met_is_refused(make_app: MakeApp) -> None:
    """Its settings are not known; the error says what to do."""
    jobber = Jobber(_database())
    app = make_app(jobber.db)

    with app.app_context(), pytest.raises(SetupError, match="register its blueprint"):
        jobber.enqueue("work")
    jobber.init_app(app)
    assert _enqueue(app, jobber) == 1


# -- tables and classes -----------------------------------------------------------------------


def _legacy() -> SQLAlchemy:
    return SQLAlchemy()


@pytest.mark.parametrize("make_db", [_legacy, _database])
def test_a_jobber_without_a_class_makes_a_plain_one(
    make_app: MakeApp, make_db: t.Callable[[], SQLAlchemy]
) -> None:
    """In ``jobber_job`` and ``jobber_history``, whichever base the app's own classes have."""
    jobber = Jobber(make_db())
    app = make_app(jobber.db, jobber)
    job_id = _enqueue(app, jobber)

    [job] = _ann(app).claim()
    assert _ann(app).deliver(job, {"a": 1}).status_code == 200
    with app.app_context():
        done = jobber.db.session.get_one(jobber.Job, job_id)
        assert (done.state, done.result) == (State.SUCCEEDED, {"a": 1})
        jobber.db.session.remove()
    assert (jobber.Job.__table__.name, jobber.History.__table__.name) == ("jobber_job", "jobber_history")


@pytest.mark.parametrize("make_db", [_legacy, _database])
def test_a_class_of_the_apps_keeps_its_table(make_app: MakeApp, make_db: t.Callable[[], SQLAlchemy]) -> None:
    """With its columns, its arguments, and a history beside it."""
    db = make_db()

    class Task(JobMixin, db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "chore"
        __table_args__ = (sa.CheckConstraint("colour <> ''", name="ck_chore_colour"),)
        colour: Mapped[str] = mapped_column(default="red")

    jobber = Jobber(db, Task)
    app = make_app(db, jobber)

    assert jobber.Job is Task
    with app.app_context():
        assert jobber.enqueue("work").colour == "red"
        assert jobber.enqueue("work", colour="blue").colour == "blue"
        with pytest.raises(sa.exc.IntegrityError):
            jobber.enqueue("work", colour="")
        db.session.rollback()
        tables = set(sa.inspect(db.engine).get_table_names())
    assert {"chore", "chore_history", "chore_queue"} <= tables


def test_a_name_is_the_prefix_of_the_tables() -> None:
    """And of the blueprint."""
    jobber = Jobber(_database(), name="mail")

    assert (jobber.Job.__table__.name, jobber.History.__table__.name) == ("mail_job", "mail_history")
    assert jobber.blueprint.name == "mail"


def test_what_is_no_class_of_jobs_is_refused() -> None:
    """As is a bind beside a class, which says its bind itself."""
    db = _database()

    class NoJob(db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)

    class Job(JobMixin, db.Model):  # type: ignore[name-defined, misc]
        pass

    with pytest.raises(SetupError, match="JobMixin"):
        Jobber(db, NoJob)
    with pytest.raises(SetupError, match="__bind_key__"):
        Jobber(db, Job, bind_key="other")
    with pytest.raises(SetupError, match="volatile"):
        Jobber(db, Job, volatile=True)


# -- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("JOBBER_LEASE_SECOND", "JOBBER_LEASE_SECONDS"),
        ("JOBBER_MAXATTEMPTS", "JOBBER_MAX_ATTEMPTS"),
        ("JOBBER_BACK_OFF", "JOBBER_BACKOFF"),
        ("JOBBER_lease_seconds", "JOBBER_LEASE_SECONDS"),
        ("JOBBER_XYZ", "JOBBER_"),
        ("JOBBER_", "JOBBER_"),
    ],
)
def test_an_unknown_setting_is_refused_with_the_nearest_name(make_app: MakeApp, key: str, near: str) -> None:
    """A typing error would otherwise be a setting that does nothing."""
    jobber = Jobber(_database())
    with pytest.raises(SetupError, match=rf"no setting {key}; did you mean {near}"):
        make_app(jobber.db, jobber, **{key: 1})
    jobber = Jobber(_database(), settings={key.removeprefix("JOBBER_"): 1})
    with pytest.raises(SetupError, match=rf"no setting {key}; did you mean {near}"):
        make_app(jobber.db, jobber)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("LEASE_SECONDS", 0), ("LEASE_SECONDS", -1), ("LEASE_SECONDS", "600"), ("LEASE_SECONDS", True),
        ("LEASE_SECONDS", None), ("LEASE_SECONDS", float("nan")), ("LEASE_SECONDS", float("inf")),
        ("LEASE_SECONDS", 100_000), ("MAX_ATTEMPTS", 1.5), ("MAX_ATTEMPTS", 0), ("MAX_OPEN_CLAIMS", 0),
        ("MAX_CLAIM", None), ("LATE_RESULTS", "maybe"), ("LATE_RESULTS", True), ("TRUST_FAILURES", 1),
        ("TRUSTED_ORIGINS", "https://example.org"), ("TRUSTED_ORIGINS", [1]), ("TRUSTED_ORIGINS", None),
        ("BACKOFF", 5), ("BACKOFF", None), ("TIDY_SECONDS", -1), ("KEEP_FINISHED_DAYS", float("inf")),
        ("ALLOW_ANONYMOUS", "no"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_setting_of_the_wrong_kind_is_refused(make_app: MakeApp, key: str, value: t.Any) -> None:
    """When the app is made, by its name."""
    jobber = Jobber(_database())
    with pytest.raises(SetupError, match=f"JOBBER_{key}"):
        make_app(jobber.db, jobber, **{f"JOBBER_{key}": value})


def test_settings_of_a_jobbers_own_override_the_apps(make_app: MakeApp) -> None:
    """The rest is the app's; they are read once, when the app is met."""
    jobber = Jobber(_database(), settings={"LEASE_SECONDS": 5, "BACKOFF": Constant(1)})
    config = {"JOBBER_LEASE_SECONDS": 7, "JOBBER_MAX_ATTEMPTS": 3, "JOBBER_MAX_OPEN_CLAIMS": None}
    app = make_app(jobber.db, jobber, JOBBER_TRUSTED_ORIGINS=["https://a.example"], **config)
    app.config["JOBBER_MAX_ATTEMPTS"] = 4

    with app.app_context():
        settings = jobber.settings
    assert (settings.lease_seconds, settings.max_attempts, settings.backoff) == (5, 3, Constant(1))
    assert settings.trusted_origins == ("https://a.example",)
    with pytest.raises(AttributeError):
        settings.max_attempts = 5  # type: ignore[misc]


# -- tidying ----------------------------------------------------------------------------------


def _make_untidy(world: World) -> dict[str, int]:
    """Make a submitted job that is due, an expired one, an exhausted one, and one long finished."""

    @world.jobber.processor("submitted")
    def break_once(job: t.Any, result: t.Any) -> None:
        if job.state == State.LOCKED:
            raise RuntimeError("broke")

    with world.session():
        ids = {
            name: int(world.jobber.enqueue(name, max_attempts=1).id)
            for name in ("submitted", "lapsed", "expired", "old", "waiting")
        }
        for claim in world.jobber.claim(LOCKER, types=["submitted", "lapsed"], limit=2):
            if claim.type == "submitted":
                world.jobber.deliver(LOCKER, claim.id, 1)
        world.jobber.cancel(ids["old"])
        put(world, ids["submitted"], run_at=ago(1))
        put(world, ids["lapsed"], locked_until=ago(1))
        put(world, ids["expired"], expires_at=ago(1))
        put(world, ids["old"], finished_at=ago(15 * 86_400))
    return ids


TIDY = {"submitted": "succeeded", "lapsed": "failed", "expired": "expired", "waiting": "queued"}


def test_tidy_processes_expires_and_prunes(world: World) -> None:
    """It says how many; a second time there is nothing left."""
    ids = _make_untidy(world)

    with world.app.app_context():
        assert world.jobber.tidy() == Tidied(processed=1, expired=2, pruned=1)
        assert world.jobber.tidy() == Tidied(0, 0, 0)

    assert states(world) == {ids[name]: state for name, state in TIDY.items()}


def _wait_for_tidying() -> None:
    for thread in threading.enumerate():
        if thread.name == "jobber-tidy":
            thread.join(timeout=30)


def test_tidying_runs_after_requests(make_world: MakeWorld, db_url: str) -> None:
    """In a thread of its own, not before a period after the first request."""
    world = make_world(db_url, JOBBER_TIDY_SECONDS=0.01)
    ids = _make_untidy(world)
    ann, end = world.client("ann"), time.monotonic() + 30

    while states(world) != {ids[name]: state for name, state in TIDY.items()}:
        assert time.monotonic() < end, states(world)
        assert ann.get("/claims").status_code == 200
        _wait_for_tidying()


@pytest.mark.parametrize("seconds", [0, 3600])
def test_tidying_waits_its_time(
    make_world: MakeWorld, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Zero is never, and within the first period nothing runs however many requests come."""
    world = make_world(sqlite_url, JOBBER_TIDY_SECONDS=seconds)
    monkeypatch.setattr(world.jobber, "tidy", lambda: pytest.fail("it tidied"))

    for _ in range(3):
        world.client("ann").get("/claims")
    assert "jobber-tidy" not in [thread.name for thread in threading.enumerate()]


def test_tidying_that_fails_is_logged(
    make_world: MakeWorld,
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And tried again the next time."""
    world = make_world(sqlite_url, JOBBER_TIDY_SECONDS=0.01)
    tries: list[int] = []

    def fail() -> None:
        tries.append(1)
        raise RuntimeError("no disk")

    monkeypatch.setattr(world.jobber, "tidy", fail)
    end = time.monotonic() + 30
    while len(tries) < 2:
        assert time.monotonic() < end
        world.client("ann").get("/claims")
        _wait_for_tidying()
    assert {record.getMessage() for record in caplog.records} == {"tidying failed"}


# -- the command line -------------------------------------------------------------------------


def _run(app: Flask, *args: str) -> tuple[int, list[str]]:
    result = app.test_cli_runner().invoke(args=["jobber", *args])
    return result.exit_code, result.output.splitlines()


def test_the_commands_do_what_the_verbs_do(world: World) -> None:
    """And say how much, for each Jobber."""
    ids = _make_untidy(world)

    assert _run(world.app, "process") == (0, ["jobber: 1 processed"])
    assert _run(world.app, "tidy") == (0, ["jobber: 0 processed, 2 expired, 1 pruned"])
    assert states(world) == {ids[name]: state for name, state in TIDY.items()}
    assert _run(world.app, "prune") == (0, ["jobber: 0 pruned"])
    assert _run(world.app, "prune", "--older-than-days", "0") == (0, ["jobber: 3 pruned"])
    assert states(world) == {ids["waiting"]: State.QUEUED}


def test_process_takes_no_more_than_its_limit(lite: World) -> None:
    """The rest is for the next time."""

    @lite.jobber.processor("work")
    def break_once(job: t.Any, result: t.Any) -> None:
        if job.state == State.LOCKED:
            raise RuntimeError("broke")

    with lite.session():
        lite.jobber.enqueue_many([{"type": "work"}] * 3)
        for claim in lite.jobber.claim(LOCKER, limit=3):
            lite.jobber.deliver(LOCKER, claim.id, 1)
            put(lite, claim.id, run_at=ago(1))

    assert _run(lite.app, "process", "--limit", "2") == (0, ["jobber: 2 processed"])
    assert _run(lite.app, "process") == (0, ["jobber: 1 processed"])


def test_a_command_is_for_all_jobbers_or_the_one_that_is_named(make_app: MakeApp) -> None:
    """A name that is none is refused, with those that are."""
    db = _database()
    app = make_app(db, Jobber(db), Jobber(db, name="mail"))

    for command, done in (
        ("process", "0 processed"),
        ("tidy", "0 processed, 0 expired, 0 pruned"),
        ("prune", "0 pruned"),
    ):
        assert _run(app, command) == (0, [f"jobber: {done}", f"mail: {done}"])
        assert _run(app, command, "--name", "mail") == (0, [f"mail: {done}"])
        code, lines = _run(app, command, "--name", "post")
        assert code == 2
        assert "this app has jobber, mail" in lines[-1]


def test_prune_goes_on_until_nothing_is_old(lite: World) -> None:
    """More than one batch of the verb."""
    with lite.session() as session:
        lite.jobber.enqueue_many([{"type": "work"}] * 1100)
        ended = {"state": State.CANCELLED, "finished_at": ago(86_400 * 20)}
        session.execute(sa.update(lite.Job.__table__).values(ended))

    assert _run(lite.app, "prune") == (0, ["jobber: 1100 pruned"])


def test_volatile_tables_are_unlogged_where_that_is_known(make_world: MakeWorld, db_url: str) -> None:
    """Ordinary elsewhere, and so are all others, of the queues too; jobs go their way in them."""
    world = make_world(db_url)
    scratch = Jobber(world.db, name="scratch", volatile=True)
    scratch.init_app(world.app)
    with world.app.app_context():
        world.db.create_all()
        if world.db.engine.dialect.name == "postgresql":
            kinds = (
                "SELECT relname, relpersistence FROM pg_class WHERE relkind = 'r' AND relname ~ 'job|scratch'"
            )
            assert dict(map(tuple, world.db.session.execute(sa.text(kinds)).all())) == {
                "job": "p", "job_history": "p", "job_queue": "p", "job_idempotency_key": "p",
                "scratch_job": "u", "scratch_history": "u", "scratch_queue": "p",
                "scratch_idempotency_key": "u", "job_attachment": "p", "scratch_attachment": "u",
                "job_batch": "p", "scratch_batch": "u",
                **{f"job_{name}": "p" for name in ("turn", "seat", "meter")},
                **{f"scratch_{name}": "u" for name in ("turn", "seat", "meter")},
                "job_locker": "p", "scratch_locker": "p",
            }  # fmt: skip
        scratch.enqueue("trifle")
        (claim,) = scratch.claim(LOCKER)
        assert scratch.deliver(LOCKER, claim.id, claim.attempt, 1) == State.SUCCEEDED
        world.db.session.commit()
