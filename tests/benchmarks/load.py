"""Clients that claim and deliver as fast as they are answered, in a process of their own.

Run as ``python -m tests.benchmarks.load PORT SHAPE CLIENTS SECONDS``; prints jobs and seconds.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import typing as t

TYPE = "work"


class Client:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port)
        self._headers = {"Authorization": "Bearer 1", "Content-Type": "application/json"}

    def call(self, method: str, path: str, body: t.Any) -> t.Any:
        self._connection.request(method, path, json.dumps(body), self._headers)
        response = self._connection.getresponse()
        content = response.read()
        assert response.status == 200, (response.status, content)
        return json.loads(content)


def plain(client: Client) -> int:
    job = client.call("POST", "/plain/claim", {"types": [TYPE]})["jobs"][0]
    client.call("PUT", f"/plain/{job['id']}/result", {"result": {"answer": 42}})
    return 1


def single(client: Client) -> int:
    job = client.call("POST", "/jobber/claims", {"types": [TYPE]})["jobs"][0]
    client.call("PUT", f"{job['href']}/result", {"result": {"answer": 42}})
    return 1


class Exchange:
    """Settles what it got and claims the next in one call."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[Client, list[t.Any]] = {}

    def __call__(self, client: Client) -> int:
        results = [
            {"id": job["id"], "attempt": job["attempt"], "result": {"answer": 42}}
            for job in self._held.get(client, ())
        ]
        claim = {"types": [TYPE], "limit": self._size}
        answer = client.call("POST", "/jobber/exchange", {"results": results, "claim": claim})
        assert all(outcome["status"] == 200 for outcome in answer["outcomes"]), answer
        self._held[client] = answer["jobs"]
        return len(results)


SHAPES: dict[str, t.Callable[[], t.Callable[[Client], int]]] = {
    "plain": lambda: plain,
    "single": lambda: single,
    "exchange1": lambda: Exchange(1),
    "exchange100": lambda: Exchange(100),
}


def run(port: int, shape: str, clients: int, seconds: float) -> tuple[int, float]:
    """Return how many jobs were done and how long it took."""
    work, done = SHAPES[shape](), [0] * clients
    start = time.perf_counter()

    def loop(place: int) -> None:
        client = Client(port)
        while time.perf_counter() - start < seconds:
            done[place] += work(client)

    threads = [threading.Thread(target=loop, args=(place,)) for place in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done), time.perf_counter() - start


if __name__ == "__main__":
    port, shape, clients, seconds = sys.argv[1:]
    print(*run(int(port), shape, int(clients), float(seconds)))
