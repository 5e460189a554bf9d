"""Workers that have nothing to do ask nothing, and begin a new job at once."""

from __future__ import annotations

import contextlib
import json
import pathlib
import signal
import threading
import time
import typing as t

import pytest

from race_support import until
from served import GUNICORN, Server
from support import PREFIX
from worked import CONFIG, STATEMENTS
from worked_support import JOBBER_WORKER, Command, Scene

#: Nothing is looked for by the clock within a test, but tidying would be.
PATIENT = {"JOBBER_IDLE_SECONDS": 3600, "JOBBER_TIDY_SECONDS": 1}


@pytest.fixture
def scene(postgres_url: str, tmp_path: pathlib.Path) -> t.Iterator[Scene]:
    scene = Scene(postgres_url, tmp_path)
    yield scene
    scene.close()


class Quiet:
    """A worker beside the database, and the statements that it executes."""

    def __init__(self, scene: Scene, *options: str) -> None:
        self._path = scene.folder / "statements"
        environ = {CONFIG: json.dumps(PATIENT), STATEMENTS: str(self._path)}
        self.command = scene.local(*options, environ=environ)

    @property
    def statements(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def rests(self, seconds: float = 4.0) -> None:
        """Wait until it has executed nothing for so long, several times the pause between tidyings."""
        known, since = -1, time.monotonic()

        def is_quiet() -> bool:
            nonlocal known, since
            if known != (known := len(self.statements)):
                since = time.monotonic()
            return known > 0 and time.monotonic() - since > seconds

        until(is_quiet, "silence")


def took(began: float, scene: Scene, *jobs: int) -> float:
    scene.begun(*jobs)
    return time.monotonic() - began


def test_an_idle_worker_asks_nothing_and_begins_at_once(scene: Scene) -> None:
    """Jobs that are there, that are deferred, and whose holders have died."""
    worker = Quiet(scene)
    worker.rests()
    began = time.monotonic()
    assert took(began, scene, *scene.enqueue("gated", data={"gate": "all"})) < 1
    scene.open("all")
    worker.rests()
    began = time.monotonic()
    assert 2 <= took(began, scene, *scene.enqueue("echo", after=2)) < 3.5
    scene.done()


def test_an_idle_worker_takes_up_what_a_dead_one_held(scene: Scene) -> None:
    """When the lease is over."""
    [job] = scene.enqueue("gated", lease_for=3, max_attempts=3)
    first = scene.local(environ={CONFIG: json.dumps(PATIENT)})
    scene.begun(job)
    worker = Quiet(scene)
    worker.rests(1.0)
    first.send(signal.SIGKILL)
    began = time.monotonic()
    scene.begun(job, times=2)
    assert time.monotonic() - began < 5


@contextlib.contextmanager
def gunicorn(url: str) -> t.Iterator[Server]:
    server = Server(url, GUNICORN)
    try:
        server.start()
        yield server
    finally:
        server.close()


def remote(scene: Scene, server: Server) -> Command:
    address = f"http://127.0.0.1:{server.port}{PREFIX}"
    return scene.run(*JOBBER_WORKER, "worked_handlers", "--server", address, "--name", "here")


def test_an_idle_worker_of_a_server_waits_for_jobs(scene: Scene) -> None:
    """It begins at once what comes, and hangs up when it is told to leave; nothing stays held."""
    with gunicorn(scene.url) as server:
        worker = remote(scene, server)
        scene.begun(*scene.enqueue("echo"))  # it is up
        for _ in range(2):
            threading.Event().wait(1)  # it waits, or should
            began = time.monotonic()
            assert took(began, scene, *scene.enqueue("echo")) < 1
        scene.done()
        threading.Event().wait(1)
        began = time.monotonic()
        worker.send(signal.SIGTERM)
        assert worker.end() == 0
        assert time.monotonic() - began < 2
        [left] = scene.enqueue("echo")
        assert scene.states(left) == {"queued": 1}


def test_a_server_may_go_away_while_a_worker_waits(scene: Scene) -> None:
    """It waits again when the server is back."""
    with gunicorn(scene.url) as server:
        worker = remote(scene, server)
        scene.begun(*scene.enqueue("echo"))
        server.kill()
        [job] = scene.enqueue("echo")
        server.start()
        scene.begun(job)
        worker.send(signal.SIGTERM)
        assert worker.end() == 0
        scene.done()
