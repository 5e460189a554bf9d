"""Clients that get jobs and finish them until none is left, in a process of their own.

Run as ``python -m tests.benchmarks.remotes.drain MODULE PORT JOBS CLIENTS BY``; with 0 clients the jobs are
enqueued. Prints the seconds it took, and those of processor time.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import threading
import time
import typing as t


class Client(t.Protocol):
    """One worker, with a connection of its own."""

    def turn(self, held: list[t.Any], wanted: int) -> t.Any:
        """Finish what is held, and return so many at the most, in a form that can be finished.

        With asyncio an awaitable of that.
        """


class Left:
    """How many jobs nobody has taken."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._lock = threading.Lock()

    def take(self, wanted: int) -> int:
        """Return how many of these are there for the caller, who gives back what it did not get."""
        with self._lock:
            taken = min(wanted, self._jobs)
            self._jobs -= taken
        return taken

    def give_back(self, jobs: int) -> None:
        with self._lock:
            self._jobs += jobs


def work(client: Client, left: Left, by: int) -> None:
    held: list[t.Any] = []
    while wanted := left.take(by):
        held = client.turn(held, wanted)
        left.give_back(wanted - len(held))
    client.turn(held, 0)


async def work_async(client: Client, left: Left, by: int) -> None:
    held: list[t.Any] = []
    while wanted := left.take(by):
        held = await client.turn(held, wanted)
        left.give_back(wanted - len(held))
    await client.turn(held, 0)


def drain(module: t.Any, port: int, jobs: int, clients: int, by: int) -> None:
    """Let each client work in a thread."""
    left = Left(jobs)
    connected = [module.connect(port, f"worker{number}") for number in range(clients)]
    threads = [threading.Thread(target=work, args=(client, left, by)) for client in connected]
    with timed():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def drain_async(module: t.Any, port: int, jobs: int, clients: int, by: int) -> None:
    left = Left(jobs)
    connected = [await module.connect(port, f"worker{number}") for number in range(clients)]
    with timed():
        async with asyncio.TaskGroup() as group:
            for client in connected:
                group.create_task(work_async(client, left, by))


class timed:
    """Print the seconds of a block, and those of processor time."""

    def __enter__(self) -> None:
        self._start = time.perf_counter(), time.process_time()

    def __exit__(self, *error: object) -> None:
        start, spent = self._start
        print(time.perf_counter() - start, time.process_time() - spent)


def main(name: str, port: int, jobs: int, clients: int, by: int) -> None:
    module = importlib.import_module(f"{__package__}.{name}")
    if not clients:
        module.fill(port, jobs)
    elif inspect.iscoroutinefunction(module.connect):
        asyncio.run(drain_async(module, port, jobs, clients, by))
    else:
        drain(module, port, jobs, clients, by)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
