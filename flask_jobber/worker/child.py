"""A process that runs handlers, one job at a time, and can be ended at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import queue
import signal
import threading
import typing as t
from multiprocessing.connection import Connection

from ..core.process import describe
from .handlers import Handlers
from .job import Job
from .run import Failed, Outcome, run

#: What a handler runs in: an app context, or nothing.
Context = t.Callable[[], contextlib.AbstractContextManager[t.Any]]
#: Finds the handlers in a fresh process; it must be importable there.
Loader = t.Callable[[], tuple[Handlers, Context]]
_FIELDS = [field.name for field in dataclasses.fields(Job)]


class Child:
    """The parent's side. It is started when there is a job, and again after it has died."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._process: t.Any = None
        self._lock = threading.Lock()

    def run(self, job: Job) -> Outcome:
        """Run a job's handler there; when the process dies, that is a failure."""
        with self._lock:
            connection = self._connection()
            self._tell(("job", {name: getattr(job, name) for name in _FIELDS}))
        try:
            return self._listen(connection, job)
        except (EOFError, OSError):
            return self._died()

    def _connection(self) -> Connection:
        if self._process is None:
            spawn = multiprocessing.get_context("spawn")
            self._parents, childs = spawn.Pipe()
            self._process = spawn.Process(target=_serve, args=(childs, self._loader), daemon=True)
            self._process.start()
            childs.close()
        return self._parents

    def _listen(self, connection: Connection, job: Job) -> Outcome:
        while True:
            kind, said = connection.recv()
            if kind == "outcome":
                return t.cast(Outcome, said)
            if kind == "begin":
                job.begin()
            else:
                job.progress(said["progress"], said.get("note"))

    def _died(self) -> Failed:
        with self._lock:
            process, self._process = self._process, None
            self._parents.close()
        process.join()
        message = f"The process of the handler ended with code {process.exitcode}."
        return Failed({"type": "ProcessDied", "message": message, "traceback": None})

    def tell(self, kind: str, said: t.Any = None) -> None:
        """Tell a running handler that its work is for nothing, or how long its lease is now."""
        with self._lock:
            if self._process is not None:
                self._tell((kind, said))

    def _tell(self, message: tuple[str, t.Any]) -> None:
        with contextlib.suppress(OSError):  # who listens will see that it has died
            self._parents.send(message)

    def kill(self) -> None:
        """End it, whatever it does."""
        with self._lock:
            if self._process is not None:
                self._process.kill()


def _serve(connection: Connection, loader: Loader) -> None:
    """The child's side: its parent decides when it ends, and takes it along when it dies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, jobs), daemon=True).start()
    handlers, context = loader()
    while True:
        job = jobs.get()
        job.call_on_news(lambda job=job: connection.send(("progress", job.take_news())))  # type: ignore[misc]
        job.begin()
        connection.send(("begin", None))
        try:
            with context():
                outcome = run(handlers[job.type], job)
        except BaseException as error:
            outcome = Failed(describe(error))
        _answer(connection, outcome)


def _listen(connection: Connection, jobs: queue.SimpleQueue[Job]) -> None:
    job: Job | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            kind, said = connection.recv()
            if kind == "job":
                job = Job(**said)
                jobs.put(job)
            elif job is not None and kind == "abandon":
                job.abandon()
            elif job is not None:
                job.renew(said)
    os._exit(1)


def _answer(connection: Connection, outcome: Outcome) -> None:
    try:
        connection.send(("outcome", outcome))
    except Exception as error:  # what it returned cannot leave its process
        connection.send(("outcome", Failed(describe(error))))
