"""Scopes in words, which SQLAlchemy puts into statements as they are: they undo nothing else asked."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Mapped, foreign, mapped_column, relationship

from conftest import MakeWorld
from flask_jobber.core.scope import enclosed
from support import World

Say = t.Callable[[type[t.Any]], t.Any]
EITHER = "user_id = 'ann' OR user_id = 'bob'"


def literal(words: str) -> t.Any:
    return sa.literal_column(words, sa.Boolean())


class Bare(sa.ColumnElement[bool]):
    """What an app compiles by itself."""

    inherit_cache = True
    type = sa.Boolean()


@compiles(Bare)
def _compile(*_: object, **__: object) -> str:
    return EITHER


#: The same, said in different ways: what is Ann's and what is Bob's.
WAYS: dict[str, Say] = {
    "literal": lambda job: literal(EITHER),
    "text among others": lambda job: sa.and_(sa.text(EITHER), job.id > 0),
    "text as an alternative": lambda job: sa.or_(sa.text(EITHER), job.user_id == "nobody"),
    "deep in it": lambda job: (job.id > 0) & ((job.id < 0) | (literal(EITHER) & (job.priority >= 0))),
    "not, not": lambda job: ~sa.not_(literal(f"({EITHER})")),
    "compiled by the app": lambda job: Bare(),
    "an operator of the app's": lambda job: job.user_id.bool_op("= 'ann' OR user_id =")("bob"),
}


@pytest.fixture(params=WAYS)
def both(request: pytest.FixtureRequest, make_world: MakeWorld, db_url: str) -> World:
    """A world whose clients see what is Ann's and what is Bob's, said in some way."""
    return worded(make_world, db_url, WAYS[request.param])


def worded(make_world: MakeWorld, url: str, say: Say, kind: type[World] = World) -> World:
    world = make_world(url, kind, scoped=False)
    world.app.testing = False
    world.jobber.scope(lambda: say(world.Job))
    world.jobber.permission(lambda action, job: True)
    return world


def test_an_or_in_words_undoes_no_other_condition(both: World) -> None:
    """A job has an id, a holder, a type and a state besides."""
    first = both.enqueue(user_id="bob")
    (held,) = both.client("bob").claim()
    carls, anns = both.enqueue(user_id="carl"), both.enqueue("other", user_id="ann")
    ann = both.client("ann")
    assert [ann.get(f"/jobs/{job_id}").status_code for job_id in (first, anns, carls)] == [200, 200, 404]
    assert [job["id"] for job in ann.get("/jobs?type=other").get_json()["jobs"]] == [anns]
    assert ann.claim(types=["none"]) == ann.claim(types=["work"], limit=5) == []
    assert [said.status_code for said in (ann.deliver(held), ann.fail(held), ann.extend(held))] == [409] * 3
    assert ann.release(held).status_code == 409
    item = {"id": held["id"], "attempt": 1}
    said = ann.post("/exchange", {"results": [item | {"result": 1}], "claim": {"types": ["work"]}}).get_json()
    assert ([one["status"] for one in said["outcomes"]], said["jobs"]) == ([409], [])
    assert ann.post(f"/jobs/{carls}/cancel").status_code == 404
    assert ann.post(f"/jobs/{anns}/cancel").status_code == 200
    assert both.client("bob").deliver(held).status_code == 200
    assert [both.job(job_id).state for job_id in (first, anns, carls)] == ["succeeded", "cancelled", "queued"]


@pytest.mark.usefixtures("early_places")
def test_words_may_name_what_statements_name(make_world: MakeWorld, db_url: str) -> None:
    """Columns of jobs need no table: nothing that is read beside them has columns of these names."""
    names = (
        "id type state queue priority turn run_at attempts locked_by lease_seconds data result created_at"
        " finished_at failures progress note batch_id expires_at max_attempts"
    )
    known = " AND ".join(f"({name} IS NULL OR {name} IS NOT NULL)" for name in names.split())
    world = worded(make_world, db_url, lambda job: literal(f"user_id = 'ann' AND {known}"))
    ids = [world.enqueue(user_id=name) for name in ("ann", "bob", "ann", "ann")]
    client = world.client("ann")
    (first,) = client.claim()
    said = client.post("/exchange", {"results": [{"id": first["id"], "attempt": 1}], "claim": {}}).get_json()
    assert ([one["status"] for one in said["outcomes"]], [job["id"] for job in said["jobs"]]) == (
        [200],
        ids[2:3],
    )
    (second,) = said["jobs"]
    assert [client.fail(second).status_code for _ in range(2)] == [200, 200]
    (third,) = client.claim()
    assert client.extend(third, progress=0.5).status_code == 200
    assert client.release(third).status_code == 204
    assert [client.get(path).status_code for path in ("/jobs", f"/jobs/{ids[0]}/history")] == [200] * 2
    assert client.post(f"/jobs/{ids[3]}/cancel").status_code == 200
    assert client.post(f"/jobs/{ids[3]}/retry").status_code == 200


def test_words_of_a_batch(make_world: MakeWorld, db_url: str) -> None:
    world = worded(make_world, db_url, lambda job: literal("id > 0 AND created_at > '1970-01-02'"))
    with world.session(), world.jobber.batch("whole") as batch:
        batch.enqueue("work")
    client = world.client()
    assert client.get(f"/batches/{batch.id}").get_json()["left"] == 1
    assert client.post(f"/batches/{batch.id}/cancel").status_code == 200
    assert client.get(f"/batches/{batch.id + 1}").status_code == 404


class Joined(World):
    """Jobs that are read with their user's rows beside them."""

    def _make_job_class(self) -> type[t.Any]:
        class Member(self.db.Model):  # type: ignore[name-defined, misc]
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str | None] = mapped_column(sa.String(20))

        job = super()._make_job_class()
        is_theirs = foreign(Member.name) == job.user_id
        job.members = relationship(Member, primaryjoin=is_theirs, lazy="joined", viewonly=True, uselist=True)
        return job


def test_words_beside_what_the_class_joins(make_world: MakeWorld, db_url: str) -> None:
    world = worded(make_world, db_url, lambda job: literal("user_id = 'ann' AND id > 0"), Joined)
    mine, other = world.enqueue(user_id="ann"), world.enqueue(user_id="bob")
    client = world.client()
    assert [client.post(f"/jobs/{job_id}/cancel").status_code for job_id in (mine, other)] == [200, 404]


def test_words_that_look_at_other_jobs_see_what_was_settled(make_world: MakeWorld, db_url: str) -> None:
    """A claim beside results: what these make of other jobs counts for it."""
    words = "NOT EXISTS (SELECT 1 FROM job j WHERE j.state = 'succeeded' AND j.id <> job.id)"
    world = worded(make_world, db_url, lambda job: literal(words))
    for _ in range(2):
        world.enqueue()
    client = world.client()
    (held,) = client.claim()
    said = client.post("/exchange", {"results": [{"id": held["id"], "attempt": 1}], "claim": {}}).get_json()
    assert ([one["status"] for one in said["outcomes"]], said["jobs"]) == ([200], [])


def test_what_needs_no_parentheses_gets_none(lite: World) -> None:
    """What can lead an index is seen as it was said."""
    plain = lite.Job.user_id == "ann"
    for term in (plain, lite.Job.user_id.is_(None), sa.true(), plain | lite.Job.user_id.is_(None)):
        assert str(enclosed(term)) == str(term)
