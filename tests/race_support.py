"""Threads that meet: started together, seen while they wait for a lock, joined within a limit."""

from __future__ import annotations

import contextlib
import pathlib
import re
import threading
import time
import typing as t
from concurrent.futures import Future

import sqlalchemy as sa

from support import World

T = t.TypeVar("T")
#: Seconds after which whatever a test waits for will not come.
LIMIT = 60.0

_WAITS = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
_CLIENTS = "SELECT id FROM information_schema.processlist WHERE db = database()"


def until(holds: t.Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    pause, deadline = threading.Event(), time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline, f"never came: {what}"
        pause.wait(0.01)


def ask_until(suits: t.Callable[[T], object], ask: t.Callable[[], T], what: str) -> T:
    """Ask until the answer suits; return it."""
    answers = [ask()]

    def again() -> object:
        if not suits(answers[-1]):
            answers.append(ask())
        return suits(answers[-1])

    until(again, what)
    return answers[-1]


def start(function: t.Callable[[], T]) -> Future[T]:
    """Call a function in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def together(count: int, function: t.Callable[[int], T]) -> list[T]:
    """Call a function in so many threads, which all begin at the same moment; return its answers."""
    barrier = threading.Barrier(count)

    def begin(number: int) -> T:
        barrier.wait(LIMIT)
        return function(number)

    futures = [start(lambda number=number: begin(number)) for number in range(count)]  # type: ignore[misc]
    return [future.result(2 * LIMIT) for future in futures]


@contextlib.contextmanager
def in_flight(world: World, act: t.Callable[[], object], *, roll_back: bool = False) -> t.Iterator[None]:
    """Act in a transaction of another thread, which ends with the block: committed, or rolled back."""
    acted, may_end = threading.Event(), threading.Event()

    def run() -> None:
        with world.session() as session:
            act()
            acted.set()
            assert may_end.wait(LIMIT)
            if roll_back:
                session.rollback()

    task = start(run)
    assert acted.wait(LIMIT)
    try:
        yield
    finally:
        may_end.set()
        task.result(LIMIT)


class Watch:
    """Sees whether someone in a database waits for a lock that another holds."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writing: set[int] = set()
        self._main = threading.get_ident()

    def begin(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        if not statement.startswith(("SELECT", "WITH")):
            self._writing.add(threading.get_ident())

    def end(self, *facts: object) -> None:
        self._writing.discard(threading.get_ident())

    def sees_a_waiter(self) -> bool:
        """Whether another thread waits. SQLite says nothing, but has one lock: who writes now, waits."""
        if self._engine.dialect.name == "sqlite":
            return bool(self._writing - {self._main})
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "postgresql":
                return bool(connection.exec_driver_sql(_WAITS).all())
            clients = {str(row.id) for row in connection.exec_driver_sql(_CLIENTS)}
            # The view of InnoDB's transactions is not brought up to date while it is read often.
            status = connection.exec_driver_sql("SHOW ENGINE INNODB STATUS").one()[2]
        now = status.partition("LIST OF TRANSACTIONS")[2]
        return bool(clients & set(re.findall(r"LOCK WAIT .*?thread id (\d+)", now, re.DOTALL)))

    def until_waits(self, *tasks: Future[t.Any]) -> None:
        """Return when another thread waits, or all of these are done."""
        until(lambda: self.sees_a_waiter() or all(task.done() for task in tasks), "a wait for a lock")


@contextlib.contextmanager
def watching(world: World) -> t.Iterator[Watch]:
    """Watch the locks of a world's database."""
    engine = engine_of(world)
    watch = Watch(engine)
    listeners: dict[str, t.Callable[..., None]] = {
        "before_cursor_execute": watch.begin,
        "after_cursor_execute": watch.end,
        "handle_error": watch.end,
    }
    with contextlib.ExitStack() as stack:
        for name, seen in listeners.items():
            sa.event.listen(engine, name, seen)
            stack.callback(sa.event.remove, engine, name, seen)
        yield watch


def engine_of(world: World) -> sa.Engine:
    with world.app.app_context():
        return world.db.engine


def compete(
    world: World, winner: t.Callable[[], object], loser: t.Callable[[], T], *, waits: bool = True
) -> T:
    """Let the loser come while the winner's transaction is open, then commit; return the loser's answer.

    :param winner: server code; it locks what the loser needs.
    :param waits: whether the loser waits for the winner; on SQLite every writer does.
    """
    with watching(world) as watch:
        with world.session():
            winner()
            task = start(loser)
            watch.until_waits(task)
            assert task.done() is not (waits or on_sqlite(world)), "it waits" if not waits else "no wait"
        return task.result(LIMIT)


def on_sqlite(world: World) -> bool:
    return engine_of(world).dialect.name == "sqlite"


@contextlib.contextmanager
def paused(engine: sa.Engine, matches: t.Callable[[str], bool]) -> t.Iterator[Pause]:
    """Stop the first thread that is about to execute a matching statement."""
    pause = Pause(matches)
    sa.event.listen(engine, "before_cursor_execute", pause.stop)
    try:
        yield pause
    finally:
        pause.go.set()
        sa.event.remove(engine, "before_cursor_execute", pause.stop)


class Pause:
    """A point at which one thread is held up."""

    def __init__(self, matches: t.Callable[[str], bool]) -> None:
        self._matches = matches
        self._lock = threading.Lock()
        self.reached = threading.Event()
        self.go = threading.Event()

    def stop(self, connection: object, cursor: object, statement: str, *rest: object) -> None:
        with self._lock:
            first = not self.reached.is_set() and self._matches(statement)
            if first:
                self.reached.set()
        if first:
            assert self.go.wait(LIMIT), "never let go"


class Answer(t.NamedTuple):
    """What a claimer was told, and when by a clock that all processes share."""

    began: float
    ended: float
    #: Each job with its attempt.
    jobs: list[tuple[int, int]]


def drain(claim: t.Callable[[], list[tuple[int, int]]]) -> list[Answer]:
    """Claim until there is none; return every answer, the empty one too."""
    answers: list[Answer] = []
    while not answers or answers[-1].jobs:
        began = time.monotonic()
        jobs = claim()
        answers.append(Answer(began, time.monotonic(), jobs))
    return answers


def server_claimer(world: World, locker: str, limit: int) -> t.Callable[[], list[tuple[int, int]]]:
    """Return what claims by server code, each time in an app context of its own."""

    def claim() -> list[tuple[int, int]]:
        with world.session():
            return [(c.id, c.attempt) for c in world.jobber.claim(locker, limit=limit)]

    return claim


def drain_in_process(url: str, meeting: str, name: str) -> list[Answer]:
    """Be one of several processes that meet in a directory and then claim, in two threads each."""
    world, place = World(url), pathlib.Path(meeting)
    with world.session() as session:
        session.execute(sa.select(sa.func.count(world.Job.id)))
    (place / name).touch()
    until((place / "go").exists, "the others")
    claimers = [server_claimer(world, f"user_{name}/{limit}", limit) for limit in (1, 5)]
    answers = together(2, lambda number: drain(claimers[number]))
    engine_of(world).dispose()
    return [answer for some in answers for answer in some]


def kill_connections(world: World) -> None:
    """Be the administrator who ends every connection to its database that others have open."""
    engine = sa.create_engine(engine_of(world).url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            return
        others = (
            "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()"
        )
        for client in connection.exec_driver_sql(others).scalars().all():
            connection.exec_driver_sql(f"KILL {client}")


def add_effects(metadata: sa.MetaData) -> sa.Table:
    """Declare a table for what processors do: nothing in it keeps a job from standing there twice."""
    return sa.Table(
        "effect",
        metadata,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("job_id", sa.BigInteger, nullable=False),
        sa.Column("result", sa.String(100)),
    )
