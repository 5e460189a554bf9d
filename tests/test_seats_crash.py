"""Concurrency keys when servers are killed: no seat is lost, and none is given twice."""

from __future__ import annotations

import itertools
import threading
import typing as t

import sqlalchemy as sa

from race_support import LIMIT, engine_of, start, until
from served import Remote, Server, Unacknowledged, make_served
from support import World
from tables import renew
from test_seats import check_counts

KEYS = 3


def _work(port: int, number: int, done: list[int], stop: threading.Event) -> None:
    """Enqueue, claim and deliver until told to stop, whatever happens to the server."""
    remote = Remote(port, f"u{number}")
    numbers = itertools.count(number)
    while not stop.is_set():
        try:
            key = f"customer-{next(numbers) % KEYS}"
            remote.expect(201, "POST", "/jobs", {"type": "other", "concurrency_key": key})
            remote.claim(limit=2)
            for job in remote.expect(200, "GET", "/claims")["jobs"]:
                status, _ = remote.ask("PUT", f"{job['href']}/result", {"result": None})
                assert status in (200, 409)
                done.append(job["id"])
        except Unacknowledged:
            pass


def test_seats_survive_the_death_of_servers(db_url: str) -> None:
    """Those of one key are held one after another, before each kill and after it, and all end."""
    world, _ = make_served(db_url)
    with world.app.app_context():
        renew(world.db)
    done, stop, server = list[int](), threading.Event(), Server(db_url)
    try:
        workers = [start(lambda n=n: _work(server.port, n, done, stop)) for n in range(5)]  # type: ignore[misc]
        for turn in range(3):
            enough = len(done) + 25
            server.start()
            until(lambda: len(done) >= enough or any(w.done() for w in workers), "enough work")  # noqa: B023
            if turn < 2:
                server.kill()
        stop.set()
        for worker in workers:
            worker.result(LIMIT)
    finally:
        stop.set()
        server.close()
    check_counts(world)
    _drain(world)
    check_counts(world)
    _check_one_by_one(world)
    engine_of(world).dispose()


def _drain(world: World) -> None:
    world.pass_time(3600)
    with world.session() as session:
        while claims := world.jobber.claim("last", limit=50):
            for one in claims:
                world.jobber.deliver("last", one.id, one.attempt)
        session.commit()
        c = world.Job
        assert session.scalars(sa.select(c.id).where(c.finished_at.is_(None))).all() == []


def _check_one_by_one(world: World) -> None:
    h, c = world.jobber.History, world.Job
    wanted = sa.select(c.concurrency_key, h.at, h.to_state).join(c, c.id == h.job_id)
    with world.session() as session:
        moves = wanted.where(h.reason.in_(["claim", "deliver", "lapse"])).order_by(h.at, h.id)
        rows = [tuple(row) for row in session.execute(moves)]
    held = dict.fromkeys({key for key, _, _ in rows}, 0)
    for key, _, state in rows:
        held[t.cast(str, key)] += 1 if state == "locked" else -1
        assert held[key] in (0, 1), rows
