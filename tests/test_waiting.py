"""Claims that wait: they hear of jobs at once, and ask nothing meanwhile."""

from __future__ import annotations

import concurrent.futures
import threading
import time
import typing as t

import pytest
import sqlalchemy as sa

from conftest import MakeWorld
from support import World

LIMIT = 30


class Statements:
    """Counts what an engine is asked."""

    def __init__(self, world: World) -> None:
        with world.app.app_context():
            self._engine = world.db.session.get_bind(world.Job)
        self.seen: list[str] = []

    def __enter__(self) -> t.Self:
        sa.event.listen(self._engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sa.event.remove(self._engine, "before_cursor_execute", self._note)

    def _note(self, connection: t.Any, cursor: t.Any, statement: str, *args: object) -> None:
        self.seen.append(statement)


@pytest.fixture
def pool() -> t.Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(300) as pool:
        yield pool


@pytest.fixture
def patient(make_world: MakeWorld, db_url: str) -> World:
    return make_world(db_url, JOBBER_MAX_WAITERS=300)


def room(world: World) -> t.Any:
    with world.app.app_context():
        return world.jobber.wakeup.room


def until(condition: t.Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def waiting(world: World, number: int) -> None:
    """Return when so many have looked and wait."""
    until(lambda: sum(one.looking is None for one in list(room(world)._waiters)) == number)


def test_a_waiting_claim_gets_what_is_enqueued(patient: World, pool: t.Any) -> None:
    answer = pool.submit(patient.client().claim, wait_seconds=LIMIT)
    waiting(patient, 1)
    began = time.monotonic()
    job_id = patient.enqueue()
    [job] = answer.result(LIMIT)
    assert job["id"] == job_id
    assert time.monotonic() - began < 4
