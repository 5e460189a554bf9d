"""What starts, watches and ends the processes of workers."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import typing as t

import sqlalchemy as sa
from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

import worked_handlers
from race_support import engine_of, until
from support import PREFIX
from tables import renew
from worked import URL, make_worked

_HERE = pathlib.Path(__file__).parent
FLASK = (sys.executable, "-m", "flask", "--app", "worked:create_app", "jobber")
JOBBER_WORKER = (sys.executable, "-c", "from flask_jobber.worker.command import main; main()")
#: The login of workers over HTTP.
TOKEN = "robot"


class Run(t.NamedTuple):
    """A handler that has begun, and where."""

    job: int
    attempt: int
    node: str
    pid: int
    leaked: int = 0


class Command:
    """A process of a command; what it writes is kept in a file."""

    def __init__(self, command: t.Sequence[str], log: pathlib.Path, **popen: t.Any) -> None:
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(command, **{"stdout": file, "stderr": file, **popen})
        self.pid = self._process.pid

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def code(self) -> int | None:
        """Its exit code, ``None`` while it runs."""
        return self._process.poll()

    def end(self) -> int:
        """Wait for it to end by itself; return its code."""
        until(lambda: self.code is not None, "the end of a process")
        return t.cast(int, self.code)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def says(self, words: str, *, times: int = 1) -> None:
        """Wait until it has written these words."""
        until(lambda: self.log.count(words) >= times or self.code is not None, words)
        assert self.log.count(words) >= times, self.log

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and is not waited for does not."""
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class _Silent(WSGIRequestHandler):
    def log(self, *args: t.Any) -> None:
        pass


class Site:
    """Serves an app from this process, at a port that stays: while it is stopped nobody listens there."""

    def __init__(self, app: Flask) -> None:
        self._app, self.port = app, 0
        self._server: BaseWSGIServer | None = None
        self.start()

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self.port, self._app, threaded=True, request_handler=_Silent)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class Scene:
    """Jobs, workers that do them, and the folder in which handlers and tests meet."""

    def __init__(self, url: str, folder: pathlib.Path) -> None:
        self.url, self.folder = url, folder
        self.world, self._effects = make_worked(url)
        with self.world.app.app_context():
            renew(self.world.db)
        self._commands: list[Command] = []
        self._site: Site | None = None

    # -- processes -------------------------------------------------------------------------

    def run(self, *command: str, environ: t.Mapping[str, str] | None = None, **popen: t.Any) -> Command:
        """Start a process; it is killed at the end."""
        path = os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "PYTHONPATH": path, URL: self.url, "JOBBER_TOKEN": TOKEN, "NO_PROXY": "*"}
        env |= {worked_handlers.FOLDER: str(self.folder), **(environ or {})}
        log = self.folder / f"log-{len(self._commands)}"
        self._commands.append(Command(command, log, env=env, cwd=self.folder, **popen))
        return self._commands[-1]

    def local(self, *options: str, **how: t.Any) -> Command:
        """Start a worker beside the database."""
        return self.run(*FLASK, "work", *options, **how)

    def remote(self, *options: str, **how: t.Any) -> Command:
        """Start a worker of the app's server."""
        return self.run(*JOBBER_WORKER, "worked_handlers", "--server", self.server, *options, **how)

    def work(self, source: str, *options: str, **how: t.Any) -> Command:
        """Start a worker beside the database, or of the app's server."""
        return (self.local if source == "local" else self.remote)(*options, **how)

    @property
    def site(self) -> Site:
        """The app's server; it begins when it is first asked for."""
        if self._site is None:
            self._site = Site(self.world.app)
        return self._site

    @property
    def server(self) -> str:
        return f"http://127.0.0.1:{self.site.port}{PREFIX}"

    def close(self) -> None:
        self.open("all")
        for command in self._commands:
            command.close()
        if self._site is not None:
            self._site.stop()
        engine_of(self.world).dispose()

    # -- jobs ------------------------------------------------------------------------------

    def enqueue(self, type: str, count: int = 1, **spec: t.Any) -> list[int]:
        """Add jobs, of one try each; return their ids."""
        spec = {"data": {"gate": type}, "max_attempts": 1, **spec}
        with self.world.session():
            jobs = self.world.jobber.enqueue_many([{"type": type, **spec}] * count)
            return [int(job.id) for job in jobs]

    def open(self, gate: str) -> None:
        """Let go those who wait at a gate."""
        (self.folder / gate).touch()

    def runs(self, *jobs: int) -> list[Run]:
        """Return what handlers have told when they began, of some jobs or all."""
        path = self.folder / "runs"
        lines = path.read_text().splitlines() if path.exists() else []
        runs = [Run(**json.loads(line)) for line in lines]
        return [run for run in runs if not jobs or run.job in jobs]

    def begun(self, *jobs: int, times: int = 1) -> list[Run]:
        """Wait until the handlers of jobs have begun so many times; return their last runs."""
        until(lambda: all(len(self.runs(job)) >= times for job in jobs), f"{times} runs of {jobs}")
        return [self.runs(job)[-1] for job in jobs]

    def states(self, *jobs: int) -> dict[str, int]:
        """Return how many jobs there are in each state."""
        model = self.world.Job
        query = sa.select(model.state, sa.func.count()).group_by(model.state)
        with self.world.session() as session:
            rows = session.execute(query.where(model.id.in_(jobs)) if jobs else query)
            return {row[0]: row[1] for row in rows}

    def error(self, job_id: int) -> dict[str, t.Any]:
        """Return the last error of a job."""
        h = self.world.jobber.History
        query = sa.select(h.error).where(h.job_id == job_id, h.error.is_not(None)).order_by(h.id.desc())
        with self.world.session() as session:
            return t.cast(dict[str, t.Any], session.scalars(query).first() or {})

    def done(self, *jobs: int) -> None:
        """Wait until jobs have succeeded."""
        until(lambda: self.states(*jobs).keys() == {"succeeded"}, f"the success of {jobs or 'all'}")

    def effects(self) -> list[int]:
        """Return the jobs whose results were processed, each as often as it was."""
        with self.world.session() as session:
            return sorted(session.scalars(sa.select(self._effects.c.job_id)))
