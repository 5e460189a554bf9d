"""What a claim costs with limits, fairness and trust, against one without, with a million jobs in its way.

Claims with and without take turns in the same tables: as core calls, and as the requests that
clients make, within one process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import time
import typing as t

import sqlalchemy as sa
from flask import Flask

from .growth import TARGET
from .rows import insert_jobs, vacuum
from .table import Report, Table
from .verbs import claim_once

ROUNDS, CLAIMS = 12, 25
_MINE = 2 * (ROUNDS + 2) * CLAIMS
Way = tuple[str, dict[str, t.Any] | None]


def main(arguments: argparse.Namespace, tables: Report) -> None:
    """Print a table of medians and ratios."""
    from . import apps

    os.environ["BENCH_URL"] = arguments.url
    ways: dict[str, Way] = {
        "a million turns of one": ("fair", None),
        "a million blocked by a key": ("keyed", None),
        "a rate of the type": ("work", {"type": "work", "rate": 1_000_000}),
        "a rate of each login": ("work", {"locker": "*", "rate": 1_000_000}),
        "a limit at once": ("work", {"type": "work", "at_once": 100 * _MINE}),
        "jobs that two are to do": ("doubled", None),
    }
    settings = {"rows": arguments.rows, "claims": ROUNDS * CLAIMS}
    app = apps.create_app()
    with app.app_context():
        fill(arguments.rows)
    claims = {"core": by_core(app), "request": by_request(app)}
    for kind, claim in claims.items():
        title = f"one claim on PostgreSQL, {kind}"
        table = tables.table(title, "ms", columns=("without", "ratio"), settings=settings)
        for name, way in ways.items():
            with app.app_context():
                vacuum(apps.db.engine)  # what the claims before have left is no burden of these
            compare(table, name, way, claim)


Claim = t.Callable[[str], float]


def by_core(app: Flask) -> Claim:
    def claim(type_: str) -> float:
        with app.app_context():
            return claim_once(type_)

    return claim


def by_request(app: Flask) -> Claim:
    client, said = app.test_client(), {"Authorization": "Bearer 1"}

    def claim(type_: str) -> float:
        start = time.perf_counter()
        answer = client.post("/jobber/claims", json={"types": [type_]}, headers=said)
        took = time.perf_counter() - start
        assert b"attempt" in answer.data, answer.text
        return took

    return claim


def compare(table: Table, name: str, way: Way, claim: Claim) -> None:
    """Measure claims with something and without."""
    with_it, without = zip(*[measure(way, claim) for _ in range(ROUNDS + 2)][2:], strict=True)
    ratio = statistics.median(a / b for a, b in zip(with_it, without, strict=True))
    table.add(name, with_it, without=statistics.median(without), ratio=ratio)
    table.check(name, ratio, most=TARGET)


def fill(rows: int) -> None:
    """Make the jobs that are in the way of each type, and those that are claimed."""
    from . import apps

    many, mine = (f"FROM generate_series(1, {number}) AS n" for number in (rows, _MINE))
    at_the_door = {"concurrency_key": "'k'", "seated": "false"}
    apps.db.drop_all()
    apps.db.create_all()
    apps.db.session.add(apps.User(id=1))
    for statement in (
        insert_jobs("'queued'", "now()", series=many),
        insert_jobs("'queued'", "now()", series=many, type_="'fair'", turn="n"),
        insert_jobs("'blocked'", "now()", series=many, type_="'keyed'", priority="1", more=at_the_door),
        insert_jobs("'queued'", "now()", series=mine, type_="'keyed'"),
    ):
        apps.db.session.execute(sa.text(statement))
    doubled = {"type": "doubled", "user_id": 1, "results_wanted": 2}
    apps.jobber.enqueue_many([doubled] * _MINE)
    apps.db.session.commit()
    vacuum(apps.db.engine)


def measure(way: Way, claim: Claim) -> tuple[float, float]:
    """Return the median milliseconds of a claim with something, and of one without."""
    type_, limit = way
    pairs = [(claim_with(claim, type_, limit), claim("work")) for _ in range(CLAIMS)]
    with_it, without = (statistics.median(seen) * 1000 for seen in zip(*pairs, strict=True))
    return with_it, without


def claim_with(claim: Claim, type_: str, limit: dict[str, t.Any] | None) -> float:
    with limited(limit):
        return claim(type_)


@contextlib.contextmanager
def limited(limit: dict[str, t.Any] | None) -> t.Iterator[None]:
    from . import apps

    if limit is not None:
        apps.jobber.limit(**limit)
    yield
    apps.jobber._rules.limits.clear()
