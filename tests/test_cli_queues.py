"""``flask jobber queue``: what an operator declares, sees and does."""

from __future__ import annotations

import json
import typing as t

import pytest
from click.testing import Result

from flask_jobber import Jobber, State
from flask_jobber.cli import queues as queue_commands
from situations import LOCKER, make_one_of_each, states
from support import World
from test_cli_jobs import flask_jobber

#: Each command on one queue, with what else it needs.
ON_ONE: dict[str, tuple[str, ...]] = {
    "create": (), "change": ("--capacity", "5"), "pause": (), "resume": (), "empty": ("--yes",),
    "destroy": (), "stats": (),
}  # fmt: skip


def queue(world: World, *args: str, **kwargs: t.Any) -> Result:
    return flask_jobber(world, "queue", *args, **kwargs)


def from_json(world: World, *args: str) -> t.Any:
    done = queue(world, *args, "--json")
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return json.loads(done.stdout)


def fill(world: World, number: int, name: str = "mail") -> None:
    with world.session():
        world.jobber.enqueue_many([{"type": "work", "queue": name}] * number)


def test_a_queue_is_declared_changed_and_destroyed(world: World) -> None:
    """Each command says what it did, or prints the queue as JSON; what is not said stays."""
    done = queue(world, "create", "mail", "--capacity", "100", "--priority", "5", "--lease-seconds", "60")
    assert (done.exit_code, done.output) == (0, "mail: created\n")
    told = {
        "name": "mail",
        "declared": True,
        "capacity": 100,
        "paused": False,
        "priority": 5,
        "lease_for": 60,
    }
    assert from_json(world, "pause", "mail") == told | {"paused": True}
    assert from_json(world, "change", "mail", "--priority", "-1") == told | {"paused": True, "priority": -1}
    assert queue(world, "resume", "mail").output == "mail: resumed\n"
    bare = {"capacity": 0, "priority": None, "lease_for": None}
    none = ("--capacity", "0", "--priority", "none", "--lease-seconds", "none")
    assert from_json(world, "change", "mail", *none) == told | bare
    assert from_json(world, "create", "other") == told | bare | {"name": "other"}
    assert from_json(world, "destroy", "other") == {"destroyed": "other"}
    assert queue(world, "destroy", "mail").output == "mail: destroyed\n"
    assert from_json(world, "list") == {"queues": []}
    assert queue(world, "list").output == ""


def test_queues_are_listed(lite: World) -> None:
    """Declared ones, and others that unfinished jobs are in; what is as ever leaves its column empty."""
    queue(lite, "create", "mail", "--capacity", "100", "--priority", "5", "--lease-seconds", "1.5")
    queue(lite, "create", "bare")
    queue(lite, "pause", "bare")
    fill(lite, 3)
    fill(lite, 2, "undeclared")
    with lite.session():
        lite.jobber.cancel(lite.jobber.enqueue("work", queue="ended"))

    head, *rows = (line.split() for line in queue(lite, "list").stdout.splitlines())
    assert head == ["NAME", "DECLARED", "CAPACITY", "UNFINISHED", "PAUSED", "PRIORITY", "LEASE"]
    assert rows == [["bare", "0", "paused"], ["mail", "100", "3", "5", "1.5"], ["undeclared", "no", "2"]]
    listed = from_json(lite, "list")["queues"]
    assert [(one["name"], one["declared"], one["unfinished"]) for one in listed] == [
        ("bare", True, 0), ("mail", True, 3), ("undeclared", False, 2),
    ]  # fmt: skip
    assert set(listed[0]) == {
        "name", "declared", "capacity", "paused", "priority", "lease_for", "unfinished",
    }  # fmt: skip


def test_queues_are_counted(world: World) -> None:
    """By what their jobs wait for; all of them or one."""
    make_one_of_each(world, queue="mail")
    queue(world, "create", "bare", "--capacity", "7")

    told = from_json(world, "stats")["queues"]
    assert [one["name"] for one in told] == ["bare", "mail"]
    kinds = ("waiting", "scheduled", "locked", "submitted", "blocked", "finished")
    assert [told[1][kind] for kind in kinds] == [2, 1, 2, 1, 1, 4]
    assert told[1]["oldest_seconds"] >= 59
    assert (told[0]["oldest_seconds"], told[0]["capacity"], told[0]["finished"]) == (None, 7, 0)
    (one,) = from_json(world, "stats", "mail")["queues"]
    assert {**one, "oldest_seconds": 0} == {**told[1], "oldest_seconds": 0}
    head, *rows = (line.split() for line in queue(world, "stats").stdout.splitlines())
    assert head[:7] == ["NAME", "WAITING", "SCHEDULED", "LOCKED", "SUBMITTED", "BLOCKED", "FINISHED"]
    assert [row[:7] for row in rows] == [["bare", *"000000"], ["mail", *"212114"]]
    assert rows[1][-1] == "s"


def test_emptying_says_what_it_did(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches; held jobs stay, and those of other queues."""
    monkeypatch.setattr(queue_commands, "_BATCH", 2)
    fill(world, 6)
    other = world.enqueue()
    with world.session():
        (held,) = world.jobber.claim(LOCKER, queues=["mail"])

    done = queue(world, "empty", "mail", "--yes")
    assert (done.exit_code, done.output) == (0, "mail: 5 cancelled, 1 unfinished\n")
    assert states(world)[held.id] == State.LOCKED
    assert states(world)[other] == State.QUEUED
    fill(world, 1)
    assert from_json(world, "empty", "mail", "--yes") == {"name": "mail", "cancelled": 1, "unfinished": 1}
    assert from_json(world, "empty", "mail") == {"name": "mail", "cancelled": 0, "unfinished": 1}


def test_emptying_asks(lite: World) -> None:
    """Not on the stream that a program reads; and what comes meanwhile is left alone."""
    fill(lite, 3)
    refused = queue(lite, "empty", "mail", "--json", answer="n\n")
    assert refused.exit_code == 1
    assert "3 jobs" in refused.stderr
    assert set(states(lite).values()) == {"queued"}

    done = queue(lite, "empty", "mail", "--json", answer="y\n")
    assert json.loads(done.stdout) == {"name": "mail", "cancelled": 3, "unfinished": 0}


def test_emptying_leaves_what_comes_meanwhile(lite: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends, though somebody enqueues all the time."""
    monkeypatch.setattr(queue_commands, "_BATCH", 1)
    fill(lite, 3)
    empty_some = queue_commands._empty_some

    def and_enqueue(*args: t.Any) -> int:
        lite.enqueue(queue="mail")
        return empty_some(*args)

    monkeypatch.setattr(queue_commands, "_empty_some", and_enqueue)
    assert from_json(lite, "empty", "mail", "--yes") == {"name": "mail", "cancelled": 3, "unfinished": 4}


def test_a_queue_in_use_is_destroyed_by_force_only(world: World) -> None:
    """It says how many jobs are in it."""
    queue(world, "create", "mail", "--capacity", "1")
    fill(world, 1)
    done = queue(world, "destroy", "mail")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("mail: 1 unfinished jobs")
    assert queue(world, "destroy", "mail", "--force").exit_code == 0
    fill(world, 2)


@pytest.mark.parametrize("command", ON_ONE)
def test_a_name_that_is_not_there_is_said(lite: World, command: str) -> None:
    """On stderr, with an exit code; a name that cannot be is shown harmlessly."""
    queue(lite, "create", "mail")
    for name in ("absent", "Mail", "a b", "\x1b[2J"):
        for extra in ((), ("--json",)):
            done = queue(lite, command, name, *ON_ONE[command], *extra)
            if command == "create":
                bad = name not in ("absent", "Mail")
                assert (done.exit_code == 2) is bad
                continue
            assert (done.exit_code, done.stdout) == (1, "")
            assert "There is no queue" in done.stderr
            assert "\x1b" not in done.stderr
    again = queue(lite, "create", "mail")
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr == "mail: The queue 'mail' is declared already: change it.\n"


WRONG: list[tuple[str, ...]] = [
    ("create",), ("create", "mail", "--capacity", "-1"), ("create", "mail", "--capacity", "x"),
    ("create", "mail", "--capacity", "2147483648"), ("create", "mail", "--capacity", "none"),
    ("create", "mail", "--priority", "1.5"), ("create", "mail", "--priority", "99999999999"),
    ("create", "mail", "--lease-seconds", "0"), ("create", "mail", "--lease-seconds", "nan"),
    ("create", "mail", "--lease-seconds", "1e9"), ("create", "mail", "other"), ("create", "x" * 101),
    ("change", "there"), ("change", "there", "--capacity", "1.5"), ("pause",), ("empty",), ("destroy",),
    ("list", "mail"), ("list", "--name", "absent"), ("stats", "--name", "absent"),
]  # fmt: skip


@pytest.mark.parametrize("args", WRONG, ids=" ".join)
def test_a_wrong_call_ends_with_2_and_does_nothing(lite: World, args: tuple[str, ...]) -> None:
    """It says what was wrong."""
    queue(lite, "create", "there", "--capacity", "3")
    done = queue(lite, *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr
    assert [(one["name"], one["capacity"]) for one in from_json(lite, "list")["queues"]] == [("there", 3)]


def test_one_of_several_jobbers_must_be_named(lite: World) -> None:
    """The same name is another queue in each."""
    mail = Jobber(lite.db, name="mail")
    mail.init_app(lite.app)
    with lite.app.app_context():
        lite.db.create_all()
    assert queue(lite, "create", "q").exit_code == 2
    assert queue(lite, "create", "q", "--name", "mail").exit_code == 0
    assert [one["name"] for one in from_json(lite, "list", "--name", "mail")["queues"]] == ["q"]
    assert from_json(lite, "list", "--name", "jobber") == {"queues": []}
    assert queue(lite, "pause", "q", "--name", "jobber").exit_code == 1


def test_a_retry_into_a_full_queue_is_said(lite: World) -> None:
    """The operator may give the queue more room."""
    job_id = lite.enqueue(queue="mail")
    with lite.session():
        lite.jobber.cancel(job_id)
    queue(lite, "create", "mail", "--capacity", "1")
    fill(lite, 1)
    done = flask_jobber(lite, "jobs", "retry", str(job_id))
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"{job_id}: The queue 'mail' is full")
    queue(lite, "change", "mail", "--capacity", "2")
    assert flask_jobber(lite, "jobs", "retry", str(job_id)).exit_code == 0
