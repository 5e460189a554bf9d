"""Those who run handlers: threads, an event loop, processes."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import queue
import threading
import typing as t
from concurrent.futures import Future

from ..core.process import describe
from .child import Child, Context, Loader
from .handlers import Handler
from .job import Abandoned, Job
from .run import Failed, Outcome, run, run_async

if t.TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

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
        self._futures: dict[Job, Future[Outcome]] = {}
        self._children: dict[Job, Child] = {}
        self._all_children: list[Child] = []
        self._portal: BlockingPortal | None = None

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
            self._enter(job, child)
            try:
                return child.run(job) if child is not None else _run(handler, job, place)
            finally:
                self._leave(job)
        except Abandoned:
            return None

    def _enter(self, job: Job, child: Child | None) -> None:
        with self._lock:
            if child is None:
                self._threads[job] = threading.get_ident()
            else:
                self._children[job] = child

    def _leave(self, job: Job) -> None:
        with self._lock:
            self._children.pop(job, None)
            if self._threads.pop(job, None) is not None:
                _interrupt(threading.get_ident(), None)  # what was meant for this job and is under way

    # -- the loop --------------------------------------------------------------------------

    def _start_on_loop(self, handler: Handler, job: Job, place: Place, done: Done) -> None:
        future = self._loop().start_task_soon(_run_on_loop, handler, job, place)
        with self._lock:
            self._futures[job] = future
        future.add_done_callback(lambda ended: self._end_on_loop(ended, job, done))

    def _loop(self) -> BlockingPortal:
        if self._portal is None:
            from anyio.from_thread import start_blocking_portal

            # Kept: it ends its loop when it is forgotten.
            self._portals = start_blocking_portal()
            self._portal = self._portals.__enter__()
        return self._portal

    def _end_on_loop(self, ended: Future[Outcome], job: Job, done: Done) -> None:
        with self._lock:
            self._futures.pop(job, None)
        if ended.cancelled():
            done(job, None)
            return
        error = ended.exception()
        done(job, ended.result() if error is None else Failed(describe(error)))

    def close(self) -> None:
        """End the processes, which would outlive signals."""
        with self._lock:
            for child in self._all_children:
                child.kill()

    # -- ends ------------------------------------------------------------------------------

    def abandon(self, job: Job) -> None:
        """Tell a handler that its work is for nothing: on the loop it is cancelled, others see it."""
        job.abandon()
        with self._lock:
            future, child = self._futures.get(job), self._children.get(job)
        if future is not None:
            future.cancel()
        if child is not None:
            child.tell("abandon")

    def interrupt(self, job: Job) -> None:
        """End a handler that takes too long: a process at once, a thread at its next step in Python."""
        self.abandon(job)
        with self._lock:
            child, thread = self._children.get(job), self._threads.get(job)
            if thread is not None:
                _interrupt(thread, Abandoned)
        if child is not None:
            child.kill()

    def renew(self, job: Job, lease_seconds: float) -> None:
        """Tell a handler how long its lease lasts from now."""
        job.renew(lease_seconds)
        child = self._children.get(job)
        if child is not None:
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
    from anyio import to_thread

    job.begin()
    with place.context():
        return await run_async(handler, job, to_thread.run_sync)


def _interrupt(thread: int, exception: type[BaseException] | None) -> None:
    """Raise an exception in a thread when it comes to its next bytecode; ``None`` takes it back."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(exception) if exception else None
    )
