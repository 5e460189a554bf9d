"""An app in a process of its own, which may be killed or have a wrong clock, and clients of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import typing as t

import sqlalchemy as sa
from flask import Flask
from werkzeug.serving import make_server

from flask_jobber import job_enqueued
from race_support import LIMIT, add_effects
from support import PREFIX, World

_HERE = pathlib.Path(__file__).parent
_PLAIN = ("/clock", "/waiting")
_THREADS = ("--threads", "8", "--log-level", "error")
#: Programs that serve the app from a socket which they inherit.
GUNICORN = (sys.executable, "-m", "gunicorn", *_THREADS, "--bind", "fd://{fd}", "served:create_app()")
WERKZEUG = (sys.executable, str(_HERE / "served.py"), "{fd}")


def make_served(url: str, *, broken: bool = False, **config: t.Any) -> tuple[World, sa.Table]:
    """Return a world in which everyone may do everything, and the table its processor writes to.

    :param broken: whether the processor breaks on every fifth result.
    """
    world = World(url, scoped=False, JOBBER_TIDY_SECONDS=0, **config)
    effects = add_effects(world.db.metadata)
    world.jobber.permission(lambda action, job: True)

    @world.jobber.processor("work")
    def process(job: t.Any, result: dict[str, int]) -> None:
        world.db.session.execute(sa.insert(effects).values(job_id=job.id, result=str(result["n"])))
        if broken and result["n"] % 5 == 0:
            raise RuntimeError("broken")

    return world, effects


def create_app() -> Flask:
    """Return the app that a :class:`Server` serves."""
    config = json.loads(os.environ.get("SERVED_CONFIG", "{}"))
    world, _ = make_served(os.environ["SERVED_URL"], broken=True, **config)
    world.app.add_url_rule("/clock", view_func=lambda: {"now": time.time()})
    world.app.add_url_rule("/waiting", view_func=_view_of_waiting(world))
    if "SERVED_DIES" in os.environ:
        job_enqueued.connect(_die_once, weak=False)
    return world.app


def _view_of_waiting(world: World) -> t.Callable[[], dict[str, int]]:
    """Return a view that tells who waits for news, and how many statements there have been."""
    statements: list[str] = []
    with world.app.app_context():
        sa.event.listen(world.db.engine, "before_cursor_execute", lambda *args: statements.append(args[2]))

    def view() -> dict[str, int]:
        wakeup = world.jobber.wakeup
        idle = sum(one.looking is None and not one.calls for one in list(wakeup.room._waiters))
        listening = wakeup._ear is not None and wakeup._full > 0
        return {"waiting": idle if listening else 0, "statements": len(statements)}

    return view


def _die_once(sender: object, **facts: t.Any) -> None:
    """Be killed once a job is stored, if a file is there, which then is not."""
    with contextlib.suppress(FileNotFoundError):
        pathlib.Path(os.environ["SERVED_DIES"]).unlink()
        os.kill(os.getpid(), signal.SIGKILL)


class Server:
    """Serves the app from processes that are started, killed and started again.

    The socket is this process's and stays: whoever connects meanwhile waits for the next start.
    """

    def __init__(self, url: str, program: t.Sequence[str] = GUNICORN, **environ: str) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self._command = [part.format(fd=self._socket.fileno()) for part in program]
        path = os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH"))))
        self._environ = {**os.environ, "PYTHONPATH": path, "SERVED_URL": url, **environ}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._environ,
            pass_fds=[self._socket.fileno()],
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill every process of it, without a warning."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Ask it to end; return its exit status."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGTERM)
        status = self._process.wait(LIMIT)
        self._process = None
        return status

    def close(self) -> None:
        self.kill()
        self._socket.close()


class Unacknowledged(Exception):
    """No answer came, or one that says that nothing was done."""


class Remote:
    """A client of a served app; each request has a connection of its own."""

    def __init__(self, port: int, user: str) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {user}", "Content-Type": "application/json"}

    def ask(
        self, method: str, path: str, body: t.Any = None, headers: t.Mapping[str, str] | None = None
    ) -> tuple[int, t.Any]:
        """Return the status and the body of an answer.

        :raises Unacknowledged: when there is none, or the server is busy.
        """
        path = path if path.startswith(PREFIX) or path in _PLAIN else PREFIX + path
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=LIMIT)
        try:
            connection.request(method, path, json.dumps(body or {}), {**self._headers, **(headers or {})})
            response = connection.getresponse()
            answer = json.loads(response.read() or "null")
        except (OSError, http.client.HTTPException) as error:
            raise Unacknowledged from error
        finally:
            connection.close()
        if response.status == 503:
            raise Unacknowledged(answer)
        return response.status, answer

    def expect(self, status: int, method: str, path: str, body: t.Any = None) -> t.Any:
        """Return the body of an answer that has this status."""
        got, answer = self.ask(method, path, body)
        assert got == status, answer
        return answer

    def claim(self, **body: t.Any) -> list[dict[str, t.Any]]:
        return t.cast(list[dict[str, t.Any]], self.expect(200, "POST", "/claims", body)["jobs"])


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    make_server("127.0.0.1", 0, create_app(), threaded=True, fd=int(sys.argv[1])).serve_forever()
