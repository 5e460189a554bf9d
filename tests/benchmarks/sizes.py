"""Claim and settle in small tables and in large ones, at rest and while something disturbs them."""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import statistics
import time
import typing as t

from flask import Flask

from . import apps
from .filled import database, fill, mixed, open_transaction, series, vacuuming
from .rows import insert_jobs
from .table import Report, Table
from .verbs import claim_some, deliver_some, work_once

SMALL, LARGEST = 10_000, 10_000_000
# The first round is not counted: statements are built and plans made.
ROUNDS, JOBS = 10, 20
_MINE = (ROUNDS + 1) * JOBS
# As multiples of what the small table takes: at rest; while something disturbs the largest.
MOST, MOST_DISTURBED = 1.3, 2
# Jobs a second, and the seconds for which a transaction is open.
RATE, OPEN = 100, 600
#: Whose jobs of which type are claimed, by the number of the claim.
WAYS: dict[str, t.Callable[[int], tuple[int, str | None]]] = {
    "one user": lambda number: (1, "work"),
    "1,000 users": lambda number: (1 + number % 1000, "work"),
    "1,000 types": lambda number: (1, f"type_{number % 1000}"),
    "any type": lambda number: (1, None),
}
DISTURBED = ("one user", "1,000 users")
VERBS = ("claim", "settle")
VACUUM = "VACUUM (DISABLE_PAGE_SKIPPING, INDEX_CLEANUP ON) bench_job, bench_job_history"


@dataclasses.dataclass(frozen=True)
class Place:
    """A database, and how many of its jobs have been claimed in each way."""

    rows: int
    app: Flask
    taken: dict[str, t.Iterator[int]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(itertools.count)
    )


Seen = dict[tuple[str, str, int], list[list[float]]]


@contextlib.contextmanager
def places(arguments: argparse.Namespace) -> t.Iterator[list[Place]]:
    """Yield filled databases, from the smallest to the largest."""
    sizes = {SMALL, arguments.rows, LARGEST if arguments.long else SMALL}
    with contextlib.ExitStack() as stack:
        made = [
            Place(rows, stack.enter_context(database(arguments.url, str(rows)))) for rows in sorted(sizes)
        ]
        for place in made:
            fill(place.app, [*mixed(place.rows - 8 * _MINE), *claimed()])
        yield made


def claimed() -> t.Iterator[str]:
    """Yield statements that make the jobs, 8 * _MINE, that are claimed in each way: in two at three times."""
    once, three = series(_MINE), series(3 * _MINE)
    yield insert_jobs("'queued'", "now()", series=three)
    yield insert_jobs("'queued'", "now()", series=three, user="1 + (n - 1) % 1000")
    yield insert_jobs("'queued'", "now()", series=once, type_="'type_' || (n - 1) % 1000")
    yield insert_jobs("'queued'", "now()", series=once, type_="'any'", priority="1")


def compare_all(places: t.Sequence[Place], tables: Report, *, real: bool) -> None:
    """Compare all of them at rest; and the largest, which something disturbs, with the smallest at rest.

    The vacuum comes before the transaction, so that it is all that disturbs.

    :param real: whether the transaction is open for its whole time, and the load comes as it would.
    """
    ends, largest = (places[0], places[-1]), places[-1].app
    compare(begin(tables, "at rest"), places, WAYS, MOST)
    with vacuuming(largest, VACUUM):
        compare(begin(tables, "the largest while VACUUM runs"), ends, DISTURBED, MOST_DISTURBED)
    with open_transaction(largest):
        start = time.monotonic()
        done = work_steadily(largest, OPEN) if real else work_at_once(largest, RATE * OPEN)
        facts = {"jobs in it": done, "seconds": round(time.monotonic() - start)}
        table = begin(tables, "the largest with a transaction open, jobs in it of one user", **facts)
        compare(table, ends, DISTURBED, MOST_DISTURBED)


def begin(tables: Report, what: str, **facts: t.Any) -> Table:
    title = f"claim, settle, each + commit on PostgreSQL: {what}"
    columns = ("p95", "rows", "ratio")
    return tables.table(title, "ms", columns=columns, settings=facts | {"jobs": ROUNDS * JOBS})


def compare(table: Table, places: t.Sequence[Place], ways: t.Iterable[str], most: float) -> None:
    """Add a line for each verb, way and size; check the largest against the smallest."""
    seen = take_turns(places, ways)
    for way, verb in itertools.product(ways, VERBS):
        base = medians(seen[verb, way, places[0].rows])
        for place in places:
            rounds = seen[verb, way, place.rows]
            ratio = statistics.median(a / b for a, b in zip(medians(rounds), base, strict=True))
            p95 = statistics.quantiles(itertools.chain(*rounds), n=20, method="inclusive")[-1]
            name = f"{verb}, {way}, {place.rows:,} rows"
            table.add(name, medians(rounds), p95=p95, rows=place.rows, ratio=ratio)
        table.check(f"{verb}, {way}: {places[-1].rows:,} rows against {places[0].rows:,}", ratio, most=most)


def medians(rounds: t.Iterable[t.Iterable[float]]) -> list[float]:
    return [statistics.median(times) for times in rounds]


def take_turns(places: t.Sequence[Place], ways: t.Iterable[str]) -> Seen:
    """Return the milliseconds of each job, by verb, way, rows and round."""
    seen: Seen = collections.defaultdict(list)
    for _ in range(ROUNDS + 1):
        for way, place in itertools.product(ways, places):
            for verb, times in zip(VERBS, work(place, way), strict=True):
                seen[verb, way, place.rows].append([1000 * seconds for seconds in times])
    return {key: rounds[1:] for key, rounds in seen.items()}


def work(place: Place, way: str) -> t.Iterator[tuple[float, ...]]:
    """Return the seconds of some claims, and those of their settlements."""
    numbers = itertools.islice(place.taken[way], JOBS)
    with place.app.app_context():
        return zip(*[work_once(*WAYS[way](number)) for number in numbers], strict=True)


# -- what the transaction keeps ---------------------------------------------------------------


def work_at_once(app: Flask, jobs: int) -> int:
    """Make so many jobs of user 1, claim and settle them by the hundred; return how many."""
    with app.app_context():
        apps.db.session.connection().exec_driver_sql(insert_jobs("'queued'", "now()", series=series(jobs)))
        apps.db.session.commit()
        for _ in range(jobs // 100):
            deliver_some(1, claim_some(1, "work", 100)[0])
    return jobs


def work_steadily(app: Flask, seconds: float) -> int:
    """Enqueue, claim and settle jobs of user 1 at a steady rate; return how many."""
    start, done = time.monotonic(), 0
    with app.app_context():
        while time.monotonic() - start < seconds:
            work_one()
            done += 1
            time.sleep(max(start + done / RATE - time.monotonic(), 0))
    return done


def work_one() -> None:
    """Enqueue, claim and settle one job of user 1."""
    apps.jobber.enqueue("work", {}, user_id=1)
    apps.db.session.commit()
    work_once(1, "work")
