"""Workers in a thread, a source that a test can wait for, and handlers that a process finds again."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import typing as t

import pytest

from flask_jobber import Handlers
from flask_jobber.testing import FakeSource
from flask_jobber.worker import worker
from flask_jobber.worker.crew import Place
from flask_jobber.worker.feed import Supply
from flask_jobber.worker.handlers import Cancel, Fail, Retry, Snooze
from flask_jobber.worker.job import Job
from flask_jobber.worker.plan import Orders
from flask_jobber.worker.run import Outcome
from flask_jobber.worker.source import Answer, Beat, Settlement, Told, Wish

IN_TIME = 20  # seconds that a test waits for what must happen
#: What handlers may be told to raise, by their data.
VERDICTS: dict[str, t.Callable[[], Exception]] = {
    "retry": lambda: Retry("later", after=7),
    "fail": lambda: Fail("never"),
    "cancel": lambda: Cancel("unwanted"),
    "snooze": lambda: Snooze(after=30),
    "break": lambda: ValueError("broke"),
}


@dataclasses.dataclass
class Exchanged:
    """What was said in one exchange."""

    settled: list[Settlement]
    beats: list[Beat]
    wish: Wish | None


class Watched(FakeSource):
    """A source whose exchanges a test can wait for. Change it with :attr:`changed` held."""

    def __init__(self, **options: t.Any) -> None:
        super().__init__(**options)
        self.changed = threading.Condition(threading.RLock())
        self.said: list[Exchanged] = []
        #: What is answered for a settlement instead of taking it.
        self.refusals: list[Told] = []

    def exchange(self, settled: t.Sequence[Settlement], beats: t.Sequence[Beat], wish: Wish | None) -> Answer:
        with self.changed:
            self.said.append(Exchanged([*settled], [*beats], wish))
            try:
                return super().exchange(settled, beats, wish)
            finally:
                self.changed.notify_all()

    def tidy(self) -> float | None:
        """Do nothing: it is called by another thread, at any time."""
        return None

    def _settle(self, settlement: Settlement) -> Told:
        if self.refusals:
            return dataclasses.replace(self.refusals.pop(0), job=settlement.job)
        return super()._settle(settlement)

    def until(self, condition: t.Callable[[], object]) -> None:
        """Wait until an exchange has brought something about."""
        with self.changed:
            assert self.changed.wait_for(condition, IN_TIME)

    def until_settled(self, *job_ids: int) -> None:
        self.until(lambda: set(job_ids) <= set(self.outcomes))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers notice at once that all is done."""
    monkeypatch.setattr(worker, "_TICK", 0.01)


class Shift:
    """A worker in a thread."""

    def __init__(self, at_work: worker.Worker) -> None:
        self.worker = at_work
        self.codes: list[int] = []
        self.thread = threading.Thread(target=lambda: self.codes.append(at_work.run()), daemon=True)

    def end(self) -> int:
        """Wait until it leaves; return its code."""
        self.thread.join(IN_TIME)
        assert not self.thread.is_alive(), "the worker does not leave"
        return self.codes[0]


def supply(source: FakeSource, handlers: Handlers, place: Place | None = None) -> Supply:
    return Supply(source, handlers, place or Place(loader=load))


@contextlib.contextmanager
def at_work(*supplies: Supply, **orders: t.Any) -> t.Iterator[Shift]:
    """Run a worker meanwhile, and have it leave."""
    shift = Shift(worker.Worker(supplies, Orders(**orders)))
    shift.thread.start()
    try:
        yield shift
        shift.worker.stop()
        shift.end()
    finally:
        shift.worker.leave()
        shift.thread.join(IN_TIME)


def do_all(source: FakeSource, handlers: Handlers, place: Place | None = None, **orders: t.Any) -> int:
    """Have a worker do all there is; return its code."""
    shift = Shift(worker.Worker([supply(source, handlers, place)], Orders(burst=True, **orders)))
    shift.thread.start()
    return shift.end()


def outcome_of(handlers: Handlers, type: str, data: t.Any = None, **facts: t.Any) -> Outcome:
    """Return what comes of one job."""
    source = FakeSource(max_attempts=1)
    job_id = source.add(type, data, **facts)
    assert do_all(source, handlers) == 0
    return source.outcomes[job_id]


class Gate:
    """Handlers that say that they have begun, and wait until they may go on."""

    def __init__(self) -> None:
        self.handlers = Handlers()
        self.handlers("work")(self._work)
        self.handlers("plain")(lambda job: job.data)
        self._changed = threading.Condition()
        self._open: set[int] = set()
        #: The jobs that have begun, in order.
        self.begun: list[Job] = []

    def _work(self, job: Job) -> t.Any:
        with self._changed:
            self.begun.append(job)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: job.id in self._open or job.cancelled, IN_TIME)
            return job.data

    def until_begun(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, IN_TIME)

    def let(self, *job_ids: int) -> None:
        """Let jobs be finished; those that are told that they are cancelled too."""
        with self._changed:
            self._open |= set(job_ids)
            self._changed.notify_all()


class Clock:
    """A clock that a test moves; with ``step``, every look at it does."""

    def __init__(self, step: float = 0) -> None:
        self.now, self._step = 1000.0, step

    def monotonic(self) -> float:
        self.now += self._step
        return self.now


def move(shift: Shift, clock: Clock, seconds: float) -> None:
    """Let time pass for a worker, and have it look at the clock."""
    with shift.worker.plan.bell:
        clock.now += seconds
        shift.worker.plan.bell.notify_all()


# -- handlers that a process of its own finds ----------------------------------------------

handlers = Handlers()


def load() -> tuple[Handlers, t.Any]:
    return handlers, contextlib.nullcontext


def load_nothing() -> tuple[Handlers, t.Any]:
    raise ImportError("there is nothing")


def decide(job: Job) -> t.Any:
    """Do what the data say: raise a verdict, or return it with what is known of the job."""
    job.extras["seen"] = ["handler"]
    job.enqueue("index", {"of": job.data}, only_for="node-2")
    if job.data in VERDICTS:
        raise VERDICTS[job.data]()
    return {"is": job.data}


async def decide_on_loop(job: Job) -> t.Any:
    return decide(job)


def note(job: Job, result: t.Any) -> t.Any:
    job.extras["seen"] += ["callback"]
    return {**result, "noted": True}


def note_error(job: Job, error: Exception) -> None:
    job.extras["seen"] += [str(error)]


for _type, _function, _process in (
    ("thread", decide, False),
    ("loop", decide_on_loop, False),
    ("process", decide, True),
):
    _handler = handlers(_type, process=_process)(_function)
    _handler.callback(note)
    _handler.errback(note_error)


@handlers("where", process=True)
def where(job: Job) -> t.Any:
    return os.getpid()


@handlers("about", process=True)
def about(job: Job) -> t.Any:
    return told_of(job)


def told_of(job: Job) -> dict[str, t.Any]:
    """Return what a job says about itself."""
    names = ("id", "type", "data", "queue", "priority", "attempt", "failures", "max_attempts", "node")
    times = {"enqueued": job.enqueued_at.isoformat(), "began": job.started_at >= job.enqueued_at}
    return {name: getattr(job, name) for name in names} | times | {"left": 500 < job.lease_left <= 600}


@handlers("die", process=True)
def die(job: Job) -> None:
    os._exit(3)


@handlers("unpicklable", process=True)
def unpicklable(job: Job) -> t.Any:
    return lambda: None


@handlers("tell", process=True)
def tell(job: Job) -> t.Any:
    """Tell that it has begun; return when the work is for nothing."""
    job.progress(0.5, "half way")
    while not job.cancelled:
        pass
    return "cancelled"


@handlers("forever", process=True, max_run_seconds=0.05)
def forever(job: Job) -> None:
    while True:
        pass
