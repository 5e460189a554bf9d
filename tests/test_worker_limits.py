"""Heartbeats, what becomes of jobs that are gone, limits, and handlers that do not end."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import typing as t

import pytest

from flask_jobber import Handlers
from flask_jobber.testing import FakeSource
from flask_jobber.worker import feed, plan
from flask_jobber.worker.job import Job
from flask_jobber.worker.plan import Orders
from flask_jobber.worker.run import Failed, Succeeded
from flask_jobber.worker.worker import Worker
from worker_support import IN_TIME, Clock, Gate, Shift, Watched, at_work, do_all, move, supply
from worker_support import handlers as known
from worker_support import quick as quick

# -- heartbeats ---------------------------------------------------------------------------


def test_it_renews_leases_at_a_third_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not sooner; the handler is told what it has got."""
    clock, gate, source = Clock(), Gate(), Watched(lease_seconds=90)
    monkeypatch.setattr(feed, "time", clock)
    first = source.add("work")
    with at_work(supply(source, gate.handlers), concurrency=2) as shift:
        gate.until_begun(1)
        source.until(lambda: len(source.said) == 2)  # one claim with the job, one without any
        beats = []
        for number, seconds in enumerate((29, 1, 29, 1), start=3):
            move(shift, clock, seconds)
            if seconds == 29:
                source.travel(0)  # it looks for jobs, which shows that nothing else is to be said
            source.until(lambda number=number: len(source.said) == number)  # type: ignore[misc]
            beats.append(len(source.said[-1].beats))
        assert beats == [0, 1, 0, 1]
        gate.let(first)


def test_much_progress_makes_few_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first at once, the next a second later, with the last word."""
    clock, gate, source = Clock(), Gate(), Watched()
    monkeypatch.setattr(feed, "time", clock)
    job_id = source.add("work")
    with at_work(supply(source, gate.handlers), concurrency=1) as shift:
        gate.until_begun(1)
        [job] = gate.begun
        job.progress(0.1)
        source.until(lambda: source.beats)
        job.progress(0.2, "two")
        job.progress(0.3, "three")
        move(shift, clock, 1)
        source.until(lambda: len(source.beats) == 2)
        gate.let(job_id)
        source.until_settled(job_id)
    assert [(beat.progress, beat.note) for beat in source.beats] == [(0.1, None), (0.3, "three")]


@pytest.mark.parametrize("how", ["cancel", "lapse"])
def test_a_job_that_is_gone_is_dropped(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its handler sees that; what it returns is dropped, which is said, and its slot is free again."""
    gate, source = Gate(), Watched(lease_seconds=0.03)
    job_id = source.add("work")
    with caplog.at_level(logging.INFO), at_work(supply(source, gate.handlers), concurrency=1) as shift:
        gate.until_begun(1)
        assert not gate.begun[0].cancelled
        with source.changed:
            getattr(source, how)(job_id)
            if how == "lapse":
                source._rows[job_id].open = False  # another has it
            other = source.add("plain")
        source.until(lambda: shift.worker.plan.counts.dropped)
        gate.let()
        source.until_settled(other)
    assert gate.begun[0].cancelled
    assert [*source.outcomes] == [other]
    code = {"cancel": "cancelled", "lapse": "lease_lost"}[how]
    assert f"job {job_id} is held no longer ({code}); what its handler returns is dropped" in caplog.text
    assert f"job {job_id}: what its handler returned is dropped" in caplog.text


@pytest.mark.parametrize("obeys", [True, False])
def test_a_coroutine_is_cancelled_when_its_job_is(obeys: bool) -> None:
    """One that goes on all the same is not heard."""
    handlers, source = Handlers(), Watched(lease_seconds=0.03)
    begun, told = threading.Event(), threading.Event()

    @handlers("work")
    async def work(job: Job) -> t.Any:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            if obeys:
                raise
        return "all the same"

    handlers("plain")(lambda job: None)
    job_id = source.add("work")
    with at_work(supply(source, handlers), concurrency=1):
        assert begun.wait(IN_TIME)
        with source.changed:
            source.cancel(job_id)
            other = source.add("plain")
        assert told.wait(IN_TIME)
        source.until_settled(other)
    assert [*source.outcomes] == [other]


def test_a_process_sees_that_its_job_is_cancelled() -> None:
    """It ends its work, and is there for the next."""
    source = Watched(lease_seconds=0.3)
    job_id = source.add("tell")
    with at_work(supply(source, known), concurrency=1):
        source.until(lambda: any(beat.note for beat in source.beats))
        with source.changed:
            source.cancel(job_id)
            other = source.add("where")
        source.until_settled(other)
    assert [*source.outcomes] == [other]


# -- limits -------------------------------------------------------------------------------


def late(outcome: t.Any) -> bool:
    return isinstance(outcome, Failed) and outcome.error["type"] == "RanTooLong"


@pytest.mark.parametrize("limit", [0.02, lambda job: job.data])
def test_a_thread_is_interrupted_at_its_limit(limit: t.Any) -> None:
    """At its next step in Python; what it caught and returned is dropped."""
    handlers, source, ends = Handlers(), Watched(max_attempts=1), list[BaseException]()

    @handlers("work", max_run_seconds=limit)
    def work(job: Job) -> t.Any:
        try:
            while True:
                pass
        except BaseException as error:
            ends.append(error)
            assert job.cancelled
            return "all the same"

    handlers("plain")(lambda job: None)
    first, other = source.add("work", 0.02), source.add("plain")
    with at_work(supply(source, handlers), concurrency=1):
        source.until_settled(other)
    assert late(source.outcomes[first])
    assert source.outcomes[other] == Succeeded()
    assert len(source.settled) == 2
    assert len(ends) == 1


def test_a_coroutine_is_cancelled_at_its_limit() -> None:
    """Its slot is free again."""
    handlers, source, told = Handlers(), Watched(max_attempts=1), threading.Event()

    @handlers("work", max_run_seconds=0.02)
    async def work(job: Job) -> t.Any:
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    handlers("plain")(lambda job: None)
    first, other = source.add("work"), source.add("plain")
    with at_work(supply(source, handlers), concurrency=1):
        source.until_settled(other)
    assert told.is_set()
    assert late(source.outcomes[first])


def test_a_process_is_killed_at_its_limit() -> None:
    """Which counts from when it began, not from when the process was started; another does the next."""
    source = Watched(max_attempts=1)
    first, other = source.add("forever"), source.add("where")
    with at_work(supply(source, known), concurrency=1):
        source.until_settled(other)
    assert late(source.outcomes[first])
    assert isinstance(source.outcomes[other], Succeeded)


def test_who_ends_within_the_limit_is_left_alone() -> None:
    """And who has none may take as long as it likes."""
    handlers = Handlers()
    handlers("work", max_run_seconds=600)(lambda job: "done")
    handlers("free", max_run_seconds=lambda job: None)(lambda job: "done")
    source = FakeSource()
    ids = [source.add("work"), source.add("free")]
    assert do_all(source, handlers) == 0
    assert source.outcomes == dict.fromkeys(ids, Succeeded("done"))


def test_a_limit_holds_while_the_source_is_away() -> None:
    """However long that is, and though nobody can be told yet."""
    handlers, source, ended = Handlers(), Watched(max_attempts=1), threading.Event()

    @handlers("work", max_run_seconds=0.05)
    def work(job: Job) -> None:
        with source.changed:
            source.go_away(10**6)
        try:
            while True:
                pass
        finally:
            ended.set()

    job_id = source.add("work")
    with at_work(supply(source, handlers), concurrency=2):
        assert ended.wait(IN_TIME)
        with source.changed:
            source.go_away(0)
        source.until_settled(job_id)
    assert late(source.outcomes[job_id])


def test_a_job_that_is_gone_has_a_limit_as_before() -> None:
    """A handler that does not look is interrupted, or its slot would be kept for ever."""
    handlers, source, begun = Handlers(), Watched(lease_seconds=0.03, max_attempts=1), threading.Event()

    @handlers("work", max_run_seconds=0.3)
    def work(job: Job) -> None:
        begun.set()
        while True:
            pass

    handlers("plain")(lambda job: None)
    job_id = source.add("work")
    with at_work(supply(source, handlers), concurrency=1):
        assert begun.wait(IN_TIME)
        with source.changed:
            source.cancel(job_id)
            other = source.add("plain")
        source.until_settled(other)
    assert [*source.outcomes] == [other]


class Stuck:
    """A handler that no exception reaches: it waits in C, until the test ends."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self._end: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.handlers("stuck", max_run_seconds=0.01)(lambda job: self._end.get())
        self.handlers("plain")(lambda job: None)

    def free(self) -> None:
        for _ in range(2):
            self._end.put(None)


@pytest.fixture
def stuck() -> t.Iterator[Stuck]:
    stuck = Stuck()
    yield stuck
    stuck.free()


def test_a_stuck_handler_keeps_its_slot(stuck: Stuck) -> None:
    """And no other: the jobs go on with the rest."""
    source = Watched(max_attempts=1)
    first, others = source.add("stuck"), [source.add("plain") for _ in range(3)]
    with at_work(supply(source, stuck.handlers), concurrency=2):
        source.until_settled(first, *others)
        with source.changed:
            said = len(source.said)
            source.travel(0)
        source.until(lambda: len(source.said) > said)
        assert source.said[-1].wish is not None
        assert source.said[-1].wish.limit == 1
        assert late(source.outcomes[first])


def test_a_worker_leaves_when_all_its_slots_are_stuck(
    stuck: Stuck, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a code that says so, all failures told; what is left is for the next."""
    monkeypatch.setattr(plan, "_GRACE", 0.01)
    source = Watched(max_attempts=1)
    ids = [source.add("stuck") for _ in range(2)]
    left = source.add("plain", after=1)
    shift = Shift(Worker([supply(source, stuck.handlers)], Orders(concurrency=2)))
    shift.thread.start()
    assert shift.end() == 1
    assert all(late(source.outcomes[job_id]) for job_id in ids)
    assert source.left == [left]
    assert "every slot is kept" in caplog.text


def test_a_handler_has_a_moment_to_end(stuck: Stuck, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of one slot does not leave because one has run too long."""
    monkeypatch.setattr(plan, "_GRACE", 600)
    source = Watched(max_attempts=1)
    first = source.add("stuck")
    with at_work(supply(source, stuck.handlers), concurrency=1) as shift:
        source.until_settled(first)
        shift.worker._heed(0)
        assert not shift.worker.plan.stopping
        with source.changed:
            other = source.add("plain")
        stuck.free()
        source.until_settled(other)
