"""``flask jobber jobs`` and ``clear``: what an operator sees of jobs and does to them."""

from __future__ import annotations

import json
import re
import typing as t
import unicodedata

import pytest
import sqlalchemy as sa
from click.testing import Result

from conftest import MakeWorld
from flask_jobber import Jobber, State, job_released
from flask_jobber.cli import clear as clear_command
from flask_jobber.cli import table
from flask_jobber.core.store import Store
from situations import LOCKER, SITUATIONS, make_one_of_each, states, stored
from support import World

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
#: Clears a screen, renames a window, turns the text around, rings, and is wide.
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\r\n\t日本語 \u0301"
ABSENT = 10**6


def flask_jobber(world: World, *args: str, columns: int | None = None, answer: str = "") -> Result:
    """Run a command; what it does not mean to raise is raised."""
    env = {"COLUMNS": None if columns is None else str(columns)}
    runner = world.app.test_cli_runner()
    return runner.invoke(args=["jobber", *args], env=env, input=answer, catch_exceptions=False)


def from_json(world: World, *args: str) -> t.Any:
    done = flask_jobber(world, *args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def ids_of(listed: t.Mapping[str, t.Any]) -> list[int]:
    return [job["id"] for job in listed["jobs"]]


def width(text: str) -> int:
    """Return the columns that a terminal gives a text."""
    plain = [c for c in text if not unicodedata.combining(c)]
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in plain)


def make_hostile(world: World) -> int:
    """Make a job of a client that writes what it likes wherever it can."""
    job_id = world.enqueue("x" * 100, {"display_name": HOSTILE, "text": HOSTILE}, queue="q" * 100)
    client = world.client("ann", "n" * 60)
    [job] = client.claim(types=["x" * 100])
    error = {"type": "Error", "message": HOSTILE * 20, "traceback": f"first\n  {HOSTILE}\n"}
    response = client.put(f"{job['href']}/failure", {"error": error})
    assert response.status_code == 200, response.text
    return job_id


# -- list ---------------------------------------------------------------------------------


def test_jobs_are_listed_by_id_and_narrowed(world: World) -> None:
    """By state, type and queue, each and all together."""
    ids = make_one_of_each(world)
    mail = world.enqueue("mail", queue="post")

    assert ids_of(from_json(world, "jobs", "list")) == [*ids.values(), mail]
    assert ids_of(from_json(world, "jobs", "list", "--state", "locked")) == [ids["locked"], ids["lapsed"]]
    assert ids_of(from_json(world, "jobs", "list", "--type", "failed")) == [ids["failed"]]
    assert ids_of(from_json(world, "jobs", "list", "--queue", "post")) == [mail]
    both = ("--queue", "post", "--state", "queued", "--type", "mail")
    assert ids_of(from_json(world, "jobs", "list", *both)) == [mail]
    assert ids_of(from_json(world, "jobs", "list", "--queue", "post", "--type", "failed")) == []


def test_a_list_goes_on_where_the_last_one_ended(lite: World) -> None:
    """The cursor of one page is the beginning of the next; the last page has none."""
    ids = [lite.enqueue() for _ in range(5)]

    seen, cursor, pages = list[int](), 0, 0
    while cursor is not None:
        page = from_json(lite, "jobs", "list", "--limit", "2", "--cursor", str(cursor))
        seen, cursor, pages = seen + ids_of(page), page["cursor"], pages + 1
    assert (seen, pages) == (ids, 3)
    first = flask_jobber(lite, "jobs", "list", "--limit", "2")
    assert f"--cursor {ids[1]}" in first.stderr
    assert len(first.stdout.splitlines()) == 3
    assert flask_jobber(lite, "jobs", "list").stderr == ""


def test_a_table_says_what_is_worth_knowing_of_each_job(lite: World) -> None:
    """Columns in which nothing is said are left out."""
    ids = make_one_of_each(lite)
    lite.enqueue("import", {"display_name": "Shop.import_csv"}, queue="slow", priority=7)

    head, *rows = flask_jobber(lite, "jobs", "list").stdout.splitlines()
    assert head.split() == [
        "ID",
        "STATE",
        "FAILED",
        "RUN",
        "AT",
        "PRIORITY",
        "QUEUE",
        "TYPE",
        "NAME",
        "LOCKER",
        "ERROR",
    ]
    assert [row.split()[:2] for row in rows[:-1]] == [
        [str(ids[name]), state] for name, (state, _) in SITUATIONS.items()
    ]
    assert {"queued", "7", "slow", "import", "Shop.import_csv"} <= set(rows[-1].split())
    failed = rows[list(SITUATIONS).index("failed")]
    assert "1/10" in failed
    assert failed.endswith("Error: broke")
    assert LOCKER in rows[list(SITUATIONS).index("locked")]

    lite.enqueue("plain")
    bare = flask_jobber(lite, "jobs", "list", "--type", "plain").stdout.splitlines()
    assert bare[0].split() == ["ID", "STATE", "TYPE"]


@pytest.mark.parametrize("columns", [10, 60, 80, 200])
def test_a_table_fits_the_terminal(lite: World, columns: int) -> None:
    """Whatever is in it, wide letters too."""
    make_one_of_each(lite)
    job_id = make_hostile(lite)

    lines = flask_jobber(lite, "jobs", "list", columns=columns).stdout.splitlines()
    assert len(lines) == 2 + len(SITUATIONS)
    assert max(map(width, lines)) <= columns
    assert "…" in lines[-1]
    lines = flask_jobber(lite, "jobs", "show", str(job_id), columns=columns).stdout.splitlines()
    (head,) = (place for place, line in enumerate(lines) if line.startswith("AT "))
    assert max(map(width, lines[head : head + 4])) <= columns


def test_a_long_text_gives_way_to_short_ones() -> None:
    """The widest soft columns are cut, and only as far as they must be."""
    rows = [["1", "queued", "a" * 30, "b" * 300]]
    [_, row] = table.lines(["ID", "STATE", "TYPE", "ERROR"], rows, soft={"TYPE", "ERROR"}, width=60)
    assert row == f"1   queued  {'a' * 22}…  {'b' * 22}…"
    [_, row] = table.lines(["ID", "STATE", "TYPE", "ERROR"], rows, soft={"TYPE", "ERROR"}, width=100)
    assert row == f"1   queued  {'a' * 30}  {'b' * 55}…"


def test_a_pipe_cuts_nothing(lite: World) -> None:
    """Nobody says how wide it is."""
    lite.enqueue("x" * 100, {"display_name": "y" * 300})

    assert f"{'x' * 100}  {'y' * 300}" in flask_jobber(lite, "jobs", "list").stdout


def test_what_clients_write_does_nothing_to_a_terminal(lite: World) -> None:
    """Escapes are shown, not obeyed."""
    job_id = make_hostile(lite)

    for command in (["list"], ["show", str(job_id)]):
        output = flask_jobber(lite, "jobs", *command).stdout
        assert "\\x1b[2J" in output
        assert [line for line in output.split("\n") if not line.isprintable()] == []
        assert output.count("\r") == 0


# -- show ---------------------------------------------------------------------------------


def test_a_job_is_shown_with_all_that_is_known_of_it(world: World) -> None:
    """As JSON: names as over HTTP, the app's columns apart, instants with Z."""
    ids = make_one_of_each(world, user_id="ann", unique_key=None)
    one = from_json(world, "jobs", "show", str(ids["submitted"]))

    assert one["columns"] == {"user_id": "ann", "written": None}
    told = {
        name: one[name] for name in ("id", "type", "state", "attempt", "locker", "result", "display_name")
    }
    assert told == {
        "id": ids["submitted"], "type": "submitted", "state": "submitted", "attempt": 1, "locker": LOCKER,
        "result": {"n": 1}, "display_name": None,
    }  # fmt: skip
    for name in ("enqueued_at", "run_at", "updated_at", "locked_at"):
        assert INSTANT.fullmatch(one[name])
    steps = [(row["from"], row["to"], row["reason"], row["attempt"], row["locker"]) for row in one["history"]]
    assert steps == [
        (None, "queued", "enqueue", 0, None),
        ("queued", "locked", "claim", 1, LOCKER),
        ("locked", "submitted", "deliver", 1, LOCKER),
    ]
    assert all(INSTANT.fullmatch(row["at"]) for row in one["history"])
    assert one["history"][-1]["error"]["message"] == "broke once"
    assert "Traceback" in one["history"][-1]["error"]["traceback"]


def test_a_job_is_shown_as_text(lite: World) -> None:
    """Facts, data, result, history, and the errors at length."""
    ids = make_one_of_each(lite, data={"path": ["a", "b"]}, user_id="ann")
    output = flask_jobber(lite, "jobs", "show", str(ids["submitted"])).stdout

    facts = dict(line.split(maxsplit=1) for line in output.split("\n\n")[0].splitlines())
    assert {"id", "type", "state", "run_at", "locker", "user_id", "max_attempts"} <= facts.keys()
    assert (facts["state"], facts["user_id"]) == ("submitted", "ann")
    assert "note" not in facts
    assert 'data:\n  {\n    "path": [\n      "a",' in output
    assert 'result:\n  {\n    "n": 1\n  }\n' in output
    assert re.search(rf"Z +queued +locked +claim +1 +{LOCKER}\n", output)
    assert re.search(rf"Z +locked +submitted +deliver +1 +{LOCKER} +RuntimeError: broke once\n", output)
    assert re.search(r"Z deliver, attempt 1:\n  Traceback .*\n(  .*\n)+  RuntimeError: broke once\n$", output)


def test_a_job_that_is_not_there_cannot_be_shown(lite: World) -> None:
    """Nor can one whose id no job may have."""
    for job_id in (1, ABSENT, 2**70):
        done = flask_jobber(lite, "jobs", "show", str(job_id))
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == f"{job_id}: There is no such job.\n"


def test_a_call_is_listed_by_its_name(lite: World) -> None:
    """That of the function, or what an object calls itself."""

    @lite.jobber.later
    def import_csv(path: str) -> None:
        raise NotImplementedError

    with lite.session():
        job_id = import_csv("a.csv").id
    name = from_json(lite, "jobs", "show", str(job_id))["display_name"]
    assert "import_csv" in name
    assert name in flask_jobber(lite, "jobs", "list").stdout


@pytest.mark.parametrize("data", [None, [1], "x", {"display_name": 5}, {"display_name": None}])
def test_only_a_text_is_a_display_name(lite: World, data: t.Any) -> None:
    """Data may be anything."""
    job_id = lite.enqueue(data=data)

    assert from_json(lite, "jobs", "show", str(job_id))["display_name"] is None
    assert flask_jobber(lite, "jobs", "list").exit_code == 0


# -- retry, cancel, release ---------------------------------------------------------------

#: The situations that a command is for.
FOR: dict[str, set[str]] = {
    "retry": {"failed", "cancelled", "expired"},
    "cancel": {"queued", "scheduled", "due", "locked", "lapsed", "submitted", "blocked"},
    "release": {"locked", "lapsed"},
}
PARTICIPLES = {"retry": "retried", "cancel": "cancelled", "release": "released"}


@pytest.mark.parametrize("command", FOR)
def test_each_job_is_done_or_complained_of(world: World, command: str) -> None:
    """One that cannot be stops no other; each error names its job, and the exit code tells."""
    ids = make_one_of_each(world)
    before = states(world)
    good = [job_id for name, job_id in ids.items() if name in FOR[command]]
    bad = [*(job_id for name, job_id in ids.items() if name not in FOR[command]), ABSENT]

    done = flask_jobber(world, "jobs", command, *map(str, [*bad, *good, *good]))
    assert done.exit_code == 1
    assert done.stdout == f"{PARTICIPLES[command]}: {', '.join(map(str, good))}\n"
    *complaints, absent = done.stderr.splitlines()
    assert complaints == [
        f"{job_id}: {command} is not for a job that is {before[job_id]}." for job_id in bad[:-1]
    ]
    assert absent == f"{ABSENT}: There is no such job."
    assert {job_id for job_id, state in states(world).items() if state != before[job_id]} == set(good)
    assert all(world.history(job_id)[-1][2] == command for job_id in good)


@pytest.mark.parametrize("command", FOR)
def test_what_was_done_is_told_as_json(lite: World, command: str) -> None:
    """One document; 0 when all was done."""
    ids = make_one_of_each(lite)
    good = [job_id for name, job_id in ids.items() if name in FOR[command]]

    assert from_json(lite, "jobs", command, *map(str, good)) == {PARTICIPLES[command]: good, "errors": []}
    done = flask_jobber(lite, "jobs", command, str(ABSENT), "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {
        PARTICIPLES[command]: [],
        "errors": [{"id": ABSENT, "error": "There is no such job."}],
    }


def test_a_job_is_released_whoever_holds_it(world: World) -> None:
    """Nothing is counted, its holder has lost it, and the signal names the holder."""
    job_id = world.enqueue()
    client = world.client("ann", "node-1")
    [job] = client.claim()
    heard: list[t.Any] = []

    def hear(sender: object, **facts: t.Any) -> None:
        heard.append(facts)

    with job_released.connected_to(hear, sender=world.jobber):
        assert flask_jobber(world, "jobs", "release", str(job_id)).exit_code == 0
    assert heard == [{"job_id": job_id, "attempt": 1, "locker": f"{LOCKER}/node-1"}]
    row, history = stored(world, job_id)
    assert (row["state"], row["failures"], row["locked_by"]) == (State.QUEUED, 0, None)
    assert (history[-1]["reason"], history[-1]["locker"]) == ("release", f"{LOCKER}/node-1")
    response = client.deliver(job)
    assert (response.status_code, response.get_json()["code"]) == (409, "lease_lost")
    [again] = world.client("bob").claim()
    assert (again["id"], again["failures"]) == (job_id, 0)


def test_a_late_holder_that_may_do_nothing_holds_nothing(make_world: MakeWorld, sqlite_url: str) -> None:
    """Where late results are refused a lapsed job is free already, and so the operator is told."""
    world = make_world(sqlite_url, JOBBER_LATE_RESULTS="reject")
    ids = make_one_of_each(world)

    done = flask_jobber(world, "jobs", "release", str(ids["lapsed"]), str(ids["locked"]))
    assert done.exit_code == 1
    assert done.stderr == f"{ids['lapsed']}: its holder holds it no longer.\n"
    assert world.job(ids["locked"]).state == State.QUEUED


@pytest.mark.parametrize("verb", ["release", "cancel", "retry"])
def test_the_history_tells_that_an_operator_did_it(world: World, verb: str) -> None:
    """Not who held it; a terminal has no login."""
    ids = make_one_of_each(world)
    job_id = ids[{"release": "locked", "cancel": "queued", "retry": "failed"}[verb]]
    assert flask_jobber(world, "jobs", verb, str(job_id)).exit_code == 0
    _, history = stored(world, job_id)
    assert (history[-1]["reason"], history[-1]["by"]) == (verb, "flask jobber")
    shown = flask_jobber(world, "jobs", "show", str(job_id), "--json")
    assert json.loads(shown.stdout)["history"][-1]["by"] == "flask jobber"
    assert "flask jobber" in flask_jobber(world, "jobs", "show", str(job_id)).stdout


# -- clear --------------------------------------------------------------------------------


def rows_of(world: World) -> tuple[set[int], set[int]]:
    """Return the ids of jobs, and those of which there is a history."""
    with world.session() as session:
        jobs = session.scalars(sa.select(world.Job.id))
        return set(jobs), set(session.scalars(sa.select(world.jobber.History.job_id)))


def test_clear_deletes_everything(world: World) -> None:
    """In any state, with its history; who held a job hears that there is none."""
    make_one_of_each(world)
    client = world.client()
    held = client.get("/claims").get_json()["jobs"]
    assert len(held) == 2

    done = flask_jobber(world, "clear", "--yes")
    assert (done.exit_code, done.output) == (0, f"jobber: {len(SITUATIONS)} cleared\n")
    assert rows_of(world) == (set(), set())
    assert client.deliver(held[0]).status_code == 404
    assert flask_jobber(world, "clear").output == "jobber: 0 cleared\n"


def test_clear_deletes_what_it_is_told_to(world: World) -> None:
    """By state, type and queue."""
    ids = make_one_of_each(world)
    slow = world.enqueue("queued", queue="slow")

    for options, gone in (
        (("--state", "locked"), {ids["locked"], ids["lapsed"]}),
        (("--type", "queued", "--queue", "slow"), {slow}),
        (("--type", "failed", "--state", "queued"), set()),
    ):
        before, _ = rows_of(world)
        assert flask_jobber(world, "clear", "--yes", *options).output == f"jobber: {len(gone)} cleared\n"
        left = before - gone
        assert rows_of(world) == (left, left)


def test_clear_asks(lite: World) -> None:
    """It says what is to go; whoever does not say yes keeps it."""
    make_one_of_each(lite)

    for answer in ("n\n", "\n", ""):
        done = flask_jobber(lite, "clear", "--state", "locked", "--type", "lapsed", answer=answer)
        assert done.exit_code == 1
        assert "Delete 1 jobs of jobber (state locked, type lapsed) for good?" in done.output
    assert len(rows_of(lite)[0]) == len(SITUATIONS)
    assert flask_jobber(lite, "clear", answer="y\n").exit_code == 0
    assert rows_of(lite) == (set(), set())


def test_clear_works_in_bounded_transactions(lite: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch and a commit at a time; what comes into being meanwhile stays."""
    monkeypatch.setattr(clear_command, "_BATCH", 10)
    with lite.session():
        lite.jobber.enqueue_many([{"type": "work"}] * 25)
    left: list[int] = []

    def look(session: t.Any) -> None:
        left.append(len(rows_of_another(lite)))
        if len(left) == 1:
            lite.enqueue("new")

    sa.event.listen(lite.db.session, "after_commit", look)
    try:
        assert flask_jobber(lite, "clear", "--yes").output == "jobber: 25 cleared\n"
    finally:
        sa.event.remove(lite.db.session, "after_commit", look)
    assert left[0] == 15
    assert len(rows_of(lite)[0]) == 1


def test_clear_leaves_what_is_no_longer_what_it_was_told_to_delete(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that somebody changes after it was found stays."""
    ids = [world.enqueue() for _ in range(3)]
    jobs, lock = world.Job.__table__, Store.lock

    def change_and_lock(store: Store, *args: t.Any, **options: t.Any) -> t.Any:
        with world.db.engine.begin() as another:
            another.execute(sa.update(jobs).where(jobs.c.id == ids[0]).values(queue="other"))
        return lock(store, *args, **options)

    monkeypatch.setattr(Store, "lock", change_and_lock)
    assert flask_jobber(world, "clear", "--queue", "default", "--yes").output == "jobber: 2 cleared\n"
    assert rows_of(world) == ({ids[0]}, {ids[0]})


def rows_of_another(world: World) -> list[int]:
    """Return the ids of jobs as another connection sees them."""
    with world.db.engine.connect() as connection:
        return list(connection.scalars(sa.select(world.Job.__table__.c.id)))


# -- what is asked wrongly ----------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ("jobs", "retry"),
        ("jobs", "cancel", "one"),
        ("jobs", "release", "0"),
        ("jobs", "show"),
        ("jobs", "show", "1", "2"),
        ("jobs", "list", "--state", "sleeping"),
        ("jobs", "list", "--type", "no name"),
        ("jobs", "list", "--limit", "0"),
        ("jobs", "list", "--cursor", "-1"),
        ("jobs", "fly"),
        ("clear", "--queue", ""),
        ("clear", "--name", "post"),
    ],
)
def test_wrong_usage_ends_with_2(lite: World, args: tuple[str, ...]) -> None:
    """And nothing is done."""
    lite.enqueue()
    done = flask_jobber(lite, *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(rows_of(lite)[0]) == 1


def test_with_several_jobbers_one_must_be_named(lite: World) -> None:
    """The same id is another job in each."""
    mail = Jobber(lite.db, name="mail")
    mail.init_app(lite.app)
    with lite.session():
        lite.db.create_all()
        mail.enqueue("letter")
    lite.enqueue()

    for args in (["clear", "--yes"], ["jobs", "list"], ["jobs", "show", "1"], ["jobs", "cancel", "1"]):
        done = flask_jobber(lite, *args)
        assert done.exit_code == 2
        assert "say which of jobber, mail" in done.stderr
    assert [job["type"] for job in from_json(lite, "jobs", "list", "--name", "mail")["jobs"]] == ["letter"]
    assert flask_jobber(lite, "jobs", "cancel", "1", "--name", "mail").exit_code == 0
    assert flask_jobber(lite, "clear", "--name", "mail", "--yes").output == "mail: 1 cleared\n"
    assert states(lite) == {1: State.QUEUED}
