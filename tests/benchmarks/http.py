"""Claim and deliver over HTTP, against an empty view, views written by hand and bare SQL, in one run."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import pathlib
import sqlite3
import tempfile
import typing as t

import sqlalchemy as sa

from . import cpu, load, rows, servers, sql
from .course import Course, Key, Seen, Way
from .table import Figure, Report, Table, ratio, versions

# The server of all shapes, and that with a process for each core.
SERVER, SERVER_TWO = "gunicorn threads", "gunicorn threads, two processes"
SERVERS = ("gunicorn", "gevent", "granian")
CLIENTS = (1, 8, 32)
SIZES = load.SIZES
# Rows to take from: jobs, and those of the views written by hand; to warm up, and for each round and second.
FIRST, ROWS, ROWS_SQLITE = (60_000, 60_000), (120_000, 350_000), (20_000, 100_000)
NAMES = {
    "empty": "an empty view, twice",
    "plain": "views by hand, single",
    "plain10": "views by hand, by 10",
    "plain100": "views by hand, by 100",
    "single": "flask_jobber, single",
    "exchange1": "flask_jobber, exchange 1",
    "exchange10": "flask_jobber, exchange 10",
    "exchange100": "flask_jobber, exchange 100",
    "pgbench1": "pgbench, single",
    "pgbench10": "pgbench, by 10",
    "pgbench100": "pgbench, by 100",
    "sqlite3": "sqlite3 by 100, one thread",
}
COMPARED = ("plain", "single", "exchange100")
ON_SERVERS = ("empty", "plain", "plain100", "single", "exchange1", "exchange100")
ON_SQLITE = ("plain", "plain100", "single", "exchange1", "exchange100")
# Seconds to warm up.
WARM = {"empty": 0.1, "plain": 0.7, "plain10": 0.5, "plain100": 0.7, "single": 2}
WARM |= {"exchange1": 1, "exchange10": 1, "exchange100": 2}
Spenders = dict[str, t.Callable[[], t.Iterable[int]]]
POSTGRES: Spenders = {"database": functools.partial(cpu.named, cpu.POSTGRES)}
COLUMNS = ("of by hand", *cpu.COLUMNS)
# Jobs a second of one shape as a part of another's, at least.
TARGETS = (
    ("single", "plain", 0.85),
    ("exchange1", "plain", 1.6),
    ("exchange100", "plain100", 1.0),
    ("exchange100", "pgbench100", 0.3),
)
TARGETS_SQLITE = (("exchange100", "sqlite3", 0.5),)


def main(arguments: argparse.Namespace, tables: Report) -> None:
    """Print tables of PostgreSQL, and one of SQLite."""
    course = on_postgres(arguments)
    report_shapes(course, arguments, tables)
    report_sizes(course, arguments, tables)
    report_clients(course, arguments, tables)
    report_servers(course, arguments, tables)
    report_sqlite(on_sqlite(arguments), arguments, tables)


# -- what is measured -------------------------------------------------------------------------


def on_postgres(arguments: argparse.Namespace) -> Course:
    """Measure all shapes, some of them with fewer and more clients and under other servers."""
    course = Course()
    os.environ["BENCH_URL"] = arguments.url
    rows.fill(*numbers(ROWS, arguments))
    with contextlib.ExitStack() as stack:
        clients = stack.enter_context(contextlib.closing(load.Load()))
        running = start_servers(stack, servers.COMMANDS, arguments.url, course)
        for key in keys(arguments.clients):
            if key.server in running:
                every = 1 if is_main(key, arguments.clients) or key.server == SERVER_TWO else 3
                warm = WARM.get(key.shape, 0) if key.clients == arguments.clients else 0
                course.ways[key] = over_http(key, running[key.server], clients, POSTGRES, every, warm)
        course.ways |= pgbench_ways(stack, arguments)
        engine = sa.create_engine(arguments.url)
        # The dead rows of one shape are no burden of the next.
        course.run(arguments.rounds, arguments.seconds, functools.partial(rows.vacuum, engine))
    return course


def numbers(each: t.Iterable[int], arguments: argparse.Namespace) -> list[int]:
    """Return how many rows there are to be."""
    rounds = arguments.rounds * arguments.seconds
    return [first + int(rounds * number) for first, number in zip(FIRST, each, strict=True)]


def keys(clients: int) -> list[Key]:
    """Return what is done over HTTP on PostgreSQL."""
    found = [Key(shape, SERVER, clients) for shape in load.SHAPES]
    found += [Key(shape, SERVER, number) for number in CLIENTS for shape in COMPARED]
    found += [Key(shape, name, clients) for name in servers.COMMANDS for shape in ON_SERVERS]
    return list(dict.fromkeys(found))


def start_servers(
    stack: contextlib.ExitStack, names: t.Iterable[str], url: str, course: Course
) -> dict[str, servers.Server]:
    """Start each, to be ended by the stack."""
    running = {}
    for name in names:
        try:
            running[name] = stack.enter_context(servers.serve(name, url))
        except OSError as error:
            course.left_out[name] = error
    return running


def over_http(
    key: Key,
    server: servers.Server,
    clients: load.Load,
    database: Spenders | None = None,
    every: int = 1,
    warm: float = 0.2,
) -> Way:
    """Return a way of the clients; without the processes of a database its work is the server's."""
    spenders: Spenders = {"client": lambda: [clients.pid], "server": lambda: cpu.family(server.pid)}
    run = functools.partial(clients.run, server.port, key.shape, key.clients)
    return Way(run, spenders | (database or {}), every, warm)


def pgbench_ways(stack: contextlib.ExitStack, arguments: argparse.Namespace) -> dict[Key, Way]:
    """Return its ways, none when it is absent."""
    program = sql.find_pgbench()
    if program is None:
        return {}
    folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    spenders = {"client": lambda: [os.getpid()], **POSTGRES}
    ways = {}
    for size in SIZES:
        script = folder / f"by_{size}.sql"
        script.write_text(sql.pgbench_script(size))
        run = sql.Pgbench(program, script, size, arguments.url, arguments.clients)
        ways[Key(f"pgbench{size}", "pgbench", arguments.clients)] = Way(run, spenders, warm=0.2)
    return ways


def on_sqlite(arguments: argparse.Namespace) -> Course:
    """Measure claims and deliveries in a file."""
    course = Course()
    os.environ["BENCH_JOURNAL"] = arguments.journal
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(tempfile.TemporaryDirectory()) + "/jobs.db"
        os.environ["BENCH_URL"] = url = f"sqlite:///{path}"
        rows.fill(*numbers(ROWS_SQLITE, arguments))
        clients = stack.enter_context(contextlib.closing(load.Load()))
        running = start_servers(stack, [SERVER], url, course)
        for name, server in running.items():
            for shape in ON_SQLITE:
                key = Key(shape, name, arguments.clients)
                course.ways[key] = over_http(key, server, clients)
        raw = functools.partial(sql.run_sqlite, path, 100, arguments.journal)
        course.ways[Key("sqlite3", "sqlite3", 1)] = Way(raw, {"client": lambda: [os.getpid()]})
        course.run(arguments.rounds, arguments.seconds, lambda: None)
    return course


# -- the tables -------------------------------------------------------------------------------


def report_shapes(course: Course, arguments: argparse.Namespace, tables: Report) -> None:
    """Print what each shape comes to, and costs, on PostgreSQL."""
    program = sql.find_pgbench()
    version = {"pgbench": sql.pgbench_version(program)} if program else {}
    settings = settings_of(arguments, clients=arguments.clients, server=SERVER, **version)
    table = tables.table("claim + deliver, PostgreSQL", "jobs/s", columns=COLUMNS, settings=settings)
    for name, why in course.left_out.items():
        table.leave_out(name, why)
    if program is None:
        table.leave_out("pgbench", "not found")
    seen = {key.shape: each for key, each in course.seen.items() if is_main(key, arguments.clients)}
    for shape in filter(seen.__contains__, NAMES):
        add(table, NAMES[shape], seen[shape], seen.get("plain"))
    check(table, seen, TARGETS)


def is_main(key: Key, clients: int) -> bool:
    return key.server in (SERVER, "pgbench") and key.clients == clients


def report_sizes(course: Course, arguments: argparse.Namespace, tables: Report) -> None:
    """Print what more jobs in one request bring, from the same runs."""
    settings = settings_of(arguments, clients=arguments.clients, server=SERVER)
    columns = ("by hand", "pgbench", "of by hand", "of pgbench")
    table = tables.table("exchange by batch size, PostgreSQL", "jobs/s", columns=columns, settings=settings)
    seen = {key.shape: each for key, each in course.seen.items() if is_main(key, arguments.clients)}
    for size in SIZES:
        ours = seen.get(f"exchange{size}")
        others = {"by_hand": seen.get("plain" if size == 1 else f"plain{size}")}
        others["pgbench"] = seen.get(f"pgbench{size}")
        more = {name: other.line.median for name, other in others.items() if other}
        if ours:
            more |= {f"of_{name}": ratio(ours.line, other.line) for name, other in others.items() if other}
            table.add(f"by {size}", ours.rates, **more)


def report_clients(course: Course, arguments: argparse.Namespace, tables: Report) -> None:
    """Print what more clients at a time bring."""
    settings = settings_of(arguments, server=SERVER)
    table = tables.table("by number of clients, PostgreSQL", "jobs/s", columns=COLUMNS, settings=settings)
    for clients in CLIENTS:
        for shape in COMPARED:
            seen = course.seen.get(Key(shape, SERVER, clients))
            by_hand = course.seen.get(Key("plain", SERVER, clients))
            add(table, f"{clients:2} clients: {NAMES[shape]}", seen, by_hand)


def report_servers(course: Course, arguments: argparse.Namespace, tables: Report) -> None:
    """Print the same under each server."""
    settings = settings_of(arguments, clients=arguments.clients)
    settings |= {name: version for name, version in versions().items() if name in SERVERS}
    table = tables.table("by server, PostgreSQL", "jobs/s", columns=COLUMNS, settings=settings)
    for server in servers.COMMANDS:
        for shape in ON_SERVERS:
            seen = course.seen.get(Key(shape, server, arguments.clients))
            by_hand = course.seen.get(Key("plain", server, arguments.clients))
            add(table, f"{server}: {NAMES[shape]}", seen, by_hand)
    of_two = {key.shape: seen for key, seen in course.seen.items() if key.server in (SERVER_TWO, "pgbench")}
    check(table, of_two, TARGETS)


def report_sqlite(course: Course, arguments: argparse.Namespace, tables: Report) -> None:
    """Print what each shape comes to on SQLite, whose work is the server's own."""
    settings = settings_of(arguments, clients=arguments.clients, server=SERVER, journal=arguments.journal)
    settings |= {"sqlite": sqlite3.sqlite_version}
    table = tables.table("claim + deliver, SQLite", "jobs/s", columns=COLUMNS, settings=settings)
    for name, why in course.left_out.items():
        table.leave_out(name, why)
    seen = {key.shape: each for key, each in course.seen.items()}
    for shape in filter(seen.__contains__, NAMES):
        add(table, NAMES[shape], seen[shape], seen.get("plain"))
    check(table, seen, TARGETS_SQLITE)


def settings_of(arguments: argparse.Namespace, **more: Figure) -> dict[str, Figure]:
    return {**more, "rounds": arguments.rounds, "seconds": arguments.seconds}


def add(table: Table, name: str, seen: Seen | None, by_hand: Seen | None) -> None:
    """Add a line, unless it was left out."""
    if seen is not None:
        more = {} if by_hand is None else {"of_by_hand": ratio(seen.line, by_hand.line)}
        table.add(name, seen.rates, **more, **seen.costs)


def check(table: Table, seen: t.Mapping[str, Seen], targets: t.Iterable[tuple[str, str, float]]) -> None:
    """Say which targets are reached, of those that were measured."""
    for shape, other, least in targets:
        if shape in seen and other in seen:
            what = f"{NAMES[shape]} / {NAMES[other]}"
            table.check(what, ratio(seen[shape].line, seen[other].line), least=least)
