"""What batches cost: nothing to jobs of none, and no more to a member of a large one than of a small one."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from conftest import MakeWorld
from race_support import engine_of
from support import World

LOCKER = "user_ann"
LARGE = 1500
_READ = {
    "postgresql": "SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables",
    "mysql": "SELECT sum(variable_value) FROM information_schema.session_status"
    " WHERE variable_name REGEXP '^Handler_read'",
}


@pytest.fixture
def world(make_world: MakeWorld, db_url: str) -> World:
    return make_world(db_url, JOBBER_TIDY_SECONDS=0)


class Meter:
    """Counts the statements of a block, and the rows that they read where the engine tells."""

    def __init__(self, world: World) -> None:
        self.statements: list[str] = []
        self.before = self.rows = 0
        sa.event.listen(engine_of(world), "before_cursor_execute", self._note)
        # After what counts members.
        sa.event.listen(Session, "before_commit", self.read)

    def _note(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        if "pg_locks" not in statement:  # asked every other second: whether anybody watches
            self.statements.append(statement)

    def read(self, session: Session) -> None:
        """Note what has been read until now; not by statements that count."""
        query = _READ.get(session.get_bind().dialect.name.replace("mariadb", "mysql"))
        if query is not None and session.get_nested_transaction() is None:
            self.before, self.rows = self.rows, int(session.execute(sa.text(query)).scalar_one())
            self.statements.pop()

    def close(self, world: World) -> None:
        sa.event.remove(engine_of(world), "before_cursor_execute", self._note)
        sa.event.remove(Session, "before_commit", self.read)


@pytest.fixture
def meter(world: World) -> t.Iterator[Meter]:
    meter = Meter(world)
    yield meter
    meter.close(world)


def cost(world: World, meter: Meter, act: t.Callable[[], object]) -> tuple[list[str], int]:
    """Return the statements of an act of server code, and how many rows they read."""
    with world.session() as session:
        meter.read(session())
        meter.statements.clear()
        act()
    return list(meter.statements), meter.rows - meter.before


def begin(world: World, tiles: int, type: str) -> None:
    with world.session(), world.jobber.batch("stitch") as batch:
        batch.enqueue_many(type, range(tiles))


def analyze(world: World) -> None:
    """Let PostgreSQL know its tables, as it does by itself after a while."""
    if engine_of(world).dialect.name == "postgresql":
        with world.session() as session:
            session.execute(sa.text("ANALYZE"))


def settle_one(world: World, meter: Meter, type: str) -> tuple[list[str], int]:
    """Return the cost of an end; that of the first is of building statements, too."""
    with world.session():
        claims = world.jobber.claim(LOCKER, types=[type], limit=3)
    for claim in claims:
        said = cost(world, meter, lambda: world.jobber.deliver(LOCKER, claim.id, 1))  # noqa: B023
    return said


def test_an_end_costs_one_statement_more_whatever_the_size(world: World, meter: Meter) -> None:
    """And reads as many rows in a batch of thousands as in one of ten."""
    begin(world, 10, "small")
    begin(world, LARGE, "large")
    analyze(world)
    small, rows = settle_one(world, meter, "small")
    large, more_rows = settle_one(world, meter, "large")
    counting = [statement for statement in large if "job_batch" in statement]
    assert small == large
    assert len(counting) == (2 if engine_of(world).dialect.name in ("mysql", "mariadb") else 1)
    assert counting[0].startswith("UPDATE job_batch SET")
    assert abs(more_rows - rows) <= 5


def test_many_ends_in_one_transaction_are_counted_by_one_statement(world: World, meter: Meter) -> None:
    """Whichever verbs end them."""
    begin(world, 21, "tile")
    with world.session():
        claims = world.jobber.claim(LOCKER, limit=20)

    def end() -> None:
        for claim in claims[:10]:
            world.jobber.deliver(LOCKER, claim.id, 1)
        for claim in claims[10:]:
            world.jobber.cancel(claim.id)

    statements, _ = cost(world, meter, end)
    assert sum(statement.startswith("UPDATE job_batch") for statement in statements) == 1


def test_jobs_of_no_batch_pay_nothing(world: World, meter: Meter) -> None:
    """No statement of theirs names the table, and a claim of members is like any other."""
    begin(world, 3, "member")
    plain, _ = cost(world, meter, lambda: world.jobber.enqueue_many([{"type": "plain"}] * 3))
    claims = {
        type: cost(world, meter, lambda: world.jobber.claim(LOCKER, types=[type], limit=2))[0]  # noqa: B023
        for type in ("plain", "member")
    }
    ended, _ = settle_one(world, meter, "plain")
    assert [one for one in [*plain, *claims["plain"], *ended] if "job_batch" in one] == []
    assert claims["plain"] == claims["member"]


def test_members_are_enqueued_in_bulk(world: World, meter: Meter) -> None:
    """One statement more than as many jobs of no batch."""
    begin(world, 1, "tile")
    with world.session() as session:
        batch_id = session.scalar(sa.select(world.jobber.Batch.id))
    specs = [{"type": "tile", "data": n} for n in range(LARGE)]
    alone, _ = cost(world, meter, lambda: world.jobber.enqueue_many(specs))
    added = [{**spec, "batch": batch_id} for spec in specs]
    together, _ = cost(world, meter, lambda: world.jobber.enqueue_many(added))
    assert len(together) == len(alone) + 1


def test_progress_reads_no_members(world: World, meter: Meter) -> None:
    """But those that are held."""
    begin(world, LARGE, "tile")
    with world.session():
        world.jobber.claim(LOCKER, limit=5)
        batch_id = world.db.session.scalar(sa.select(world.jobber.Batch.id))
    analyze(world)
    statements, rows = cost(world, meter, lambda: world.jobber.find_batch(batch_id).progress())
    assert len(statements) == 3
    assert rows < 50


def test_results_are_never_all_in_memory(world: World) -> None:
    """The session holds two pages at the most."""
    held = list[int]()

    @world.jobber.batch_processor("stitch")
    def stitch(batch: t.Any, results: t.Any) -> None:
        for _ in results:
            held.append(len(world.db.session().identity_map))

    begin(world, LARGE, "tile")
    with world.session() as session:
        jobs, batches = world.Job.__table__, world.jobber.Batch.__table__
        tiles = sa.update(jobs).where(jobs.c.batch_id.is_not(None))
        session.execute(tiles.values(state="succeeded", finished_at=jobs.c.created_at))
        session.execute(sa.update(batches).values(done=LARGE, remaining=0))
        world.jobber.find_batch(session.scalar(sa.select(batches.c.id))).close()
    with world.session():
        assert world.jobber.process_submitted() == 1
    assert len(held) == LARGE
    assert max(held) <= 1010
