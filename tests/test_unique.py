"""A ``unique_key`` that is taken: raise, skip, replace, reschedule."""

from __future__ import annotations

import datetime as dt
import typing as t
import uuid

import httpx2
import pytest
import sqlalchemy as sa
from flask_login import current_user
from sqlalchemy.orm import Mapped, column_property, mapped_column

from conftest import MakeWorld
from flask_jobber import (
    DuplicateJob,
    Invalid,
    QueueFull,
    State,
    job_enqueued,
    job_replaced,
    job_rescheduled,
)
from flask_jobber.client import Duplicate, JobberClient
from flask_jobber.core.models import JobMixin
from flask_jobber.core.unique import KEPT
from race_support import engine_of, on_sqlite, start
from situations import LOCKER, ago, put, states, stored
from support import PREFIX, Client, World
from tables import renew

CHANGES = ("replace", "reschedule")
POLICIES = ("skip", *CHANGES)
KEY = {"unique_key": "k"}


def again(world: World, conflict: str, type: str = "work", data: t.Any = None, **spec: t.Any) -> t.Any:
    return world.jobber.enqueue(type, data, on_conflict=conflict, **KEY, **spec)


def reasons(world: World, job_id: int) -> list[str]:
    return [reason for *_, reason in world.history(job_id)]


# -- what becomes of a waiting job ---------------------------------------------------------------


@pytest.mark.parametrize("conflict", ["raise", *POLICIES])
def test_a_free_key_makes_a_job(world: World, conflict: str) -> None:
    """As without ``on_conflict``; and again when that job has ended."""
    with world.session():
        first = again(world, conflict, data=1).id
        world.jobber.cancel(first)
        second = again(world, conflict, data=2).id
    assert states(world) == {first: "cancelled", second: "queued"}
    assert reasons(world, second) == ["enqueue"]


def test_raise_is_what_happens_otherwise(world: World) -> None:
    """Said or not, alone or among others."""
    world.enqueue(**KEY)
    for spec in ({}, {"on_conflict": "raise"}, {"on_conflict": None}):
        with world.session(), pytest.raises(DuplicateJob, match="has this unique_key already"):
            world.jobber.enqueue("work", **KEY, **spec)
    assert len(states(world)) == 1


def test_skip_returns_the_job_that_is_there(world: World) -> None:
    """Nothing of it is changed, whatever the new one says."""
    job_id = world.enqueue("work", [1], priority=3, **KEY)
    before = stored(world, job_id)
    with world.session():
        found = again(world, "skip", "other", [2], priority=5, after=60)
        assert (found.id, found.type, found.data, found.priority) == (job_id, "work", [1], 3)
        assert world.db.session.get(world.Job, job_id) is found
    assert stored(world, job_id) == before


def test_replace_makes_it_the_new_one(world: World) -> None:
    """Every column is as in a new job, but those that say which job it is and what happened to it."""
    with world.session():
        world.jobber.feedback("tell")(lambda job, said: None)
        job_id = again(
            world, "raise", data={"a": 1}, queue="slow", priority=2, after=60, expires_at=ago(-3600),
            max_attempts=2, backoff="linear", lease_for=30, only_for="ann", only_for_seconds=5,
            not_for=["bob"], on_success="tell", on_failure="tell", user_id="ann", written="old",
        ).id  # fmt: skip
        put(world, job_id, failures=1, attempts=3, run_at=ago(5), progress=0.5, note="half")
    with world.session():
        job = again(world, "replace", "other", {"b": 2})
        fresh = world.jobber.enqueue("other", {"b": 2}).id
        assert (job.id, job.type, job.data, job.user_id) == (job_id, "other", {"b": 2}, None)
    (row, history), (like, _) = stored(world, job_id), stored(world, fresh)
    moments = {"run_at"}
    assert {name for name in row if row[name] != like[name]} <= KEPT | moments
    assert (row["attempts"], row["unique_key"], row["state"], row["failures"]) == (3, "k", "queued", 0)
    assert abs((row["run_at"] - like["run_at"]).total_seconds()) < 30
    assert [(one["reason"], one["attempt"]) for one in history] == [("enqueue", 0), ("replace", 3)]
    assert world.history(job_id)[-1] == ("scheduled", "queued", "replace")


def test_replace_takes_all_that_the_new_one_says(world: World) -> None:
    """Times, limits, affinities and the app's columns too."""
    job_id, later, end = world.enqueue(**KEY), ago(-600), ago(-3600)
    with world.session():
        again(
            world, "replace", queue="slow", priority=7, run_at=later, expires_at=end, max_attempts=4,
            lease_for=9, not_for=["user_bob", "user_cat"], only_for="ann", user_id="ann", written="new",
        )  # fmt: skip
    job = world.job(job_id)
    assert (job.queue, job.priority, job.max_attempts, job.lease_for) == ("slow", 7, 4, 9)
    assert (job.state, job.run_at, job.expires_at) == (State.SCHEDULED, later, end)
    assert (job.not_for, job.only_for) == (["user_bob", "user_cat"], "ann")
    assert (job.user_id, job.written) == ("ann", "new")


def test_what_is_kept_are_columns() -> None:
    """All others are content: whoever adds a column decides which it is."""
    assert set(JobMixin.__annotations__) >= KEPT


def test_reschedule_moves_its_time_only(world: World) -> None:
    """A debounce: each new one puts it off, and what it is to do stays."""
    first, later = ago(-60), ago(-3600)
    job_id = world.enqueue("work", [1], priority=3, run_at=first, **KEY)
    before, _ = stored(world, job_id)
    with world.session():
        job = again(world, "reschedule", "other", [2], run_at=later, priority=9)
        assert (job.id, job.data, job.run_at) == (job_id, [1], later)
    row, _ = stored(world, job_id)
    assert {name for name in row if row[name] != before[name]} <= {"run_at", "updated_at"}
    with world.session():
        again(world, "reschedule")
    assert world.job(job_id).state == State.QUEUED
    assert world.history(job_id)[1:] == [
        ("scheduled", "scheduled", "reschedule"),
        ("scheduled", "queued", "reschedule"),
    ]
    assert [job["id"] for job in world.client().claim()] == [job_id]


@pytest.mark.parametrize("state", ["locked", "lapsed", "submitted"])
def test_a_begun_job_is_not_changed(world: World, state: str) -> None:
    """``DuplicateJob`` says so, and the transaction goes on; to skip it is no change."""

    @world.jobber.processor("work")
    def break_(job: t.Any, result: t.Any) -> None:
        raise RuntimeError

    job_id = world.enqueue(**KEY)
    with world.session():
        world.jobber.claim(LOCKER)
        if state == "submitted":
            world.jobber.deliver(LOCKER, job_id, 1)
        if state == "lapsed":
            put(world, job_id, locked_until=ago(5))
    before = stored(world, job_id)
    with world.session():
        world.jobber.enqueue("before")
        for conflict in CHANGES:
            with pytest.raises(DuplicateJob, match="has been begun"):
                again(world, conflict)
        assert again(world, "skip").id == job_id
        world.jobber.enqueue("after")
    assert stored(world, job_id) == before
    assert len(states(world)) == 3


@pytest.mark.parametrize("conflict", POLICIES)
def test_a_job_that_nobody_would_do_is_ended_instead(world: World, conflict: str) -> None:
    """Past its ``expires_at``, or exhausted: whoever meets it ends it, and the key is free."""
    late = world.enqueue(**KEY)
    tired = world.enqueue(unique_key="tired", max_attempts=1)
    with world.session():
        put(world, late, expires_at=ago(5), priority=-1)
        [claim] = world.jobber.claim(LOCKER)
        assert claim.id == tired
        put(world, tired, locked_until=ago(5))
    with world.session():
        made = again(world, conflict).id
        another = world.jobber.enqueue("work", unique_key="tired", on_conflict=conflict).id
    assert states(world) == {late: "expired", tired: "failed", made: "queued", another: "queued"}


def test_signals_are_sent_after_the_commit(world: World) -> None:
    """Of what has happened, and of nothing that was rolled back."""
    heard: list[tuple[str, int]] = []

    def note(signal: t.Any) -> t.Any:
        return signal.connected_to(
            lambda sender, **facts: heard.append((signal.name, facts["job_id"])), world.jobber
        )

    with note(job_enqueued), note(job_replaced), note(job_rescheduled):
        job_id = world.enqueue(**KEY)
        with world.session():
            for conflict in POLICIES:
                again(world, conflict)
            assert heard == [("job-enqueued", job_id)]
        with world.app.app_context():
            again(world, "replace")
            world.db.session.rollback()
    assert heard == [(f"job-{what}", job_id) for what in ("enqueued", "replaced", "rescheduled")]


def test_a_series_has_its_own_key(world: World) -> None:
    """A space leads it, which no key that is given has."""
    with world.session():
        job = world.jobber.enqueue("work", every=60)
        for key in (job.unique_key, job.unique_key.strip()):
            if key.startswith(" "):
                with pytest.raises(Invalid):
                    world.jobber.enqueue("work", unique_key=key, on_conflict="replace")
            else:
                assert world.jobber.enqueue("work", unique_key=key, on_conflict="replace").id != job.id


@pytest.mark.parametrize(
    "spec",
    [
        {"on_conflict": "replace"}, {"on_conflict": "skip", "unique_key": None},
        {"on_conflict": "ignore", **KEY}, {"on_conflict": 1, **KEY},
        {"on_conflict": "", **KEY}, {"on_conflict": "skip", "every": 60},
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(lite: World, spec: dict[str, t.Any]) -> None:
    """Another word, or a word about a key without a key."""
    with lite.session():
        with pytest.raises(Invalid) as refused:
            lite.jobber.enqueue("work", **spec)
        assert list(refused.value.errors) == ["on_conflict"]
    assert states(lite) == {}


def test_calls_pass_it_on(lite: World) -> None:
    """Functions that become jobs, and objects that perform."""

    @lite.jobber.later(unique_key="sum", on_conflict="replace")
    def add(a: int, b: int) -> int:
        return a + b

    with lite.session():
        first, second = add(1, 2), add(3, 4)
        assert first is second
        assert second.data["args"] == [3, 4]


# -- many at once -----------------------------------------------------------------------------


def test_many_at_once_meet_each_other(world: World) -> None:
    """As if each came after the one before it; the jobs come back in the order of the specs."""
    old = world.enqueue("old", unique_key="a")
    specs = [("a", "skip"), ("b", "skip"), ("b", "replace"), (None, None), ("b", "skip"), ("a", "replace")]
    with world.session():
        jobs = world.jobber.enqueue_many(
            {"type": f"n{place}", "unique_key": key, "on_conflict": conflict}
            for place, (key, conflict) in enumerate(specs)
        )
        a, b, *_ = jobs
        assert [jobs[place] for place in (5, 2, 4)] == [a, b, b]
        assert (a.id, a.type, b.type, jobs[3].type) == (old, "n5", "n2", "n3")
        ids = [a.id, b.id, jobs[3].id]
    assert sorted(states(world)) == sorted(ids)
    assert reasons(world, ids[0]) == reasons(world, ids[1]) == ["enqueue", "replace"]


def test_of_many_all_are_done_or_none(world: World) -> None:
    """One that cannot be undoes those that were, and nothing else of the transaction."""
    waiting, begun = world.enqueue(unique_key="waiting"), world.enqueue("begun", unique_key="begun")
    with world.session():
        world.jobber.claim(LOCKER, types=["begun"])
    good = [{"type": "x", "unique_key": key, "on_conflict": "replace"} for key in ("waiting", "new")]
    for key, conflict in (("begun", "replace"), ("begun", "raise"), ("new", "raise"), ("waiting", "raise")):
        with world.session():
            world.jobber.enqueue("between")
            with pytest.raises(DuplicateJob):
                world.jobber.enqueue_many([*good, {"type": "x", "unique_key": key, "on_conflict": conflict}])
    assert len(states(world)) == 6
    assert reasons(world, waiting) == ["enqueue"]
    assert begun in states(world)


def test_very_many_at_once(world: World) -> None:
    """By few statements, and in one call with thousands of keys."""
    specs = [{"type": "a", "unique_key": f"k{n}", "on_conflict": "skip", "data": n} for n in range(2500)]
    with world.session():
        first = [job.id for job in world.jobber.enqueue_many(specs[::2])]
        jobs = world.jobber.enqueue_many(specs)
        assert [job.data for job in jobs] == list(range(2500))
        assert [job.id for job in jobs[::2]] == first


def _statements(world: World, specs: list[dict[str, t.Any]]) -> list[str]:
    seen: list[str] = []

    def note(connection: t.Any, cursor: t.Any, statement: str, *rest: object) -> None:
        seen.append(statement.split(maxsplit=1)[0])

    with world.session() as session:
        session.execute(sa.select(1))
        engine = session.get_bind(world.Job)
        sa.event.listen(engine, "before_cursor_execute", note)
        world.jobber.enqueue_many(specs)
        sa.event.remove(engine, "before_cursor_execute", note)
    return [word for word in seen if word not in ("BEGIN", "SAVEPOINT", "RELEASE")]


def test_what_does_not_use_it_does_not_pay_for_it(world: World) -> None:
    """Jobs are inserted in bulk, with keys too: a look at their queue, an insertion, their history.

    Jobs with ids of SQLite's are inserted one by one, as ever.
    """
    plain = [{"type": "work", "data": n} for n in range(100)]
    keyed = [{**spec, "unique_key": f"k{n}"} for n, spec in enumerate(plain)]
    inserted = [*["INSERT"] * (100 if on_sqlite(world) else 1), "INSERT"]
    assert _statements(world, plain) == _statements(world, keyed) == ["SELECT", *inserted]


# -- queues and files ----------------------------------------------------------------------------


def test_a_replacement_enters_its_queue(world: World) -> None:
    """Into another one there must be room; in its own it has its place."""
    with world.session():
        world.jobber.queues.create("small", capacity=1)
        inside = world.jobber.enqueue("work", queue="small", unique_key="in").id
        outside = world.jobber.enqueue("work", queue="large", unique_key="out").id
    before = stored(world, outside)
    with world.session():
        with pytest.raises(QueueFull):
            world.jobber.enqueue("work", queue="small", unique_key="out", on_conflict="replace")
        for conflict in POLICIES:
            job = world.jobber.enqueue("again", queue="small", unique_key="in", on_conflict=conflict)
            assert job.id == inside
        for conflict in ("skip", "reschedule"):
            job = world.jobber.enqueue("x", queue="small", unique_key="out", on_conflict=conflict)
            assert (job.id, job.queue) == (outside, "large")
    assert stored(world, outside)[0]["type"] == before[0]["type"]
    with world.session():
        world.jobber.enqueue("work", queue="large", unique_key="in", on_conflict="replace")
        world.jobber.enqueue("work", queue="small", unique_key="out", on_conflict="replace")
    assert (world.job(inside).queue, world.job(outside).queue) == ("large", "small")


def test_files_are_content(world: World) -> None:
    """A replacement has its own; where the job stays as it is there is nothing to attach them to."""
    with world.session():
        job_id = again(world, "raise", attachments={"a": b"a", "b": b"old"}).id
    for conflict in ("skip", "reschedule"):
        with world.session(), pytest.raises(Invalid, match="attachments"):
            again(world, conflict, attachments={"a": b"new"})
    with world.session():
        again(world, "replace", attachments={"b": b"new"})
    with world.session():
        [file] = world.jobber.attachments(job_id)
        assert (file.name, file.open().read()) == ("b", b"new")


def test_columns_of_any_kind_are_content(make_world: MakeWorld, db_url: str) -> None:
    """By attribute or column; what a function or the database fills stays, or is what was given."""

    class Wide(World):
        def _make_job_class(self) -> type[t.Any]:
            class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
                __claim_by__ = ("user_id",)
                user_id: Mapped[str | None] = mapped_column(sa.String(20))
                written: Mapped[str | None] = mapped_column(sa.String(100))
                alias: Mapped[str | None] = mapped_column("other_name", sa.String(20))
                plain: Mapped[int] = mapped_column(default=5)
                named: Mapped[str] = mapped_column(sa.String(40), default=lambda: uuid.uuid4().hex)
                filled: Mapped[int] = mapped_column(server_default="7")
                twice: Mapped[int | None] = mapped_column(sa.Computed("priority * 2", persisted=True))

            Job.shown = column_property(Job.priority + 1)
            return Job

    world = Wide(db_url)
    with world.session():
        renew(world.db)
        job = again(world, "raise", priority=1, alias="a", plain=1, filled=1, user_id="ann")
        named = job.named
        again(world, "replace", priority=2)
        assert (job.alias, job.plain, job.user_id, job.twice, job.shown) == (None, 5, None, 4, 3)
        assert (job.named, job.filled) == (named, 1)
        again(world, "replace", alias="b", plain=2, named="n", filled=3)
        assert (job.alias, job.plain, job.named, job.filled) == ("b", 2, "n", 3)
    engine_of(world).dispose()


# -- the session -----------------------------------------------------------------------------


def test_the_job_is_the_sessions_own(world: World) -> None:
    """The caller's object of it is the one that is returned, as it is now, and can be changed further."""
    job_id = world.enqueue("work", 1, **KEY)
    with world.session() as session:
        mine = session.get(world.Job, job_id)
        mine.written = "mine"
        assert again(world, "skip") is mine
        assert mine.written == "mine"
        assert again(world, "replace", data=2, written="new") is mine
        assert (mine.data, mine.written) == (2, "new")
        mine.written = "after"
        assert again(world, "reschedule", after=60) is mine
        assert (mine.state, mine.written) == (State.SCHEDULED, "after")
    job = world.job(job_id)
    assert (job.data, job.written) == (2, "after")


def test_a_rollback_leaves_it_as_it_was(world: World) -> None:
    """Of the whole, or of a savepoint around it."""
    job_id = world.enqueue("work", 1, **KEY)
    before = stored(world, job_id)
    with world.app.app_context():
        again(world, "replace", data=2)
        world.db.session.rollback()
    with world.session() as session:
        world.jobber.enqueue("other")
        savepoint = session.begin_nested()
        job = again(world, "replace", data=2)
        savepoint.rollback()
        assert job.data == 1
    assert stored(world, job_id) == before


@pytest.mark.parametrize("conflict", POLICIES)
def test_what_others_made_since_the_transaction_began_is_seen(world: World, conflict: str) -> None:
    """Also where its plain reads show an earlier moment."""
    with world.session() as session:
        session.execute(sa.select(world.Job.id)).all()
        job_id = start(lambda: world.enqueue("work", 1, **KEY)).result()
        job = again(world, conflict, data=2)
        assert (job.id, job.data) == (job_id, 2 if conflict == "replace" else 1)
    assert list(states(world)) == [job_id]


@pytest.mark.parametrize("conflict", POLICIES)
def test_what_has_ended_since_the_transaction_began_is_not_taken_for_alive(
    world: World, conflict: str
) -> None:
    """Else the new one would be lost."""
    old = world.enqueue(**KEY)

    def end() -> None:
        with world.session():
            world.jobber.cancel(old)

    with world.session() as session:
        session.execute(sa.select(world.Job.id)).all()
        start(end).result()
        job_id = again(world, conflict).id
    assert states(world) == {old: "cancelled", job_id: "queued"}


# -- over HTTP --------------------------------------------------------------------------------


def post(client: Client, conflict: str, key: str | None = None, **body: t.Any) -> t.Any:
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post("/jobs", {"type": "work", "on_conflict": conflict, **KEY, **body}, headers=headers)


@pytest.mark.parametrize("conflict", POLICIES)
def test_the_status_tells_whether_a_job_was_made(world: World, conflict: str) -> None:
    """201 with its place, or 200 with the job that is there."""
    root = world.client("root")
    made = post(root, conflict, data=1)
    assert (made.status_code, made.headers["Location"]) == (201, made.json["href"])
    there = post(root, conflict, data=2, after_seconds=60)
    assert (there.status_code, there.json["id"]) == (200, made.json["id"])
    assert "Location" not in there.headers
    assert there.json["data"] == (2 if conflict == "replace" else 1)
    assert there.json["state"] == ("queued" if conflict == "skip" else "scheduled")
    assert there.json == root.get(made.json["href"]).json
    history = root.get(f"{made.json['href']}/history").json["history"]
    assert [row["reason"] for row in history] == ["enqueue", *([] if conflict == "skip" else [conflict])]
    assert {row["by"] for row in history} == {"user_root"}


def test_an_error_of_the_former_content_is_not_told(world: World) -> None:
    """It is in the history, and no more in the job."""
    root, ann = world.client("root"), world.client()
    made = post(root, "raise").json
    ann.fail(ann.claim()[0])
    assert root.get(made["href"]).json["error"]["message"] == "broke"
    assert post(root, "skip").json["error"]["message"] == "broke"
    assert post(root, "replace").json["error"] is None
    ann.fail(ann.claim()[0], "again")
    assert root.get(made["href"]).json["error"]["message"] == "again"


def test_words_that_mean_nothing_are_refused(lite: World) -> None:
    """422, with the field."""
    root = lite.client("root")
    for body in ({"on_conflict": "ignore", **KEY}, {"on_conflict": "skip"}, {"on_conflict": None, **KEY}):
        refused = root.post("/jobs", {"type": "work", **body})
        assert (refused.status_code, list(refused.json["errors"])) == (422, ["on_conflict"])


@pytest.fixture
def open_world(make_world: MakeWorld, db_url: str) -> World:
    """Anyone may enqueue for themselves; ``bob`` may also replace."""
    world = make_world(db_url)
    world.jobber.registry.hooks["permission"] = _may
    return world


def _may(action: str, job: t.Any) -> bool:
    if action == "enqueue":
        job.user_id = current_user.id
    return action == "enqueue" or (action == "replace" and current_user.id in ("bob", "root"))


@pytest.mark.parametrize("conflict", POLICIES)
def test_of_anothers_job_nothing_is_told_or_changed(open_world: World, conflict: str) -> None:
    """The key is taken: the plain 409, as ever, in every state of that job."""
    job_id = open_world.enqueue(user_id="ann", **KEY)
    plain = open_world.client("bob").post("/jobs", {"type": "work", **KEY})
    assert (plain.status_code, plain.json["code"]) == (409, "duplicate")
    for act in (lambda: None, lambda: open_world.jobber.claim(LOCKER)):
        with open_world.session():
            act()
        before = stored(open_world, job_id)
        refused = post(open_world.client("bob"), conflict)
        assert (refused.status_code, refused.json) == (409, plain.json)
        assert stored(open_world, job_id) == before


def test_a_change_takes_a_permission(open_world: World) -> None:
    """``replace`` on the job that is there; none to be told of one's own."""
    mine = {user: open_world.enqueue(user_id=user, unique_key=user) for user in ("ann", "bob")}
    for user, statuses in {"ann": (200, 403, 403), "bob": (200, 200, 200)}.items():
        client = open_world.client(user)
        for conflict, status in zip(POLICIES, statuses, strict=True):
            answer = client.post("/jobs", {"type": "work", "unique_key": user, "on_conflict": conflict})
            assert answer.status_code == status, (user, conflict)
            told = answer.json["id"] if status == 200 else answer.json["code"]
            assert told == (mine[user] if status == 200 else "forbidden")
    assert reasons(open_world, mine["ann"]) == ["enqueue"]


def test_a_begun_job_is_a_duplicate(world: World) -> None:
    """409, and its holder goes on."""
    root = world.client("root")
    post(root, "raise")
    [job] = world.client().claim()
    for conflict in CHANGES:
        refused = post(root, conflict)
        assert (refused.status_code, refused.json["code"]) == (409, "duplicate")
        assert "begun" in refused.json["detail"]
    assert post(root, "skip").json["state"] == "locked"
    assert world.client().deliver(job).status_code == 200


@pytest.mark.parametrize("conflict", POLICIES)
def test_a_repeated_request_has_its_first_answer(world: World, conflict: str) -> None:
    """201 or 200, to the letter, and one effect."""
    root = world.client("root")
    made = [post(root, conflict, "one", data=1) for _ in range(2)]
    there = [post(root, conflict, "two", data=2) for _ in range(2)]
    root.post(f"/jobs/{made[0].json['id']}/cancel")
    there.append(post(root, conflict, "two", data=2))
    assert {answer.status_code for answer in made} == {201}
    assert {answer.status_code for answer in there} == {200}
    assert made[0].json == made[1].json
    assert there[0].json == there[1].json == there[2].json
    assert len(states(world)) == 1
    assert post(root, "raise", "two", data=2).json["code"] == "key_reused"


def test_the_client_says_it(lite: World) -> None:
    """``JobberClient.enqueue`` returns the job that there is."""
    url, transport = f"http://localhost{PREFIX}", httpx2.WSGITransport(app=lite.app)
    with JobberClient(url, auth="root", patience=0, transport=transport) as client:
        job = client.enqueue("work", 1, unique_key="k")
        assert client.enqueue("work", 2, unique_key="k", on_conflict="skip") == job
        with pytest.raises(Duplicate):
            client.enqueue("work", 2, unique_key="k", on_conflict="raise")
        assert client.enqueue("work", 2, unique_key="k", on_conflict="replace").data == 2
        later = dt.datetime(2040, 1, 1, tzinfo=dt.UTC)
        moved = client.enqueue("work", unique_key="k", on_conflict="reschedule", run_at=later)
        assert (moved.id, moved.state, moved.run_at) == (job.id, "scheduled", later)
