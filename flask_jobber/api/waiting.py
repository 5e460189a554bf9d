"""Claims that wait: until there is a job for this client, or for as long as it would.

Between two looks nothing is held, neither a connection of the database nor a
transaction; before each the client is asked again who it is and what it may see.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
import typing as t

from flask import current_app, g, request, session
from flask_login import current_user

from ..core.candidates import Wanted
from ..core.claim import Claims, claim_and_see
from ..core.exchange import Exchange
from ..core.news import still_there
from ..wakeup.lookout import is_gone, socket_of
from ..wakeup.room import Waiter, read_wish
from ..wakeup.wakeup import Wakeup
from .call import Call
from .guard import check_request

#: Makes what is wanted, of the client as it is now.
Ask = t.Callable[[], Wanted]


class Client:
    """The one who waits: an event, and whether it still is there."""

    def __init__(self) -> None:
        self.bell = threading.Event()
        self.socket = socket_of(request.environ)

    @property
    def is_gone(self) -> bool:
        return self.socket is not None and is_gone(self.socket)


def take(call: Call, ask: Ask, seconds: float, results: Exchange | None = None) -> Claims:
    """Claim, with attachments, and wait for up to so many seconds while there is nothing; all is committed.

    :param results: to be settled before.
    :raises LoginRequired: when the login has ended meanwhile.
    """
    wakeup, wanted = call.jobber.wakeup, ask()
    with wakeup.place(request.environ, call.settings.max_waiters if seconds else 0) as free:
        if not free:
            claims = call.with_files(_claim(call, wanted, results)[0])
            call.commit()
            return claims
        client = Client()
        wish = read_wish(call.store.Job, wanted)
        waiter = Waiter(wish, client.bell.set, wanted.limit, user())
        wakeup.enter(waiter)
        try:
            first = _look_first(call, waiter, results)
            return first or _wait(call, ask, waiter, client, first, time.monotonic() + seconds)
        finally:
            wakeup.leave(waiter)


def user() -> str | None:
    """Return the id of the user whose login it is."""
    return current_user.get_id() if current_user.is_authenticated else None


def _claim(call: Call, wanted: Wanted, results: Exchange | None) -> tuple[Claims, set[int] | None]:
    return claim_and_see(call.store, wanted) if results is None else results.claim(wanted, call.commit)


def _wait(call: Call, ask: Ask, waiter: Waiter, client: Client, claims: Claims, until: float) -> Claims:
    room, looked_at = call.jobber.wakeup.room, time.monotonic()
    with looked_after(call.jobber.wakeup, client):
        while not claims and not waiter.dismissed:
            # A limit that left jobs out has room then, and nobody rings for it.
            again = math.inf if claims.retry_after is None else looked_at + claims.retry_after
            rung = client.bell.wait(max(min(until, again) - time.monotonic(), 0))
            if client.is_gone or not (rung or again < until):
                break
            client.bell.clear()
            if rung and not room.is_called(waiter):  # another was quicker
                continue
            room.look(waiter)
            _renew(call)
            waiter.wish = read_wish(call.store.Job, ask())
            claims, looked_at = _look(call, waiter), time.monotonic()
    return claims


def _look_first(call: Call, waiter: Waiter, results: Exchange | None) -> Claims:
    room = call.jobber.wakeup.room
    if not room.is_dry(waiter):
        return _look(call, waiter, results)
    if results is not None:
        results.settle()
    call.commit()
    room.looked(waiter, ())
    return Claims()


def _look(call: Call, waiter: Waiter, results: Exchange | None = None) -> Claims:
    wakeup = call.jobber.wakeup
    claims, left = _claim(call, dataclasses.replace(waiter.wish.wanted, ahead=True), results)
    doubted = set() if claims else wakeup.room.doubted(waiter)
    gone = doubted - still_there(call.store, doubted) if doubted else ()
    call.with_files(claims)
    call.commit()
    # What is not told has to be looked for.
    left = left if wakeup.transport.look_every is None else None
    wakeup.room.looked(waiter, claims, gone, left)
    return claims


@contextlib.contextmanager
def looked_after(wakeup: Wakeup, client: Client) -> t.Iterator[None]:
    """Let the client be noticed when it goes away."""
    if client.socket is None:
        yield
        return
    wakeup.lookout.watch(client.socket, client.bell.set)
    try:
        yield
    finally:
        wakeup.lookout.forget(client.socket)


def _renew(call: Call) -> None:
    """Ask again who this is: Flask-Login, of a session kept by the server what is in it now, and the hooks.

    :raises LoginRequired: when it is nobody any more.
    """
    call.jobber.db.session.expire_all()
    fresh = current_app.session_interface.open_session(current_app, request)
    if fresh is not None and dict(fresh) != dict(session):
        session.clear()
        session.update(fresh)
        session.modified = False  # it is as it was found
    g.pop("_login_user", None)
    check_request(call.jobber)
    call.forget_identity()
