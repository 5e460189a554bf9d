"""Claims that wait: until there is a job for this client, or for as long as it would.

Between two looks nothing is held, neither a connection of the database nor a
transaction; before each the client is asked again who it is and what it may see.
"""

from __future__ import annotations

import contextlib
import threading
import time
import typing as t

from flask import current_app, g, request, session
from flask_login import current_user

from ..core.candidates import Wanted
from ..core.claim import Claim, claim
from ..core.news import is_there
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


def take(call: Call, ask: Ask, seconds: float) -> list[Claim]:
    """Claim, and wait for up to so many seconds while there is nothing; all is committed.

    :raises LoginRequired: when the login has ended meanwhile.
    """
    wakeup, wanted = call.jobber.wakeup, ask()
    with wakeup.place(request.environ, call.settings.max_waiters if seconds else 0) as free:
        if not free:
            claims = claim(call.store, wanted)
            call.commit()
            return claims
        client = Client()
        wish = read_wish(call.store.Job, wanted)
        waiter = Waiter(wish, client.bell.set, wanted.limit, user())
        wakeup.enter(waiter)
        try:
            return _wait(call, ask, waiter, client, time.monotonic() + seconds)
        finally:
            wakeup.leave(waiter)


def user() -> str | None:
    """Return the id of the user whose login it is."""
    return current_user.get_id() if current_user.is_authenticated else None


def _wait(call: Call, ask: Ask, waiter: Waiter, client: Client, until: float) -> list[Claim]:
    room = call.jobber.wakeup.room
    claims = _look(call, waiter)
    with looked_after(call.jobber.wakeup, client):
        while not claims and not waiter.dismissed:
            if not client.bell.wait(max(until - time.monotonic(), 0)) or client.is_gone:
                break
            client.bell.clear()
            room.look(waiter)
            _renew(call)
            waiter.wish = read_wish(call.store.Job, ask())
            claims = _look(call, waiter)
    return claims


def _look(call: Call, waiter: Waiter) -> list[Claim]:
    room = call.jobber.wakeup.room
    claims = claim(call.store, waiter.wish.wanted)
    doubted = () if claims else room.doubted(waiter)
    gone = [fresh for fresh in doubted if not is_there(call.store, fresh)]
    call.commit()
    room.looked(waiter, claims, gone)
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
