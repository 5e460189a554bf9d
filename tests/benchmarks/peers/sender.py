"""Sends jobs, and notes when each was committed: in the second half of the file of ticks.

Run as ``python -m tests.benchmarks.peers.sender MODULE JOBS BY RATE`` in a process of its own.
The module has ``sending()``, in which its ``send(numbers)`` returns the instant of the commit: of one job by
itself, or of many as the queue's documentation recommends.
"""

from __future__ import annotations

import importlib
import sys
import time
import typing as t

from .ticks import ticks

# Seconds that a job may take; and until the next, so that whoever did it waits again.
PATIENCE, REST = 10, 0.005
Send = t.Callable[[range], float]


def one_by_one(send: Send, jobs: int) -> None:
    """Send each when the one before was received."""
    for number in range(jobs):
        note(send, range(number, number + 1), jobs)
        deadline = time.monotonic() + PATIENCE
        while not ticks[number]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody received job {number}")
            time.sleep(0.0005)
        time.sleep(REST)


def steadily(send: Send, jobs: int, by: int, rate: float) -> None:
    """Send so many a second, some at a time."""
    start = time.monotonic()
    for first in range(0, jobs, by):
        time.sleep(max(start + first / rate - time.monotonic(), 0))
        note(send, range(first, min(first + by, jobs)), jobs)


def note(send: Send, numbers: range, jobs: int) -> None:
    committed = send(numbers)
    for number in numbers:
        ticks[jobs + number] = committed


if __name__ == "__main__":
    module, jobs, by, rate = sys.argv[1:]
    peer = importlib.import_module(module)
    with peer.sending() as send:
        if float(rate):
            steadily(send, int(jobs), int(by), float(rate))
        else:
            one_by_one(send, int(jobs))
