"""The ways by which news travels between processes: PostgreSQL, Redis, sockets beside an SQLite file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
import typing as t

import pytest
import redis
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeWorld, missing
from flask_jobber import SetupError
from flask_jobber.core.news import Fresh, News
from flask_jobber.wakeup.redis import Redis, find_broker
from flask_jobber.wakeup.sqlite import Sqlite, file_of
from flask_jobber.wakeup.transport import Transport
from race_support import LIMIT, start, until
from served import Remote, Server
from streamed import Stream
from support import World

#: Seconds that an answer may take; without news it comes after PATIENCE.
SOON, PATIENCE = 3.0, 30
#: No look is in time.
RARELY = 3_000


class RedisServer:
    """A Redis of a test's own, stopped and started at will."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._path, self._folder = str(folder / "redis.sock"), folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["redis-server", "--port", str(self.port), "--unixsocket", self._path, "--save", ""]
        self._process = subprocess.Popen(
            [*command, "--dir", str(self._folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._is_up, "Redis")

    def _is_up(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, *command: str) -> t.Any:
        with redis.Redis(port=self.port, protocol=2) as client:
            return client.execute_command(*command)

    def subscribers(self) -> int:
        [channel] = self.ask("PUBSUB", "CHANNELS") or [b"none"]
        return int(self.ask("PUBSUB", "NUMSUB", channel)[1])


@pytest.fixture
def redis_server(tmp_path: pathlib.Path) -> t.Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        missing("redis-server")
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


class Way(t.NamedTuple):
    """A database, and the settings for one way."""

    url: str
    config: dict[str, t.Any]


def by(request: pytest.FixtureRequest, name: str) -> Way:
    engine, _, broker = name.partition("+")
    config: dict[str, t.Any] = {"JOBBER_IDLE_SECONDS": RARELY, "JOBBER_LEASE_SECONDS": RARELY}
    if broker:
        config["JOBBER_WAKEUP_URL"] = request.getfixturevalue("redis_server").url
    return Way(request.getfixturevalue(f"{engine}_url"), config)


@pytest.fixture(params=["postgres", "sqlite", "sqlite+redis", "mariadb+redis", "postgres+redis"])
def way(request: pytest.FixtureRequest) -> Way:
    return by(request, request.param)


@pytest.fixture(params=["sqlite", "sqlite+redis"])
def light_way(request: pytest.FixtureRequest) -> Way:
    return by(request, request.param)


class Served:
    """An app that another process serves, on the database of a world of this one."""

    def __init__(self, way: Way, world: World) -> None:
        self.world = world
        self.server = Server(way.url, SERVED_CONFIG=json.dumps(way.config))
        self.client = Remote(self.server.port, "ann")

    def wait(self) -> t.Any:
        """Let a claim wait there; return its future."""
        answer = start(lambda: self.client.claim(wait_seconds=PATIENCE))
        until(lambda: self.state()["waiting"], "a claim that waits")
        return answer

    def state(self) -> dict[str, int]:
        return t.cast(dict[str, int], self.client.expect(200, "GET", "/waiting"))

    def answers(self, answer: t.Any, within: float = SOON) -> None:
        """Enqueue here; the claim there is answered with it."""
        began = time.monotonic()
        job_id = self.world.enqueue()
        assert [job["id"] for job in answer.result(LIMIT)] == [job_id]
        assert time.monotonic() - began < within


Serve = t.Callable[[Way], Served]


@pytest.fixture
def serve(make_world: MakeWorld) -> t.Iterator[Serve]:
    made: list[Served] = []

    def serve(way: Way) -> Served:
        served = Served(way, make_world(way.url, scoped=False, **way.config))
        made.append(served)
        served.server.start()
        return served

    yield serve
    for served in made:
        served.server.close()


@pytest.fixture
def patient(make_world: MakeWorld) -> t.Iterator[t.Callable[[Way], World]]:
    """Make worlds in which claims wait in this process."""
    made: list[World] = []

    def make(way: Way) -> World:
        world = make_world(way.url, scoped=False, JOBBER_MAX_WAITERS=10, **way.config)
        made.append(world)
        return world

    yield make
    for world in made:
        close(world)


def wakeup(world: World) -> t.Any:
    with world.app.app_context():
        return world.jobber.wakeup


def close(world: World) -> None:
    """End the thread that listens."""
    one = wakeup(world)
    thread = one._thread
    one.close()
    if thread is not None:
        thread.join(LIMIT)


def wait_here(world: World) -> t.Any:
    answer = start(lambda: world.client().claim(wait_seconds=PATIENCE))
    one = wakeup(world)
    until(lambda: one._ear is not None and one._full > 0 and looked(world), "a claim that waits")
    return answer


def looked(world: World) -> bool:
    return [one.looking for one in list(wakeup(world).room._waiters)] == [None]


def soon(answer: t.Any, began: float) -> t.Any:
    [job] = answer.result(LIMIT)
    assert time.monotonic() - began < SOON
    return job


# -- two processes ---------------------------------------------------------------------------


def test_another_process_is_heard(way: Way, serve: Serve) -> None:
    served = serve(way)
    served.answers(served.wait())


def test_a_stream_hears_of_what_another_server_does(way: Way, serve: Serve) -> None:
    """At once, as whoever changes jobs sees a sign that somebody watches, which goes with that server."""
    watches, other = serve(way), serve(way)
    stream = Stream(watches.server.port, "/events", {"Authorization": "Bearer ann"})
    with contextlib.closing(stream), watches.world.app.app_context():
        transport, store = watches.world.jobber.wakeup.transport, watches.world.jobber.store()
        until(lambda: transport.is_watched(store), "a sign that somebody watches")
        watches.world.db.session.rollback()
        began = time.monotonic()
        [job_id] = [other.client.expect(201, "POST", "/jobs", {"type": "work"})["id"]]
        stream.job(job_id, state="queued")
        [job] = other.client.claim()
        stream.job(job_id, state="locked", attempt=job["attempt"])
        assert time.monotonic() - began < SOON
        watches.server.stop()
        other.client.expect(201, "POST", "/jobs", {"type": "work"})  # nobody hears it
        until(lambda: not transport.is_watched(store), "the end of the sign")


def test_a_roll_back_wakes_nobody(way: Way, serve: Serve) -> None:
    """As many statements are made when a roll-back came before: messages keep their order."""
    served = serve(way)
    served.answers(served.wait())
    counts = []
    for rolled_back in (0, 3):
        answer = served.wait()
        before = served.state()["statements"]
        for _ in range(rolled_back):
            with served.world.app.app_context():
                served.world.jobber.enqueue("work")
                served.world.db.session.flush()
                served.world.db.session.rollback()
        served.answers(answer)
        counts.append(served.state()["statements"] - before)
    assert counts[0] == counts[1] > 0


def test_what_came_before_it_listened_is_found(way: Way, patient: t.Callable[[Way], World]) -> None:
    """A job of the moment between the waiter's look and the first message that could be heard."""
    world = patient(way)
    transport = wakeup_transport(world)
    listen = transport.listen

    def late() -> t.Any:
        until(lambda: looked(world), "a claim that has looked")
        other.enqueue()
        return listen()

    other = World(way.url, scoped=False, **way.config)
    transport.listen = late  # type: ignore[method-assign]
    began = time.monotonic()
    try:
        soon(start(lambda: world.client().claim(wait_seconds=PATIENCE)), began)
    finally:
        dispose(other)


def wakeup_transport(world: World) -> Transport:
    with world.app.app_context():
        return t.cast(Transport, world.jobber.wakeup.transport)


def dispose(world: World) -> None:
    with world.app.app_context():
        world.db.session.remove()
        world.db.engine.dispose()


# -- PostgreSQL ------------------------------------------------------------------------------


def test_postgres_that_ends_the_connection_costs_a_moment(
    request: pytest.FixtureRequest, serve: Serve
) -> None:
    served = serve(by(request, "postgres"))
    answer = served.wait()
    end = sa.text(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    )
    with served.world.session() as session:
        assert session.scalars(end).all() == [True]
    served.answers(answer)
    served.answers(served.wait())


# -- Redis -----------------------------------------------------------------------------------


def test_redis_that_ends_the_connection_costs_a_moment(
    request: pytest.FixtureRequest, serve: Serve, redis_server: RedisServer
) -> None:
    served = serve(by(request, "sqlite+redis"))
    answer = served.wait()
    assert redis_server.ask("CLIENT", "KILL", "TYPE", "pubsub") == 1
    served.answers(answer)
    served.answers(served.wait())


def test_no_job_is_lost_while_redis_is_away(
    request: pytest.FixtureRequest, serve: Serve, redis_server: RedisServer, caplog: t.Any
) -> None:
    """Who waits looks now and then, and hears again once Redis is back."""
    served = serve(by(request, "sqlite+redis"))
    answer = served.wait()
    redis_server.stop()
    with caplog.at_level(logging.WARNING, "flask_jobber"):
        served.answers(answer, within=10)
    assert "Redis was not told of new jobs" in caplog.text
    answer = served.wait()
    redis_server.start()
    until(redis_server.subscribers, "a subscriber")
    served.answers(answer)


def test_ones_own_process_hears_without_redis(
    request: pytest.FixtureRequest, patient: t.Callable[[Way], World], redis_server: RedisServer
) -> None:
    redis_server.stop()
    world = patient(by(request, "sqlite+redis"))
    transport = wakeup_transport(world)
    transport._fails = 10  # type: ignore[attr-defined]
    answer = wait_here(world)
    began = time.monotonic()
    world.enqueue()
    soon(answer, began)


def test_timers_go_on_without_redis(
    request: pytest.FixtureRequest, patient: t.Callable[[Way], World], redis_server: RedisServer
) -> None:
    redis_server.stop()
    world = patient(by(request, "sqlite+redis"))
    wakeup_transport(world)._fails = 10  # type: ignore[attr-defined]
    answer = wait_here(world)
    began = time.monotonic()
    world.enqueue(after=1)
    soon(answer, began)


def test_what_redis_was_not_told_is_made_up_for(redis_server: RedisServer) -> None:
    """With the next message everybody is told to look for more."""
    sender, listener = Redis(find_broker(redis_server.url), "c"), Redis(find_broker(redis_server.url), "c")
    redis_server.stop()
    sender.say("lost")
    redis_server.start()
    with heard(listener) as ear:
        sender.say("one")
        sender.say("two")
        assert take(ear, 3) == ["one", News(more=True, unnamed=True).write(), "two"]


def test_redis_by_a_socket(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    url = f"unix://{tmp_path / 'redis.sock'}?db=1"
    sender, listener = Redis(find_broker(url), "c"), Redis(find_broker(url), "c")
    with heard(listener) as ear:
        sender.say("one")
        assert take(ear, 1) == ["one"]


def test_more_than_is_read_at_a_time(redis_server: RedisServer) -> None:
    sender, listener = Redis(find_broker(redis_server.url), "c"), Redis(find_broker(redis_server.url), "c")
    with heard(listener) as ear:
        for number in range(1_010):
            sender.say(str(number))
        began = time.monotonic()
        assert take(ear, 1_010) == [str(number) for number in range(1_010)]
        assert time.monotonic() - began < SOON


@pytest.mark.parametrize("url", ["amqp://ann:secret@host", "host:6379", "redis:/", 5, "redis://host:port/0"])
def test_other_urls_are_refused_at_the_start(url: t.Any) -> None:
    with pytest.raises(SetupError, match="JOBBER_WAKEUP_URL") as refused:
        World("sqlite://", JOBBER_WAKEUP_URL=url)
    assert "secret" not in str(refused.value)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ImportError, match=r"flask-jobber\[redis\]"):
        World("sqlite://", JOBBER_WAKEUP_URL="redis://localhost")


def test_two_databases_in_one_redis_have_channels_of_their_own(redis_server: RedisServer) -> None:
    def channel(url: str) -> str:
        world = World(url, JOBBER_WAKEUP_URL=redis_server.url)
        return t.cast(str, wakeup_transport(world)._channel)  # type: ignore[attr-defined]

    one, other, moved = map(channel, ("sqlite:////tmp/a.db", "sqlite:////tmp/b.db", "sqlite:////srv/a.db"))
    assert one == moved != other


# -- each way --------------------------------------------------------------------------------

Make = t.Callable[[], t.Any]


@pytest.fixture(params=["redis", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Make:
    """Make transports of one way, each as if of another process."""
    if request.param == "sqlite":
        return lambda: Sqlite(str(database(tmp_path)), "job", RARELY)
    url = request.getfixturevalue("redis_server").url
    return lambda: Redis(find_broker(url), "channel")


def database(folder: pathlib.Path) -> pathlib.Path:
    file = folder / "test.db"
    file.touch()
    return file


class heard:
    """An ear, closed at the end."""

    def __init__(self, transport: Transport) -> None:
        self._ear = transport.listen()

    def __enter__(self) -> t.Any:
        return self._ear

    def __exit__(self, *exc_info: object) -> None:
        self._ear.close()


def take(ear: t.Any, number: int) -> list[str]:
    """Return what is heard, once it is so much."""
    told: list[str] = []
    until(lambda: told.extend(ear.wait(LIMIT)) or len(told) >= number, f"{number} messages")
    return told


def test_nothing_is_heard_twice(make: Make) -> None:
    transport, other = make(), make()
    with heard(transport) as ear, heard(other) as others:
        transport.say("mine")
        other.say("its")
        assert take(ear, 2) == ["mine", "its"]
        assert sorted(take(others, 2)) == ["its", "mine"]
        assert ear.wait(0) == others.wait(0) == []


def test_a_wait_ends_when_it_is_stirred(make: Make) -> None:
    with heard(make()) as ear:
        answer = start(lambda: ear.wait(None))
        ear.stir()
        assert answer.result(LIMIT) == []


def test_a_fork_is_another_process(make: Make, request: pytest.FixtureRequest) -> None:
    """What it says is not taken for one's own, nor are its parent's ears for its own."""
    program = """
import os, sys
from flask_jobber.wakeup.redis import Redis, find_broker
from flask_jobber.wakeup.sqlite import Sqlite
way, where = sys.argv[1:]
transport = Redis(find_broker(where), "c") if way == "redis" else Sqlite(where, "job", 60)
ear = transport.listen()
if (child := os.fork()) == 0:
    transport.say("from a fork")
    os._exit(0)
os.waitpid(child, 0)
while not (told := ear.wait(30)):
    pass
ear.close()
print(told)
"""
    one = make()
    where = one._file if isinstance(one, Sqlite) else request.getfixturevalue("redis_server").url
    command = [sys.executable, "-c", program, "sqlite" if isinstance(one, Sqlite) else "redis", where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=True)
    assert done.stdout.strip() == "['from a fork']"


def test_it_is_said_to_whoever_is_left(make: Make) -> None:
    transport = make()
    with heard(make()) as ear:
        with heard(make()):
            pass
        transport.say("one")
        assert take(ear, 1) == ["one"]


def test_garbage_ends_no_thread(light_way: Way, patient: t.Callable[[Way], World]) -> None:
    """The thread that listens lives on, with the connection it has."""
    world = patient(light_way)
    answer = wait_here(world)
    thread, ear, other = wakeup(world)._thread, wakeup(world)._ear, World(light_way.url, **light_way.config)
    transport = wakeup_transport(other)
    for text in GARBAGE:
        transport.say(text)
    for raw in (b"", b"\xff\xfe", b"x" * 100_000):
        shout(transport, raw)
    began = time.monotonic()
    other.enqueue()
    soon(answer, began)
    dispose(other)
    assert (wakeup(world)._thread, wakeup(world)._ear) == (thread, ear)


def shout(transport: t.Any, raw: bytes) -> None:
    """Send what no transport would."""
    if isinstance(transport, Redis):
        transport._broker.publish(transport._channel, raw)
        return
    for path in pathlib.Path(f"{transport._file}-wakeup").iterdir():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            one.sendto(raw, str(path))


# -- sockets beside an SQLite file -----------------------------------------------------------


def sockets(file: pathlib.Path) -> list[str]:
    return os.listdir(f"{file}-wakeup")


def test_a_socket_goes_with_who_listens(tmp_path: pathlib.Path) -> None:
    file = database(tmp_path)
    with heard(Sqlite(str(file), "job", RARELY)):
        [name] = sockets(file)
        assert name.startswith(f"job.{os.getpid()}-")
    assert sockets(file) == []


def test_sockets_of_the_killed_are_removed(
    request: pytest.FixtureRequest, serve: Serve, tmp_path: pathlib.Path
) -> None:
    served = serve(by(request, "sqlite"))
    start(lambda: served.client.ask("POST", "/claims", {"wait_seconds": PATIENCE}))
    until(lambda: served.state()["waiting"], "a claim that waits")
    served.server.kill()
    assert len(sockets(tmp_path / "test.db")) == 1
    served.world.enqueue()
    assert sockets(tmp_path / "test.db") == []
    served.server.start()
    assert len(served.client.claim()) == 1
    served.answers(served.wait())


def test_a_path_too_long_for_a_socket(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    file = str(database(folder))
    with heard(Sqlite(file, "job", RARELY)) as ear:
        assert len(sockets(pathlib.Path(file))) == 1
        Sqlite(file, "job", RARELY).say("one")
        assert take(ear, 1) == ["one"]


def test_a_queue_that_was_full_makes_it_look(tmp_path: pathlib.Path) -> None:
    """Some datagrams did not get in: what they told may be anything."""
    file = str(database(tmp_path))
    sender = Sqlite(file, "job", RARELY)
    with heard(Sqlite(file, "job", RARELY)) as ear:
        for number in range(2_000):
            sender.say(str(number))
        assert ear.wait(0)[-1] == News(more=True, unnamed=True).write()
        sender.say("one")
        assert take(ear, 1)[-1] == "one" or ear.wait(0)


def test_without_a_folder_it_looks_now_and_then(tmp_path: pathlib.Path, caplog: t.Any) -> None:
    """Which is said once; and it goes on with sockets once it can."""
    file = database(tmp_path)
    in_the_way = tmp_path / "test.db-wakeup"
    in_the_way.touch()
    transport = Sqlite(str(file), "job", 5)
    for _ in range(2):
        with heard(transport) as ear:
            transport.say("one")
            assert take(ear, 1) == ["one"]
            assert transport.look_every == 5
    said = [record.message for record in caplog.records if record.action == "listen"]
    assert len(said) == 1
    assert "looked for every 5 s" in said[0]
    in_the_way.unlink()
    with heard(transport):
        assert transport.look_every is None


@pytest.mark.parametrize(
    ("above", "file", "folder"),
    [(0o755, 0o644, 0o700), (0o775, 0o664, 0o770), (0o775, 0o644, 0o700), (0o1777, 0o666, 0o1777)],
)
def test_sockets_are_for_those_who_may_write_the_database(
    tmp_path: pathlib.Path, above: int, file: int, folder: int
) -> None:
    path = database(tmp_path)
    path.chmod(file)
    tmp_path.chmod(above)
    with heard(Sqlite(str(path), "job", RARELY)):
        [name] = sockets(path)
        made = tmp_path / "test.db-wakeup"
        assert stat.S_IMODE(made.stat().st_mode) == folder
        assert stat.S_IMODE((made / name).stat().st_mode) == folder & 0o666


def test_a_folder_that_somebody_else_has_made_is_not_used(tmp_path: pathlib.Path, caplog: t.Any) -> None:
    if os.geteuid() != 0:
        missing("root")
    file = database(tmp_path)
    (tmp_path / "test.db-wakeup").mkdir()
    os.chown(tmp_path / "test.db-wakeup", 12345, -1)
    tmp_path.chmod(0o1777)
    transport = Sqlite(str(file), "job", 5)
    with heard(transport):
        assert transport.look_every == 5
        transport.say("one")
    assert caplog.text.count("it belongs to somebody else") == 2


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("sqlite:////srv/a.db", "/srv/a.db"),
        (sa.URL.create("sqlite", database="file:/srv/a%20b.db", query={"uri": "true"}), "/srv/a b.db"),
        ("sqlite:///file:/srv/a.db?mode=ro&uri=true", "/srv/a.db"),
        ("sqlite:///file:///srv/a.db?uri=true", "/srv/a.db"),
        ("sqlite:///file:name?mode=memory&cache=shared&uri=true", None),
        ("sqlite:///file::memory:?uri=true", None),
        ("sqlite:///a.db", os.path.realpath("a.db")),
    ],
)
def test_what_file_a_url_means(url: str | sa.URL, file: str | None) -> None:
    assert file_of(sa.make_url(url)) == file


@pytest.mark.parametrize("form", ["test.db", "file:{folder}/test.db?uri=true", "file:test.db?uri=true"])
def test_every_url_of_a_file_is_the_same_to_it(
    form: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """Also those that are relative to the instance folder, as the database itself."""
    monkeypatch.chdir(tmp_path)
    world = World(f"sqlite:///{form.format(folder=tmp_path)}")
    with world.app.app_context():
        transport = wakeup_transport(world)
        world.db.session.execute(sa.text("SELECT 1"))
        [row] = world.db.session.execute(sa.text("PRAGMA database_list")).all()
        assert transport._file == row.file  # type: ignore[attr-defined]
    dispose(world)


# -- the text --------------------------------------------------------------------------------

NESTED = "[" * 50_000 + "]" * 10
GARBAGE = [
    "", "\0", "{", "null", "5", "[]", '"x"', "{}", NESTED, '{"jobs": ' + NESTED, "{" * 60_000, "1" * 60_000,
    '{"due": NaN}', '{"due": -1}', '{"due": Infinity}', '{"due": 1e999}', '{"due": true}', '{"due": "1"}',
    '{"due": 1e300}', '{"due": 1' + "0" * 400 + "}", '{"more": 1}', '{"more": null}', '{"left": "ann"}',
    '{"left": [1]}', '{"left": {"ann": 1}}', '{"changed": [0]}', '{"changed": [true]}', '{"changed": ["1"]}',
    '{"changed": [1' + "0" * 30 + "]}", '{"jobs": {}}', '{"jobs": [[]]}', '{"jobs": ["abcdefg"]}',
    '{"other": 1}', '{"more": true}' + " " * 70_000, "\ufffd",
    *(json.dumps({"jobs": [facts]}) for facts in (
        ["work", "default", 0, None, [], [], 0],
        ["work", "default", 0, None, [], [], 0, 1],
        ["work", "default", 0, None, [], [], 0, []],
        ["work", "default", 0, None, [], [], 0, [1]],
        ["work", "default", 0, None, [], [], 0, [0, 1]],
        ["work", "default", 0, None, [], [], 0, [1, True]],
        ["work", "default", 0, None, [], [], 0, [2, 1]],
        ["work", "default", 0, None, [], [], 0, [1, 2**63 - 1]],
        ["work", "default", 0, None, [], [], 0, [1, 2**63]],
        ["work", "default", 0, None, [], [], 0, [1, 1], 1],
        ["work", "default", 0, None, [], [], 1.5, [1, 1]],
        ["work", "default", "0", None, [], [], 0, [1, 1]],
        ["work", "default", 10**30, None, [], [], 0, [1, 1]],
        ["work", "default", 0, 7, [], [], 0, [1, 1]],
        ["work", "default", 0, None, "ann", [], 0, [1, 1]],
        ["work", "default", 0, None, [], [[]], 0, [1, 1]],
        ["work", "default", 0, None, [], [True], 0, [1, 1]],
        [None, "default", 0, None, [], [], 0, [1, 1]],
    )),
]  # fmt: skip

names = st.text(max_size=20)
leads = st.one_of(st.none(), st.just(False), names)
fresh = st.builds(
    Fresh,
    type=names,
    queue=names,
    priority=st.integers(-(2**31), 2**31),
    only_for=st.none() | names,
    not_for=st.lists(names, max_size=3).map(tuple),
    leads=st.lists(t.cast(t.Any, leads), max_size=3).map(tuple),
    attempts=st.integers(0, 2**31),
)
ids = st.sets(st.integers(1, 20) | st.integers(1, 2**63 - 1), min_size=1, max_size=20).map(sorted).map(tuple)
news = st.builds(
    News,
    jobs=st.dictionaries(fresh, ids, max_size=5),
    more=st.booleans(),
    due=st.none() | st.floats(0, 1e9),
    wish=st.none() | st.floats(0, 1e9),
    left=st.lists(names, max_size=3).map(tuple),
    changed=st.lists(st.integers(1, 2**63 - 1), max_size=3).map(tuple),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=20,
)


@st.composite
def nearly_news(draw: t.Callable[[t.Any], t.Any]) -> str:
    """News of which one part is anything: a field, or a fact of the one kind of job."""
    facts = [*dataclasses.astuple(draw(fresh)), [1, 3]]
    said = {**json.loads(draw(news).write()), "jobs": [facts]}
    part = draw(st.sampled_from([*range(len(facts)), "jobs", "more", "due", "wish", "left", "changed"]))
    value = draw(json_values)
    if isinstance(part, int):
        facts[part] = value
    return json.dumps(said if isinstance(part, int) else {**said, part: value})


@given(news)
def test_news_is_read_as_it_was_written(said: News) -> None:
    assert News.read(said.write()) == said


@given(st.one_of(st.text(), json_values.map(json.dumps), nearly_news()))
def test_whatever_is_read_makes_sense_or_is_refused(text: str) -> None:
    try:
        said = News.read(text)
    except ValueError:
        return
    check(said)


def check(said: News) -> None:
    """It is what its annotations say, and within bounds."""
    assert isinstance(said.more, bool)
    assert said.due is None or (math.isfinite(said.due) and 0 <= said.due <= 1e12)
    assert all(isinstance(user, str) for user in said.left)
    assert all(type(id) is int and 0 < id < 2**63 for id in said.changed)
    kinds = {"priority": int, "attempts": int, "not_for": tuple, "leads": tuple, "only_for": str | None}
    for one, its in said.jobs.items():
        assert all(type(id) is int and 0 < id < 2**63 for id in its)
        assert 0 < len(its) <= 1000
        for name, value in dataclasses.asdict(one).items():
            assert isinstance(value, kinds.get(name, str))
        assert all(lead is None or lead is False or isinstance(lead, str) for lead in one.leads)


@pytest.mark.parametrize("text", GARBAGE)
def test_garbage_is_no_news(text: str) -> None:
    if text == "{}":
        assert not News.read(text)
    else:
        with pytest.raises(ValueError, match="no news"):
            News.read(text)


def test_a_thread_waits_as_long_as_it_is_told(make_world: MakeWorld, sqlite_url: str) -> None:
    """Though the system knows of no wait of years."""
    years = 3e9
    config = {"JOBBER_LEASE_SECONDS": years, "JOBBER_MAX_LEASE_SECONDS": years, "JOBBER_MAX_WAITERS": 1}
    world = make_world(sqlite_url, scoped=False, **config)
    answer, began = wait_here(world), time.monotonic()
    thread: threading.Thread = wakeup(world)._thread
    world.enqueue()
    soon(answer, began)
    assert (wakeup(world)._thread, wakeup(world)._fails) == (thread, 0)
    close(world)
