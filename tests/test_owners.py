"""Owners: the things that jobs are enqueued for."""

from __future__ import annotations

import datetime as dt
import decimal
import typing as t
import uuid

import pytest
import sqlalchemy as sa
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.orm.exc import DetachedInstanceError

from conftest import MakeWorld
from flask_jobber import Invalid, Jobber, job_cancelled, job_expired, job_failed, job_succeeded
from situations import ERROR, ago, put
from support import World

LOCKER = "user_ann"


class Things(t.NamedTuple):
    """The models of an app whose things own jobs."""

    Album: type[t.Any]
    Track: type[t.Any]
    Live: type[t.Any]
    Person: type[t.Any]


def add_things(world: World) -> Things:
    """Map the models, and make their tables."""

    class Album(world.db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(sa.String(20), default="album")
        title: Mapped[str | None] = mapped_column(sa.String(20))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "album"}  # noqa: RUF012

    class Live(Album):
        id: Mapped[int] = mapped_column(sa.ForeignKey("album.id"), primary_key=True)
        __mapper_args__ = {"polymorphic_identity": "live"}  # noqa: RUF012

    class Track(world.db.Model):  # type: ignore[name-defined, misc]
        side: Mapped[str] = mapped_column(sa.String(60), primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)

    class Person(world.db.Model):  # type: ignore[name-defined, misc]
        id: Mapped[uuid.UUID] = mapped_column(sa.Uuid, primary_key=True)

    with world.app.app_context():
        world.db.create_all()
    return Things(Album, Track, Live, Person)


def test_a_thing_has_its_jobs(world: World) -> None:
    """By id, to be narrowed; counted by state; those of other things are not among them."""
    things = add_things(world)
    with world.session() as session:
        album, other = things.Album(title="one"), things.Album(title="two")
        session.add_all([album, other])
        jobs = [world.jobber.enqueue("work", n, owner=album) for n in range(3)]
        world.jobber.enqueue("work", owner=other)
        world.jobber.enqueue("work")
        world.jobber.cancel(jobs[1])
        found = session.scalars(world.jobber.jobs_of(album)).all()
        assert [job.data for job in found] == [0, 1, 2]
        queued = session.scalars(world.jobber.jobs_of(album).where(world.Job.state == "queued"))
        assert [job.data for job in queued] == [0, 2]
        assert world.jobber.count_of(album) == 3
        assert world.jobber.count_of(album, state="cancelled") == 1
        assert world.jobber.count_of(album, state=("queued", "scheduled")) == 2
        assert world.jobber.count_of(album, state="succeeded") == 0
        assert jobs[0].owner is album
        assert jobs[0].owner_ref == f"album/{album.id}"
        assert world.jobber.count_of(jobs[0].owner_ref) == 3
        assert session.scalars(sa.select(world.Job).order_by(world.Job.id.desc())).first().owner is None
        with pytest.raises(Invalid) as refused:
            world.jobber.count_of(album, state="done")
        assert list(refused.value.errors) == ["state"]


def test_an_owner_is_loaded_fresh(world: World) -> None:
    """As its row is now, also when the session knows it; what is not written yet is not lost."""
    things = add_things(world)
    with world.session() as session:
        album = things.Album(title="old")
        session.add(album)
        job_id = world.jobber.enqueue("work", owner=album).id
    with world.session() as session:
        job = session.get(world.Job, job_id)
        album = job.owner
        session.execute(sa.update(things.Album.__table__).values(title="new"))
        assert job.owner is album
        assert album.title == "new"
        album.title = "mine"
        assert job.owner.title == "mine"


def test_deleting_an_owner_deletes_no_job(world: World) -> None:
    """Its jobs are there, are done as ever, and are found by what it was."""
    things = add_things(world)
    with world.session() as session:
        album = things.Album(title="gone")
        session.add(album)
        job_id = world.jobber.enqueue("work", owner=album).id
    with world.session() as session:
        album = session.scalars(sa.select(things.Album)).one()
        session.delete(album)
        session.commit()
        job = session.get(world.Job, job_id)
        assert (job.state, job.owner) == ("queued", None)
        assert [one.id for one in session.scalars(world.jobber.jobs_of(album))] == [job_id]
        assert world.jobber.find_owner(job.owner_ref) is None
        (claim,) = world.jobber.claim(LOCKER)
        world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
    assert world.job(job_id).state == "succeeded"


def test_keys_of_all_kinds(world: World) -> None:
    """Of several columns, of text with anything in it, of a class below another, of another type."""
    things = add_things(world)
    texts = ["a,b", "a/b", "ä b", "%2C", "", " ", "..", "🎵"]
    with world.session() as session:
        owners: list[t.Any] = [things.Track(side=side, number=n) for n, side in enumerate(texts)]
        owners += [things.Track(side="a,b", number=1), things.Live(title="live")]
        owners += [things.Person(id=uuid.uuid4())]
        session.add_all(owners)
        ids = [world.jobber.enqueue("work", n, owner=owner).id for n, owner in enumerate(owners)]
        for job_id, owner in zip(ids, owners, strict=True):
            assert session.get(world.Job, job_id).owner is owner
            assert [job.id for job in session.scalars(world.jobber.jobs_of(owner))] == [job_id]
        live = session.get(world.Job, ids[-2])
        assert (type(live.owner), live.owner_ref.partition("/")[0]) == (things.Live, "album")


@pytest.mark.parametrize("what", ["text", "number", "transient", "long", "unmapped", "no table", "dict"])
def test_what_can_own_no_job_is_refused(lite: World, what: str) -> None:
    """Where it is enqueued, with a reason."""
    things = add_things(lite)
    with lite.session() as session:
        long = things.Track(side="x" * 60, number=1)
        long.side = "ä" * 60
        session.add(long)
        wrong: t.Any = {
            "text": "album", "number": 5, "transient": things.Album(), "long": long, "unmapped": object(),
            "no table": "nothing/5", "dict": {"id": 5},
        }[what]  # fmt: skip
        with pytest.raises(Invalid) as refused:
            lite.jobber.enqueue("work", owner=wrong)
        assert list(refused.value.errors) == ["owner"]
        session.rollback()


@pytest.mark.parametrize(
    "reference", ["album/x", "album/1,2", "album/", f"album/{10**30}", "track/a", "person/5", "album/1e5"]
)
def test_a_reference_that_fits_no_key_finds_nothing(lite: World, reference: str) -> None:
    """A text from a client may be anything."""
    add_things(lite)
    with lite.session():
        assert lite.jobber.find_owner(reference) is None
        assert lite.jobber.count_of(reference) == 0


def test_a_thing_whose_model_is_not_imported_is_no_thing_that_is_gone(lite: World) -> None:
    """A process that does not know its class says so."""
    job_id = lite.enqueue()
    with lite.session() as session:
        put(lite, job_id, owner_ref="elsewhere/5")
        with pytest.raises(LookupError, match="elsewhere/5"):
            _ = session.get(lite.Job, job_id).owner


def test_a_job_in_no_session_cannot_load(lite: World) -> None:
    """It says why."""
    things = add_things(lite)
    with lite.session() as session:
        album = things.Album()
        session.add(album)
        job_id = lite.jobber.enqueue("work", owner=album).id
    with pytest.raises(DetachedInstanceError):
        _ = lite.job(job_id).owner


def test_repeated_jobs_have_the_owner_of_the_first(world: World) -> None:
    """All of a chain are its jobs."""
    things = add_things(world)
    with world.session() as session:
        album = things.Album()
        session.add(album)
        world.jobber.enqueue("work", owner=album, repeat_after_success=0)
        for _ in range(2):
            (claim,) = world.jobber.claim(LOCKER)
            world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
        assert world.jobber.count_of(album) == 3


def test_owners_of_other_binds_and_of_a_plain_jobs_class(sqlite_url: str) -> None:
    """Tables of one name in two binds are two; a plain class of jobs knows the app's models."""
    db = SQLAlchemy()
    jobber = Jobber(db)

    class Here(db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "thing"
        id = db.Column(db.Integer, primary_key=True)

    class There(db.Model):  # type: ignore[name-defined, misc]
        __tablename__ = "thing"
        __bind_key__ = "other"
        id = db.Column(db.Integer, primary_key=True)

    class Money(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.Numeric(8, 2), primary_key=True)
        day = db.Column(db.Date, primary_key=True)

    class Odd(db.Model):  # type: ignore[name-defined, misc]
        id = db.Column(db.LargeBinary, primary_key=True)

    app = Flask("binds")
    app.config["SQLALCHEMY_DATABASE_URI"] = sqlite_url
    app.config["SQLALCHEMY_BINDS"] = {"other": f"{sqlite_url}-other"}
    db.init_app(app)
    jobber.init_app(app)
    with app.app_context():
        db.create_all()
        money = Money(id=decimal.Decimal("1.50"), day=dt.date(2026, 1, 2))
        owners = [Here(id=1), There(id=1), money]
        db.session.add_all([*owners, Odd(id=b"x")])
        jobs = [jobber.enqueue("work", owner=owner) for owner in owners]
        db.session.commit()
        assert [job.owner for job in jobs] == owners
        assert len({job.owner_ref for job in jobs}) == 3
        with pytest.raises(Invalid):
            jobber.enqueue("work", owner=db.session.scalars(db.select(Odd)).one())
        db.session.rollback()
        for engine in db.engines.values():
            engine.dispose()


# -- signals ---------------------------------------------------------------------------------


def test_an_owner_may_react_to_the_end_of_its_jobs(world: World) -> None:
    """Each signal of an end tells the reference; the receiver may read and write."""
    things = add_things(world)
    heard: list[tuple[str, str | None, int]] = []

    def hear(name: str) -> t.Callable[..., None]:
        def receive(jobber: Jobber, *, job_id: int, owner: str | None = None, **facts: t.Any) -> None:
            with world.app.app_context():
                album = jobber.find_owner(owner) if owner else None
                waiting = jobber.count_of(album, state="queued") if album else -1
                heard.append((name, owner, waiting))

        return receive

    signals = {"s": job_succeeded, "f": job_failed, "c": job_cancelled, "e": job_expired}
    with world.session() as session:
        album = things.Album()
        session.add(album)
        session.flush()
        reference = f"album/{album.id}"
        ids = [world.jobber.enqueue("work", owner=album).id for _ in range(4)]
        world.jobber.enqueue("alone")
    receivers = {name: hear(name) for name in signals}
    for name, signal in signals.items():
        signal.connect(receivers[name])
    try:
        _end_each(world, ids)
    finally:
        for name, signal in signals.items():
            signal.disconnect(receivers[name])
    assert heard == [
        ("c", reference, 3), ("e", reference, 2), ("s", reference, 1), ("f", reference, 0), ("s", None, -1),
    ]  # fmt: skip


def _end_each(world: World, ids: list[int]) -> None:
    jobber = world.jobber
    with world.session():
        jobber.cancel(ids[0])
    with world.session():
        put(world, ids[1], expires_at=ago(5))
        jobber.expire()
    for job_id in (*ids[2:], None):
        with world.session():
            (claim,) = jobber.claim(LOCKER)
            assert job_id in (claim.id, None)
            if job_id == ids[3]:
                jobber.fail(LOCKER, claim.id, claim.attempt, ERROR, permanent=True)
            else:
                jobber.deliver(LOCKER, claim.id, claim.attempt, 1)


def test_nobody_pays_for_signals_that_nobody_hears(world: World) -> None:
    """An owner is looked for only when there is a receiver."""
    counts = []
    for listened in (False, True):
        world.enqueue()
        with world.session():
            (claim,) = world.jobber.claim(LOCKER)
        receiver = lambda sender, **facts: None  # noqa: E731
        if listened:
            job_succeeded.connect(receiver)
        statements: list[str] = []
        with world.app.app_context():
            engine = world.db.engine
        listen = lambda *args: statements.append(args[2])  # noqa: B023, E731
        sa.event.listen(engine, "before_cursor_execute", listen)
        try:
            with world.session():
                world.jobber.deliver(LOCKER, claim.id, claim.attempt, 1)
        finally:
            sa.event.remove(engine, "before_cursor_execute", listen)
            job_succeeded.disconnect(receiver)
        counts.append(len(statements))
    assert counts[1] == counts[0] + 1


# -- over HTTP -------------------------------------------------------------------------------


def test_a_list_may_be_of_one_owners_jobs(make_world: MakeWorld, db_url: str) -> None:
    """Within the scope; a job tells its owner."""
    world = make_world(db_url)
    things = add_things(world)
    with world.session() as session:
        album, other = things.Album(), things.Album()
        session.add_all([album, other])
        mine = [world.jobber.enqueue("work", owner=album, user_id="ann").id for _ in range(2)]
        world.jobber.enqueue("work", owner=album, user_id="bob")
        world.jobber.enqueue("work", owner=other, user_id="ann")
        reference = f"album/{album.id}"
    listed = world.client("ann").get("/jobs", query_string={"owner": reference}).json
    assert [job["id"] for job in listed["jobs"]] == mine
    assert {job["owner"] for job in listed["jobs"]} == {reference}
    page = world.client("ann").get("/jobs", query_string={"owner": reference, "limit": "1"}).json
    assert ([job["id"] for job in page["jobs"]], page["cursor"]) == (mine[:1], str(mine[0]))
    nobodys = world.client("ann").get("/jobs", query_string={"owner": "album/999"})
    assert (nobodys.status_code, nobodys.json["jobs"]) == (200, [])


@pytest.mark.parametrize("text", ["", "album", "a b/1", "album/1\0", "x" * 300 + "/1", "älbum/1", "album/1'"])
def test_an_owner_that_is_no_reference_is_refused(lite: World, text: str) -> None:
    """422, whatever it is."""
    response = lite.client("ann").get("/jobs", query_string={"owner": text})
    assert response.status_code == 422
    assert list(response.json["errors"]) == ["owner"]


def test_a_client_names_no_owner(lite: World) -> None:
    """Only the app's hook gives a job to a thing."""
    add_things(lite)
    response = lite.client("root").post("/jobs", {"type": "work", "owner": "album/1"})
    assert (response.status_code, list(response.json["errors"])) == (422, ["owner"])


def test_the_permission_hook_may_set_an_owner(make_world: MakeWorld, db_url: str) -> None:
    """As it fills other columns."""
    world = make_world(db_url, scoped=False)
    things = add_things(world)

    @world.jobber.permission
    def may(action: str, job: t.Any) -> bool:
        if action == "enqueue":
            job.owner = world.db.session.scalars(sa.select(things.Album)).one()
        return True

    with world.session() as session:
        session.add(things.Album(id=7))
    job = world.client().post("/jobs", {"type": "work"}).json
    assert job["owner"] == "album/7"
    with world.session():
        assert world.jobber.count_of("album/7") == 1
