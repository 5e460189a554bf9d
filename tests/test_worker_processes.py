"""Workers as they are run: processes that get signals, are killed, and lose their servers and databases."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import sys
import typing as t

import click
import pytest
from click.testing import CliRunner

from flask_jobber.cli.work import work, work_off
from flask_jobber.worker.command import main as jobber_worker
from race_support import engine_of, kill_connections, until
from served import GUNICORN, Server
from wire import wire_to
from worked import URL
from worked_handlers import BROKEN
from worked_support import FLASK, JOBBER_WORKER, Command, Scene, is_alive

SOURCES = ("local", "http")
both_sources = pytest.mark.parametrize("source", SOURCES)
MakeScene = t.Callable[[str], Scene]


@pytest.fixture
def make_scene(tmp_path: pathlib.Path) -> t.Iterator[MakeScene]:
    with contextlib.ExitStack() as stack:

        def make(url: str) -> Scene:
            scene = Scene(url, tmp_path)
            stack.callback(scene.close)
            return scene

        yield make


@pytest.fixture
def scene(make_scene: MakeScene, sqlite_url: str) -> Scene:
    return make_scene(sqlite_url)


# -- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "number"), [("local", signal.SIGTERM), ("http", signal.SIGINT)])
def test_a_signal_lets_it_finish_what_runs(scene: Scene, source: str, number: signal.Signals) -> None:
    """It claims no more, not even for a slot that becomes free, and leaves with 0."""
    [first], [last] = (scene.enqueue("gated", data={"gate": gate}) for gate in ("one", "two"))
    command = scene.work(source, "--concurrency", "2")
    scene.begun(first, last)
    [waits] = scene.enqueue("echo")
    command.send(number)
    command.says("stopping")
    scene.open("one")
    scene.done(first)
    assert command.code is None
    scene.open("two")
    assert command.end() == 0, command.log
    assert scene.states(last) == {"succeeded": 1}
    assert scene.states(waits) == {"queued": 1}


@pytest.mark.parametrize(("source", "number"), [("http", signal.SIGTERM), ("local", signal.SIGINT)])
def test_a_second_signal_gives_back_what_runs(scene: Scene, source: str, number: signal.Signals) -> None:
    """Nothing is counted, whatever it runs in; no process of it stays."""
    kinds = ("gated", "gated_async", "gated_in_process")
    jobs = [scene.enqueue(type)[0] for type in kinds]
    command = scene.work(source)
    pids = {run.pid for run in scene.begun(*jobs)}
    assert len(pids) == 2
    command.send(number)
    command.says("stopping")
    command.send(number)
    assert command.end() == 0, command.log
    for job in jobs:
        assert (scene.world.job(job).state, scene.world.job(job).failures) == ("queued", 0)
        assert [reason for *_, reason in scene.world.history(job)] == ["enqueue", "claim", "release"]
    until(lambda: not any(map(is_alive, pids)), "the end of its processes")


# -- kill -9 -----------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite-local", "sqlite-http", "postgresql-local", "mariadb-local"])
def crash(request: pytest.FixtureRequest, make_scene: MakeScene) -> tuple[Scene, str]:
    engine, _, source = request.param.partition("-")
    fixture = {"sqlite": "sqlite_url", "postgresql": "postgres_url", "mariadb": "mariadb_url"}[engine]
    return make_scene(request.getfixturevalue(fixture)), source


def test_a_worker_that_was_killed_takes_up_what_it_held(crash: tuple[Scene, str]) -> None:
    """By its name, long before its leases end; every job is processed once."""
    scene, source = crash
    [held] = scene.enqueue("gated", priority=9)
    jobs = scene.enqueue("echo", 60)
    killed = scene.work(source, "--name", "phoenix", "--concurrency", "4")
    scene.begun(held)
    until(lambda: len(scene.effects()) > 8, "some work done")
    killed.send(signal.SIGKILL)
    assert killed.end() == -signal.SIGKILL
    assert len(scene.effects()) < len(jobs), "it was killed too late"
    scene.open("gated")
    again = scene.work(source, "--name", "phoenix", "--concurrency", "4", "--burst")
    assert again.end() == 0, again.log
    assert scene.effects() == [held, *jobs]
    assert [(run.attempt, run.node) for run in scene.runs(held)] == [(1, "phoenix")] * 2
    assert len({run.pid for run in scene.runs(held)}) == 2


def test_another_worker_gets_its_jobs_when_their_leases_have_ended(scene: Scene) -> None:
    """As a new attempt; the one that was lost is a failure."""
    [held] = scene.enqueue("gated", max_attempts=2)
    killed = scene.local("--name", "first")
    scene.begun(held)
    killed.send(signal.SIGKILL)
    killed.end()
    scene.open("gated")
    scene.world.pass_time(601)
    assert scene.local("--name", "second", "--burst").end() == 0
    assert [(run.attempt, run.node) for run in scene.runs(held)] == [(1, "first"), (2, "second")]
    assert scene.effects() == [held]
    assert scene.world.job(held).failures == 1


# -- leaving by itself -------------------------------------------------------------------------


@both_sources
def test_it_leaves_after_so_many_jobs(scene: Scene, source: str) -> None:
    scene.enqueue("echo", 5)
    assert scene.work(source, "--max-jobs", "3").end() == 0
    assert scene.states() == {"succeeded": 3, "queued": 2}


@both_sources
def test_in_a_burst_it_leaves_when_there_is_nothing_left(scene: Scene, source: str) -> None:
    jobs = scene.enqueue("echo", 15)
    assert scene.work(source, "--burst").end() == 0
    assert scene.effects() == jobs


def test_a_number_is_worked_off(scene: Scene) -> None:
    """And fewer, when there are no more."""
    jobs = scene.enqueue("echo", 3)
    assert scene.run(*FLASK, "work-off", "2").end() == 0
    assert scene.effects() == jobs[:2]
    assert scene.run(*FLASK, "work-off", "2").end() == 0
    assert scene.effects() == jobs


# -- several processes -------------------------------------------------------------------------


def test_workers_that_leave_are_started_again(scene: Scene) -> None:
    """Handlers that leak are no harm: none keeps more than what its worker was to do."""
    jobs = scene.enqueue("leaks", 8)
    command = scene.local("--processes", "2", "--max-jobs", "2", "--concurrency", "1")
    scene.done()
    runs = scene.runs()
    assert max(run.leaked for run in runs) == 2
    assert len({run.pid for run in runs}) >= 4
    command.send(signal.SIGTERM)
    assert command.end() == 0, command.log
    assert scene.effects() == jobs


def _pair(scene: Scene, source: str) -> tuple[Command, list[int], dict[str, int]]:
    """Return a supervisor, the jobs its two workers are at, and these by name."""
    jobs = scene.enqueue("gated", 2)
    command = scene.work(source, "--processes", "2", "--name", "pair", "--concurrency", "1")
    workers = {run.node: run.pid for run in scene.begun(*jobs)}
    assert workers.keys() == {"pair-1", "pair-2"}
    return command, jobs, workers


@both_sources
def test_a_worker_that_is_killed_is_started_again(scene: Scene, source: str) -> None:
    """It takes up its job by its name; a signal to the parent ends all."""
    command, jobs, workers = _pair(scene, source)
    os.kill(workers["pair-1"], signal.SIGKILL)
    [victim] = {run.job for run in scene.runs() if run.node == "pair-1"}
    [again] = scene.begun(victim, times=2)
    assert (again.node, again.attempt) == ("pair-1", 1)
    assert again.pid != workers["pair-1"]
    command.says("pair-1 ended with 9")
    command.send(signal.SIGTERM)
    command.says("stopping", times=2)
    scene.open("gated")
    assert command.end() == 0, command.log
    assert scene.effects() == jobs
    assert not is_alive(again.pid)
    assert not is_alive(workers["pair-2"])


def test_workers_whose_parent_is_killed_finish_and_leave(scene: Scene) -> None:
    command, jobs, workers = _pair(scene, "local")
    command.send(signal.SIGKILL)
    until(lambda: command.log.count("has died: leaving") == 2, "their notice")
    scene.open("gated")
    until(lambda: not any(map(is_alive, workers.values())), "their end")
    assert scene.effects() == jobs


def test_several_processes_end_a_burst_together(scene: Scene) -> None:
    jobs = scene.enqueue("echo", 30)
    assert scene.local("--processes", "2", "--burst").end() == 0
    assert scene.effects() == jobs


# -- a server or a database that is away -------------------------------------------------------


def test_a_server_that_refuses_connections_is_waited_for(scene: Scene) -> None:
    """Before its first answer, and with a result that it has yet to hear of."""
    [job] = scene.enqueue("gated")
    scene.site.stop()
    command = scene.remote()
    command.says("again in", times=2)
    scene.site.start()
    scene.begun(job)
    scene.site.stop()
    scene.open("gated")
    command.says("again in", times=4)
    assert scene.effects() == []
    scene.site.start()
    scene.done(job)
    assert scene.effects() == [job]
    assert len(scene.runs(job)) == 1
    pauses = [float(pause) for pause in re.findall(r"again in ([\d.]+) s", command.log)]
    assert pauses[:2] == [0.2, 0.4]


def test_a_server_that_is_killed_costs_no_job(scene: Scene) -> None:
    """Every result is processed once, that whose answer was lost too."""
    jobs = scene.enqueue("echo", 100)
    program = (*GUNICORN[:-1], "worked:create_app()")
    server = Server(scene.url, program, **{URL: scene.url})
    try:
        server.start()
        command = scene.run(
            *JOBBER_WORKER, "worked_handlers", f"--server=http://127.0.0.1:{server.port}/jobber", "--burst"
        )
        for _ in range(2):
            enough = len(scene.effects()) + 10
            until(lambda: len(scene.effects()) >= enough, "some work done")  # noqa: B023
            server.kill()
            server.start()
        assert command.end() == 0, command.log
    finally:
        server.close()
    assert "again in" in command.log
    assert scene.effects() == jobs


def test_connections_that_are_ended_in_mid_work_cost_no_job(make_scene: MakeScene, postgres_url: str) -> None:
    """By the administrator, until the worker has felt it twice."""
    scene = make_scene(postgres_url)
    jobs = scene.enqueue("echo", 150)
    command = scene.local("--concurrency", "1", "--burst")
    scene.begun(jobs[0])

    def is_felt() -> bool:
        kill_connections(scene.world)
        engine_of(scene.world).dispose()
        return command.log.count("again in") >= 2

    until(is_felt, "a broken connection")
    assert len(scene.effects()) < len(jobs), "it was over before"
    assert command.end() == 0, command.log
    assert scene.effects() == jobs
    assert all(re.match(r"\d{4}-", line) for line in command.log.splitlines()), command.log


def test_a_database_that_is_away_is_waited_for(make_scene: MakeScene, mariadb_url: str) -> None:
    """Before it has ever been there, and with a result to tell."""
    scene = make_scene(mariadb_url)
    [job] = scene.enqueue("gated")
    with wire_to(mariadb_url) as wire:
        with wire.cut():
            command = scene.local(environ={URL: wire.url})
            command.says("again in", times=2)
        scene.begun(job)
        with wire.cut():
            scene.open("gated")
            command.says("again in", times=4)
        scene.done(job)
        command.send(signal.SIGTERM)
        assert command.end() == 0, command.log
    assert scene.effects() == [job]
    assert len(scene.runs(job)) == 1


def test_a_worker_that_waits_for_its_server_leaves_when_it_is_told_to(scene: Scene) -> None:
    """At once, when it has nothing to tell."""
    scene.site.stop()
    command = scene.remote()
    command.says("again in")
    command.send(signal.SIGTERM)
    assert command.end() == 0, command.log


# -- handlers that misbehave -------------------------------------------------------------------


class Aftermath(t.NamedTuple):
    """What one worker has left of jobs that misbehave, each of a type."""

    scene: Scene
    jobs: dict[str, int]
    code: int
    log: str


@pytest.fixture(scope="module", params=SOURCES)
def aftermath(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> t.Iterator[Aftermath]:
    folder = tmp_path_factory.mktemp("aftermath")
    scene = Scene(f"sqlite:///{folder / 'test.db'}", folder)
    types = ("spins", "blocks_in_process", "dies", "lone", "echo")
    jobs = {type: scene.enqueue(type, priority=-n)[0] for n, type in enumerate(types)}
    try:
        command = scene.work(request.param, "--burst", "--concurrency", "1")
        yield Aftermath(scene, jobs, command.end(), command.log)
    finally:
        scene.close()


@pytest.mark.parametrize("type", ["spins", "blocks_in_process"])
def test_a_handler_that_never_returns_is_ended(aftermath: Aftermath, type: str) -> None:
    """In a thread that goes round for ever, and in a process that waits outside of Python."""
    job = aftermath.jobs[type]
    assert aftermath.scene.states(job) == {"failed": 1}
    error = aftermath.scene.error(job)
    assert (error["type"], error["message"]) == ("RanTooLong", "It ran longer than its 0.2 seconds.")
    assert not any(is_alive(run.pid) for run in aftermath.scene.runs(job))


def test_a_process_that_dies_is_a_failure(aftermath: Aftermath) -> None:
    error = aftermath.scene.error(aftermath.jobs["dies"])
    assert error["type"] == "ProcessDied"
    assert "ended with code 3" in error["message"]


def test_the_worker_goes_on_after_all_of_them(aftermath: Aftermath) -> None:
    """With the same slot, in a new process, and leaves with 0."""
    lone, echo = aftermath.jobs["lone"], aftermath.jobs["echo"]
    assert aftermath.scene.effects() == [lone, echo]
    inside, here = (aftermath.scene.runs(job)[0].pid for job in (lone, echo))
    assert inside != here
    assert not is_alive(inside)
    assert aftermath.code == 0, aftermath.log


def test_a_worker_all_of_whose_slots_are_stuck_leaves(scene: Scene) -> None:
    """With 1; its jobs have failed, and what it has no slot for is left to others."""
    jobs = scene.enqueue("blocks", 2)
    [other] = scene.enqueue("echo", priority=-1)
    command = scene.local("--concurrency", "2")
    assert command.end() == 1, command.log
    assert "every slot is kept" in command.log
    assert [scene.error(job)["type"] for job in jobs] == ["RanTooLong"] * 2
    assert scene.states(other) == {"queued": 1}


def test_a_process_that_finds_no_handlers_says_why(scene: Scene) -> None:
    """The job fails for that reason, and the worker goes on."""
    [job], [other] = scene.enqueue("lone", priority=1), scene.enqueue("echo")
    command = scene.local("--burst", "--concurrency", "1", environ={BROKEN: "1"})
    assert command.end() == 0, command.log
    error = scene.error(job)
    assert (error["type"], error["message"]) == ("RuntimeError", "the disk with the handlers is gone")
    assert scene.effects() == [other]


# -- wrong use ---------------------------------------------------------------------------------

_SERVER = "--server=http://127.0.0.1:9/jobber"
_REMOTE = (*JOBBER_WORKER, "worked_handlers", _SERVER)
_UNFIT = {
    "type": ((*FLASK, "work", "--types", "echo,nothing"), 78, "There is no handler for nothing."),
    "processes": ((*FLASK, "work", "--types", "nothing", "--processes", "2"), 78, "no handler for nothing."),
    "remote type": ((*_REMOTE, "--types", "nothing"), 78, "There is no handler for nothing."),
    "no handlers": ((*JOBBER_WORKER, "worked_handlers:nothing", _SERVER), 78, "There are no handlers"),
    "jobber": ((*FLASK, "work", "--jobber", "absent"), 2, "no Jobber 'absent'"),
    "number": ((*FLASK, "work-off", "2", "--processes", "2"), 2, "No such option"),
    "no module": ((*JOBBER_WORKER, "absent", _SERVER), 2, "No module named 'absent'"),
}


@pytest.fixture(scope="module")
def unfit(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[dict[str, Command]]:
    """Workers that cannot work, started at once."""
    folder = tmp_path_factory.mktemp("unfit")
    scene = Scene(f"sqlite:///{folder / 'test.db'}", folder)
    try:
        yield {name: scene.run(*command) for name, (command, _, _) in _UNFIT.items()}
    finally:
        scene.close()


@pytest.mark.parametrize("why", _UNFIT)
def test_a_worker_that_cannot_work_says_why(unfit: dict[str, Command], why: str) -> None:
    """By a message, not by a traceback; 78 is for those who start it again and again."""
    command, (_, code, words) = unfit[why], _UNFIT[why]
    assert command.end() == code, command.log
    assert words in command.log
    assert "Traceback" not in command.log


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("worked_handlers:LIMIT", _SERVER), "worked_handlers:LIMIT is no Handlers, but 120.0"),
        (("worked_handlers:absent", _SERVER), "has no attribute 'absent'"),
        ((":handlers", _SERVER), "':handlers' is no MODULE:HANDLERS"),
        ((".worked_handlers", _SERVER), "'.worked_handlers' is no MODULE:HANDLERS"),
        (("worked_handlers",), "say --server"),
        (("worked_handlers", "--server=nonsense"), "--server: "),
        (("worked_handlers", "--server=ftp://there/jobber"), "--server: "),
        (("worked_handlers", _SERVER, "--header=nonsense"), "'nonsense' is no NAME:VALUE"),
        (("worked_handlers", _SERVER, "--header=a b:c"), "'a b:c' is no NAME:VALUE"),
        (("worked_handlers", _SERVER, "--token=secret\n"), "is there a line's end in it?"),
        (("worked_handlers", _SERVER, "--types=no,such name"), "not names with commas between them"),
        (("worked_handlers", _SERVER, "--name=no name"), "--name"),
        (("worked_handlers", _SERVER, "--max-jobs=0"), "--max-jobs"),
    ],
)
def test_wrong_use_is_told(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], words: str) -> None:
    monkeypatch.setattr(sys, "path", sys.path[:])
    told = CliRunner().invoke(jobber_worker, arguments)
    assert told.exit_code == 2, told.output
    assert words in told.output
    assert "secret" not in told.output


def test_threads_that_would_share_a_connection_are_refused(scene: Scene) -> None:
    """Such as an app has in its tests."""
    command = scene.local(environ={URL: "sqlite://"})
    assert command.end() == 78
    assert re.match("Error: All threads share one connection", command.log)


def test_a_login_that_is_refused_is_told(scene: Scene) -> None:
    [job] = scene.enqueue("echo")
    command = scene.remote(environ={"JOBBER_TOKEN": ""})
    assert command.end() == 1
    assert re.search(rf"ERROR {scene.server}: .*(unauthorized|log ?in)", command.log, re.IGNORECASE), (
        command.log
    )
    assert "Traceback" not in command.log
    assert scene.states(job) == {"queued": 1}


# -- what it shows -----------------------------------------------------------------------------


@contextlib.contextmanager
def _terminal() -> t.Iterator[tuple[int, t.Callable[[], str]]]:
    """Give a terminal to write to, and what tells all that has been written."""
    near, far = os.openpty()
    os.set_blocking(near, False)
    written: list[bytes] = []

    def read() -> str:
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(near, 10_000):
                written.append(chunk)
        return b"".join(written).decode()

    try:
        yield far, read
    finally:
        os.close(near)
        os.close(far)


def test_in_a_terminal_a_burst_shows_a_bar(scene: Scene) -> None:
    scene.enqueue("echo", 3)
    [last] = scene.enqueue("gated", priority=-1)
    with _terminal() as (terminal, read):
        command = scene.local("--burst", stderr=terminal)
        until(lambda: f"\r[{'#' * 18}{'.' * 6}] 3/4 3 done, 0 failed, " in read(), "three of four")
        scene.open("gated")
        assert command.end() == 0
        assert f"[{'#' * 24}] 4/4 4 done, 0 failed, " in read()
    assert scene.states(last) == {"succeeded": 1}


def test_in_a_terminal_it_shows_how_it_stands(scene: Scene) -> None:
    scene.enqueue("echo", 3)
    with _terminal() as (terminal, read):
        command = scene.local(stderr=terminal)
        until(lambda: re.search(r"\r3 done, 0 failed, \d+\.\d/s, 0 running", read()), "the line")
        command.send(signal.SIGTERM)
        assert command.end() == 0
        assert "[#" not in read()
        assert read().endswith("\r\n")


def test_elsewhere_it_writes_lines_of_a_log(scene: Scene) -> None:
    [job] = scene.enqueue("gated")
    command = scene.local()
    scene.begun(job)
    command.send(signal.SIGTERM)
    command.says("stopping")
    scene.open("gated")
    assert command.end() == 0
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d [\d:,]+ WARNING stopping: [^\r\n]+\n)", command.log)


_WHAT = "name types queues min-priority max-priority concurrency"
_ALL = f"{_WHAT} processes max-jobs burst"


@pytest.mark.parametrize(
    ("command", "names"), [(work, _ALL), (jobber_worker, _ALL), (work_off, _WHAT)], ids=str
)
def test_the_commands_have_the_options_of_workers(command: click.Command, names: str) -> None:
    """A number is worked off by one process, so work-off has those only that say which jobs."""
    assert {f"--{name}" for name in names.split()} <= {name for one in command.params for name in one.opts}
