"""What claims and settlements cost as the tables grow, and with how many rows in their way.

What is compared takes turns, each table in a database of its own.
"""

from __future__ import annotations

import argparse
import statistics

from flask import Flask

from . import sizes, steady
from .filled import database, fill, series
from .rows import insert_jobs
from .table import Report
from .verbs import claim_once

ROUNDS, CLAIMS = 10, 20
TARGET = 1.5


def main(arguments: argparse.Namespace, tables: Report) -> None:
    """Print tables of medians and ratios; with ``--long`` larger tables, and load for half an hour."""
    in_the_way(arguments.url, arguments.rows if arguments.long else arguments.rows // 2, tables)
    with sizes.places(arguments) as places:
        sizes.compare_all(places, tables, real=arguments.long)
        if arguments.long:
            steady.work(places[-1].app, tables, places[-1].rows)


def in_the_way(url: str, rows: int, tables: Report) -> None:
    """Compare claims with as many rows in their way with claims in a table that holds nothing else."""
    settings = {"rows": rows, "claims": ROUNDS * CLAIMS}
    title = "one claim + commit on PostgreSQL, rows in the way"
    table = tables.table(title, "ms", columns=("small", "ratio"), settings=settings)
    mine = insert_jobs("'queued'", "now()", series=series((ROUNDS + 1) * CLAIMS))
    ways = statements(rows)
    with database(url, "small") as small, database(url, "large") as large:
        fill(small, [mine] * len(ways))
        for name, statement in ways.items():
            fill(large, [statement, mine])
            rounds = [(measure(small), measure(large)) for _ in range(ROUNDS + 1)]
            alone, among = zip(*rounds[1:], strict=True)  # statements are built in the first
            ratio = statistics.median(a / b for a, b in zip(among, alone, strict=True))
            table.add(name, among, small=statistics.median(alone), ratio=ratio)
            table.check(name, ratio, most=TARGET)


def statements(rows: int) -> dict[str, str]:
    """Return statements that put so many rows in the way of my claims, by name."""
    many = series(rows)
    return {
        "waiting, mine": insert_jobs("'queued'", "now()", series=many),
        "finished": insert_jobs("'succeeded'", "now()", series=many),
        "scheduled, higher priority": insert_jobs(
            "'scheduled'", "now() + interval '1 day'", series=many, priority="1"
        ),
        # Each level of priority is a step of the claim.
        "scheduled, ten higher priorities": insert_jobs(
            "'scheduled'", "now() + interval '1 day'", series=many, priority="1 + n % 10"
        ),
        "scheduled and due, lower priority": insert_jobs(
            "'scheduled'", "now() - interval '1 day'", series=many, priority="-1"
        ),
        "of other users": insert_jobs("'queued'", "now()", series=many, user="2 + n % 1000", priority="1"),
        "of another type": insert_jobs("'queued'", "now()", series=many, type_="'other'", priority="1"),
    }


def measure(app: Flask) -> float:
    """Return the median milliseconds of a claim of one of my jobs."""
    with app.app_context():
        return statistics.median(claim_once() for _ in range(CLAIMS)) * 1000
