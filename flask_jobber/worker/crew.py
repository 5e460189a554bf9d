"""Those who run handlers: threads, an event loop, processes."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import queue
import threading
import typing as t

from ..core.process import describe
from .child import Child, Context, Loader
from .handlers import Handler
from .job import Abandoned, Job
from .run import Failed, Outcome, run, run_async

#: Called with a job when its handler has ended; without an outcome when it was made to.
Done = t.Callable[[Job, Outcome | None], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where handlers run.

    :param context: what each runs in, such as ``app.app_context``.
    :param loader: finds the handlers again in a process of their own.
    """

    context: Context = contextlib.nullcontext
    loader: Loader | None = None


_Task = tuple[Handler, Job, Place, Done]


class Crew:
    """Runs as many handlers at once as it is given: whoever gives it work counts."""

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0
        self._threads: dict[Job, int] = {}
        self._children: dict[Job, Child] = {}
        self._all_children: list[Child] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        #: Read and written on the loop only.
        self._tasks_on_loop: dict[Job, asyncio.Task[Outcome]] = {}

    def start(self, handler: Handler, job: Job, place: Place, done: Done) -> None:
        """Run a handler; ``done`` is called in the thread it ran in."""
        if handler.is_async:
            self._start_on_loop(handler, job, place, done)
            return
        with self._lock:
            self._idle -= 1
            if self._idle < 0:
                self._idle = 0
                threading.Thread(target=self._serve, name="jobber-handler", daemon=True).start()
        self._tasks.put((handler, job, place, done))

    # -- threads and processes -------------------------------------------------------------

    def _serve(self) -> None:
        children: dict[Loader, Child] = {}
        while True:
            handler, job, place, done = self._tasks.get()
            child = None
            if handler.process and place.loader is not None:
                child = children.get(place.loader) or self._new_child(children, place.loader)
            outcome = self._do(handler, job, place, child)
            with self._lock:
                self._idle += 1
            done(job, outcome)

    def _new_child(self, children: dict[Loader, Child], loader: Loader) -> Child:
        child = children[loader] = Child(loader)
        with self._lock:
            self._all_children.append(child)
        return child

    def _do(self, handler: Handler, job: Job, place: Place, child: Child | None) -> Outcome | None:
        try:
            if child is not None:
                return self._do_in_child(job, child)
            outcome = self._do_here(handler, job, place)
            for _ in range(2):
                pass  # an interrupt that is under way arrives here, not in the next job
            return outcome
        except Abandoned:
            return None
        except Exception as error:  # what tells its limit broke
            return Failed(describe(error))

    def _do_here(self, handler: Handler, job: Job, place: Place) -> Outcome:
        try:
            with self._lock:
                self._threads[job] = threading.get_ident()
            return _run(handler, job, place)
        finally:
            with self._lock:
                del self._threads[job]

    def _do_in_child(self, job: Job, child: Child) -> Outcome:
        child.send(job)
        with self._lock:
            self._children[job] = child
            if job.cancelled:
                child.tell("abandon")
        try:
            return child.listen(job)
        finally:
            with self._lock:
                del self._children[job]

    # -- the loop --------------------------------------------------------------------------

    def _start_on_loop(self, handler: Handler, job: Job, place: Place, done: Done) -> None:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="jobber-loop", daemon=True).start()
        self._loop.call_soon_threadsafe(self._begin_on_loop, self._loop, handler, job, place, done)

    def _begin_on_loop(
        self, loop: asyncio.AbstractEventLoop, handler: Handler, job: Job, place: Place, done: Done
    ) -> None:
        task = self._tasks_on_loop[job] = loop.create_task(_run_on_loop(handler, job, place))
        task.add_done_callback(lambda task: self._end_on_loop(task, job, done))
        if job.cancelled:
            task.cancel()

    def _end_on_loop(self, task: asyncio.Task[Outcome], job: Job, done: Done) -> None:
        del self._tasks_on_loop[job]
        done(job, None if task.cancelled() else task.result())

    def _cancel_on_loop(self, job: Job) -> None:
        if (task := self._tasks_on_loop.get(job)) is not None:
            task.cancel()

    def close(self) -> None:
        """End the processes, which would outlive signals."""
        with self._lock:
            for child in self._all_children:
                child.kill()

    # -- ends ------------------------------------------------------------------------------

    def abandon(self, job: Job) -> None:
        """Tell a handler that its work is for nothing: on the loop it is cancelled, others see it."""
        job.abandon()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._cancel_on_loop, job)
        with self._lock:
            if (child := self._children.get(job)) is not None:
                child.tell("abandon")

    def interrupt(self, job: Job) -> None:
        """End a handler that takes too long: a process at once, a thread at its next step in Python."""
        self.abandon(job)
        with self._lock:
            if (child := self._children.get(job)) is not None:
                child.kill()
            if (thread := self._threads.get(job)) is not None:
                _interrupt(thread)

    def renew(self, job: Job, lease_seconds: float) -> None:
        """Tell a handler how long its lease lasts from now."""
        job.renew(lease_seconds)
        with self._lock:
            if (child := self._children.get(job)) is not None:
                child.tell("renew", lease_seconds)


def _run(handler: Handler, job: Job, place: Place) -> Outcome:
    try:
        job.begin()
        with place.context():
            return run(handler, job)
    except Abandoned:
        raise
    except BaseException as error:  # SystemExit too: a handler does not end the worker
        return Failed(describe(error))


async def _run_on_loop(handler: Handler, job: Job, place: Place) -> Outcome:
    """:raises asyncio.CancelledError: when its work is for nothing."""
    from anyio import to_thread  # its threads do not outlive the worker as asyncio's do

    try:
        job.begin()
        with place.context():
            return await run_async(handler, job, to_thread.run_sync)
    except BaseException as error:  # SystemExit too
        if isinstance(error, asyncio.CancelledError) and job.cancelled:
            raise  # else what it awaited was cancelled, not the job
        return Failed(describe(error))


def _interrupt(thread: int) -> None:
    """Raise :class:`Abandoned` in a thread when it comes to its next call or turn of a loop.

    It is not to be taken back: in CPython that makes all threads look out for it ever after.
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Abandoned))
