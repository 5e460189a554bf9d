"""The command: two servers with work, one worker that serves them in turn, and what came of it."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import typing as t

from sqlalchemy import select

from .app import Count, User, create_app, db, jobber

TEXTS = {
    "library": {"Dawn": "the sun comes up", "Noon": "shadows are short", "Dusk": "lights go on"},
    "archive": {"1821": "sealed with red wax", "1848": "written in haste", "1867": ""},
}
SMUDGED = "1848"
WORKER = [sys.executable, "-c", "from flask_jobber.worker.command import main; main()"]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="remote-worker-") as folder:
        databases = {name: f"sqlite:///{folder}/{name}.db" for name in TEXTS}
        token = secrets.token_urlsafe()
        for name, database in databases.items():
            enqueue(name, database, token)
        with contextlib.ExitStack() as servers:
            code = work([servers.enter_context(serving(url)) for url in databases.values()], token)
        for name, database in databases.items():
            report(name, database)
        print(f"in turn: {', '.join(order(databases))}")
    return code


def enqueue(name: str, database: str, token: str) -> None:
    """Make the users robot, whose worker it is, and ada, and work for both."""
    with create_app(database).app_context():
        robot, ada = User(name="robot", token=token), User(name="ada", token=secrets.token_urlsafe())
        db.session.add_all([robot, ada])
        db.session.flush()
        for title, text in TEXTS[name].items():
            data = {"title": title, "text": text, "smudged": title == SMUDGED}
            jobber.enqueue("count", data, user_id=robot.id)
        jobber.enqueue("count", {"title": "Diary", "text": "for no robot's eyes"}, user_id=ada.id)
        db.session.commit()


@contextlib.contextmanager
def serving(database: str) -> t.Iterator[str]:
    """Run a server; give its address."""
    command = [sys.executable, "-m", "examples.remote_worker.server", database]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def work(urls: list[str], token: str) -> int:
    """Do what there is to do at the servers; return the worker's code."""
    servers = [f"--server={url}" for url in urls]
    how = ["--name", "node-1", "--concurrency", "1", "--burst"]
    # No proxy is between this machine and itself. A token is no option: options can be listed.
    environment = os.environ | {"JOBBER_TOKEN": token, "NO_PROXY": "*"}
    command = [*WORKER, "examples.remote_worker.handlers", *servers, *how]
    return subprocess.run(command, env=environment, check=False).returncode


def report(name: str, database: str) -> None:
    """Print the jobs of a server with what came of them."""
    with create_app(database).app_context():
        for job in db.session.scalars(select(jobber.Job).order_by(jobber.Job.id)):
            print(f"{name}: {job.data['title']}: {job.state}, attempts {job.attempts}{result(job)}")


def result(job: t.Any) -> str:
    """Return what the processor has kept of a job, or why it has not been called."""
    kept = db.session.scalar(select(Count).where(Count.job_id == job.id))
    if kept is not None:
        return f", {kept.words} words, the longest {kept.longest!r}, by {kept.by}"
    history = jobber.History
    ended = select(history.error).where(history.job_id == job.id, history.to_state == "cancelled")
    error = db.session.scalar(ended)
    return "" if error is None else f", {error['message']}"


def order(databases: dict[str, str]) -> list[str]:
    """Return the servers in the order in which they handed out jobs."""
    history, handed_out = jobber.History, []
    for name, database in databases.items():
        with create_app(database).app_context():
            times = db.session.scalars(select(history.at).where(history.to_state == "locked"))
            handed_out += [(at, name) for at in times]
    return [name for _, name in sorted(handed_out)]


if __name__ == "__main__":
    sys.exit(main())
