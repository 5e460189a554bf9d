"""The handlers of the workers under test: they know the folder in which they meet the tests, and no app."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import pathlib
import threading
import time
import typing as t

from flask_jobber import Handlers
from flask_jobber.worker.job import Job

#: The environment variable that tells the folder.
FOLDER = "WORKED_FOLDER"
#: Set for processes that are to find no handlers.
BROKEN = "WORKED_BROKEN"
#: Seconds after which nobody opens a gate any more: nothing outlives its test for long.
LIMIT = 120.0

handlers = Handlers()
nothing = Handlers()
_leaked: list[bytearray] = []

if os.environ.get(BROKEN) and multiprocessing.parent_process() is not None:
    raise RuntimeError("the disk with the handlers is gone")


def _folder() -> pathlib.Path:
    return pathlib.Path(os.environ[FOLDER])


def _note(job: Job, **more: t.Any) -> None:
    """Tell the test that a handler has begun; a line this short is written whole."""
    run = {"job": job.id, "attempt": job.attempt, "node": job.node, "pid": os.getpid(), **more}
    with (_folder() / "runs").open("a") as file:
        file.write(json.dumps(run) + "\n")


def _is_shut(job: Job) -> bool:
    return not (_folder() / str(job.data["gate"])).exists()


def _wait(job: Job) -> int:
    """Wait for the job's gate."""
    _note(job)
    pause, deadline = threading.Event(), time.monotonic() + LIMIT
    while _is_shut(job):
        assert time.monotonic() < deadline, "the gate was never opened"
        pause.wait(0.01)
    return job.id


@handlers("echo")
def echo(job: Job) -> int:
    _note(job)
    return job.id


gated = handlers("gated")(_wait)
gated_in_process = handlers("gated_in_process", process=True)(_wait)


@handlers("gated_async")
async def gated_async(job: Job) -> int:
    _note(job)
    async with asyncio.timeout(LIMIT):
        while _is_shut(job):
            await asyncio.sleep(0.01)
    return job.id


@handlers("leaks")
def leak(job: Job) -> int:
    """Keep more and more."""
    _leaked.append(bytearray(1_000_000))
    _note(job, leaked=len(_leaked))
    return job.id


@handlers("spins", max_run_seconds=0.2)
def spin(job: Job) -> None:
    while True:
        pass


@handlers("blocks", max_run_seconds=0.2)
def block(job: Job) -> None:
    """Never come to a next step in Python."""
    _note(job)
    time.sleep(LIMIT)


@handlers("blocks_in_process", max_run_seconds=0.2, process=True)
def block_in_process(job: Job) -> None:
    _note(job)
    time.sleep(LIMIT)


@handlers("dies", process=True)
def die(job: Job) -> None:
    os._exit(3)


@handlers("lone", process=True)
def lone(job: Job) -> int:
    _note(job)
    return job.id
