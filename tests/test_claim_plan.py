"""A claim costs the same however many jobs are in its way, and so does the rest.

What an engine does is counted in its own measure: clocks tell little on a busy machine.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from conftest import MakeWorld
from race_support import until
from support import Client, World

MANY = 20_000
_ROUNDS = 4
_FIRST = MANY // 2**_ROUNDS
NOW = dt.datetime.now(dt.UTC)
LATER = NOW + dt.timedelta(days=1)
Listener = t.Callable[..., None]


class Work:
    """Counts what an engine does."""

    #: As much as is allowed, a small part of a look at every row.
    bound = 0

    def __init__(self) -> None:
        self.amount = 0
        self.plans: list[str] = []
        self._statements: list[tuple[str, t.Any]] = []

    @contextlib.contextmanager
    def counted(self, engine: sa.Engine) -> t.Iterator[None]:
        """Count within the block."""
        listeners = self._listeners()
        for name, listener in listeners.items():
            event.listen(engine, name, listener)
        yield
        for name, listener in listeners.items():
            event.remove(engine, name, listener)
        with engine.connect() as connection:  # what it changes is rolled back
            for statement, values in self._statements:
                self._explain(connection, statement, values)

    def _listeners(self) -> dict[str, Listener]:
        return {"before_cursor_execute": self._note}

    def _note(self, *given: t.Any) -> None:
        _, _, statement, values, _, many = given
        if not many:
            self._statements.append((statement, values))

    def _explain(self, connection: sa.Connection, statement: str, values: t.Any) -> None:
        raise NotImplementedError


class SqliteWork(Work):
    """Steps of SQLite's virtual machine; a claim takes 700, and a look at a row ten or so."""

    bound = 3_000

    def _listeners(self) -> dict[str, Listener]:
        return {**super()._listeners(), "checkout": self._watch, "checkin": self._leave}

    def _watch(self, connection: t.Any, *_: t.Any) -> None:
        connection.set_progress_handler(self._step, 1)

    def _leave(self, connection: t.Any, *_: t.Any) -> None:
        connection.set_progress_handler(None, 0)

    def _step(self) -> None:
        self.amount += 1

    def _explain(self, connection: sa.Connection, statement: str, values: t.Any) -> None:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        self.plans += [row.detail for row in rows]


class PostgresWork(Work):
    """Pages that PostgreSQL reads, in memory or not; a claim takes 20, the table of a test has 300."""

    bound = 60

    def _explain(self, connection: sa.Connection, statement: str, values: t.Any) -> None:
        explain = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
        plan = connection.exec_driver_sql(explain, values).scalar_one()[0]["Plan"]
        self.amount += plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        self.plans.append(json.dumps(plan))


class MariadbWork(Work):
    """Rows that MariaDB's storage engine hands up; a claim takes 40, or 200 when many are to be had."""

    bound = 500

    def _listeners(self) -> dict[str, Listener]:
        return {"checkout": self._begin, "checkin": self._end}

    def _begin(self, connection: t.Any, *_: t.Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("FLUSH STATUS")

    def _end(self, connection: t.Any, *_: t.Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
            self.amount += sum(int(value) for _, value in cursor.fetchall())


WORK: dict[str, type[Work]] = {"sqlite": SqliteWork, "postgresql": PostgresWork, "mysql": MariadbWork}


def fill(world: World, **columns: t.Any) -> None:
    """Put very many jobs of one kind into the table."""
    with world.session() as session:
        jobs = world.Job.__table__
        given = {"type": "work", "state": "queued", "max_attempts": 10, "run_at": NOW, **columns}
        newest = session.scalar(sa.select(sa.func.max(jobs.c.id))) or 0
        session.execute(sa.insert(jobs), [given] * _FIRST)
        names = [name for name in jobs.c.keys() if name != "id"]  # noqa: SIM118
        rows = sa.select(*(jobs.c[name] for name in names)).where(jobs.c.id > newest)
        for _ in range(_ROUNDS):
            session.execute(sa.insert(jobs).from_select(names, rows))


def settle_statistics(world: World) -> None:
    """Do what PostgreSQL does by itself within a minute; the other engines must do without."""
    with world.app.app_context():
        engine = world.db.engine
        if engine.dialect.name == "postgresql":
            with engine.begin() as connection:
                connection.exec_driver_sql("ANALYZE")


def cost(world: World, act: t.Callable[[], t.Any]) -> Work:
    """Return the work of an act."""
    with world.app.app_context():
        engine = world.db.engine
    work = WORK[engine.dialect.name]()
    with work.counted(engine):
        act()
    return work


def claim_within_bounds(client: Client, world: World, **body: t.Any) -> dict[str, t.Any]:
    """Claim one job and check what it cost."""
    jobs: list[dict[str, t.Any]] = []
    work = cost(world, lambda: jobs.extend(client.claim(**body)))
    assert work.amount <= work.bound, (work.amount, work.plans)
    assert not [plan for plan in work.plans if plan.startswith("SCAN job")]
    assert not work.plans or any("ix_job_claim" in plan for plan in work.plans)
    (job,) = jobs
    return job


IN_THE_WAY: dict[str, dict[str, t.Any]] = {
    "scheduled": {"state": "scheduled", "run_at": LATER, "priority": 5},
    "finished": {"state": "succeeded", "finished_at": NOW, "priority": 5},
    "held": {"state": "locked", "locked_by": "user_bob", "locked_until": LATER, "priority": 5},
    "of others": {"user_id": "bob", "priority": 5},
    "scheduled of others": {"state": "scheduled", "user_id": "bob", "priority": 5},
}


@pytest.mark.parametrize("obstacle", IN_THE_WAY)
def test_jobs_in_the_way_cost_nothing(world: World, obstacle: str) -> None:
    """Mine are found behind any number of those that I cannot have now, or ever."""
    fill(world, **IN_THE_WAY[obstacle])
    mine = [world.enqueue("rare", user_id="ann") for _ in range(10)]
    settle_statistics(world)
    assert claim_within_bounds(world.client("ann"), world)["id"] == mine[0]


@pytest.mark.parametrize("kind", ["queued", "scheduled"])
def test_the_best_of_many_is_found_without_a_sort(world: World, kind: str) -> None:
    """All of them could be taken; the first in order is read from the index."""
    fill(world, state=kind)
    best = [world.enqueue("work", priority=1) for _ in range(2)]
    settle_statistics(world)
    assert claim_within_bounds(world.client("ann"), world)["id"] == best[0]
    claim_within_bounds(world.client("ann"), world, types=["work"])


def test_a_rare_type_is_found_behind_another(world: World) -> None:
    """A worker that can do but one kind of work does not pay for the others."""
    fill(world, type="other", priority=5)
    rare = [world.enqueue("rare") for _ in range(10)]
    settle_statistics(world)
    assert claim_within_bounds(world.client("ann"), world, types=["rare"])["id"] == rare[0]
    assert claim_within_bounds(world.client("ann"), world, types=["rare", "absent"])["id"] == rare[1]


def test_levels_of_scheduled_jobs_are_walked_one_by_one(world: World) -> None:
    """Many wait at each of the higher levels; one that is due is found below them."""
    for priority in (3, 2):
        fill(world, state="scheduled", run_at=LATER, priority=priority)
    due = [world.enqueue("rare", run_at=NOW + dt.timedelta(hours=1), priority=1) for _ in range(2)]
    with world.session() as session:
        session.execute(sa.update(world.Job).where(world.Job.id.in_(due)).values(run_at=NOW))
    settle_statistics(world)
    assert claim_within_bounds(world.client("ann"), world)["id"] == due[0]


@pytest.mark.parametrize("kind", ["queued", "scheduled", "not due"])
def test_priorities_out_of_bounds_cost_nothing(world: World, kind: str) -> None:
    """Mine are found between any number of those above the bounds and below."""
    run_at, state = (LATER, "scheduled") if kind == "not due" else (NOW, kind)
    for priority in (9, 1):
        fill(world, state=state, run_at=run_at, priority=priority)
    mine = [world.enqueue("work", priority=5) for _ in range(3)]
    settle_statistics(world)
    ann, bounds = world.client("ann"), {"min_priority": 3, "max_priority": 7}
    assert claim_within_bounds(ann, world, **bounds)["id"] == mine[0]
    assert claim_within_bounds(ann, world, **bounds, types=["work"])["id"] == mine[1]
    bounds["min_priority"], empty = 6, list[t.Any]()
    work = cost(world, lambda: empty.extend(ann.claim(**bounds)))
    assert (empty, work.amount <= work.bound) == ([], True), (work.amount, work.plans)


def test_levels_out_of_bounds_are_not_walked(world: World) -> None:
    """However many there are above."""
    waiting = {"type": "work", "state": "scheduled", "max_attempts": 10, "run_at": LATER}
    with world.session() as session:
        jobs = [{**waiting, "priority": 100 + number % 500} for number in range(5000)]
        session.execute(sa.insert(world.Job.__table__), jobs)
    due = [world.enqueue("rare", run_at=NOW + dt.timedelta(hours=1), priority=1) for _ in range(2)]
    with world.session() as session:
        session.execute(sa.update(world.Job).where(world.Job.id.in_(due)).values(run_at=NOW))
    settle_statistics(world)
    assert claim_within_bounds(world.client("ann"), world, max_priority=99)["id"] == due[0]


def test_no_call_reads_the_whole_table(world: World) -> None:
    """Nor does tidying, when there is nothing to tidy."""
    for columns in (IN_THE_WAY["finished"], IN_THE_WAY["held"], IN_THE_WAY["of others"]):
        fill(world, **columns)
    mine = [world.enqueue("rare", user_id="ann") for _ in range(4)]
    settle_statistics(world)
    ann, root = world.client("ann"), world.client("root")
    first, second, third = ann.claim(limit=3)
    acts: dict[str, t.Callable[[], t.Any]] = {
        "list claims": lambda: ann.get("/claims"),
        "show attempt": lambda: ann.get(first["href"]),
        "extend": lambda: ann.extend(first),
        "deliver": lambda: ann.deliver(first, 1),
        "fail": lambda: ann.fail(second),
        "release": lambda: ann.release(third),
        "list": lambda: ann.get("/jobs?limit=5"),
        "list all": lambda: root.get("/jobs?limit=5"),
        "show": lambda: ann.get(f"/jobs/{mine[0]}"),
        "history": lambda: ann.get(f"/jobs/{mine[0]}/history"),
        "cancel": lambda: root.post(f"/jobs/{mine[3]}/cancel"),
        "tidy": lambda: _tidy(world),
    }
    costs = {name: cost(world, act) for name, act in acts.items()}
    assert {name: work.amount for name, work in costs.items() if work.amount > work.bound} == {}


def _tidy(world: World) -> None:
    with world.app.app_context():
        world.jobber.tidy()


class SecondWork(PostgresWork):
    """Pages that PostgreSQL reads when it does the same once more."""

    def _explain(self, connection: sa.Connection, statement: str, values: t.Any) -> None:
        super()._explain(connection, statement, values)
        before = self.amount
        super()._explain(connection, statement, values)
        self.amount -= before


def test_what_was_settled_long_ago_is_met_once(make_world: MakeWorld, postgres_url: str) -> None:
    """It stays in the index of leases until a vacuum, where statistics make PostgreSQL think of a bitmap."""
    world = make_world(postgres_url)
    fill(world, state="locked", locked_by="user_bob", locked_until=NOW, lease_seconds=1)
    with world.session() as session:
        session.execute(sa.text("ANALYZE job"))
        ended = {"state": "succeeded", "finished_at": NOW, "locked_until": None}
        session.execute(sa.update(world.Job.__table__).values(ended))
    # What a snapshot still shows is not marked; an ANALYZE that PostgreSQL does by itself has one, too.
    until(lambda: not _older_snapshots(world), "older snapshots to go")
    world.enqueue()
    work, client = SecondWork(), world.client()
    with world.app.app_context(), work.counted(world.db.engine):
        assert len(client.claim(types=["work"])) == 1
    # The pages of the index are gone through, for the first and from there.
    assert work.amount <= 2 * work.bound


def _older_snapshots(world: World) -> int:
    # Who connects belongs to no database yet, and to all.
    others = "pid != pg_backend_pid() AND (datname = current_database() OR datname IS NULL)"
    with world.session() as session:
        return int(
            session.scalar(sa.text(f"SELECT count(backend_xmin) FROM pg_stat_activity WHERE {others}"))
        )
