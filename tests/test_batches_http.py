"""Batches over HTTP: how far they are, who may end them, and who may add to them."""

from __future__ import annotations

import typing as t

import pytest
import sqlalchemy as sa
from flask_login import current_user

from conftest import MakeWorld
from support import PREFIX, Client, World


@pytest.fixture
def world(make_world: MakeWorld, db_url: str) -> World:
    """Nothing is tidied but by the test. ``pat`` may enqueue anything, and add to batches of his own."""
    world = make_world(db_url, JOBBER_TIDY_SECONDS=0)
    world.jobber.registry.hooks["permission"] = lambda action, job: (
        current_user.id == "root"
        or (action == "enqueue" and current_user.id in ("pat", "ann"))
        or (action == "batch" and current_user.id == job.user_id == "pat")
    )
    return world


def begin(world: World, user_id: str | None = "pat", tiles: int = 2, **spec: t.Any) -> int:
    with world.session(), world.jobber.batch("stitch", {"picture": 3}, user_id=user_id, **spec) as batch:
        batch.enqueue_many("tile", range(tiles))
    return int(batch.id)


def add(client: Client, **spec: t.Any) -> t.Any:
    """Return the status and the code, or the batch, of an enqueue."""
    response = client.post("/jobs", {"type": "tile", "data": 7, **spec})
    body = response.get_json()
    return response.status_code, body.get("code", body.get("batch"))


def test_a_batch_tells_how_far_it_is(world: World) -> None:
    """In numbers, to whoever may see its job."""
    batch_id = begin(world, tiles=3)
    pat, ann = world.client("pat"), world.client("ann")
    first, second = ann.claim(limit=2)
    ann.deliver(first)
    said = pat.get(f"/batches/{batch_id}").get_json()
    times = {name: said.pop(name) for name in ("enqueued_at", "finished_at", "rate", "seconds_left")}
    assert said == {
        "id": batch_id, "type": "stitch", "state": "blocked", "data": {"picture": 3}, "owner": None,
        "total": 3, "done": 1, "failed": 0, "cancelled": 0, "running": 1, "left": 2,
        "href": f"{PREFIX}/batches/{batch_id}",
    }  # fmt: skip
    assert times["rate"] > 0
    assert times["seconds_left"] == pytest.approx(2 / times["rate"])
    assert times["finished_at"] is None
    for path in (f"/batches/{batch_id}", f"/batches/{second['id']}", "/batches/999", f"/jobs/{batch_id}"):
        assert ann.get(path).get_json()["code"] == "not_found"


def test_members_are_listed_by_their_batch(world: World) -> None:
    """A job says what waits for its end."""
    batch_id = begin(world)
    world.enqueue("other")
    root = world.client("root")
    listed = root.get(f"/jobs?batch={batch_id}").get_json()["jobs"]
    assert [(job["type"], job["batch"]) for job in listed] == [("tile", batch_id)] * 2
    assert root.get("/jobs?batch=x").get_json()["code"] == "invalid"


def test_a_batch_is_cancelled_by_whoever_has_the_permission(world: World) -> None:
    """With its members; what it says then tells so."""
    batch_id = begin(world, "ann")
    ann, root = world.client("ann"), world.client("root")
    (held,) = ann.claim()
    assert world.client("bob").post(f"/batches/{batch_id}/cancel").get_json()["code"] == "not_found"
    assert ann.post(f"/batches/{batch_id}/cancel").get_json()["code"] == "forbidden"
    said = root.post(f"/batches/{batch_id}/cancel").get_json()
    assert (said["state"], said["cancelled"], said["left"], said["seconds_left"]) == ("cancelled", 2, 0, 0)
    assert root.post(f"/batches/{batch_id}/cancel").get_json()["code"] == "illegal_transition"
    assert ann.deliver(held).get_json()["code"] == "cancelled"
    with world.session() as session:
        h = world.jobber.History
        row = session.scalars(sa.select(h).where(h.job_id == held["id"]).order_by(h.id.desc())).first()
        assert (row.reason, row.error["type"]) == ("cancel", "BatchEnded")


def test_who_holds_a_member_may_add_others(world: World) -> None:
    """As long as it holds it; though it does not see the batch."""
    batch_id = begin(world, tiles=1)
    ann, bob = world.client("ann"), world.client("bob")
    (held,) = ann.claim()
    assert ann.get(f"/batches/{batch_id}").status_code == 404
    assert add(ann, beside=held["id"]) == (201, batch_id)
    assert add(ann, beside=held["id"], batch=batch_id) == (404, "not_found")
    assert add(bob, beside=held["id"]) == (404, "not_found")
    assert add(world.client("root"), beside=held["id"]) == (404, "not_found")
    ann.deliver(held)
    assert add(ann, beside=held["id"]) == (404, "not_found")
    alone = world.enqueue("alone")
    (held,) = ann.claim(types=["alone"])
    assert (held["id"], add(ann, beside=alone)) == (alone, (422, "invalid"))
    assert world.client("pat").get(f"/batches/{batch_id}").get_json()["total"] == 2


def test_others_need_a_permission_to_add(world: World) -> None:
    """Who sees the batch and may not add to it is told so; others hear that there is none."""
    mine, theirs, everyones = begin(world, "pat"), begin(world, "ann"), begin(world, None)
    pat = world.client("pat")
    assert add(pat, batch=mine) == (201, mine)
    assert add(pat, batch=theirs) == add(pat, batch=999) == (404, "not_found")
    assert add(pat, batch=everyones) == (403, "forbidden")
    assert add(world.client("ann"), batch=theirs) == (403, "forbidden")
    assert add(world.client("root"), batch=theirs, beside=1) == (404, "not_found")
    assert [add(pat, batch=wrong)[0] for wrong in (0, -1, 2**63, "1", True, 1.5)] == [422] * 6
    with world.session():
        world.jobber.find_batch(mine).cancel()
    assert add(pat, batch=mine) == (409, "batch_ended")
    totals = [world.client("root").get(f"/batches/{one}").get_json()["total"] for one in (mine, theirs)]
    assert totals == [3, 2]


def test_a_request_that_comes_twice_adds_one_member(world: World) -> None:
    """Though the first answer was lost."""
    batch_id = begin(world)
    pat = world.client("pat")
    body = {"type": "tile", "batch": batch_id}
    for _ in range(2):
        assert pat.post("/jobs", body, headers={"Idempotency-Key": '"once"'}).status_code == 201
    assert pat.get(f"/batches/{batch_id}").get_json()["total"] == 3
