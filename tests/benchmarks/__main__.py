"""``python -m tests.benchmarks [PART…] [--url URL] [--long] [--json FILE]``: ratios taken side by side."""

from __future__ import annotations

import argparse
import os
import pathlib

from . import growth, http, latency, limits, memory, remote, workers
from .table import Report

PARTS = {
    "http": http.main,
    "growth": growth.main,
    "limits": limits.main,
    "workers": workers.main,
    "remote": remote.main,
    "memory": memory.main,
    "latency": latency.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them otherwise")
    parser.add_argument(
        "--url", default=os.environ.get("TEST_POSTGRES_URL"), help="a PostgreSQL database to fill"
    )
    parser.add_argument("--clients", type=int, default=8, help="over HTTP")
    parser.add_argument("--seconds", type=float, default=0.4, help="of each run over HTTP")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the way of a claim")
    parser.add_argument("--jobs", type=int, default=3000, help="of each run of each worker")
    parser.add_argument("--worker-rounds", type=int, default=2, help="of all workers")
    parser.add_argument("--journal", choices=("delete", "wal"), default="delete", help="of SQLite")
    parser.add_argument("--long", action="store_true", help="larger tables, more jobs, load for half an hour")
    parser.add_argument("--json", type=pathlib.Path, help="a file to write all of it to")
    arguments = parser.parse_args()
    if arguments.url is None:
        parser.error("give --url, or set TEST_POSTGRES_URL")
    report = Report()
    for part in arguments.parts or PARTS:
        report.begin(part)
        PARTS[part](arguments, report)
    if arguments.json is not None:
        report.write(arguments.json)


if __name__ == "__main__":
    main()
