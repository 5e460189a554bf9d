"""Clients that wait for jobs, receive one, and wait again; all in one process.

Run as ``python -m tests.benchmarks.waiters PORT CLIENTS``.
"""

from __future__ import annotations

import asyncio
import json
import sys

from .peers.ticks import tick

BODY = b'{"types": ["work"], "wait_seconds": 600}'


async def wait(port: int, user: int) -> None:
    """Claim for ever by one kept connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /jobber/claims HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {user}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    while True:
        writer.write(head + BODY)
        for job in await receive(reader):
            tick(job["data"])


async def receive(reader: asyncio.StreamReader) -> list[dict[str, int]]:
    """Return the jobs of an answer."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    body = await reader.readexactly(length)
    if " 200 " not in head.partition("\r\n")[0]:
        raise RuntimeError(f"{head}{body!r}")
    return json.loads(body)["jobs"]  # type: ignore[no-any-return]


async def main(port: int, clients: int) -> None:
    async with asyncio.TaskGroup() as group:
        for user in range(1, clients + 1):
            group.create_task(wait(port, user))


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
