"""``flask jobber worker`` and ``queue hire`` and ``fire``."""

from __future__ import annotations

import json
import os
import pathlib
import stat
import tomllib
import typing as t

import pytest
from click.testing import Result

from accounts_support import Site
from flask_jobber.accounts import Credentials
from support import World


@pytest.fixture
def site(world: World) -> Site:
    return Site(world)


@pytest.fixture
def small(lite: World) -> Site:
    return Site(lite)


def run(site: Site, *args: str, code: int = 0) -> Result:
    """Run a command; what it does not mean to raise is raised."""
    done = site.world.app.test_cli_runner().invoke(args=["jobber", *args], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def from_json(site: Site, *args: str, code: int = 0) -> t.Any:
    return json.loads(run(site, *args, "--json", code=code).stdout)


def test_a_worker_is_made_and_logs_in(site: Site) -> None:
    """Its secret is told once, as text and as JSON."""
    said = from_json(site, "worker", "create", "robot")
    assert said.keys() == {"name", "client_id", "client_secret"}
    site.token(Credentials(**said))
    text = run(site, "worker", "create", "other").stdout
    facts = dict(line.split() for line in text.splitlines())
    site.token(Credentials(**facts))
    for args in (("list",), ("show", "robot"), ("stats",)):
        shown = run(site, "worker", *args).stdout + run(site, "worker", *args, "--json").stdout
        assert said["client_secret"] not in shown
        assert "robot" in shown


def test_workers_are_listed_and_shown(site: Site) -> None:
    """With their queues, what they hold, and whether they are locked."""
    credentials = site.create("robot", "a", "b")
    site.create("other")
    site.do("lock", "other")
    site.world.enqueue(queue="a")
    site.client(credentials, "n1").claim()
    listed = from_json(site, "worker", "list")["workers"]
    assert [(one["name"], one["locked"], one["queues"], one["held"]) for one in listed] == [
        ("other", True, [], 0),
        ("robot", False, ["a", "b"], 1),
    ]
    head, other, robot = run(site, "worker", "list").stdout.splitlines()
    assert head.split() == ["NAME", "STATE", "HELD", "LAST", "LOGIN", "QUEUES"]
    assert other.split() == ["other", "locked"]
    assert robot.endswith("a, b")
    shown = from_json(site, "worker", "show", "robot")
    assert (shown["locker"], shown["tokens"]) == ("account:robot", 1)
    assert shown["client_id"] == credentials.client_id
    assert "account:robot" in run(site, "worker", "show", "robot").stdout


def test_an_empty_list_is_nothing(small: Site) -> None:
    """Not even a head."""
    assert run(small, "worker", "list").stdout == run(small, "worker", "stats").stdout == ""


def test_stats_count_what_workers_have_done(site: Site) -> None:
    """On whatever node; other workers and people are not among it."""
    credentials = site.create("robot", "default")
    for _ in range(4):
        site.world.enqueue()
    node = site.client(credentials, "n1")
    jobs = site.client(credentials).claim(limit=1) + node.claim(limit=2)
    site.world.client("ann").claim()
    site.client(credentials).deliver(jobs[0])
    node.fail(jobs[1])
    node.release(jobs[2])
    node.claim()
    counts = {"held": 1, "claimed": 4, "succeeded": 1, "failed": 1, "released": 1}
    zeros = {"submitted": 0, "rejected": 0, "lapsed": 0}
    assert from_json(site, "worker", "stats", "robot")["workers"] == [{"name": "robot", **counts, **zeros}]
    head, row = run(site, "worker", "stats").stdout.splitlines()
    assert head.split()[:3] == ["NAME", "HELD", "CLAIMED"]
    assert row.split()[:3] == ["robot", "1", "4"]


@pytest.mark.parametrize(("command", "done"), [("lock", "locked"), ("destroy", "destroyed")])
def test_workers_are_put_out(site: Site, command: str, done: str) -> None:
    """Each by itself; what they held is back."""
    worker = site.client(site.create("robot", "default"))
    site.create("other")
    job_id = site.world.enqueue()
    worker.claim()
    said = from_json(site, "worker", command, "robot", "nobody", "other", code=1)
    assert said[done] == [{"name": "robot", "released": 1}, {"name": "other", "released": 0}]
    assert said["errors"] == [{"name": "nobody", "error": "There is no worker 'nobody'."}]
    assert site.world.job(job_id).state == "queued"
    assert worker.get("/claims").status_code == 401


def test_locked_and_unlocked_in_words(small: Site) -> None:
    """A line for each."""
    credentials = small.create()
    assert run(small, "worker", "lock", "robot").stdout == "robot: locked, 0 released\n"
    assert small.ask(credentials).status_code == 401
    assert run(small, "worker", "unlock", "robot").stdout == "robot: unlocked\n"
    assert small.ask(credentials).status_code == 200


def test_a_reset_tells_the_new_secret(small: Site) -> None:
    """The old one is dead."""
    old = small.create()
    new = Credentials(**from_json(small, "worker", "reset", "robot"))
    assert small.ask(old).status_code == 401
    assert small.ask(new).status_code == 200


def test_queues_hire_and_fire(site: Site) -> None:
    """Several workers at once; what the fired held of the queue is back."""
    worker = site.client(site.create("robot"))
    site.create("other")
    job_id = site.world.enqueue(queue="a")
    done = run(site, "queue", "hire", "a", "robot", "other")
    assert done.stdout == "robot: hired\nother: hired\n"
    assert len(worker.claim()) == 1
    said = from_json(site, "queue", "fire", "a", "robot")
    assert said == {"fired": [{"name": "robot", "queue": "a", "released": 1}], "errors": []}
    assert site.world.job(job_id).state == "queued"
    again = from_json(site, "queue", "fire", "a", "robot", code=1)
    assert again["errors"] == [{"name": "robot", "error": "'robot' does not work for 'a'."}]


def test_names_that_are_not_there_are_told(site: Site) -> None:
    """On the standard error, with 1; nothing is changed."""
    for command in ("show", "reset", "lock", "unlock", "destroy", "stats", "config"):
        done = run(site, "worker", command, "nobody", code=1)
        assert "There is no worker 'nobody'." in done.stderr
        assert "nobody" not in done.stdout
    for command in ("hire", "fire"):
        assert "There is no worker 'nobody'." in run(site, "queue", command, "a", "nobody", code=1).stderr
    site.create()
    assert "already" in run(site, "worker", "create", "robot", code=1).stderr
    assert "matches" in run(site, "worker", "create", "a/b", code=1).stderr
    assert "matches" in run(site, "queue", "hire", "no queue", "robot", code=1).stderr
    run(site, "worker", "lock", code=2)
    run(site, "worker", "create", code=2)
    assert "no Jobber 'x'" in run(site, "worker", "list", "--name", "x", code=2).stderr


def test_an_app_without_workers_is_told_what_to_do(lite: World) -> None:
    """Not that something is missing inside."""
    done = lite.app.test_cli_runner().invoke(args=["jobber", "worker", "list"])
    assert done.exit_code == 2
    assert "Workers(jobber)" in done.stderr


# -- worker config ------------------------------------------------------------------------


def test_the_file_holds_all_that_a_worker_needs(small: Site, tmp_path: pathlib.Path) -> None:
    """For its owner alone; the secret is one of its own, and good."""
    first = small.create()
    path = tmp_path / "foo.toml"
    path.write_text("old")
    path.chmod(0o644)
    how = ("--url", "https://app.example", "--handlers", "tasks:handlers")
    assert run(small, "worker", "config", "-o", str(path), *how, "robot").stdout == f"{path}: written\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    said = tomllib.loads(path.read_text())
    assert said["server"] == "https://app.example/jobber"
    assert said["token_url"] == "https://app.example/oauth/token"
    assert said["handlers"] == "tasks:handlers"
    small.token(Credentials("robot", said["client_id"], said["client_secret"]))
    small.token(first)
    assert [one.name for one in tmp_path.iterdir() if "foo" in one.name] == ["foo.toml"]


def test_without_a_file_it_is_printed(small: Site) -> None:
    """As TOML, or as JSON."""
    small.create()
    url = ("--url", "https://app.example/app")
    said = tomllib.loads(run(small, "worker", "config", "robot", *url).stdout)
    assert said["server"] == "https://app.example/app/jobber"
    same = from_json(small, "worker", "config", "robot", *url)
    assert same.keys() == said.keys()
    assert same["client_secret"] != said["client_secret"]


def test_where_the_app_is_comes_from_its_settings(small: Site) -> None:
    """Or is guessed, with a warning."""
    small.create()
    done = run(small, "worker", "config", "robot")
    assert "--url" in done.stderr
    assert tomllib.loads(done.stdout)["server"] == "http://127.0.0.1:5000/jobber"
    small.world.app.config.update(SERVER_NAME="app.example", PREFERRED_URL_SCHEME="https")
    done = run(small, "worker", "config", "robot")
    assert done.stderr == ""
    assert tomllib.loads(done.stdout)["token_url"] == "https://app.example/oauth/token"


def test_a_file_takes_the_place_of_a_file_only(small: Site, tmp_path: pathlib.Path) -> None:
    """What is written to a link or a device, as /dev/stdout, would put an ordinary file there."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        assert "no ordinary file" in run(small, "worker", "config", "-o", str(path), "robot", code=2).stderr
    assert pipe.is_fifo()
    assert link.is_symlink()


def test_a_file_that_cannot_be_written_changes_nothing(small: Site, tmp_path: pathlib.Path) -> None:
    """No secret is left without a file, no file without a secret."""
    small.create()
    absent = tmp_path / "absent" / "foo.toml"
    assert "absent" in run(small, "worker", "config", "-o", str(absent), "robot", code=1).stderr
    assert "directory" in run(small, "worker", "config", "-o", str(tmp_path), "robot", code=2).stderr
    for _ in range(19):
        from_json(small, "worker", "config", "robot")
    full = tmp_path / "foo.toml"
    assert "reset" in run(small, "worker", "config", "-o", str(full), "robot", code=1).stderr
    assert not full.exists()


@pytest.mark.parametrize(
    "url", ["app.example", "ftp://app.example", "https://", "https://a/?x=1", "https://a\n"]
)
def test_an_address_that_is_none_is_refused(small: Site, url: str) -> None:
    """Before anything is made."""
    small.create()
    run(small, "worker", "config", "robot", "--url", url, code=2)
