"""A process that runs handlers, one job at a time, and can be ended at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import multiprocessing
import os
import queue
import signal
import threading
import typing as t
from multiprocessing.connection import Connection

from ..core.process import describe
from .files import AskedFiles, serve
from .handlers import Handlers
from .job import Job
from .run import Failed, Outcome, run

logger = logging.getLogger("flask_jobber")
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
        self._is_killed = False
        self._telling = threading.Lock()

    def send(self, job: Job) -> None:
        """Give it a job, which takes as long as it takes to come up."""
        if self._is_killed:  # after it had said what came of its last job
            self._bury()
        if self._process is None:
            spawn = multiprocessing.get_context("spawn")
            self._parents, childs = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(childs, self._loader), daemon=True)
            process.start()
            self._process = process
            childs.close()
        self.tell("job", {name: getattr(job, name) for name in _FIELDS})

    def listen(self, job: Job) -> Outcome:
        """Wait for what comes of the job; when the process dies, that is a failure."""
        try:
            return self._listen(job)
        except (EOFError, OSError):
            return self._died()
        except BaseException:  # what it says of this job must not be heard as of the next
            self.kill()
            raise

    def _listen(self, job: Job) -> Outcome:
        while True:
            kind, said = self._parents.recv()
            if kind == "outcome":
                return t.cast(Outcome, said)
            if kind == "broken":
                logger.error("a process finds no handlers: %s: %s", said["type"], said["message"])
                self._bury()
                return Failed(said)
            if kind == "begin":
                job.begin()
            elif kind == "files":
                self.tell("files", serve(job, said))
            else:
                job.progress(said["progress"], said.get("note"))

    def _died(self) -> Failed:
        message = f"The process of the handler ended with code {self._bury()}."
        logger.error("%s", message)
        return Failed({"type": "ProcessDied", "message": message, "traceback": None})

    def _bury(self) -> int:
        process, self._process, self._is_killed = self._process, None, False
        self._parents.close()
        process.join()
        return t.cast(int, process.exitcode)

    def tell(self, kind: str, said: t.Any = None) -> None:
        """Tell it about its job: that the work is for nothing, or how long its lease is now."""
        with contextlib.suppress(OSError), self._telling:  # who listens will see that it has died
            self._parents.send((kind, said))

    def kill(self) -> None:
        """End it, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._is_killed = True


def _serve(connection: Connection, loader: Loader) -> None:
    """The child's side: its parent decides when it ends, and takes it along when it dies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    files = AskedFiles(connection)
    threading.Thread(target=_listen, args=(connection, jobs, files), daemon=True).start()
    try:
        handlers, context = loader()
    except BaseException as error:
        connection.send(("broken", describe(error)))
        return
    while True:
        job = jobs.get().with_files(files)
        job.call_on_news(lambda job=job: connection.send(("progress", job.take_news())))  # type: ignore[misc]
        job.begin()
        connection.send(("begin", None))
        try:
            with context():
                outcome = run(handlers[job.type], job)
        except BaseException as error:
            outcome = Failed(describe(error))
        _answer(connection, outcome)


def _listen(connection: Connection, jobs: queue.SimpleQueue[Job], files: AskedFiles) -> None:
    job: Job | None = None
    with contextlib.suppress(EOFError, OSError):
        while True:
            kind, said = connection.recv()
            if kind == "job":
                job = Job(**said)
                jobs.put(job)
            elif kind == "files":
                files.answer(said)
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
