"""Doing jobs in the thread of the test, by the app's own handlers and the ordinary verbs."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import threading
import typing as t

from flask import Flask, current_app
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

from ..core import claim as claim_verbs
from ..core import queries
from ..core.candidates import Wanted
from ..core.claim import Claim
from ..core.hold import Holder, Item
from ..core.payload import WORKER
from ..core.scope import EVERYTHING
from ..core.scope import read as read_scope
from ..core.states import State
from ..errors import (
    AlreadySettled,
    Cancelled,
    DuplicateJob,
    Invalid,
    JobberError,
    LeaseLost,
    NotFound,
    QueueFull,
    ResultRejected,
    TooLarge,
)
from ..signals import job_enqueued
from ..worker.files import DatabaseFiles
from ..worker.handlers import Handler
from ..worker.job import Job
from ..worker.run import Failed, Outcome, Released, Succeeded, run, run_async

if t.TYPE_CHECKING:
    from ..extension import Jobber

_NODE = "testing"
#: Who does them: a worker beside the database, as ``only_for`` and ``not_for`` see it.
LOCKER = f"{WORKER}/{_NODE}"
Word = t.Literal["succeeded", "failed", "submitted", "rejected", "released", "cancelled", "dropped"]


class ProcessorBroke(JobberError):
    """A processor raised what it may not; the result is kept. The message has its traceback."""


@dataclasses.dataclass(frozen=True)
class Drained:
    """What became of the jobs that were done, in numbers of hand-outs.

    :param failed: they wait for another try, or have ended.
    :param submitted: their processor broke.
    :param rejected: their processor refused the result.
    :param released: a handler put them off.
    :param cancelled: a handler called them off.
    :param dropped: they were no longer held when the work was done.
    :param errors: what was raised, in order.
    """

    succeeded: int = 0
    failed: int = 0
    submitted: int = 0
    rejected: int = 0
    released: int = 0
    cancelled: int = 0
    dropped: int = 0
    errors: tuple[Exception, ...] = ()


def drain(jobber: Jobber, limit: int | None = None, *, locker: str = LOCKER) -> Drained:
    """Do the jobs that are due and have a handler, the best first: ``limit`` of them, or all.

    Each is claimed, done by ``jobber.handlers`` and settled in this thread, ``db.session``
    committed after each step. Jobs that come into being on the way are done too; a handler
    that puts its job off for no time at all is called again and again.
    """
    words, errors = collections.Counter[str](), list[Exception]()
    while limit is None or words.total() < limit:
        claims = jobber.claim(locker, types=jobber.handlers.types) if len(jobber.handlers) else []
        jobber.db.session.commit()
        if not claims:
            break
        word, error = _do(jobber, claims[0], locker)
        words[word] += 1
        errors += [error] if error is not None else []
    return Drained(**words, errors=tuple(errors))


@contextlib.contextmanager
def inline(jobber: Jobber, *, locker: str = LOCKER) -> t.Iterator[None]:
    """Do every job that is enqueued within the block when its transaction commits, before ``commit`` returns.

    It is done by ``jobber.handlers``, in this thread, with a ``db.session`` of its own, and its
    processor is called. What its handler or processor raised is raised by the commit, when
    all jobs of it are done (several as an :class:`ExceptionGroup`); that transaction is
    committed all the same. Jobs that are not due yet, or have no handler, are left alone.
    """
    inliner = _Inliner(jobber, locker)
    # After the listener that sends the signals.
    event.listen(Session, "after_transaction_end", inliner.work)
    try:
        with job_enqueued.connected_to(inliner.note, sender=jobber):
            yield
    finally:
        event.remove(Session, "after_transaction_end", inliner.work)


class _Inliner(threading.local):
    """Gathers the ids of committed jobs and does them; each thread its own."""

    def __init__(self, jobber: Jobber, locker: str) -> None:
        self._jobber, self._locker = jobber, locker
        self._ids: collections.deque[int] = collections.deque()
        self._busy = False

    def note(self, sender: object, *, job_id: int, **facts: t.Any) -> None:
        self._ids.append(job_id)

    def work(self, session: Session, transaction: SessionTransaction) -> None:
        if self._busy or not self._ids:
            return
        self._busy = True
        try:
            errors = [error for error in self._results() if error is not None]
        finally:
            self._busy = False
        if len(errors) > 1:
            raise ExceptionGroup("several jobs failed", errors)
        for error in errors:
            raise error

    def _results(self) -> t.Iterator[Exception | None]:
        while self._ids:  # those that are enqueued meanwhile join the queue
            with _app().app_context():
                claims = _claim_this(self._jobber, self._ids.popleft(), self._locker)
                self._jobber.db.session.commit()
                for claim in claims:
                    yield _do(self._jobber, claim, self._locker)[1]


def _app() -> Flask:
    return t.cast(Flask, current_app._get_current_object())  # type: ignore[attr-defined]


def _claim_this(jobber: Jobber, job_id: int, locker: str) -> list[Claim]:
    """Claim one job and no other, if it is due and has a handler."""
    if not len(jobber.handlers):
        return []
    only_it = read_scope(jobber.Job.id == job_id)
    return claim_verbs.claim(jobber.store(), Wanted(locker, only_it, types=jobber.handlers.types))


def _do(jobber: Jobber, claim: Claim, locker: str) -> tuple[Word, Exception | None]:
    """Do a job and settle it; return what became of it, and what was raised on the way."""
    outcome, error = _run(jobber, jobber.handlers[claim.type], claim, locker)
    try:
        if isinstance(outcome, Succeeded):
            return _deliver(jobber, claim, locker, outcome)
        if isinstance(outcome, Released):
            jobber.release(locker, claim.id, claim.attempt, delay_seconds=outcome.delay_seconds)
            jobber.db.session.commit()
            return "released", None
        return _fail(jobber, claim, locker, outcome, error)
    except (NotFound, LeaseLost, Cancelled, AlreadySettled):
        jobber.db.session.rollback()
        return "dropped", None


def _run(jobber: Jobber, handler: Handler, claim: Claim, locker: str) -> tuple[Outcome, Exception | None]:
    """Run a handler as a worker would, in a context and a session of its own; return its first error too."""
    errors: list[Exception] = []

    def note(job: Job, error: Exception) -> None:
        errors.append(error)

    handler = dataclasses.replace(handler, errbacks=[note, *handler.errbacks])
    facts = {field.name: getattr(claim, field.name) for field in dataclasses.fields(claim)}
    held = Holder(locker, EVERYTHING), Item(claim.id, claim.attempt)
    job = Job(**facts, node=_NODE).with_files(DatabaseFiles(_app(), jobber, *held))
    with _app().app_context():
        outcome = asyncio.run(run_async(handler, job, _here)) if handler.is_async else run(handler, job)
    return outcome, errors[0] if errors else None


async def _here(function: t.Callable[..., t.Any], *args: t.Any) -> t.Any:
    return function(*args)


def _deliver(jobber: Jobber, claim: Claim, locker: str, outcome: Succeeded) -> tuple[Word, Exception | None]:
    try:
        state = jobber.deliver(locker, claim.id, claim.attempt, outcome.result, outcome.extras)
        jobber.enqueue_many(outcome.enqueued)
    except ResultRejected as error:
        if error.then != "correct":
            jobber.db.session.commit()
            return "rejected", error
        refused: Exception = error
    except (Invalid, TooLarge, DuplicateJob, QueueFull) as error:  # still held: a result that is no good
        refused = error
    else:
        jobber.db.session.commit()
        return ("succeeded", None) if state is State.SUCCEEDED else _broken(jobber, claim, state)
    jobber.db.session.rollback()
    jobber.fail(locker, claim.id, claim.attempt, refused)
    jobber.db.session.commit()
    return "failed", refused


def _broken(jobber: Jobber, claim: Claim, state: State) -> tuple[Word, Exception]:
    """Return the error of a processor, which the history alone knows."""
    (*_, last) = [row.error for row in queries.history(jobber.store(), claim.id) if row.error]
    word: Word = "submitted" if state is State.SUBMITTED else "failed"
    return word, ProcessorBroke(f"{last['type']}: {last['message']}\n{last['traceback']}")


def _fail(
    jobber: Jobber, claim: Claim, locker: str, outcome: Failed, error: Exception | None
) -> tuple[Word, Exception | None]:
    state = jobber.fail(
        locker,
        claim.id,
        claim.attempt,
        outcome.error,
        permanent=outcome.permanent,
        retry_seconds=outcome.retry_seconds,
        cancel=outcome.cancel,
    )
    jobber.db.session.commit()
    return ("cancelled", None) if state is State.CANCELLED else ("failed", error)
