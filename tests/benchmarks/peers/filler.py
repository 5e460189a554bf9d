"""Sets up a store and enqueues jobs, in a process of its own.

Run as ``python -m tests.benchmarks.peers.filler MODULE FIRST END SINGLES``; the first of the jobs are
enqueued one by one, the others as the queue's documentation recommends for many. Prints the seconds of both.
The module has ``sending()``, see :mod:`.sender`, and ``set_up()`` when there is something to make before.
"""

from __future__ import annotations

import importlib
import sys
import time
import typing as t

from .sender import Send


def seconds(send: Send, pieces: t.Iterable[range]) -> float:
    start = time.perf_counter()
    for numbers in pieces:
        if numbers:
            send(numbers)
    return time.perf_counter() - start


def main(module: str, first: int, end: int, singles: int) -> None:
    peer = importlib.import_module(module)
    if hasattr(peer, "set_up"):
        peer.set_up()
    with peer.sending() as send:
        alone = seconds(send, (range(number, number + 1) for number in range(first, first + singles)))
        print(alone, seconds(send, [range(first + singles, end)]))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
