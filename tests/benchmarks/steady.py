"""Load without a pause, by minute: whether it slows down."""

from __future__ import annotations

import statistics
import time

from flask import Flask

from .filled import vacuuming
from .sizes import work_one
from .table import Report

MINUTES, MINUTE, SLICES = 30, 60, 6
# The last of the minutes as a part of the first: so many of them, and the target.
ENDS, LEAST = 5, 0.95


def work(app: Flask, tables: Report, rows: int, minutes: int = MINUTES) -> None:
    """Print the jobs that one process enqueues, claims and settles in a second, minute by minute.

    With a vacuum each minute, as often as autovacuum looks: it may be off, or wait for a part of the table.
    """
    title = "enqueue, claim and settle one by one on PostgreSQL"
    table = tables.table(title, "jobs/s", settings={"rows": rows, "VACUUM each": "minute"})
    with app.app_context(), vacuuming(app, "VACUUM bench_job, bench_job_history", MINUTE):
        lines = [
            table.add(f"minute {minute}", [measure(MINUTE / SLICES) for _ in range(SLICES)])
            for minute in range(1, minutes + 1)
        ]
    first, last = (statistics.median(line.median for line in part) for part in (lines[:ENDS], lines[-ENDS:]))
    table.check(f"the last {ENDS} minutes as a part of the first", last / first, least=LEAST)


def measure(seconds: float) -> float:
    """Return jobs a second."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work_one()
        done += 1
    return done / (time.perf_counter() - start)
