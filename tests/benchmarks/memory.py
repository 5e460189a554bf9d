"""The memory of our worker after many jobs that do nothing, against after few."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import time

from . import workers
from .peers import PEERS
from .stores import postgres

FEW, MANY = 1_000, 100_000
# Seconds to do them, and to settle the last of them.
PATIENCE, REST = 900, 5
TARGET = 1.1


def main(arguments: argparse.Namespace) -> None:
    """Print the resident and the proportional size, in MiB."""
    ours = PEERS[0]
    with postgres(arguments.url) as url, workers.noted(MANY) as (ticks, path):
        environment = os.environ | {"BENCH_URL": url, "BENCH_TICKS": path}
        workers.enqueue(ours, sys.executable, range(FEW), environment)
        with workers.work(ours, sys.executable, environment) as worker:
            sizes = []
            for first, end in ((0, FEW), (FEW, MANY)):
                if first:
                    workers.enqueue(ours, sys.executable, range(first, end), environment)
                workers.wait_until_done(worker, ticks[:end], PATIENCE)
                time.sleep(REST)
                sizes.append(size(worker.pid))
    print(f"memory of a worker, MiB: {ours.command.format(app='…')}")
    print(f"{'':8}{f'{FEW} jobs':>14}{f'{MANY} jobs':>14}{'ratio':>8}   target <= {TARGET}")
    for kind in ("Rss", "Pss"):
        few, many = (seen[kind] for seen in sizes)
        print(f"{kind.upper():8}{few:14.1f}{many:14.1f}{many / few:8.2f}")


def size(pid: int) -> dict[str, float]:
    """Return what the system says of a process, in MiB."""
    lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {name.rstrip(":"): int(kilobytes) / 1024 for name, kilobytes, _ in fields}
