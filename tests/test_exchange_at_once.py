"""Results and the claim that comes with them: one statement on PostgreSQL, the same outcomes everywhere."""

from __future__ import annotations

import contextlib
import random
import typing as t

import pytest
import sqlalchemy as sa
from flask_login import current_user

from conftest import MakeWorld
from race_support import LIMIT, engine_of, start, watching
from support import Client, World

CLAIM = {"types": ["work"], "limit": 5}
_GIVEN: list[dict[str, t.Any]] = [
    {"result": {"a": [1, None, "ä\\u2028'\"]}"]}, "extras": {"seconds": 1.5}},
    {"result": None},
    {},
    {"result": "null", "extras": {}},
    {"result": 2**60, "extras": None},
    {"result": [[[]]], "extras": {"id": 1, "attempt": 2}},
    {"result": False},
]


@pytest.fixture
def postgres(make_world: MakeWorld, postgres_url: str) -> World:
    return make_world(postgres_url)


def exchange(client: Client, jobs: t.Iterable[t.Mapping[str, t.Any]], **claim: t.Any) -> tuple[t.Any, t.Any]:
    """Deliver and claim; return the statuses, and the ids of the jobs that were handed out."""
    results = [{"id": job["id"], "attempt": job["attempt"], "result": job["id"]} for job in jobs]
    said = client.post("/exchange", {"results": results, "claim": CLAIM | claim}).get_json()
    return [one["status"] for one in said["outcomes"]], [job["id"] for job in said["jobs"]]


@contextlib.contextmanager
def statements(world: World) -> t.Iterator[list[str]]:
    """Note what is executed on the table of jobs."""
    seen: list[str] = []
    table = world.Job.__tablename__

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if table in statement:
            seen.append(statement)

    sa.event.listen(engine_of(world), "before_cursor_execute", note)
    yield seen
    sa.event.remove(engine_of(world), "before_cursor_execute", note)


def test_one_statement_settles_and_claims(postgres: World) -> None:
    """With a history of all of it, the settled before the claimed."""
    client, ids = postgres.client(), [postgres.enqueue() for _ in range(6)]
    held = client.claim(limit=3)
    with statements(postgres) as seen:
        assert exchange(client, held) == ([200] * 3, ids[3:])
    assert len(seen) == 1
    assert [postgres.job(job_id).result for job_id in ids[:3]] == ids[:3]
    assert postgres.history(ids[0])[-1] == ("locked", "succeeded", "deliver")
    assert postgres.history(ids[3])[-1] == ("queued", "locked", "claim")


def test_a_claim_that_waits_settles_before(world: World) -> None:
    """It finds a job at once, or its room is known to be dry: the results are settled all the same."""
    client, ids = world.client(), [world.enqueue() for _ in range(2)]
    held = client.claim()
    assert exchange(client, held, wait_seconds=5) == ([200], ids[1:])
    assert client.claim(types=["other"], wait_seconds=0.1) == []
    assert exchange(client, [{"id": ids[1], "attempt": 1}], types=["other"], wait_seconds=0.1) == ([200], [])
    assert [world.job(job_id).state for job_id in ids] == ["succeeded"] * 2


def test_what_one_statement_cannot_settle_is_settled_before_the_claim(world: World) -> None:
    """Members of a batch, what was settled before, what was never held: each has its own outcome."""
    client = world.client()
    world.enqueue()
    with world.session(), world.jobber.batch("sum") as batch:
        batch.enqueue_many("work", [1])
    held = client.claim(limit=2)
    assert len(held) == 2
    following = world.enqueue()
    absent = {"id": 4_000_000, "attempt": 1}
    assert exchange(client, [*held, absent]) == ([200, 200, 404], [following])
    assert exchange(client, [held[0]]) == ([200], [])
    assert [world.job(job["id"]).state for job in held] == ["succeeded"] * 2


@pytest.mark.parametrize("limit", [1, 7])
def test_each_job_gets_its_own_result(world: World, limit: int) -> None:
    """In whatever order they come, with extras or none, and null as a result like any other."""
    client = world.client()
    for number in range(limit):
        world.enqueue(data=number)
    for job in client.claim(limit=limit)[::2]:  # so that their attempts differ
        client.delete(job["href"])
    client.claim(limit=limit)
    held = client.get("/claims").get_json()["jobs"]
    assert len(held) == limit
    random.Random(limit).shuffle(held)
    said = {job["id"]: given for job, given in zip(held, _GIVEN, strict=False)}
    results = [{"id": job["id"], "attempt": job["attempt"]} | said[job["id"]] for job in held]
    outcomes = client.post("/exchange", {"results": results, "claim": CLAIM}).get_json()["outcomes"]
    assert [(one["id"], one["status"]) for one in outcomes] == [(job["id"], 200) for job in held]
    for job_id, given in said.items():
        job = world.job(job_id)
        assert (job.result, job.extras) == (given.get("result"), given.get("extras"))


def test_results_that_are_large_together_are_settled_each(make_world: MakeWorld, db_url: str) -> None:
    """The limit is for one."""
    world = make_world(db_url, JOBBER_MAX_RESULT_BYTES=100)
    client, ids = world.client(), [world.enqueue() for _ in range(3)]
    held = client.claim(limit=3)
    texts = ["a" * 90, "b" * 90, "c" * 99]  # with its quotes it is one too long
    results = [{"id": job["id"], "attempt": 1, "result": text} for job, text in zip(held, texts, strict=True)]
    outcomes = client.post("/exchange", {"results": results}).get_json()["outcomes"]
    assert [one["status"] for one in outcomes] == [200, 200, 413]
    assert [world.job(job_id).result for job_id in ids[:2]] == texts[:2]


def test_a_result_alone_is_planned_once(postgres: World) -> None:
    """PostgreSQL keeps a plan that it takes to cost no more than one for these very values."""
    client = postgres.client()
    for _ in range(20):
        postgres.enqueue()
    for job in client.claim(limit=20):
        client.put(f"{job['href']}/result", {"result": 1})
    plans = "SELECT generic_plans FROM pg_prepared_statements WHERE statement LIKE '%%json_to_recordset%%'"
    with engine_of(postgres).connect() as connection:
        assert connection.exec_driver_sql(plans).scalars().all() == [20 - 5 - 5]


def test_a_result_given_twice_has_two_outcomes(world: World) -> None:
    """The second is the same once more, and not another job's."""
    client, following = world.client(), [world.enqueue() for _ in range(2)][1]
    [job] = client.claim()
    assert exchange(client, [job, job]) == ([200, 200], [following])
    deliveries = [step for step in world.history(job["id"]) if step[2] == "deliver"]
    assert len(deliveries) == 1


def test_a_bad_claim_spoils_no_result(world: World) -> None:
    """The refusal stands beside the outcomes."""
    client = world.client()
    world.enqueue()
    [job] = client.claim()
    said = client.post(
        "/exchange",
        {"results": [{"id": job["id"], "attempt": 1, "result": 1}], "claim": {"limit": 0}},
    ).get_json()
    assert (said["outcomes"][0]["status"], said["claim"]["code"]) == (200, "invalid")
    assert world.job(job["id"]).state == "succeeded"


def test_a_late_result_is_not_handed_out_by_the_claim_that_brings_it(world: World) -> None:
    """Its lease is over, so that it could be claimed; nobody else was quicker than its holder."""
    client, job_id = world.client(), world.enqueue()
    held = client.claim(lease_seconds=5)
    world.pass_time(60)
    assert exchange(client, held) == ([200], [])
    assert (world.job(job_id).state, world.job(job_id).attempts) == ("succeeded", 1)


@pytest.mark.parametrize("state", ["queued", "cancelled"])
def test_what_changes_while_a_result_waits_is_looked_at_again(postgres: World, state: str) -> None:
    """An operator has the held job locked and touches the next one: what is claimed is as it is then."""
    client, ids = postgres.client(), [postgres.enqueue() for _ in range(2)]
    held = client.claim()
    touched = {"state": state, "finished_at": sa.func.now() if state == "cancelled" else None}
    jobs = postgres.Job.__table__
    with watching(postgres) as watch, engine_of(postgres).begin() as operator:
        operator.execute(sa.select(jobs.c.id).where(jobs.c.id == ids[0]).with_for_update())
        task = start(lambda: exchange(client, held))
        watch.until_waits(task)
        operator.execute(sa.update(jobs).where(jobs.c.id == ids[1]).values(**touched))
        operator.commit()
        assert task.result(LIMIT) == ([200], ids[1:] if state == "queued" else [])


def test_who_waits_to_settle_holds_none_of_its_claim(postgres: World) -> None:
    """An operator who has the held job may lock those that could be claimed; leases begin after the wait."""
    client, ids = postgres.client(), [postgres.enqueue() for _ in range(2)]
    held = client.claim()
    jobs = postgres.Job.__table__
    with watching(postgres) as watch, engine_of(postgres).begin() as operator:
        operator.execute(sa.select(jobs.c.id).where(jobs.c.id == ids[0]).with_for_update())
        task = start(lambda: exchange(client, held))
        watch.until_waits(task)
        operator.execute(sa.select(jobs.c.id).where(jobs.c.id == ids[1]).with_for_update(nowait=True))
        freed = operator.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        operator.commit()
        assert task.result(LIMIT) == ([200], ids[1:])
    assert postgres.job(ids[1]).locked_at >= freed


class OneAtATime(World):
    """A world whose scope looks at other jobs: who holds one sees no other."""

    def _scope(self) -> t.Any:
        other = sa.orm.aliased(self.Job)
        mine = (
            other.state == "locked",
            other.locked_by == f"user_{current_user.id}",
            other.id != self.Job.id,
        )
        return ~sa.exists().where(*mine)


def test_a_scope_sees_what_was_just_settled(make_world: MakeWorld, db_url: str) -> None:
    """The one job that is delivered makes room for the next."""
    world = make_world(db_url, OneAtATime)
    client, ids = world.client(), [world.enqueue() for _ in range(2)]
    held = client.claim()
    assert exchange(client, held) == ([200], ids[1:])
