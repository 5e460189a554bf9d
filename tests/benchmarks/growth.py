"""What a claim costs with a million jobs in its way, against a table that holds nothing else."""

from __future__ import annotations

import argparse
import os
import statistics
import time

import sqlalchemy as sa

from .http_pair import insert_jobs, vacuum

CLAIMS = 300
TARGET = 1.5


def main(arguments: argparse.Namespace) -> None:
    """Print a table of medians and ratios."""
    os.environ["BENCH_URL"] = arguments.url
    many = f"FROM generate_series(1, {arguments.rows}) AS n"
    ways = {
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
    print(
        f"one claim + commit on PostgreSQL, {arguments.rows} rows in the way, {CLAIMS} claims, milliseconds"
    )
    print(f"{'rows':36}{'median':>9}{'small':>9}{'ratio':>8}   target <= {TARGET}")
    for name, statement in ways.items():
        small, large = measure(None), measure(statement)
        print(f"{name:36}{large:9.3f}{small:9.3f}{large / small:8.2f}")


def measure(in_the_way: str | None) -> float:
    """Return the median milliseconds of a claim of one of my jobs."""
    from . import apps

    with apps.create_app().app_context():
        apps.db.drop_all()
        apps.db.create_all()
        if in_the_way:
            apps.db.session.execute(sa.text(in_the_way))
        mine = insert_jobs("'queued'", "now()", series=f"FROM generate_series(1, {CLAIMS + 50}) AS n")
        apps.db.session.execute(sa.text(mine))
        apps.db.session.commit()
        vacuum(apps.db.engine)
        return statistics.median([claim_once() for _ in range(CLAIMS + 50)][50:]) * 1000


def claim_once() -> float:
    """Return the seconds of one claim by user 1, as its request would make it."""
    from flask_jobber.core import scope as scopes
    from flask_jobber.core.candidates import Wanted
    from flask_jobber.core.claim import claim

    from . import apps

    start = time.perf_counter()
    wanted = Wanted("user_1", scopes.read(apps.Job.user_id == 1), types=("work",))
    assert claim(apps.jobber.store(), wanted)
    apps.db.session.commit()
    return time.perf_counter() - start
