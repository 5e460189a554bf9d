"""The loop: what is claimed, told and dropped, and when a worker waits and leaves."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import threading
import typing as t

import pytest

from flask_jobber import Handlers, SetupError
from flask_jobber.testing import FakeSource
from flask_jobber.worker import feed
from flask_jobber.worker.crew import Place
from flask_jobber.worker.job import Job
from flask_jobber.worker.plan import Counts, Orders, Plan
from flask_jobber.worker.run import Failed, Released, Succeeded
from flask_jobber.worker.source import Answer, Away, Refused, Told, Wish
from flask_jobber.worker.worker import PARENT, Worker
from worker_support import IN_TIME, Clock, Gate, Shift, Watched, at_work, do_all, supply
from worker_support import handlers as known
from worker_support import quick as quick


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask a source that is away again after a moment."""
    monkeypatch.setattr(feed, "_LONGEST_PAUSE", 0.001)


# -- what is claimed ----------------------------------------------------------------------


def test_it_claims_only_what_it_can_start() -> None:
    """No more than there are slots; a result and the claim for its slot are one exchange."""
    gate, source = Gate(), Watched()
    ids = [source.add("work", number) for number in range(4)]
    with at_work(supply(source, gate.handlers), concurrency=2):
        gate.until_begun(2)
        assert source.left == ids
        gate.let(ids[0])
        gate.until_begun(3)
        gate.let(*ids)
        source.until_settled(*ids)
    claims = [said for said in source.said if said.wish is not None]
    assert claims[0].wish == Wish(2, ("work", "plain"))
    assert ([one.job.id for one in claims[1].settled], claims[1].wish.limit) == ([ids[0]], 1)  # type: ignore[union-attr]


def test_it_claims_what_its_orders_say() -> None:
    """Of the types that it can do those that are wished for, of some queues, of some priorities."""
    source, gate = Watched(), Gate()
    orders: dict[str, t.Any] = {"types": ("plain",), "queues": ("q",), "min_priority": 1, "max_priority": 3}
    wanted = source.add("plain", queue="q", priority=2)
    for facts in ({"queue": "default"}, {"priority": 0}, {"priority": 4}):
        source.add("plain", **{"queue": "q", "priority": 2, **facts})
    source.add("work", queue="q", priority=2)
    source.add("unheard-of", queue="q", priority=2)

    assert do_all(source, gate.handlers, concurrency=3, **orders) == 0
    assert [*source.outcomes] == [wanted]
    assert source.said[0].wish == Wish(3, ("plain",), ("q",), 1, 3)


def test_a_burst_ends_when_there_is_nothing_left() -> None:
    """What the last job has enqueued is done too."""
    handlers, source = Handlers(), FakeSource()

    @handlers("count")
    def count(job: Job) -> t.Any:
        if job.data:
            job.enqueue("count", job.data - 1)

    source.add("count", 3)
    assert do_all(source, handlers, concurrency=1) == 0
    assert (len(source.settled), source.left, source.closed) == (4, [], True)


def test_it_leaves_after_so_many_jobs() -> None:
    """The others stay where they are, though it has slots for them."""
    gate, source = Gate(), FakeSource()
    for _ in range(5):
        source.add("plain")
    assert do_all(source, gate.handlers, max_jobs=3) == 0
    shift = Shift(Worker([supply(source, gate.handlers)], Orders(max_jobs=1)))
    shift.thread.start()
    assert shift.end() == 0
    assert (len(source.settled), len(source.left)) == (4, 1)


def test_a_supply_without_any_of_the_types_is_left_alone() -> None:
    """The others are worked off."""
    gate, other, mine, none = Gate(), Handlers(), Watched(), Watched()
    other("other")(lambda job: None)
    job_id = mine.add("plain")
    supplies = [supply(mine, gate.handlers), supply(none, other)]
    shift = Shift(Worker(supplies, Orders(types=("plain",), burst=True)))
    shift.thread.start()
    assert shift.end() == 0
    assert [*mine.outcomes] == [job_id]
    assert all(said.wish is None or said.wish.types == () for said in none.said)


def test_what_cannot_work_is_said_at_once() -> None:
    """Before it begins."""
    source, gate = FakeSource(), Gate()
    with pytest.raises(SetupError, match="no handlers"):
        Worker([supply(source, Handlers())])
    with pytest.raises(SetupError, match="no handler for other"):
        Worker([supply(source, gate.handlers)], Orders(types=("work", "other")))
    with pytest.raises(SetupError, match="process"):
        Worker([supply(source, known, Place())])


# -- sources that are away, and what they refuse ------------------------------------------


def test_a_source_that_is_away_is_waited_for(impatient: None) -> None:
    """Nothing is lost, nothing is done twice."""
    handlers, source, done = Handlers(), Watched(), list[int]()
    ids = [source.add("work") for _ in range(3)]

    @handlers("work")
    def work(job: Job) -> t.Any:
        done.append(job.id)
        with source.changed:
            source.go_away(4)
        return job.id

    source.go_away(3)
    assert do_all(source, handlers, concurrency=1) == 0
    assert done == ids
    assert source.outcomes == {job_id: Succeeded(job_id) for job_id in ids}
    assert len(source.settled) == 3


def test_the_pauses_grow(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """From a fifth of a second up to their limit, and again from the beginning after an answer."""
    monkeypatch.setattr(feed, "time", Clock(step=100))
    gate, source = Gate(), Watched()
    source.add("plain")
    source.go_away(8)
    assert do_all(source, gate.handlers) == 0
    source.add("plain")
    source.go_away(1)
    assert do_all(source, gate.handlers) == 0
    pauses = [line.rpartition("again in ")[2] for line in caplog.messages]
    seconds = ("0.2", "0.4", "0.8", "1.6", "3.2", "6.4", "12.8", "15.0", "0.2")
    assert pauses == [f"{pause} s" for pause in seconds]
    assert caplog.messages[0].startswith("fake: the fake source is away")


def test_a_source_may_say_how_long_it_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then it is not asked sooner."""
    monkeypatch.setattr(feed, "time", Clock(step=100))

    class Busy(Watched):
        def held(self) -> list[Job]:
            if not self.said:
                self.said.append(t.cast(t.Any, None))
                raise Away("busy", 40)
            return super().held()

    assert do_all(Busy(), Gate().handlers) == 0
    assert caplog.messages == ["fake: busy; again in 40.0 s"]


class Deaf(Watched):
    """Hands out jobs and takes results, once without an answer that arrives."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = 0

    def exchange(self, *said: t.Any) -> Answer:
        answer = super().exchange(*said)
        if answer.jobs and not self.lost:
            self.lost += 1
            raise Away("the answer is lost")
        return answer


def test_jobs_whose_claim_was_not_heard_are_taken_up(impatient: None) -> None:
    """They are held by nobody else, so nobody else would do them."""
    gate, source = Gate(), Deaf()
    ids = [source.add("plain", 1), source.add("plain", 2)]
    assert do_all(source, gate.handlers) == 0
    assert [source.outcomes[job_id] for job_id in ids] == [Succeeded(1), Succeeded(2)]
    assert [one.job.attempt for one in source.settled] == [1, 1]


@pytest.mark.parametrize("fed_before", [False, True])
def test_a_source_that_is_away_starves_no_other(fed_before: bool) -> None:
    """Not even where there is one slot, and though it had jobs before."""
    gate, away, near = Gate(), Watched(), Watched()
    if fed_before:
        first = [away.add("plain"), away.add("plain")]
    else:
        away.go_away(10**6)
    with at_work(supply(away, gate.handlers), supply(near, gate.handlers), concurrency=1):
        if fed_before:
            away.until_settled(*first)
            with away.changed:
                away.add("plain")
                away.go_away(10**6)
        with near.changed:
            ids = [near.add("plain") for _ in range(5)]
        near.until_settled(*ids)
    assert len(near.settled) == 5


def test_who_was_fed_leaves_the_slot_to_who_waits() -> None:
    """Two sources with more jobs than slots have turns; one without has none."""
    shared, first, second = Plan(Orders(concurrency=1)), object(), object()

    def turn(who: object, jobs: int) -> int:
        with shared.bell:
            taken = shared.take(who, 100)
            if taken:
                shared.use(taken, jobs)
                shared.feed(who, hungry=bool(jobs))
                shared.free += jobs
        return taken

    assert [turn(first, 1), turn(second, 1)] == [1, 1]
    assert [turn(second, 1), turn(first, 1)] == [0, 1]
    assert [turn(first, 1), turn(second, 1)] == [0, 1]
    assert [turn(first, 0), turn(second, 1), turn(second, 1)] == [1, 1, 1]


def test_a_source_that_refuses_ends_its_feed_alone(caplog: pytest.LogCaptureFixture) -> None:
    """The other's jobs are done; the code tells."""

    class Refusing(Watched):
        def held(self) -> list[Job]:
            raise Refused("log in")

    gate, source, refusing = Gate(), FakeSource(), Refusing()
    job_id = source.add("plain")
    worker = Worker([supply(refusing, gate.handlers), supply(source, gate.handlers)], Orders(burst=True))
    shift = Shift(worker)
    shift.thread.start()
    assert shift.end() == 1
    assert [*source.outcomes] == [job_id]
    assert "fake: log in" in caplog.text
    assert refusing.closed


@pytest.mark.parametrize("outcome", ["result", "snooze"])
def test_what_is_refused_of_a_job_that_is_still_held_has_failed(
    outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason: nobody would do the job before its lease has ended."""
    source = Watched(max_attempts=1)
    job_id = source.add("thread", "fine" if outcome == "result" else "snooze")
    source.refusals.append(Told(t.cast(Job, None), "invalid", "It is no good.", held=True))
    assert do_all(source, known) == 0
    failure = source.outcomes[job_id]
    assert isinstance(failure, Failed)
    assert failure.error == {"type": "invalid", "message": "It is no good.", "traceback": None}
    assert "It is no good. (invalid)" in caplog.text


@pytest.mark.parametrize(
    "code", ["lease_lost", "cancelled", "already_settled", "not_found", "result_rejected"]
)
def test_what_is_refused_of_a_job_that_is_gone_is_dropped(
    code: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once, not tried again."""
    source = Watched()
    source.add("plain")
    source.refusals.append(Told(t.cast(Job, None), code, "Too late."))
    worker = Worker([supply(source, Gate().handlers)], Orders(max_jobs=1))
    shift = Shift(worker)
    shift.thread.start()
    assert shift.end() == 0
    assert source.settled == []
    assert [said for said in source.said if said.settled] == [source.said[-1]]
    counts = Counts(failed=1) if code == "result_rejected" else Counts(succeeded=0, dropped=1)
    assert worker.plan.counts == counts
    assert f"Too late. ({code})" in caplog.text


# -- after a restart ----------------------------------------------------------------------


def held_before(source: FakeSource, *types: str) -> list[Job]:
    """Have a worker of the same name hold jobs, and be gone."""
    for type in types:
        source.add(type)
    return source.exchange([], [], Wish(10, tuple(set(types)))).jobs


def test_it_takes_up_what_it_still_held(caplog: pytest.LogCaptureFixture) -> None:
    """The same attempt, before anything new; the lease is renewed at once."""
    gate, source = Gate(), Watched()
    [held] = held_before(source, "work")
    new = source.add("plain")
    with caplog.at_level(logging.INFO), at_work(supply(source, gate.handlers), concurrency=1):
        gate.until_begun(1)
        source.until(lambda: source.beats)
        assert new not in source.outcomes
        gate.let(held.id)
        source.until_settled(new)
    assert [(one.job.id, one.job.attempt) for one in source.settled] == [(held.id, 1), (new, 1)]
    assert f"job {held.id} is taken up again" in caplog.text


def test_it_gives_back_what_it_cannot_do_any_more() -> None:
    """Types that it has no handler for, or is not to do."""
    gate, source = Gate(), Watched()
    gone, unwanted, fine = held_before(source, "gone", "work", "plain")
    assert do_all(source, gate.handlers, types=("plain",)) == 0
    released = {gone.id: Released(), unwanted.id: Released()}
    assert source.outcomes == {**released, fine.id: Succeeded()}


def test_it_gives_back_what_is_more_than_it_is_to_do() -> None:
    """It leaves after so many, whatever it held."""
    gate, source = Gate(), Watched()
    held_before(source, "plain", "plain", "plain")
    assert do_all(source, gate.handlers, max_jobs=2, concurrency=1) == 0
    assert [type(one.outcome) for one in source.settled].count(Released) == 1
    assert len(source.left) == 1


# -- how it ends --------------------------------------------------------------------------


def test_it_finishes_what_it_has_begun() -> None:
    """Told to stop, it claims no more."""
    gate, source = Gate(), Watched()
    first = source.add("work")
    with at_work(supply(source, gate.handlers), concurrency=2) as shift:
        gate.until_begun(1)
        shift.worker.stop()
        with source.changed:
            said = len(source.said)
            source.add("plain")
        gate.let(first)
        assert shift.end() == 0
    assert [*source.outcomes] == [first]
    assert [one.wish for one in source.said[said + 1 :]] == [None] * len(source.said[said + 1 :])


def test_it_gives_back_what_is_unfinished() -> None:
    """Told to leave: threads are told and not waited for, coroutines are cancelled."""
    gate, source, ended = Gate(), Watched(), threading.Event()

    @gate.handlers("loop")
    async def loop(job: Job) -> None:
        try:
            job.progress(0)
            await asyncio.Event().wait()
        finally:
            ended.set()

    ids = [source.add("work"), source.add("loop")]
    with at_work(supply(source, gate.handlers)) as shift:
        gate.until_begun(1)
        source.until(lambda: source.beats)
        shift.worker.leave()
        assert shift.end() == 0
        assert ended.wait(IN_TIME)
    assert source.outcomes == dict.fromkeys(ids, Released())
    assert gate.begun[0].cancelled


def test_it_leaves_though_nobody_hears_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It tries for a while to give its jobs back."""
    monkeypatch.setattr(feed, "_FAREWELL", 0.05)
    gate, source = Gate(), Watched()
    source.add("work")
    with at_work(supply(source, gate.handlers)) as shift:
        gate.until_begun(1)
        with source.changed:
            source.go_away(10**6)
        shift.worker.leave()
        assert shift.end() == 0
    assert source.settled == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_and_a_second_one_makes_it_leave(number: signal.Signals) -> None:
    """What was set up for signals before is there again afterwards."""
    handlers, source, old = Handlers(), Watched(), signal.getsignal(number)
    worker: Worker

    @handlers("work")
    def work(job: Job) -> t.Any:
        os.kill(os.getpid(), number)
        while not worker.plan.stopping:
            pass
        if job.data == "twice":
            os.kill(os.getpid(), number)
            while not job.cancelled:
                pass
        return job.data

    once, twice = source.add("work", "once"), source.add("work", "twice")
    for _ in range(2):
        worker = Worker([supply(source, handlers)], Orders(concurrency=1))
        assert worker.run() == 0
    assert source.outcomes == {once: Succeeded("once"), twice: Released()}
    assert signal.getsignal(number) is old


def test_it_does_not_outlive_who_looks_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It notices that its parent is another."""
    monkeypatch.setenv(PARENT, "1")
    shift = Shift(Worker([supply(Watched(), Gate().handlers)]))
    shift.thread.start()
    assert shift.end() == 0


def test_it_tidies_meanwhile(impatient: None) -> None:
    """As often as the source asks; one that is away or breaks ends nothing."""
    tidied = threading.Event()
    steps: t.Iterator[t.Any] = itertools.chain([0, RuntimeError("broke")], itertools.repeat(None))

    class Untidy(Watched):
        def tidy(self) -> float | None:
            step = next(steps)
            if isinstance(step, Exception):
                tidied.set()
                raise step
            return t.cast(float | None, step)

    source = Untidy()
    with at_work(supply(source, Gate().handlers)):
        assert tidied.wait(IN_TIME)
        with source.changed:
            job_id = source.add("plain")
        source.until_settled(job_id)


# -- a source that is listened to ---------------------------------------------------------


class Heard(Watched):
    """A job comes while the worker looks for the first time, too late for that look."""

    def exchange(self, settled: t.Any, beats: t.Any, wish: t.Any) -> Answer:
        answer = super().exchange(settled, beats, wish)
        if len(self.said) == 1:
            self.add("plain")
        return answer


def test_a_ring_during_a_claim_is_not_lost() -> None:
    """It claims again."""
    source = Heard()
    with at_work(supply(source, Gate().handlers)):
        source.until_settled(1)


class Late(Watched):
    """Is told of a job when it is listened to no longer."""

    def rest(self) -> list[Job]:
        self.add("plain")
        return self.exchange([], [], Wish(1, ("plain",))).jobs


def test_what_came_too_late_is_given_back() -> None:
    """When the worker leaves."""
    source = Late()
    with at_work(supply(source, Gate().handlers)):
        source.until(lambda: source.said)
    assert [type(one) for one in source.outcomes.values()] == [Released]
