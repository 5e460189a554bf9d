"""``python -m tests.benchmarks [PART…] [--url URL]``: ratios taken side by side."""

from __future__ import annotations

import argparse
import os

from . import growth, http_pair, latency, memory, workers

PARTS = {
    "http": http_pair.main,
    "growth": growth.main,
    "workers": workers.main,
    "memory": memory.main,
    "latency": latency.main,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all of them otherwise")
    parser.add_argument(
        "--url", default=os.environ.get("TEST_POSTGRES_URL"), help="a PostgreSQL database to fill"
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=4, help="of each run of each shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000, help="in the way of a claim")
    parser.add_argument("--jobs", type=int, default=5000, help="of each run of each worker")
    arguments = parser.parse_args()
    if arguments.url is None:
        parser.error("give --url, or set TEST_POSTGRES_URL")
    for part in arguments.parts or PARTS:
        PARTS[part](arguments)


if __name__ == "__main__":
    main()
