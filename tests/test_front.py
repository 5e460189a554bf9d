"""A claim begins where the last one of its kind did: nothing is missed for it."""

from __future__ import annotations

import contextlib
import datetime as dt
import re
import typing as t
import uuid

import psycopg
import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import UserDefinedType

from conftest import MakeWorld
from flask_jobber import JobMixin
from flask_jobber.core import front
from race_support import engine_of, in_flight
from situations import ago, put
from support import Client, World

pytestmark = pytest.mark.usefixtures("early_places")


def ids(client: Client, limit: int = 1, **wish: t.Any) -> list[int]:
    """Claim; return the ids of what was handed out, in order."""
    return [job["id"] for job in client.claim(limit=limit, **wish)]


def test_jobs_are_handed_out_in_order(world: World) -> None:
    """One by one, and by several."""
    client, made = world.client(), [world.enqueue() for _ in range(9)]
    assert [*ids(client), *ids(client), *ids(client, 3), *ids(client, 3), *ids(client)] == made
    assert ids(client) == []


def test_what_is_more_urgent_is_handed_out_first(world: World) -> None:
    """It stands before the place that is known."""
    client, made = world.client(), [world.enqueue(priority=1) for _ in range(3)]
    assert ids(client) == made[:1]
    urgent = world.enqueue(priority=2)
    assert ids(client, 2) == [urgent, made[1]]


def test_a_claim_of_many_goes_on_to_lower_priorities(world: World) -> None:
    """The place is in one of them."""
    client, high = world.client(), [world.enqueue(priority=1) for _ in range(3)]
    low = [world.enqueue() for _ in range(3)]
    assert ids(client) == high[:1]
    assert ids(client, 4) == [*high[1:], *low[:2]]
    assert ids(client) == low[2:]


def test_what_is_due_waits_for_higher_priorities(world: World) -> None:
    """A job that was scheduled, of a priority below that of the place, and a queued one between them."""
    client, high = world.client(), [world.enqueue(priority=2) for _ in range(2)]
    due, middle = world.enqueue(after=60), world.enqueue(priority=1)
    world.pass_time(100)
    assert ids(client) == high[:1]
    assert ids(client, 2) == [high[1], middle]
    assert ids(client) == [due]


def test_an_exchange_goes_on_to_lower_priorities(world: World) -> None:
    """By one statement, too."""
    client, high = world.client(), [world.enqueue(priority=1) for _ in range(3)]
    low = [world.enqueue() for _ in range(2)]
    held = client.claim()
    results = [{"id": job["id"], "attempt": 1, "result": 1} for job in held]
    said = client.post("/exchange", {"results": results, "claim": {"limit": 4}}).get_json()
    assert [one["status"] for one in said["outcomes"]] == [200]
    assert [job["id"] for job in said["jobs"]] == [*high[1:], *low]


def test_an_exchange_that_does_not_settle_all_hands_out_once(world: World) -> None:
    """What it claims it tells of."""
    client, made = world.client(), [world.enqueue() for _ in range(4)]
    held = client.claim()
    assert ids(client) == made[1:2]
    results = [{"id": job_id, "attempt": 1, "result": 1} for job_id in (held[0]["id"], made[3])]
    said = client.post("/exchange", {"results": results, "claim": {"limit": 1}}).get_json()
    assert [one["status"] for one in said["outcomes"]] == [200, 404]
    assert [job["id"] for job in said["jobs"]] == made[2:3]
    assert [world.job(job_id).state for job_id in made] == ["succeeded", "locked", "locked", "queued"]


def test_what_comes_back_is_handed_out_first(world: World) -> None:
    """It was released."""
    client, made = world.client(), [world.enqueue() for _ in range(4)]
    first, _ = client.claim(limit=2)
    client.delete(first["href"])
    assert ids(client, 2) == [made[0], made[2]]


def test_a_lapsed_lease_is_found(world: World) -> None:
    """Leases have a place of their own."""
    client, made = world.client(), [world.enqueue() for _ in range(3)]
    assert ids(client, lease_seconds=5) == made[:1]
    assert ids(client) == made[1:2]
    world.pass_time(10)
    assert sorted([*ids(client), *ids(client)]) == [made[0], made[2]]


@pytest.mark.parametrize("act", ["release", "enqueue"])
def test_what_comes_in_by_a_transaction_that_takes_long(
    make_world: MakeWorld, postgres_url: str, act: str
) -> None:
    """Places that others have noted meanwhile are behind it."""
    world = make_world(postgres_url)
    client, made = world.client(), [world.enqueue() for _ in range(5)]
    held = client.claim(limit=2)
    early: list[int] = []

    def release() -> None:
        world.jobber.release("user_ann", held[0]["id"], held[0]["attempt"])
        early.append(held[0]["id"])

    def enqueue() -> None:
        early.append(world.jobber.enqueue("work", run_at=ago(60)).id)

    with in_flight(world, {"release": release, "enqueue": enqueue}[act]):
        assert ids(client) == made[2:3]
    assert ids(client, 2) == [*early, made[3]]


def test_a_claim_that_is_rolled_back_moves_no_place(world: World) -> None:
    """Nor does one in a savepoint."""
    made = [world.enqueue() for _ in range(5)]
    jobber, client = world.jobber, world.client("root")
    with world.session() as session:
        assert [job.id for job in jobber.claim("user_root")] == made[:1]
        session.rollback()
        nested = session.begin_nested()
        assert [job.id for job in jobber.claim("user_root", limit=2)] == made[:2]
        nested.rollback()
    assert ids(client, 3) == made[:3]


def test_what_is_enqueued_for_the_past_is_handed_out_first(world: World) -> None:
    """It comes in before the place that is known."""
    client, made = world.client(), [world.enqueue() for _ in range(3)]
    assert ids(client) == made[:1]
    early = world.enqueue(run_at=ago(60))
    assert ids(client, 2) == [early, made[1]]


def test_what_falls_due_is_found_when_there_is_too_little(world: World) -> None:
    """The best of all looks is told first."""
    client, made = world.client(), [world.enqueue() for _ in range(3)]
    later = world.enqueue(after=60, priority=1)
    assert ids(client) == made[:1]
    world.pass_time(100)
    assert ids(client, 3) == [later, *made[1:]]


def test_what_falls_due_is_found_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many queued jobs there are; then at once, as long as there is more of it."""
    client, made = world.client(), [world.enqueue() for _ in range(9)]
    later = [world.enqueue(after=60, priority=1) for _ in range(3)]
    assert ids(client, 2) == made[:2]
    world.pass_time(100)
    monkeypatch.setattr(front, "_FRESH", 0)
    assert ids(client) == later[:1]
    monkeypatch.setattr(front, "_FRESH", 3600)
    assert [*ids(client), *ids(client)] == later[1:]
    assert [*ids(client), *ids(client)] == made[2:4]


def test_what_others_bring_back_is_found_when_there_is_too_little(world: World) -> None:
    """Another process releases a job: nobody tells this one."""
    client, made = world.client(), [world.enqueue() for _ in range(3)]
    assert ids(client, 2) == made[:2]
    with world.session():
        put(world, made[0], state="queued", locked_by=None, locked_until=None)
    assert sorted(ids(client, 2)) == [made[0], made[2]]


def test_what_others_bring_back_is_found_in_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are behind it."""
    client, made = world.client(), [world.enqueue() for _ in range(4)]
    assert ids(client, 2) == made[:2]
    with world.session():
        put(world, made[0], state="queued", locked_by=None, locked_until=None)
    monkeypatch.setattr(front, "_FRESH", 0)
    assert ids(client) == made[:1]


def test_each_client_has_a_place_of_its_own(world: World) -> None:
    """One may have what the other may not."""
    ann, bob = world.client("ann"), world.client("bob")
    for_bob = world.enqueue(only_for="user_bob")
    made = [world.enqueue() for _ in range(3)]
    assert ids(ann) == made[:1]
    assert ids(bob, 2) == [for_bob, made[1]]


def test_each_wish_has_a_place_of_its_own(world: World) -> None:
    """A claim of one type is no reason to pass others."""
    client = world.client()
    other, made = world.enqueue("other"), [world.enqueue() for _ in range(2)]
    assert ids(client, types=["work"]) == made[:1]
    assert ids(client, types=["other", "work"]) == [other]
    assert ids(client) == made[1:]


class Written(World):
    """A world whose scope is text, with names that may mean something elsewhere."""

    def _scope(self) -> t.Any:
        words = "type = 'work' AND attempts >= 0 AND result IS NULL AND extras IS NULL"
        return sa.and_(self.Job.max_attempts > 0, sa.text(words))


def test_a_scope_in_text_means_the_job(make_world: MakeWorld, db_url: str) -> None:
    """Where it is delivered, too."""
    world = make_world(db_url, Written)
    client, made = world.client(), [world.enqueue() for _ in range(4)]
    held = client.claim(limit=2)
    assert client.deliver(held[0], {"a": 1}).status_code == 200
    results = [{"id": made[1], "attempt": 1, "result": 1}]
    said = client.post("/exchange", {"results": results, "claim": {"limit": 1}}).get_json()
    assert [one["status"] for one in said["outcomes"]] == [200]
    assert [job["id"] for job in said["jobs"]] == made[2:3]


class Listed(World):
    """A world whose scope compares with a list."""

    def _scope(self) -> t.Any:
        return self.Job.user_id.in_(["ann", "bob"])


def test_a_scope_with_a_list_has_a_place(make_world: MakeWorld, db_url: str) -> None:
    """It is told from other lists."""
    world = make_world(db_url, Listed)
    client, made = world.client(), [world.enqueue(user_id="ann") for _ in range(3)]
    assert [*ids(client), *ids(client), *ids(client)] == made


@pytest.mark.parametrize("known", [True, False])
def test_what_is_gone_is_not_passed_again(
    make_world: MakeWorld, postgres_url: str, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """While a transaction is open that began before, PostgreSQL keeps it in its indexes."""
    monkeypatch.setattr(front, "_MANY", 0 if known else 10**9)
    world = make_world(postgres_url)
    client = world.client()
    with leaving_dead(world, 5000) as engine:
        made = [world.enqueue() for _ in range(3)]
        with world.session() as session:
            session.execute(sa.text("ANALYZE job"))
        assert ids(client) == made[:1]
        assert (pages(client, engine) < 100) is known


@contextlib.contextmanager
def leaving_dead(world: World, rows: int) -> t.Iterator[sa.Engine]:
    """Make jobs that are finished beside an open transaction, which keeps what they were."""
    jobs = world.Job.__table__
    with world.session() as session:
        given = {"type": "work", "state": "queued", "max_attempts": 10, "run_at": ago(60)}
        session.execute(sa.insert(jobs), [given] * rows)
    engine = engine_of(world)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reader.execute(sa.select(jobs.c.id).limit(1)).all()
        for state, more in (
            ("locked", {"locked_by": "user_bob", "locked_until": sa.text("now() - id * interval '1 ms'")}),
            ("succeeded", {"finished_at": sa.func.now(), "locked_until": None}),
        ):
            with world.session() as session:
                session.execute(sa.update(jobs).values(state=state, **more))
        yield engine


def test_what_is_gone_is_not_passed_where_jobs_fall_due(make_world: MakeWorld, postgres_url: str) -> None:
    """A claim that looks at these too begins at its place among the others."""
    world = make_world(postgres_url)
    client = world.client()
    with leaving_dead(world, 5000) as engine:
        due = [world.enqueue(priority=1, after=60) for _ in range(3)]
        made = [world.enqueue() for _ in range(3)]
        world.pass_time(100)
        assert ids(client, 2) == due[:2]
        assert pages(client, engine) < 100
        assert world.job(due[2]).state == "locked"
        assert ids(client) == made[:1]


def test_leases_that_are_gone_are_not_passed_again(make_world: MakeWorld, postgres_url: str) -> None:
    """Nor by claims of other kinds, which look at all that there is."""
    world = make_world(postgres_url)
    client = world.client()
    with leaving_dead(world, 20_000) as engine:
        for number in range(3):
            world.enqueue(f"type{number}")
        assert [len(ids(client, types=[f"type{number}"], lease_seconds=3600)) for number in (0, 1)] == [1, 1]
        assert pages(client, engine, types=["type2"]) < 100


class Inet(UserDefinedType[str]):
    """A type of which SQLAlchemy does not know how PostgreSQL calls it where values are given."""

    cache_ok = True

    def get_col_spec(self, **_: t.Any) -> str:
        return "INET"


class Shout(sa.types.TypeDecorator[str]):
    """Text that is kept in capitals."""

    impl, cache_ok = sa.String(20), True

    def process_bind_param(self, value: str | None, dialect: t.Any) -> str | None:
        return value and value.upper()


SITES: dict[str, t.Any] = {
    "inet": (Inet(), "10.0.0.1"),
    "enum": (sa.Enum("north", "south", name="site"), "north"),
    "uuid": (sa.Uuid(), uuid.UUID(int=7)),
    "decorated": (Shout(), "north"),
    "date": (sa.Date(), dt.date(2026, 1, 1)),
}


@pytest.mark.parametrize("site", SITES)
def test_a_column_of_any_type_leads(postgres_url: str, make_world: MakeWorld, site: str) -> None:
    """PostgreSQL tells what the value is from what it is compared with."""
    type_, value = SITES[site]

    class Placed(World):
        def _make_job_class(self) -> type[t.Any]:
            class Job(JobMixin, self.db.Model):  # type: ignore[name-defined, misc]
                __claim_by__ = ("site",)
                site: Mapped[t.Any] = mapped_column(type_)

            return Job

        def _scope(self) -> t.Any:
            return self.Job.site == value

    world = make_world(postgres_url, Placed)
    made = [world.enqueue(site=value) for _ in range(3)]
    client = world.client()
    assert [*ids(client), *ids(client), *ids(client)] == made


class Asking(World):
    """A world whose scope asks a function that may say something else each time."""

    def _scope(self) -> t.Any:
        return sa.and_(self.Job.user_id == "ann", sa.func.may_have(self.Job.id))


def test_a_scope_by_a_function_reads_no_more(make_world: MakeWorld, postgres_url: str) -> None:
    """PostgreSQL asks it of those that are looked at."""
    world = make_world(postgres_url, Asking)
    client = world.client()
    with world.session() as session:
        body = "CREATE FUNCTION may_have(bigint) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END'"
        session.execute(sa.text(body))
    fill(world, [{"user_id": "ann"}] * 20_000)
    engine = engine_of(world)
    client.claim()
    assert pages(client, engine) < 100


class Owned(World):
    """A world whose scope is one comparison."""

    def _scope(self) -> t.Any:
        return self.Job.user_id == "ann"


def test_a_claim_is_short(make_world: MakeWorld, postgres_url: str) -> None:
    """psycopg reads a statement of more than 4,096 characters anew each time."""
    world = make_world(postgres_url, Owned)
    client, lengths = world.client(), list[int]()
    for _ in range(3):
        world.enqueue(user_id="ann")
    engine = engine_of(world)

    def note(_: t.Any, cursor: t.Any, statement: str, *__: t.Any) -> None:
        lengths.extend([len(statement)] if "SKIP LOCKED" in statement else [])

    sa.event.listen(engine, "before_cursor_execute", note)
    client.claim(types=["work"])
    client.claim(types=["work"])
    whole, short = lengths
    assert short <= 4096 < whole


def test_a_claim_is_planned_once(make_world: MakeWorld, postgres_url: str) -> None:
    """Though PostgreSQL guesses that many jobs of a higher priority, which are others', are mine."""
    world = make_world(postgres_url, Owned)
    client = world.client()
    others = [{"user_id": f"user_{number % 50}", "priority": 1} for number in range(20_000)]
    fill(world, [*others, *([{"user_id": "ann", "priority": 0}] * 40)])
    for _ in range(30):
        client.claim(types=["work"])
    plans = sa.text(
        "SELECT sum(generic_plans), sum(custom_plans) FROM pg_prepared_statements"
        " WHERE statement LIKE '%SKIP LOCKED%'"
    )
    with world.session() as session:
        [[generic, custom]] = session.execute(plans)
    assert generic > custom


def test_who_has_most_of_the_jobs_reads_few(make_world: MakeWorld, postgres_url: str) -> None:
    """A plan for any user, of whom most have few, is good for this one too."""
    world = make_world(postgres_url, Owned)
    client = world.client()
    users = ["ann" if number % 2 else f"user_{number % 2000}" for number in range(40_000)]
    fill(world, [{"user_id": user} for user in users])
    engine = engine_of(world)
    client.claim(types=["work"])
    assert pages(client, engine, types=["work"]) < 100


def test_a_claim_is_cheap_in_a_large_table(make_world: MakeWorld, postgres_url: str) -> None:
    """PostgreSQL guesses so, too: what it takes for dear, it compiles each time."""
    world = make_world(postgres_url)
    client = world.client()
    fill(world, [{"user_id": "ann" if number % 2 else None} for number in range(40_000)])
    engine = engine_of(world)
    client.claim()
    assert plan_of(client, engine)["Total Cost"] < 600


def fill(world: World, jobs: list[dict[str, t.Any]]) -> None:
    """Make waiting jobs of type "work", of which PostgreSQL's planner knows."""
    given = {"type": "work", "state": "queued", "max_attempts": 10, "run_at": ago(60)}
    with world.session() as session:
        session.execute(sa.insert(world.Job.__table__), [{**given, **job} for job in jobs])
    with world.session() as session:
        session.execute(sa.text("ANALYZE job"))


def pages(client: Client, engine: sa.Engine, **wish: t.Any) -> int:
    """Return how many pages PostgreSQL reads for a claim."""
    plan = plan_of(client, engine, **wish)
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def plan_of(client: Client, engine: sa.Engine, **wish: t.Any) -> dict[str, t.Any]:
    """Claim; return the plan for any values, and what it would have taken."""
    plans: list[dict[str, t.Any]] = []

    def explain(connection: t.Any, cursor: t.Any, statement: str, values: t.Any, *_: t.Any) -> None:
        if "SKIP LOCKED" not in statement:
            return
        driver, names = psycopg.ClientCursor(cursor.connection), list(values)
        text = re.sub(r"%\((\w+)\)s", lambda found: f"${names.index(found[1]) + 1}", statement)
        before = connection.begin_nested()
        driver.execute("SET LOCAL plan_cache_mode TO force_generic_plan")
        driver.execute(f"PREPARE probe AS {text.replace('%%', '%')}")
        given = ", ".join(f"%({name})s" for name in names)
        driver.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE probe({given})", values)
        [[[said]]] = driver.fetchall()
        plans.append(said["Plan"])
        driver.execute("DEALLOCATE probe")
        before.rollback()

    sa.event.listen(engine, "before_cursor_execute", explain)
    client.claim(**wish)
    sa.event.remove(engine, "before_cursor_execute", explain)
    [plan] = plans
    return plan
