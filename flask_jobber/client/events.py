"""Server-sent events, heard for as long as the client likes."""

from __future__ import annotations

import json
import logging
import time
import typing as t

import httpx2

from .records import Job, load
from .transport import EVENTS, Transport, about

logger = logging.getLogger("flask_jobber")
# The server gives a sign of life every 15 seconds.
_SILENCE = 45.0
# A client that comes again at once does not so more often than this.
_SHORTEST = 0.01


class Events:
    """One stream after the other, each from where the last one ended.

    :param params: which jobs; :param listed: lists them all.
    """

    def __init__(
        self,
        transport: Transport,
        params: t.Mapping[str, t.Any],
        listed: t.Callable[[], t.Iterator[Job]],
        cursor: str | None,
    ) -> None:
        self._transport, self._params, self._listed = transport, dict(params), listed
        self.cursor = cursor
        self._retry = 1.0
        self._tries = 0

    def hear(self) -> t.Iterator[Job]:
        """Yield jobs that have changed. :raises ClientError: when no stream is to be had."""
        while True:
            self._tries += 1
            try:
                response = self._transport.open(EVENTS, self._params, self._headers(), _SILENCE)
                try:
                    yield from self._read(response)
                finally:
                    response.close()
            except httpx2.TransportError as error:  # the next try tells whether anybody is there
                logger.info("a stream of events broke: %s", error, extra=about("events"))
            time.sleep(max(self._retry, _SHORTEST))

    def _headers(self) -> dict[str, str]:
        named = {} if self.cursor is None else {"Last-Event-ID": self.cursor}
        return {"Accept": "text/event-stream", **named}

    def _read(self, response: httpx2.Response) -> t.Iterator[Job]:
        fields: dict[str, str] = {}
        for line in response.iter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
                continue
            told, fields = fields, {}
            self._retry = int(told["retry"]) / 1000 if "retry" in told else self._retry
            yield from self._jobs(told)
            # Not before: who leaves in the midst of it has not heard it.
            self.cursor = told.get("id", self.cursor)

    def _jobs(self, told: t.Mapping[str, str]) -> t.Iterator[Job]:
        if told.get("event") == "job":
            yield load(Job, json.loads(told["data"]))
        elif told.get("event") == "reset":
            yield from self._listed()
        if self.cursor is None and self._tries > 1:  # nobody knows what has happened since the first try
            yield from self._listed()
