"""A web node whose clock is an hour off: leases, due times and instants follow the database's clock."""

from __future__ import annotations

import datetime as dt
import shutil
import time
import typing as t

import pytest
import sqlalchemy as sa

from conftest import missing
from race_support import engine_of
from served import WERKZEUG, Remote, Server, make_served
from support import Client
from tables import renew

HALF_AN_HOUR = 1800.0
#: Seconds that a request may take here.
SLACK = 20.0


class Node:
    """A server whose clock is wrong, and the database it shares with this process, whose clock is right."""

    def __init__(self, url: str, offset: str) -> None:
        self.world, _ = make_served(url)
        with self.world.app.app_context():
            renew(self.world.db)
        program = ("faketime", "-f", offset, *WERKZEUG)
        self.server = Server(url, program, FAKETIME_DONT_FAKE_MONOTONIC="1")
        self.remote = Remote(self.server.port, "ann")

    @property
    def here(self) -> Client:
        return self.world.client("bob")

    def close(self) -> None:
        self.server.close()
        engine_of(self.world).dispose()

    def now(self) -> dt.datetime:
        with self.world.app.app_context():
            return self.world.jobber.store().now()


@pytest.fixture(
    scope="module",
    params=[(engine, offset) for engine in ("postgres_url", "mariadb_url") for offset in ("+1h", "-1h")],
    ids=lambda param: f"{param[0].removesuffix('_url')}{param[1]}",
)
def started(request: pytest.FixtureRequest) -> t.Iterator[Node]:
    if shutil.which("faketime") is None:
        missing("faketime")
    fixture, offset = request.param
    node = Node(request.getfixturevalue(fixture), offset)
    try:
        node.server.start()
        clock = node.remote.expect(200, "GET", "/clock")["now"]
        assert abs(clock - time.time() - 3600 * int(offset.rstrip("h"))) < SLACK
        yield node
    finally:
        node.close()


@pytest.fixture
def node(started: Node) -> Node:
    """The node, with nothing in its tables."""
    with started.world.session() as session:
        for model in (started.world.Job, started.world.jobber.History):
            session.execute(sa.delete(model))
    return started


def test_a_lease_from_another_node_ends_by_the_clock_of_the_database(node: Node) -> None:
    """A fast node does not take the job half an hour early, a slow one does not leave it for long."""
    node.world.enqueue()
    [job] = node.here.claim(lease_seconds=HALF_AN_HOUR)
    assert node.remote.claim() == []
    node.world.pass_time(HALF_AN_HOUR + 1)
    [again] = node.remote.claim()
    assert (again["id"], again["attempt"], again["failures"]) == (job["id"], 2, 1)


def test_a_lease_of_this_node_is_as_long_as_it_says(node: Node) -> None:
    """From the hand-out, and from each heartbeat on."""
    node.world.enqueue()
    [job] = node.remote.claim(lease_seconds=HALF_AN_HOUR)
    _assert_in(node, node.world.job(job["id"]).locked_until, HALF_AN_HOUR)
    assert node.here.claim() == []
    said = node.remote.expect(200, "PATCH", job["href"], {"lease_seconds": 2 * HALF_AN_HOUR})
    assert said == {"lease_seconds": 2 * HALF_AN_HOUR}
    _assert_in(node, node.world.job(job["id"]).locked_until, 2 * HALF_AN_HOUR)
    node.world.pass_time(2 * HALF_AN_HOUR + 1)
    assert len(node.here.claim()) == 1


def _assert_in(node: Node, instant: dt.datetime, seconds: float) -> None:
    """Check that an instant is so many seconds from now."""
    assert abs((instant - node.now()).total_seconds() - seconds) < SLACK


@pytest.mark.parametrize("how", ["after_seconds", "run_at"])
def test_a_job_is_due_by_the_clock_of_the_database(node: Node, how: str) -> None:
    """Whichever node it was enqueued at, and whichever is asked, half an hour is half an hour."""
    run_at = (node.now() + dt.timedelta(seconds=HALF_AN_HOUR)).isoformat()
    body = {"type": "work", how: HALF_AN_HOUR if how == "after_seconds" else run_at}
    ids = [
        node.remote.expect(201, "POST", "/jobs", body)["id"],
        (node.here.post("/jobs", body).json or {})["id"],
    ]
    for job_id in ids:
        assert node.world.job(job_id).state == "scheduled"
        _assert_in(node, node.world.job(job_id).run_at, HALF_AN_HOUR)
    assert node.remote.claim() == node.here.claim() == []
    node.world.pass_time(HALF_AN_HOUR + 1)
    assert [job["id"] for job in node.remote.claim() + node.here.claim()] == ids


def test_a_job_for_an_instant_that_has_passed_is_queued(node: Node) -> None:
    """A slow node's clock says that it is still to come."""
    run_at = (node.now() - dt.timedelta(seconds=HALF_AN_HOUR)).isoformat()
    job = node.remote.expect(201, "POST", "/jobs", {"type": "work", "run_at": run_at})
    assert job["state"] == "queued"
    assert [claim["id"] for claim in node.remote.claim()] == [job["id"]]


def test_a_job_expires_by_the_clock_of_the_database(node: Node) -> None:
    """Not for a fast node half an hour early, and not too late for a slow one."""
    for sign in (1, -1):
        instant = node.now() + dt.timedelta(seconds=sign * HALF_AN_HOUR)
        job_id = node.world.enqueue(expires_at=instant)
        assert len(node.remote.claim()) == (sign == 1)
        assert node.world.job(job_id).state == ("locked" if sign == 1 else "expired")


def test_a_failed_job_comes_back_by_the_clock_of_the_database(node: Node) -> None:
    """The back-off counts from when the database heard of the failure."""
    node.world.enqueue(backoff={"strategy": "constant", "first": HALF_AN_HOUR})
    [job] = node.remote.claim()
    error = {"type": "Error", "message": "broke"}
    said = node.remote.expect(200, "PUT", f"{job['href']}/failure", {"error": error})
    _assert_in(node, dt.datetime.fromisoformat(said["run_at"]), HALF_AN_HOUR)
    assert node.remote.claim() == node.here.claim() == []


def test_every_instant_that_is_stored_is_the_databases(node: Node) -> None:
    """A whole life at the node: nothing in the row or its history comes from the node's clock."""
    before = node.now()
    job_id = node.remote.expect(201, "POST", "/jobs", {"type": "work"})["id"]
    [job] = node.remote.claim()
    locked = node.world.job(job_id)
    node.remote.expect(200, "PATCH", job["href"], {"progress": 0.5})
    node.remote.expect(200, "PUT", f"{job['href']}/result", {"result": {"n": 1}})
    seen = node.remote.expect(200, "GET", f"/jobs/{job_id}")
    rows = node.remote.expect(200, "GET", f"/jobs/{job_id}/history")["history"]
    done, after = node.world.job(job_id), node.now()
    texts = [job["enqueued_at"], seen["enqueued_at"], seen["run_at"], seen["finished_at"]]
    instants = [dt.datetime.fromisoformat(text) for text in (*texts, *(row["at"] for row in rows))]
    instants += [done.created_at, done.updated_at, done.run_at, done.finished_at, locked.locked_at]
    assert [reason for *_, reason in node.world.history(job_id)] == ["enqueue", "claim", "deliver"]
    assert all(before <= instant <= after for instant in instants), (before, instants, after)


def test_a_broken_processor_is_tried_again_by_the_clock_of_the_database(node: Node) -> None:
    """A result whose processor broke at the node is due here seconds later, not an hour."""
    node.world.enqueue()
    [job] = node.remote.claim()
    node.remote.expect(202, "PUT", f"{job['href']}/result", {"result": {"n": 5}})
    _assert_in(node, node.world.job(job["id"]).run_at, 5)
