"""Server-sent events: a client hears when jobs that it may see are changed.

A stream holds nothing while it waits. Each look is like a request of its own: the app's
``before_request`` functions, the login and the hooks are asked again, and its session ends with it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import re
import time
import typing as t

from flask import Flask, Response, current_app, request

from ..core import changes
from ..errors import Invalid
from ..wakeup.watchers import Watcher
from . import schemas
from .call import Call
from .operation import operation
from .problems import LoginRequired
from .waiting import Client, looked_after, user

logger = logging.getLogger("flask_jobber")
HEADER = "Last-Event-ID"
CURSOR = re.compile("[0-9]{1,18}")
# Seconds: between two signs of life, at least between two looks, until a stream ends by itself, until
# its client comes again.
_SIGN, _SPACING, _LIFE, _RETRY = 15.0, 0.3, 300.0, 1.0
# Jobs told of in one look, and those of which is known what was told last.
_PAGE, _MEMORY = 100, 10_000
_seen_job = schemas.SeenJob()
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


@operation(
    "GET",
    "/events",
    query=schemas.EventsQuery(),
    answers={200: None},
    headers={HEADER: "The id of the last event of an earlier stream, which goes on after it."},
    mimetype="text/event-stream",
)
def events(
    call: Call, *, job: tuple[int, ...] | None = None, owner: str | None = None, **equals: str | None
) -> Response:
    """Hear of jobs that are changed, as server-sent events."""
    stream = _Stream(call, changes.Narrow(job, {**equals, "owner_ref": owner}), _cursor())
    return Response(iter(stream), mimetype="text/event-stream", headers=_HEADERS)


def _cursor() -> int | None:
    """Return where an earlier stream ended. :raises Invalid: when no stream says so."""
    text = request.headers.get(HEADER)
    if text is not None and not CURSOR.fullmatch(text):
        raise Invalid({HEADER: ["This is no id of an event of ours."]})
    return None if text is None else int(text)


class _Stream:
    """What one client hears.

    :param cursor: where it goes on; ``None``: it begins now.
    """

    def __init__(self, call: Call, narrow: changes.Narrow, cursor: int | None) -> None:
        _ = call.holder  # its hooks fail before the answer begins
        self._app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
        self._environ = request.environ
        self._jobber, self._wakeup, self._settings = call.jobber, call.jobber.wakeup, call.settings
        self._narrow = narrow
        self._is_new = cursor is None
        self._cursor = changes.last(call.store) if cursor is None else cursor
        #: How jobs were when they were told of.
        self._told: dict[int, changes.Mark] = {}
        self._client = Client()
        jobs = None if narrow.ids is None else frozenset(narrow.ids)
        self._watcher = Watcher(self._client.bell.set, jobs, user())

    def __iter__(self) -> t.Iterator[bytes]:
        with self._wakeup.place(self._environ, self._settings.max_waiters) as free, self._faults():
            if free:
                yield from self._stay()
            else:
                yield self._begin(self._settings.idle_seconds)
                yield from self._tell_all(missed=not self._is_new)

    @contextlib.contextmanager
    def _faults(self) -> t.Iterator[None]:
        """End the stream by what would be a refusal, were it a request; the client's next one gets it."""
        try:
            yield
        except LoginRequired:
            pass
        except Exception as error:  # of the database, of the hooks
            logger.warning("a stream of events ends: %s", error, exc_info=error, extra={"action": "events"})

    def _begin(self, seconds: float) -> bytes:
        # Spread, so that all do not come again together.
        retry = round(1000 * seconds * random.uniform(0.75, 1.25))
        return f"retry: {retry}\nid: {self._cursor}\n\n".encode()

    def _stay(self) -> t.Iterator[bytes]:
        with self._app.app_context():
            self._wakeup.watch(self._watcher)
        try:
            with looked_after(self._wakeup, self._client):
                yield from self._follow()
        finally:
            self._wakeup.unwatch(self._watcher)

    def _follow(self) -> t.Iterator[bytes]:
        """Tell what happens, until the client, the login, the server or the stream's time ends."""
        if self._is_new:
            self._remember_all()
        yield self._begin(_RETRY)
        end, sign = (time.monotonic() + seconds for seconds in (_LIFE, _SIGN))
        yield from self._tell_all(missed=not self._is_new)
        look = time.monotonic() + _SPACING
        while (now := time.monotonic()) < end and not self._watcher.dismissed and not self._client.is_gone:
            if self._watcher.has_news and now >= look:
                yield from self._tell_all()
                look = time.monotonic() + _SPACING
            elif now >= sign:
                yield b":\n\n"
                sign = time.monotonic() + _SIGN
            else:
                self._rest(min(end, sign, look if self._watcher.has_news else end) - now)
        if now >= end:  # its client comes again, and need not hear of what is long past
            yield from self._tell_all()
            yield f"id: {self._cursor}\n\n".encode()

    def _rest(self, seconds: float) -> None:
        self._client.bell.wait(seconds)
        self._client.bell.clear()

    def _remember_all(self) -> None:
        """Note how jobs are now: the stream tells of what happens next."""
        with self._look() as call:
            known = changes.since(call.store, call.sight, self._narrow, self._cursor)
        self._told = known or {}

    def _tell_all(self, *, missed: bool = False) -> t.Iterator[bytes]:
        """Tell what the watcher has heard of, and what may have been ``missed``."""
        with self._look() as call:
            newest = changes.last(call.store)
            ids = self._changed(call, missed=missed)
            texts = self._snapshots(call, (ids or [])[:_PAGE])
        if ids is None:
            self._cursor = newest
            yield _event("reset", newest, "{}")
        else:
            yield from self._tell(texts, ids[_PAGE:], newest)

    def _changed(self, call: Call, *, missed: bool) -> list[int] | None:
        """Return the ids of jobs to look at; ``None``: too many."""
        ids, unnamed = self._wakeup.watchers.take(self._watcher)
        if not missed and not unnamed:
            return sorted(ids)
        found = changes.since(call.store, call.sight, self._narrow, self._cursor)
        if found is None:
            return None
        return sorted(ids | {id for id, mark in found.items() if self._told.get(id) != mark})

    def _tell(self, texts: list[str], ids: t.Sequence[int], newest: int) -> t.Iterator[bytes]:
        """Tell of jobs, and look for the others by their ids."""
        while texts or ids:
            held = texts.pop() if texts and not ids else None
            yield from (_event("job", self._cursor, text) for text in texts)
            if held is not None:  # who comes again in the midst of it hears all of it again
                yield _event("job", newest, held)
            texts = []
            if ids:
                with self._look() as call:
                    texts = self._snapshots(call, ids[:_PAGE])
                ids = ids[_PAGE:]
        self._cursor = newest

    def _snapshots(self, call: Call, ids: t.Sequence[int]) -> list[str]:
        """Return what there is to tell of jobs: of those in the scope that are not as they were told."""
        rows = changes.these(call.store, call.sight, self._narrow, ids) if ids else ()
        rows = [row for row in call.permitted(rows) if self._told.get(row.id) != changes.mark(row)]
        for row in rows:
            self._told.pop(row.id, None)  # to the end of it
            self._told[row.id] = changes.mark(row)
        while len(self._told) > _MEMORY:
            del self._told[next(iter(self._told))]
        return [json.dumps(_seen_job.dump(job)) for job in call.seen(rows)]

    @contextlib.contextmanager
    def _look(self) -> t.Iterator[Call]:
        """Look on behalf of the client as it is now.

        :raises LoginRequired: when the app lets it in no more.
        """
        with self._app.request_context(self._environ):
            if self._app.preprocess_request() is not None:
                raise LoginRequired
            yield Call(self._jobber)


def _event(name: str, cursor: int, data: str) -> bytes:
    return f"event: {name}\nid: {cursor}\ndata: {data}\n\n".encode()
