"""NATS JetStream: a queue of work on disk; each message is acknowledged, which is not answered."""

from __future__ import annotations

import asyncio
import typing as t

import nats
from nats.js.api import RetentionPolicy

BODY = b'{"answer": 42}'
# So many are published before the first of them is acknowledged.
AHEAD = 500
STREAM, CONSUMER = "jobs", "workers"


class Client:
    def __init__(self, subscription: t.Any) -> None:
        self._subscription = subscription

    async def turn(self, held: list[t.Any], wanted: int) -> list[t.Any]:
        for message in held:
            await message.ack()
        return await self._subscription.fetch(wanted) if wanted else []


def fill(port: int, jobs: int) -> None:
    asyncio.run(_fill(port, jobs))


async def _fill(port: int, jobs: int) -> None:
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    stream = connection.jetstream()
    await stream.add_stream(name=STREAM, subjects=[STREAM], retention=RetentionPolicy.WORK_QUEUE)
    for first in range(0, jobs, AHEAD):
        await asyncio.gather(*(stream.publish(STREAM, BODY) for _ in range(min(AHEAD, jobs - first))))
    await connection.close()


async def connect(port: int, name: str) -> Client:
    connection = await nats.connect(f"nats://127.0.0.1:{port}")
    return Client(await connection.jetstream().pull_subscribe(STREAM, CONSUMER, stream=STREAM))
