"""Running a handler with its callbacks and errbacks, and what came of it."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import typing as t

from ..core.process import describe
from .handlers import MOST_SECONDS, Cancel, Fail, Handler, Retry, Snooze, Verdict
from .job import Job

logger = logging.getLogger("flask_jobber")


@dataclasses.dataclass(frozen=True, slots=True)
class Succeeded:
    """The work is done.

    :param enqueued: the jobs that the handler added, as keywords of an enqueue.
    """

    result: t.Any = None
    extras: dict[str, t.Any] | None = None
    enqueued: tuple[dict[str, t.Any], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Failed:
    """It failed; with ``cancel`` it is not wanted any more.

    :param error: ``{type, message, traceback}``.
    """

    error: dict[str, t.Any]
    permanent: bool = False
    retry_seconds: float | None = None
    cancel: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Released:
    """It was given back, nothing counted."""

    delay_seconds: float = 0


Outcome = Succeeded | Failed | Released
Step = t.Callable[..., t.Any]


def run(handler: Handler, job: Job) -> Outcome:
    """Run a handler that is no coroutine function, its callbacks, and its errbacks when they are due."""
    try:
        result = handler.function(job)
        for callback in handler.callbacks:
            result = _changed(result, callback(job, result))
        return done(job, result)
    except Exception as error:
        verdict = error
    for errback in errbacks(handler, verdict):
        try:
            errback(job, verdict)
        except Exception as error:
            verdict = overruled(verdict, error, job)
    return judge(handler, job, verdict)


async def run_async(handler: Handler, job: Job, in_thread: t.Callable[..., t.Awaitable[t.Any]]) -> Outcome:
    """Run a coroutine function likewise; what of the rest is none runs by ``in_thread(function, *args)``."""

    async def call(function: Step, *args: t.Any) -> t.Any:
        if inspect.iscoroutinefunction(function):
            return await function(*args)
        return await in_thread(function, *args)

    try:
        result = await handler.function(job)
        for callback in handler.callbacks:
            result = _changed(result, await call(callback, job, result))
        return done(job, result)
    except Exception as error:
        verdict = error
    for errback in errbacks(handler, verdict):
        try:
            await call(errback, job, verdict)
        except Exception as error:
            verdict = overruled(verdict, error, job)
    return judge(handler, job, verdict)


def _changed(result: t.Any, said: t.Any) -> t.Any:
    return result if said is None else said


def done(job: Job, result: t.Any) -> Succeeded:
    """Return the outcome of a handler that returned."""
    return Succeeded(result, dict(job.extras) or None, tuple(job.enqueued))


def errbacks(handler: Handler, error: Exception) -> list[Step]:
    """Return what is to hear of an error: of a failure all errbacks, of anything else none."""
    return [] if isinstance(error, Snooze | Cancel) else handler.errbacks


def overruled(verdict: Exception, error: Exception, job: Job) -> Exception:
    """Return the error that counts after an errback has raised one."""
    if isinstance(error, Verdict):
        return error
    logger.error("an errback broke", exc_info=error, extra={"action": "errback", "job_id": job.id})
    return verdict


def judge(handler: Handler, job: Job, error: Exception) -> Outcome:
    """Return the outcome of a handler that raised."""
    if isinstance(error, Snooze):
        return Released(error.after)
    return Failed(
        describe(error),
        permanent=isinstance(error, Fail),
        retry_seconds=_pause(handler, job, error),
        cancel=isinstance(error, Cancel),
    )


def _pause(handler: Handler, job: Job, error: Exception) -> float | None:
    if isinstance(error, Retry):
        return error.after
    return handler.backoff.delay(job.failures + 1, MOST_SECONDS) if handler.backoff is not None else None
