"""Sees clients go away while their requests wait, and the server end."""

from __future__ import annotations

import select
import selectors
import socket
import ssl
import threading
import typing as t

from .server import is_ending
from .transport import Bell

# Seconds between two looks at whether the server ends: at itself, nothing is asked.
_TURN = 0.5
_SOCKETS = ("gunicorn.socket", "werkzeug.socket")


def socket_of(environ: t.Mapping[str, t.Any]) -> socket.socket | None:
    """Return the socket of a request's client, from servers that tell it."""
    found = next((environ[name] for name in _SOCKETS if environ.get(name) is not None), None)
    return found if isinstance(found, socket.socket) and not isinstance(found, ssl.SSLSocket) else None


def is_gone(client: socket.socket) -> bool:
    """Whether the client has closed its side."""
    try:
        # Asked first, as gevent's sockets wait for data whatever the flags.
        poll = select.poll()
        poll.register(client, select.POLLIN)
        return bool(poll.poll(0)) and client.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


class _Watched(t.NamedTuple):
    client: socket.socket
    gone: t.Callable[[], None]


class Lookout:
    """A thread that watches the sockets of those who wait, while there are any.

    :param ending: called when the server ends.
    """

    def __init__(self, ending: t.Callable[[], None]) -> None:
        self._ending = ending
        self._lock = threading.Lock()
        self._watched: dict[int, _Watched] = {}
        self._bell: Bell | None = None

    def watch(self, client: socket.socket, gone: t.Callable[[], None]) -> None:
        """Call ``gone`` when the client goes away."""
        if client.fileno() < 0:
            gone()
            return
        with self._lock:
            self._watched[client.fileno()] = _Watched(client, gone)
            if self._bell is None:
                self._bell = Bell()
                run = threading.Thread(target=self._run, args=(self._bell,), daemon=True)
                run.name = "jobber-lookout"
                run.start()
            self._bell.ring()

    def forget(self, client: socket.socket) -> None:
        """Watch a client no longer."""
        with self._lock:
            # By itself: once closed it has no number any more.
            for fd in [fd for fd, one in self._watched.items() if one.client is client]:
                del self._watched[fd]

    def _run(self, bell: Bell) -> None:
        known: dict[int, _Watched] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(bell, selectors.EVENT_READ)
            while self._turn(selector, bell, known):
                if is_ending():
                    self._ending()
        bell.close()

    def _turn(self, selector: selectors.BaseSelector, bell: Bell, known: dict[int, _Watched]) -> bool:
        """Watch for a while; return whether anybody is left to be watched."""
        with self._lock:
            if not self._watched:
                self._bell = None
                return False
            self._register(selector, known)
        ready = [key.fd for key, _ in selector.select(_TURN)]
        bell.hush()
        with self._lock:
            for one in [self._watched.pop(fd) for fd in ready if fd in self._watched]:
                # Else it has sent its next request already, and tells nothing more.
                if is_gone(one.client):
                    one.gone()
        return True

    def _register(self, selector: selectors.BaseSelector, known: dict[int, _Watched]) -> None:
        """Let the selector know who is watched; the number of a socket may be another's by now."""
        for fd in [fd for fd, one in known.items() if self._watched.get(fd) is not one]:
            del known[fd]
            selector.unregister(fd)
        for fd in self._watched.keys() - known.keys():
            try:
                selector.register(fd, selectors.EVENT_READ)
                known[fd] = self._watched[fd]
            except (OSError, ValueError):  # the server has closed it meanwhile
                self._watched.pop(fd).gone()
