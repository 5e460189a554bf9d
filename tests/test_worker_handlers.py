"""What handlers may do and say, in a thread, on the loop and in a process."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import fractions
import logging
import os
import threading
import typing as t

import pytest

from flask_jobber import Constant, Handlers, SetupError
from flask_jobber.testing import FakeSource
from flask_jobber.worker.crew import Place
from flask_jobber.worker.handlers import Cancel, Fail, Retry, Snooze
from flask_jobber.worker.job import Job
from flask_jobber.worker.run import Failed, Outcome, Released, Succeeded
from worker_support import VERDICTS, Watched, at_work, do_all, load_nothing, outcome_of, supply, told_of
from worker_support import handlers as known
from worker_support import quick as quick

KINDS = ("thread", "loop", "process")


def failed(outcome: t.Any) -> Failed:
    assert isinstance(outcome, Failed)
    return outcome


# -- where they run -----------------------------------------------------------------------


def test_each_kind_of_handler_has_its_place() -> None:
    """A function in a thread, a coroutine on the one loop, with ``process`` in another process."""
    handlers = Handlers()
    handlers.add(known["where"])

    @handlers("thread")
    def thread(job: Job) -> t.Any:
        return threading.current_thread().name

    @handlers("loop")
    async def loop(job: Job) -> t.Any:
        asyncio.get_running_loop()
        return threading.current_thread().name

    assert outcome_of(handlers, "thread") == Succeeded("jobber-handler")
    assert outcome_of(handlers, "loop") == Succeeded("jobber-loop")
    elsewhere = outcome_of(handlers, "where")
    assert isinstance(elsewhere, Succeeded)
    assert elsewhere.result not in (None, os.getpid())


def test_coroutines_run_at_once_on_one_loop() -> None:
    """They meet, which they could not one after the other."""
    handlers, source = Handlers(), FakeSource()
    barrier = asyncio.Barrier(3)

    @handlers("meet")
    async def meet(job: Job) -> t.Any:
        await barrier.wait()

    ids = [source.add("meet") for _ in range(3)]
    assert do_all(source, handlers, concurrency=3) == 0
    assert source.outcomes == dict.fromkeys(ids, Succeeded())


def test_threads_run_at_once() -> None:
    """As many as there are slots."""
    handlers, source = Handlers(), FakeSource()
    barrier = threading.Barrier(3)

    @handlers("meet")
    def meet(job: Job) -> None:
        barrier.wait(20)

    ids = [source.add("meet") for _ in range(3)]
    assert do_all(source, handlers, concurrency=3) == 0
    assert source.outcomes == dict.fromkeys(ids, Succeeded())


@pytest.mark.parametrize("is_async", [False, True])
def test_a_handler_runs_in_its_context(is_async: bool) -> None:
    """Such as the app's, which ends with it."""
    seen: list[str] = []

    @contextlib.contextmanager
    def context() -> t.Iterator[None]:
        seen.append("in")
        yield
        seen.append("out")

    async def on_loop(job: Job) -> None:
        seen.append("work")

    handlers, source = Handlers(), FakeSource()
    handlers("work")(on_loop if is_async else lambda job: seen.append("work"))
    source.add("work")
    assert do_all(source, handlers, Place(context)) == 0
    assert seen == ["in", "work", "out"]


# -- what a job tells ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_job_says_everything_about_itself(kind: str) -> None:
    """In a process as well."""
    handlers = Handlers()
    handlers("about", process=kind == "process")(told_of)
    about = known if kind == "process" else handlers
    at = dt.datetime(2026, 1, 2, tzinfo=dt.UTC)
    source = FakeSource(node="me", lease_seconds=600, max_attempts=4)
    facts = {"queue": "q", "priority": 3, "attempt": 1, "failures": 1}
    job_id = source.add("about", [1], enqueued_at=at, **facts)

    assert do_all(source, about) == 0
    result = source.outcomes[job_id].result  # type: ignore[union-attr]
    own = {"id": job_id, "type": "about", "data": [1], "max_attempts": 4, "node": "me"}
    times = {"enqueued": at.isoformat(), "began": True, "left": True}
    assert result == {**own, **facts, "attempt": 2, **times}


def test_it_began_when_its_handler_did() -> None:
    """Not when it was claimed."""
    handlers, source = Handlers(), FakeSource()
    moments: list[dt.datetime] = []

    @handlers("first")
    def first(job: Job) -> None:
        moments.append(job.started_at)
        moments.append(dt.datetime.now(dt.UTC))

    source.add("first")
    before = dt.datetime.now(dt.UTC)
    assert do_all(source, handlers) == 0
    assert before <= moments[0] <= moments[1]


@pytest.mark.parametrize("wrong", [-0.1, 1.1, float("nan")])
def test_progress_is_a_part_of_the_whole(wrong: float) -> None:
    """Anything else is the handler's mistake."""
    handlers = Handlers()
    handlers("work")(lambda job: job.progress(wrong))
    assert failed(outcome_of(handlers, "work")).error["type"] == "ValueError"


@pytest.mark.parametrize("is_async", [False, True])
def test_progress_goes_with_a_heartbeat_of_its_own(is_async: bool) -> None:
    """At once, though the lease has long to go; the result comes after it."""
    told = threading.Event()

    def tell(job: Job) -> None:
        job.progress(0.5, "half way")
        assert told.wait(20)

    async def tell_on_loop(job: Job) -> None:
        await asyncio.to_thread(tell, job)

    handlers, source = Handlers(), Watched()
    handlers("tell")(tell_on_loop if is_async else tell)
    job_id = source.add("tell")
    with at_work(supply(source, handlers)):
        source.until(lambda: source.beats)
        told.set()
        source.until_settled(job_id)
    assert (source.beats[0].progress, source.beats[0].note) == (0.5, "half way")


def test_progress_of_a_process_is_told_too() -> None:
    """As soon as it is known here; when the worker leaves, the process ends with it."""
    source = Watched()
    job_id = source.add("tell")
    with at_work(supply(source, known)) as shift:
        source.until(lambda: source.beats)
        shift.worker.leave()
    assert (source.beats[0].progress, source.beats[0].note) == (0.5, "half way")
    assert source.outcomes == {job_id: Released()}


# -- what it is done with -----------------------------------------------------------------


@pytest.fixture(scope="module")
def outcomes() -> dict[tuple[str, str], Outcome]:
    """What comes of each verdict in each place; the process is one for all of its jobs."""
    source = FakeSource(max_attempts=1)
    ids = {(kind, said): source.add(kind, said) for kind in KINDS for said in ("fine", *VERDICTS)}
    assert do_all(source, known, concurrency=1) == 0
    return {key: source.outcomes[job_id] for key, job_id in ids.items()}


Outcomes = dict[tuple[str, str], Outcome]


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_with_what_belongs_to_it(outcomes: Outcomes, kind: str) -> None:
    """Extras and jobs to be enqueued, gathered by the handler and its callbacks."""
    assert outcomes[kind, "fine"] == Succeeded(
        {"is": "fine", "noted": True},
        {"seen": ["handler", "callback"]},
        ({"type": "index", "data": {"of": "fine"}, "only_for": "node-2"},),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("verdict", "type", "message", "permanent", "cancel", "seconds"),
    [
        ("retry", "Retry", "later", False, False, 7),
        ("fail", "Fail", "never", True, False, None),
        ("cancel", "Cancel", "unwanted", False, True, None),
        ("break", "ValueError", "broke", False, False, None),
    ],
)
def test_a_handler_says_what_is_to_become_of_its_job(
    outcomes: Outcomes,
    kind: str,
    verdict: str,
    type: str,
    message: str,
    permanent: bool,
    cancel: bool,
    seconds: float | None,
) -> None:
    """Each with its type, its message and where it was raised."""
    outcome = failed(outcomes[kind, verdict])
    said = (outcome.permanent, outcome.cancel, outcome.retry_seconds)
    assert said == (permanent, cancel, seconds)
    assert (outcome.error["type"], outcome.error["message"]) == (type, message)
    assert "in decide" in outcome.error["traceback"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_snoozed_job_is_given_back_for_a_while(outcomes: Outcomes, kind: str) -> None:
    """No failure is counted."""
    assert outcomes[kind, "snooze"] == Released(30)


@pytest.mark.parametrize("verdict", VERDICTS)
def test_of_an_attempt_that_fails_nothing_is_enqueued(verdict: str) -> None:
    """The jobs that its handler added come with the result of another."""
    source = FakeSource(max_attempts=1)
    job_id = source.add("thread", verdict)
    assert do_all(source, known) == 0
    assert set(source._rows) == {job_id}
    fine = source.add("thread", "fine")
    assert do_all(source, known) == 0
    assert set(source._rows) == {job_id, fine, fine + 1}


def test_a_handler_has_a_back_off_of_its_own() -> None:
    """For what is said to be no use to try again at once."""
    handlers = Handlers()

    @handlers("work", backoff=Constant(30))
    def work(job: Job) -> None:
        raise Retry(after=2) if job.data else ValueError

    assert failed(outcome_of(handlers, "work")).retry_seconds == 30
    assert failed(outcome_of(handlers, "work", "retry")).retry_seconds == 2


@pytest.mark.parametrize("verdict", [Retry, Snooze])
@pytest.mark.parametrize("after", [-1, float("nan"), float("inf"), "soon"])
def test_a_time_that_is_none_is_a_failure(verdict: t.Any, after: t.Any) -> None:
    """Of the handler that asks for it, where it asks: no source would take it."""
    handlers = Handlers()

    @handlers("work")
    def work(job: Job) -> None:
        raise verdict(after=after)

    assert failed(outcome_of(handlers, "work")).error["type"] in ("ValueError", "TypeError")


def test_what_is_no_note_is_made_one() -> None:
    """As long as a note may be; a number of another kind is one."""
    handlers, news = Handlers(), list[t.Any]()

    @handlers("work")
    def work(job: Job) -> None:
        job.progress(fractions.Fraction(1, 2), ("\0\ud800" + "x" * 600))  # type: ignore[arg-type]
        news.append(job.take_news())

    assert isinstance(outcome_of(handlers, "work"), Succeeded)
    assert news == [{"progress": 0.5, "note": "\ufffd?" + "x" * 498}]
    assert type(news[0]["progress"]) is float


# -- callbacks and errbacks ---------------------------------------------------------------


class Chain:
    """A handler with callbacks and errbacks that tell what they were called with."""

    def __init__(self, is_async: bool, **raising: Exception) -> None:
        self.seen: list[tuple[str, t.Any]] = []
        self.threads: dict[str, str] = {}
        self._raising = raising
        self.handlers = Handlers()
        self.handler = self.handlers("work")(self._on_loop if is_async else self._work)
        self.handler.callback(self._step("one", "changed"))
        self.handler.callback(self._on_loop_step("two") if is_async else self._step("two"))
        self.handler.callback(self._step("three", "changed again"))
        self.handler.errback(self._step("bad one"))
        self.handler.errback(self._on_loop_step("bad two") if is_async else self._step("bad two"))

    def _tell(self, name: str, said: t.Any, answer: t.Any) -> t.Any:
        self.seen.append((name, str(said)))
        self.threads[name] = threading.current_thread().name
        if name in self._raising:
            raise self._raising[name]
        return answer

    def _work(self, job: Job) -> t.Any:
        return self._tell("work", job.data, "result")

    async def _on_loop(self, job: Job) -> t.Any:
        return self._work(job)

    def _step(self, name: str, answer: t.Any = None) -> t.Callable[..., t.Any]:
        return lambda job, said: self._tell(name, said, answer)

    def _on_loop_step(self, name: str) -> t.Callable[..., t.Any]:
        async def step(job: Job, said: t.Any) -> t.Any:
            return self._tell(name, said, None)

        return step

    def run(self) -> t.Any:
        return outcome_of(self.handlers, "work", "data")


both = pytest.mark.parametrize("is_async", [False, True], ids=["thread", "loop"])


@both
def test_callbacks_follow_the_work_in_order(is_async: bool) -> None:
    """Each is given the result so far, and may return another; errbacks hear nothing."""
    chain = Chain(is_async)
    assert chain.run() == Succeeded("changed again")
    steps = [("work", "data"), ("one", "result"), ("two", "changed"), ("three", "changed")]
    assert chain.seen == steps


def test_what_blocks_does_not_run_on_the_loop() -> None:
    """The callbacks of a coroutine that are none are given a thread."""
    chain = Chain(True, three=ValueError("broke"))
    chain.run()
    on_loop = {name for name, thread in chain.threads.items() if thread == "jobber-loop"}
    assert on_loop == {"work", "two", "bad two"}
    assert set(chain.threads) == {"work", "one", "two", "three", "bad one", "bad two"}


@both
@pytest.mark.parametrize("where", ["work", "two"])
def test_errbacks_hear_of_what_was_raised_in_order(is_async: bool, where: str) -> None:
    """By the handler or by a callback, after which no other is called."""
    chain = Chain(is_async, **{where: ValueError("broke")})
    assert failed(chain.run()).error["message"] == "broke"
    assert chain.seen[-3][0] == where
    assert chain.seen[-2:] == [("bad one", "broke"), ("bad two", "broke")]


@both
@pytest.mark.parametrize("verdict", [Cancel("over"), Fail("over"), Retry("over"), Snooze("over", after=5)])
def test_an_errback_may_decide(is_async: bool, verdict: Exception) -> None:
    """The verdict it raises counts, and is what the next one hears."""
    chain = Chain(is_async, **{"work": ValueError("broke"), "bad one": verdict})
    outcome = chain.run()
    assert chain.seen[-1] == ("bad two", "over")
    if isinstance(verdict, Snooze):
        assert outcome == Released(5)
        return
    assert outcome.error["type"] == type(verdict).__name__
    assert outcome.cancel is isinstance(verdict, Cancel)
    assert outcome.permanent is isinstance(verdict, Fail)


@both
def test_an_errback_that_breaks_changes_nothing(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; the others are called all the same."""
    chain = Chain(is_async, **{"work": ValueError("broke"), "bad one": KeyError("too")})
    assert failed(chain.run()).error["type"] == "ValueError"
    assert chain.seen[-1] == ("bad two", "broke")
    assert "an errback broke" in caplog.text


@both
@pytest.mark.parametrize("verdict", [Cancel("over"), Snooze("not now")])
def test_errbacks_hear_of_failures_alone(is_async: bool, verdict: Exception) -> None:
    """Not of what is unwanted, nor of what is put off."""
    chain = Chain(is_async, work=verdict)
    chain.run()
    assert chain.seen == [("work", "data")]


def test_errbacks_see_the_extras() -> None:
    """As the handler left them."""
    handlers, seen = Handlers(), list[t.Any]()

    @handlers("work")
    def work(job: Job) -> None:
        job.extras["page"] = 7
        raise ValueError

    @work.errback
    def look(job: Job, error: Exception) -> None:
        seen.append((dict(job.extras), type(error)))

    outcome_of(handlers, "work")
    assert seen == [({"page": 7}, ValueError)]


# -- what breaks --------------------------------------------------------------------------


@both
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_a_handler_does_not_end_its_worker(is_async: bool, error: BaseException) -> None:
    """Whatever it raises is a failure."""

    def work(job: Job) -> None:
        raise error

    async def work_on_loop(job: Job) -> None:
        raise error

    handlers = Handlers()
    handlers("work")(work_on_loop if is_async else work)
    assert failed(outcome_of(handlers, "work")).error["type"] == type(error).__name__


def test_a_coroutine_that_was_not_told_to_end_has_failed() -> None:
    """Cancelled by what it awaits, it is not given back to be cancelled again and again."""
    handlers = Handlers()

    @handlers("work")
    async def work(job: Job) -> None:
        raise asyncio.CancelledError("by another")

    assert failed(outcome_of(handlers, "work")).error["type"] == "CancelledError"


def test_a_process_that_dies_is_a_failure_and_is_followed_by_another() -> None:
    """With its code; the next job has a new one."""
    source = FakeSource(max_attempts=1)
    died, fine = source.add("die"), source.add("process", "fine")
    assert do_all(source, known, concurrency=1) == 0
    assert failed(source.outcomes[died]).error["type"] == "ProcessDied"
    assert "code 3" in failed(source.outcomes[died]).error["message"]
    assert isinstance(source.outcomes[fine], Succeeded)


def test_a_result_that_cannot_leave_its_process_is_a_failure() -> None:
    """Not the end of anything."""
    source = FakeSource(max_attempts=1)
    bad, fine = source.add("unpicklable"), source.add("process", "fine")
    assert do_all(source, known, concurrency=1) == 0
    assert "pickle" in failed(source.outcomes[bad]).error["message"]
    assert isinstance(source.outcomes[fine], Succeeded)


def test_a_process_that_finds_no_handlers_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """In the failure and in the log."""
    source = FakeSource(max_attempts=1)
    job_id = source.add("process", "fine")
    assert do_all(source, known, Place(loader=load_nothing)) == 0
    assert failed(source.outcomes[job_id]).error["message"] == "there is nothing"
    assert "a process finds no handlers" in caplog.text


def test_a_limit_that_breaks_is_a_failure() -> None:
    """Of the job whose limit it is to tell."""
    handlers = Handlers()
    handlers("work", max_run_seconds=lambda job: job.data["none"])(lambda job: None)
    assert failed(outcome_of(handlers, "work", {})).error["type"] == "KeyError"


# -- how they are declared ----------------------------------------------------------------


def test_what_cannot_work_is_refused_at_once() -> None:
    """Before any job is claimed."""
    handlers = Handlers()

    async def on_loop(*args: t.Any) -> None:
        pass

    plain = handlers("work")(lambda job: None)
    with pytest.raises(SetupError, match="already"):
        handlers("work")(lambda job: None)
    with pytest.raises(SetupError, match="async"):
        plain.callback(on_loop)
    with pytest.raises(SetupError, match="async"):
        plain.errback(on_loop)
    with pytest.raises(SetupError, match="on the loop"):
        handlers("other", process=True)(on_loop)
    assert handlers.types == ("work",)


def test_a_handler_can_be_called_alone() -> None:
    """Without its callbacks: it is the function that was declared."""
    handlers = Handlers()

    @handlers("work")
    def work(job: t.Any) -> t.Any:
        return job + 1

    work.callback(lambda job, result: pytest.fail("called"))
    assert work(1) == 2


def test_nothing_is_said_of_what_goes_well(caplog: pytest.LogCaptureFixture) -> None:
    """A worker that has nothing to complain of is silent."""
    with caplog.at_level(logging.WARNING):
        outcome_of(known, "thread", "fine")
    assert caplog.text == ""
