"""A client that reads a stream of events from a port."""

from __future__ import annotations

import http.client
import json
import typing as t

from support import PREFIX

LIMIT = 30


class Event(t.NamedTuple):
    """One event as it stands on the wire."""

    name: str
    id: str
    data: t.Any


class Stream:
    """An open stream, read event by event."""

    def __init__(self, port: int, path: str, headers: t.Mapping[str, str]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
        self._connection.request("GET", PREFIX + path, headers=dict(headers))
        self.response = self._connection.getresponse()
        self.status = self.response.status
        if self.status == 200:
            self.begin = self.block()

    def block(self) -> dict[str, str] | None:
        """Return the fields of the next block; ``None`` at the end."""
        fields: dict[str, str] = {}
        while line := self.response.readline():
            if line == b"\n":
                return fields
            name, _, value = line.decode().rstrip("\n").partition(":")
            fields[name] = value.removeprefix(" ")
        return None

    def next(self) -> Event | None:
        """Return the next event; ``None`` at the end."""
        while (fields := self.block()) is not None:
            if "event" in fields:
                return Event(fields["event"], fields["id"], json.loads(fields["data"]))
        return None

    def job(self, job_id: int, **values: t.Any) -> Event:
        """Return the next event, which is a job's with these values."""
        event = self.next()
        assert event is not None
        assert event.name == "job"
        assert {"id": job_id, **values}.items() <= event.data.items()
        return event

    def jobs_until(self, job_id: int) -> list[int]:
        """Return whose events come until one is of this job: what was told may be told again."""
        heard: list[int] = []
        while job_id not in heard:
            event = self.next()
            assert event is not None
            heard.append(event.data["id"])
        return heard

    def close(self) -> None:
        self.response.close()
        self._connection.close()
