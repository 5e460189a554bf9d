"""Clients that claim and deliver as fast as they are answered, in a process of their own.

Run as ``python -m tests.benchmarks.load``: reads lines ``PORT SHAPE CLIENTS SECONDS``, answers each with a
line of jobs and seconds.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

TYPE = "work"
RESULT = {"answer": 42}


class Client:
    """One kept connection."""

    def __init__(self, port: int, place: int) -> None:
        self.place = place
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._headers = {"Authorization": "Bearer 1", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: t.Any) -> t.Any:
        self._connection.request(method, path, json.dumps(body), self._headers)
        response = self._connection.getresponse()
        content = response.read()
        assert response.status == 200, (response.status, content)
        return json.loads(content)

    def close(self) -> None:
        self._connection.close()


Work = t.Callable[[Client], int]


def empty(client: Client) -> int:
    client.call("POST", "/empty", {"types": [TYPE]})
    client.call("PUT", "/empty", {"result": RESULT})
    return 1


def plain(client: Client) -> int:
    [job] = client.call("POST", "/plain/claim", {"types": [TYPE]})["jobs"]
    client.call("PUT", f"/plain/{job['id']}/result", {"result": RESULT})
    return 1


def plain_many(size: int, client: Client) -> int:
    jobs = client.call("POST", "/plain/claims", {"types": [TYPE], "limit": size})["jobs"]
    results = [{"id": job["id"], "result": RESULT} for job in jobs]
    settled = client.call("PUT", "/plain/results", {"results": results})["settled"]
    assert len(settled) == len(jobs) == size, (len(settled), len(jobs))
    return size


def single(client: Client) -> int:
    [job] = client.call("POST", "/jobber/claims", {"types": [TYPE]})["jobs"]
    client.call("PUT", f"{job['href']}/result", {"result": RESULT})
    return 1


class Exchange:
    """Settles what it got and claims the next in one call; what it holds at the end, the next run settles."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[int, list[t.Any]] = {}

    def __call__(self, client: Client) -> int:
        results = [
            {"id": job["id"], "attempt": job["attempt"], "result": RESULT}
            for job in self._held.get(client.place, ())
        ]
        claim = {"types": [TYPE], "limit": self._size}
        answer = client.call("POST", "/jobber/exchange", {"results": results, "claim": claim})
        assert all(outcome["status"] == 200 for outcome in answer["outcomes"]), answer
        # What rivals are just about to take is left out: there may be fewer than were asked for.
        assert results or answer["jobs"], "there are no jobs left"
        self._held[client.place] = answer["jobs"]
        return len(results)


SIZES = (1, 10, 100)
SHAPES: dict[str, t.Callable[[], Work]] = {
    "empty": lambda: empty,
    "plain": lambda: plain,
    "single": lambda: single,
    **{f"plain{size}": functools.partial(functools.partial, plain_many, size) for size in SIZES[1:]},
    **{f"exchange{size}": functools.partial(Exchange, size) for size in SIZES},
}


@functools.cache
def work_of(port: int, shape: str) -> Work:
    return SHAPES[shape]()


def run(port: int, shape: str, clients: int, seconds: float) -> tuple[int, float]:
    """Return how many jobs were done and how long it took."""
    work, start = work_of(port, shape), time.perf_counter()

    def loop(place: int) -> int:
        done = 0
        with contextlib.closing(Client(port, place)) as client:
            while time.perf_counter() - start < seconds:
                done += work(client)
        return done

    with ThreadPoolExecutor(clients) as threads:
        done = sum(threads.map(loop, range(clients)))
    return done, time.perf_counter() - start


class Load:
    """That process, for who asks it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.load"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid

    def run(self, port: int, shape: str, clients: int, seconds: float) -> tuple[int, float]:
        """See the function; raises OSError for what a client has run into."""
        assert self._process.stdin
        assert self._process.stdout
        print(port, shape, clients, seconds, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        try:
            done, took = answer.split()
            return int(done), float(took)
        except ValueError:
            raise OSError(answer.strip() or "the clients have ended") from None

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def main() -> None:
    for line in sys.stdin:
        port, shape, clients, seconds = line.split()
        try:
            print(*run(int(port), shape, int(clients), float(seconds)), flush=True)
        except Exception as error:
            print(repr(error)[:300].replace("\n", " "), flush=True)


if __name__ == "__main__":
    main()
