"""Requests that come twice: ``POST /jobs`` with an Idempotency-Key."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import pathlib
import typing as t
import uuid

import httpx2
import pytest
import sqlalchemy as sa
from flask_login import current_user
from sqlalchemy.orm import Mapped, mapped_column
from werkzeug.test import TestResponse

from conftest import MakeWorld
from flask_jobber import JobMixin, SetupError
from flask_jobber.client import JobberClient
from flask_jobber.core import keys
from flask_jobber.worker.http import HttpSource
from flask_jobber.worker.run import Succeeded
from flask_jobber.worker.source import Away, Settlement
from race_support import LIMIT, engine_of, start, together, watching
from served import WERKZEUG, Remote, Server, Unacknowledged, make_served
from situations import put
from support import Client, World
from tables import renew

KEY = '"8e03978e-40d5-43dd-bc93-6894a57f9324"'
BODY = {"type": "work", "data": {"n": [1, 2.5, "ä"]}}


def send(client: Client, body: t.Any = None, key: str | None = KEY) -> TestResponse:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post("/jobs", BODY if body is None else body, headers=headers)


def count(world: World) -> int:
    with world.session() as session:
        return int(session.scalar(sa.select(sa.func.count(world.Job.id))))


def same(one: TestResponse, other: TestResponse) -> bool:
    """Whether two answers are one: status, place and body to the letter."""
    assert one.status_code == 201, one.text
    parts = [(a.status_code, a.headers["Location"], a.json) for a in (one, other)]
    return parts[0] == parts[1]


def test_the_same_request_has_one_effect_and_one_answer(world: World) -> None:
    """As it was answered first, whatever has become of the job."""
    root = world.client("root")
    first = send(root)
    assert same(first, send(root))
    (job,) = world.client().claim()
    world.client().deliver(job, 5)
    assert same(first, send(root))
    assert first.json["state"] == "queued"
    assert root.get(first.headers["Location"]).json["state"] == "succeeded"
    with world.session():
        world.jobber.prune(older_than=dt.timedelta(0))
    assert count(world) == 0
    assert same(first, send(root))
    assert count(world) == 0


def test_without_a_key_each_request_is_a_job(world: World) -> None:
    """And with another key too."""
    root = world.client("root")
    ids = {send(root, key=key).json["id"] for key in (None, None, "a", "A", "b")}
    assert len(ids) == count(world) == 5


def test_the_order_of_fields_is_no_difference(world: World) -> None:
    """Nor spaces, nor how an instant is written."""
    root = world.client("root")
    first = send(root, {"type": "work", "data": 1, "run_at": "2040-01-01T01:00:00+01:00"})
    assert same(first, send(root, {"run_at": "2040-01-01T00:00:00Z", "data": 1, "type": "work"}))


@pytest.mark.parametrize(
    "other",
    [
        {"type": "other", "data": BODY["data"]}, {"type": "work"}, {**BODY, "data": None},
        {**BODY, "priority": 0}, {**BODY, "data": {"n": [1, 2.5, "a"]}},
    ],
)  # fmt: skip
def test_a_key_is_for_one_request(world: World, other: dict[str, t.Any]) -> None:
    """Another body with it is a mistake of the client's, told by a code of its own."""
    root = world.client("root")
    send(root)
    refused = send(root, other)
    assert (refused.status_code, refused.json["code"], refused.json["retryable"]) == (
        422,
        "key_reused",
        False,
    )
    assert count(world) == 1


def test_a_key_is_one_logins(make_world: MakeWorld, db_url: str) -> None:
    """Of another login it is another key; of another machine with the same login it is the same."""
    world = make_world(db_url, scoped=False)
    world.jobber.permission(lambda action, job: True)
    first = send(world.client("ann", "left"))
    assert same(first, send(world.client("ann", "right")))
    others = send(world.client("bob"))
    assert others.json["id"] != first.json["id"]
    assert send(world.client("bob"), {"type": "other"}).json["code"] == "key_reused"
    assert send(world.client("cid"), {"type": "other"}).status_code == 201
    assert count(world) == 3


def test_a_refused_request_leaves_its_key_free(world: World) -> None:
    """Nothing was done, so there is nothing to repeat."""
    assert send(world.client("ann")).status_code == 403
    root = world.client("root")
    assert send(root, {"type": "no name"}).status_code == 422
    world.enqueue(unique_key="k")
    assert send(root, {**BODY, "unique_key": "k"}).status_code == 409
    assert send(root).status_code == 201
    assert count(world) == 2


def test_who_may_not_any_more_hears_the_answer_and_does_nothing(make_world: MakeWorld, db_url: str) -> None:
    """A hook that counts jobs would refuse the repetition of what it has allowed."""
    world, asked = make_world(db_url, scoped=False), list[str]()

    @world.jobber.permission
    def may(action: str, job: t.Any) -> bool:
        asked.append(action)
        return asked.count("enqueue") == 1

    first = send(world.client())
    assert same(first, send(world.client()))
    assert send(world.client(), key="another").status_code == 403
    assert count(world) == 1


def test_an_answer_with_data_of_the_apps_is_repeated_too(make_world: MakeWorld, db_url: str) -> None:
    """The hook may have changed what the client sent."""
    world = make_world(db_url, scoped=False)

    @world.jobber.permission
    def may(action: str, job: t.Any) -> bool:
        job.data = {"by": current_user.id}
        return True

    first = send(world.client())
    assert first.json["data"] == {"by": "ann"}
    assert same(first, send(world.client()))


def test_large_data_are_not_kept_twice(world: World) -> None:
    """The same request brings them along."""
    large = {"type": "work", "data": "x" * 100_000}
    first = send(world.client("root"), large)
    assert same(first, send(world.client("root"), large))
    with world.session() as session:
        assert "data" not in session.scalars(sa.select(world.jobber.IdempotencyKey.answer)).one()


def test_keys_live_as_long_as_is_said(make_world: MakeWorld, db_url: str) -> None:
    """Then they are free, tidied or not."""
    world = make_world(db_url, JOBBER_KEEP_KEYS_SECONDS=3600)
    root = world.client("root")
    first = send(root)
    world.pass_time(3500)
    assert same(first, send(root))
    world.pass_time(101)
    assert send(root, {"type": "other"}).status_code == 201
    assert count(world) == 2
    world.pass_time(3601)
    send(root, key="young")
    with world.app.app_context():
        world.jobber.tidy()
    with world.session() as session:
        assert session.scalar(sa.select(sa.func.count()).select_from(world.jobber.IdempotencyKey)) == 1


# -- what is no key --------------------------------------------------------------------------

HOSTILE = [
    "", '""', " ", '"', '"a', 'a"', '"a"b"', "a b", "a,b", '"a","b"', '"a";x=1', "a\tb", "ä", '"ä"',
    "x" * 256, "x" * 10_240, f'"{"x" * 256}"', '"a\\b"', "\x7f", "\x01", '"\x1f"',
    "a;b", "\N{NO-BREAK SPACE}",
]  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_key_is_refused(lite: World, key: str) -> None:
    """422, and nothing is done; never the key of somebody who cannot write it."""
    response = send(lite.client("root"), key=key)
    assert (response.status_code, response.json["code"]) == (422, "invalid")
    assert list(response.json["errors"]) == ["Idempotency-Key"]
    assert len(response.data) < 1000
    assert count(lite) == 0


@pytest.mark.parametrize(
    "key", ["x" * 255, '"a b, c; d"', '"a\\"b\\\\"', "a/b:c=d+e~f", "%0d%0aX-A:1", "'; --"[:1]]
)
def test_what_is_a_key_works(lite: World, key: str) -> None:
    """Whatever it looks like; it is in no header of the answer."""
    first = send(lite.client("root"), key=key)
    assert same(first, send(lite.client("root"), key=key))
    assert key not in str(first.headers)
    assert count(lite) == 1


def test_quotes_are_the_headers_not_the_keys(lite: World) -> None:
    """Both forms are one key."""
    first = send(lite.client("root"), key="abc")
    assert same(first, send(lite.client("root"), key='"abc"'))


@pytest.mark.parametrize(
    "body",
    [
        '{"type": "work", "data": 1e999}',
        '{"type": "work", "data": "\\ud800"}',
        '{"type": "work", "run_at": "0001-01-01T00:00:00+23:59"}',
        '{"type": "work", "expires_at": "9999-12-31T23:59:59-23:59"}',
        '{"type": "work", "columns": {"user_id": 1e999}}',
        '{"type": "work", "columns": ' + '{"user_id": ' * 700 + "1" + "}" * 701,
        '{"type": "work", "data": ' + '{"a": ' * 700 + "1" + "}" * 701,
        '{"type": "work", "data": ' + "[" * 900 + "]" * 900 + "}",
    ],
    ids=range(8),
)
def test_a_key_spares_a_bad_request_no_refusal(lite: World, body: str) -> None:
    """What no check has seen yet is not in the key's way."""
    headers = {"Idempotency-Key": KEY}
    post = lite.client("root").post
    response = post("/jobs", data=body, content_type="application/json", headers=headers)
    assert (response.status_code, response.json["code"]) == (422, "invalid")
    assert send(lite.client("root")).status_code == 201


def test_an_instant_is_one_in_every_time_zone(lite: World) -> None:
    bodies = [{"type": "work", "run_at": f"2099-01-01T{at}"} for at in ("00:00:00Z", "01:00:00+01:00")]
    assert same(*(send(lite.client("root"), body) for body in bodies))


def test_two_headers_are_no_key(lite: World) -> None:
    """A server joins them by a comma."""
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b"), ("Authorization", "Bearer root")]
    response = lite.app.test_client().post("/jobber/jobs", json=BODY, headers=headers)
    assert response.status_code == 422


def test_logins_and_keys_are_not_run_together(make_world: MakeWorld, db_url: str) -> None:
    """A login cannot write its key so that it is another login's."""
    world = make_world(db_url, scoped=False)
    world.jobber.permission(lambda action, job: True)
    world.jobber.locker_name(lambda: current_user.id)
    first = send(world.client("a"), key="b.c")
    assert send(world.client("a.b"), key=".c").json["id"] != first.json["id"]
    assert send(world.client("a.b"), key="c").json["id"] != first.json["id"]


# -- at once ---------------------------------------------------------------------------------


def test_many_of_one_key_at_once_make_one_job(make_world: MakeWorld, db_url: str) -> None:
    """Each hears of the same job, or that it is to ask again."""
    world = make_world(db_url)
    for turn in range(5):
        before = count(world)
        answers = together(6, lambda _, turn=turn: send(world.client("root"), key=f"turn-{turn}"))  # type: ignore[misc]
        told = [answer for answer in answers if answer.status_code != 503]
        assert told
        assert all(same(told[0], other) for other in told)
        assert count(world) == before + 1
        assert same(told[0], send(world.client("root"), key=f"turn-{turn}"))


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_who_comes_second_waits_for_the_first(make_world: MakeWorld, db_url: str, ending: str) -> None:
    """And hears the first one's answer; or, when that one came to nothing, is the first."""
    world = make_world(db_url)
    said = send(world.client("root"), key="elsewhere").json
    key = keys.make("user_root", KEY.strip('"'), BODY)
    with watching(world) as watch, world.app.app_context():
        store = world.jobber.store()
        assert keys.take(store, key) is None
        keys.keep(store, key, said)
        second = start(lambda: send(world.client("root")))
        watch.until_waits(second)
        assert not second.done()
        getattr(world.db.session, ending)()
    answer = second.result(LIMIT)
    assert (answer.status_code, answer.json == said) == (201, ending == "commit")
    assert count(world) == 1 + (ending == "rollback")


def test_two_who_wait_for_one_that_comes_to_nothing(make_world: MakeWorld, db_url: str) -> None:
    """MariaDB may end one of them for a deadlock: that one is told to come again."""
    world = make_world(db_url)
    key = keys.make("user_root", KEY.strip('"'), BODY)
    with watching(world) as watch, world.app.app_context():
        assert keys.take(world.jobber.store(), key) is None
        others = [start(lambda: send(world.client("root"))) for _ in range(2)]
        watch.until_waits(*others)
        world.db.session.rollback()
    answers = [other.result(LIMIT) for other in others]
    assert {answer.status_code for answer in answers} <= {201, 503}, [answer.text for answer in answers]
    assert same(send(world.client("root")), send(world.client("root")))
    assert count(world) == 1


def test_an_answer_that_died_with_its_server_is_given_by_the_next(
    db_url: str, tmp_path: pathlib.Path
) -> None:
    """Killed after the job is stored and before anyone hears of it: the same request finds it."""
    world, _ = make_served(db_url)
    with world.app.app_context():
        renew(world.db)
    dies = tmp_path / "dies"
    dies.touch()
    server = Server(db_url, WERKZEUG, SERVED_DIES=str(dies))
    remote = Remote(server.port, "ann")
    try:
        server.start()
        with pytest.raises(Unacknowledged):
            remote.ask("POST", "/jobs", BODY, {"Idempotency-Key": KEY})
        assert not dies.exists()
        assert count(world) == 1
        server.kill()
        server.start()
        answers = [remote.ask("POST", "/jobs", BODY, {"Idempotency-Key": KEY}) for _ in range(2)]
    finally:
        server.close()
    assert answers[0][0] == 201
    assert answers[0] == answers[1]
    assert count(world) == 1
    engine_of(world).dispose()


class Losing(httpx2.BaseTransport):
    """Loses the answers to the first enqueues, after the server has done them."""

    def __init__(self, world: World, losses: int) -> None:
        self._wsgi, self._losses = httpx2.WSGITransport(app=world.app), losses

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        response = self._wsgi.handle_request(request)
        if request.method == "POST" and request.url.path.endswith("/jobs") and self._losses:
            self._losses -= 1
            raise httpx2.ReadError("lost", request=request)
        return response


def source(world: World, losses: int = 0) -> HttpSource:
    """Return the jobs of a world as a worker has them over HTTP."""
    transport = Losing(world, losses)
    client = JobberClient("http://here/jobber", "root", node="n", patience=0, transport=transport)
    return HttpSource(client, "n", "here")


def test_a_workers_jobs_are_added_once(world: World) -> None:
    """Though answers are lost, and though the worker crashes and does the attempt again."""
    world.enqueue("parent")
    (held,) = world.client("root", "n").claim()
    one = source(world, losses=1)
    (job,) = one.held()
    outcome = Succeeded(1, None, ({"type": "child", "data": 0}, {"type": "child", "data": 0}))
    with pytest.raises(Away):
        one.exchange([Settlement(job, outcome)], [], None)
    again = source(world)
    other = Succeeded(1, None, ({"type": "child", "data": "another time"}, {"type": "child", "data": 0}))
    (told,) = again.exchange([Settlement(job, other)], [], None).told
    assert told.code is None
    assert world.job(held["id"]).state == "succeeded"
    with world.session() as session:
        children = session.scalars(sa.select(world.Job).where(world.Job.type == "child"))
        assert [child.data for child in children] == [0, 0]


# -- the columns that a client may set -------------------------------------------------------


class Kind(enum.Enum):
    RED = 1
    BLUE = 2


class Columned(World):
    """A world whose clients may set some columns."""

    allowed: t.ClassVar[tuple[str, ...]] = (
        "user_id", "small", "large", "ratio", "flag", "price", "token", "day", "at", "kind", "word", "text",
    )  # fmt: skip

    def _make_job_class(self) -> type[t.Any]:
        allowed = self.allowed

        class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
            __client_columns__ = allowed
            user_id: Mapped[str | None] = mapped_column(sa.String(20))
            written: Mapped[str | None] = mapped_column(sa.String(100))
            small: Mapped[int | None] = mapped_column(sa.SmallInteger)
            large: Mapped[int | None] = mapped_column(sa.BigInteger)
            ratio: Mapped[float | None] = mapped_column(sa.Double)
            flag: Mapped[bool] = mapped_column(default=False)
            price: Mapped[decimal.Decimal | None] = mapped_column(sa.Numeric(6, 2))
            token: Mapped[uuid.UUID | None] = mapped_column(sa.Uuid)
            day: Mapped[dt.date | None]
            at: Mapped[dt.datetime | None] = mapped_column(sa.DateTime(timezone=True))
            kind: Mapped[Kind | None] = mapped_column(sa.Enum(Kind, native_enum=False))
            word: Mapped[str | None] = mapped_column(sa.Enum("a", "b", name="word", native_enum=False))
            text: Mapped[str | None] = mapped_column(sa.Text)
            blob: Mapped[bytes | None] = mapped_column(sa.LargeBinary)
            # Named as what enqueue() has of its own, which no client may say.
            owner: Mapped[str | None] = mapped_column(sa.String(20))
            after: Mapped[int | None]

        return Job


@pytest.fixture
def columned(db_url: str) -> t.Iterator[Columned]:
    world = Columned(db_url)
    with world.app.app_context():
        renew(world.db)
    yield world
    with world.app.app_context():
        world.db.session.remove()
        world.db.engine.dispose()


def test_a_client_sets_the_columns_that_it_may(columned: Columned) -> None:
    """Each from its JSON; the permission hook sees them and has the last word."""
    given = {
        "user_id": "bob", "small": -32768, "large": 2**63 - 1, "ratio": 0.5, "flag": True, "price": "12.50",
        "token": "8e03978e-40d5-43dd-bc93-6894a57f9324", "day": "2026-01-02",
        "at": "2026-01-02T03:04:05+01:00", "kind": "BLUE", "word": "b", "text": "ä",
    }  # fmt: skip
    response = columned.client("root").post("/jobs", {"type": "work", "columns": given})
    assert response.status_code == 201, response.text
    job = columned.job(response.json["id"])
    expected = given | {
        "price": decimal.Decimal("12.50"), "token": uuid.UUID(str(given["token"])),
        "day": dt.date(2026, 1, 2), "kind": Kind.BLUE,
    }  # fmt: skip
    expected.pop("at")
    assert {name: getattr(job, name) for name in expected} == expected
    assert job.at.replace(tzinfo=None) == dt.datetime(2026, 1, 2, 2, 4, 5)
    empty_again = {"type": "work", "columns": {"user_id": None, "text": None}}
    assert columned.client("root").post("/jobs", empty_again).status_code == 201


def test_the_hook_decides_by_what_a_client_has_set(make_world: MakeWorld, db_url: str) -> None:
    """Allowed columns with the wrong values are its business."""
    world = Columned(db_url, scoped=False)
    world.jobber.permission(lambda action, job: job.user_id == current_user.id)
    with world.app.app_context():
        renew(world.db)
    for user, status in (("ann", 201), ("bob", 403)):
        body = {"type": "work", "columns": {"user_id": "ann"}}
        assert world.client(user).post("/jobs", body).status_code == status
    engine_of(world).dispose()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("written", "x"), ("state", "succeeded"), ("locked_by", "user_root"), ("owner_ref", "album/1"),
        ("id", 5), ("nothing", 1), ("__class__", 1), ("metadata", 1), ("x" * 5000, 1), ("blob", "x"),
        ("user_id", 5), ("user_id", "x" * 21), ("user_id", ["x"]), ("text", "a\0b"), ("text", "\ud800"),
        ("small", 32768), ("small", 1.5), ("small", "1"), ("small", True), ("large", 2**63), ("large", {}),
        ("ratio", "1"), ("flag", 1), ("flag", None), ("price", "NaN"), ("price", "many"),
        ("price", "10000"), ("price", "1e999999"), ("price", "1e-99999999"), ("price", "0e99999999"),
        ("token", "x"), ("day", "2026-13-01"), ("day", 5), ("at", "2026-01-01T00:00:00"),
        ("at", "0001-01-01T00:00:00+10:00"), ("kind", "GREEN"), ("kind", 1), ("word", "c"),
    ],
)  # fmt: skip
def test_what_a_client_may_not_set_is_refused(columned: Columned, name: str, value: t.Any) -> None:
    """422 with the column's name, on every engine; nothing is stored."""
    response = columned.client("root").post("/jobs", {"type": "work", "columns": {name: value}})
    assert response.status_code == 422, response.text
    assert list(response.json["errors"]) == ["columns"]
    assert len(response.data) < 1000
    assert count(columned) == 0


def test_nothing_is_allowed_that_is_not_said(world: World) -> None:
    """Without ``__client_columns__`` there are none; at the top they are no fields."""
    root = world.client("root")
    for body in ({"type": "work", "columns": {"user_id": "bob"}}, {"type": "work", "user_id": "bob"}):
        assert root.post("/jobs", body).status_code == 422
    assert root.post("/jobs", {"type": "work", "columns": {}}).status_code == 201


@pytest.mark.parametrize("name", ["state", "nothing", "blob", "owner_ref", "owner", "after"])
def test_a_column_that_no_client_can_set_is_refused_at_once(sqlite_url: str, name: str) -> None:
    """When the Jobber is made, not by a client's first try."""

    class Wrong(Columned):
        allowed = (name,)

    with pytest.raises(SetupError, match=name):
        Wrong(sqlite_url)


def test_a_row_that_a_column_points_to_must_be_there(make_world: MakeWorld, postgres_url: str) -> None:
    """A foreign key that fits nothing is the client's mistake, not the server's."""

    class Pointing(World):
        def _make_job_class(self) -> type[t.Any]:
            class Album(self.db.Model):  # type: ignore[name-defined, misc]
                id: Mapped[int] = mapped_column(primary_key=True)

            class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
                __client_columns__ = ("album_id",)
                user_id: Mapped[str | None] = mapped_column(sa.String(20))
                album_id: Mapped[int | None] = mapped_column(sa.ForeignKey("album.id"))

            return Job

    world = Pointing(postgres_url)
    with world.app.app_context():
        renew(world.db)
    body = {"type": "work", "columns": {"album_id": 5}}
    response = world.client("root").post("/jobs", body, headers={"Idempotency-Key": "k"})
    assert (response.status_code, response.json["errors"].keys()) == (422, {"columns"})
    with world.app.app_context():
        world.db.session.execute(sa.text("INSERT INTO album VALUES (5)"))
        world.db.session.commit()
    assert world.client("root").post("/jobs", body, headers={"Idempotency-Key": "k"}).status_code == 201
    engine_of(world).dispose()


# -- repeated jobs ---------------------------------------------------------------------------


def test_repeated_jobs_need_a_permission_of_their_own(make_world: MakeWorld, db_url: str) -> None:
    """Who may enqueue one job may not, by that, begin an endless series."""
    world = make_world(db_url, scoped=False)
    world.jobber.permission(lambda action, job: action == "enqueue" or current_user.id == "root")
    body = {"type": "work", "repeat_after_success": 60, "repeat_after_failure": 5.5}
    assert world.client("ann").post("/jobs", body).status_code == 403
    assert count(world) == 0
    first = world.client("root").post("/jobs", body).json
    (held,) = world.client().claim()
    world.client().deliver(held)
    listed = world.client().get("/jobs", query_string={"series": first["series"]}).json["jobs"]
    assert [job["state"] for job in listed] == ["succeeded", "scheduled"]
    bad = world.client("root").post("/jobs", {**body, "repeat_after_success": -1})
    assert (bad.status_code, list(bad.json["errors"])) == (422, ["repeat_after_success"])


# -- what an answer's Location shows ---------------------------------------------------------


def test_the_location_shows_state_progress_and_result(world: World) -> None:
    """To whoever may see it: the result only to who delivered it, or by permission."""
    world.jobber.registry.hooks["permission"] = lambda action, job: (
        action == "enqueue" or current_user.id == "root"
    )
    place = send(world.client("cid")).headers["Location"]
    (held,) = world.client("ann").claim()
    world.client("ann").extend(held, progress=0.5, note="half")
    seen = world.client("cid").get(place).json
    assert (seen["state"], seen["progress"], seen["note"], seen["result"]) == ("locked", 0.5, "half", None)
    world.client("ann").deliver(held, {"made": 1})
    results = {user: world.client(user).get(place).json["result"] for user in ("cid", "ann", "root")}
    assert results == {"cid": None, "ann": {"made": 1}, "root": {"made": 1}}
    with world.session():
        put(world, held["id"], user_id="ann")
    assert world.client("cid").get(place).status_code == 404
