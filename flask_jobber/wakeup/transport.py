"""How news travels: what the ways have in common."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import selectors
import socket
import typing as t

from ..core.store import Store

# Seconds after which a connection is asked for a sign of life, and how many are let go by.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


class Ear(t.Protocol):
    """Hears what is told. Used by one thread, but for :meth:`stir`."""

    def wait(self, seconds: float | None) -> list[str]:
        """Return what has been told, as soon as there is something, or ``[]`` at the end of the wait.

        :raises OSError: or the driver's error, when nothing can be heard any more.
        """
        ...

    def stir(self) -> None:
        """Let :meth:`wait` return at once; from any thread."""
        ...

    def watch(self, watching: bool) -> None:
        """Let every process know whether this one wants to hear of jobs that are changed, until closed."""
        ...

    def close(self) -> None:
        """Hear no more."""
        ...


class Transport(t.Protocol):
    """A way for news between those who may use the same jobs."""

    #: Seconds between two looks where it does not reach everybody; ``None``: it does.
    look_every: float | None
    #: Seconds for which a process that changes jobs goes by what it was told of who watches.
    notice: float

    @property
    def channel(self) -> str | None:
        """Return PostgreSQL's, when whatever statement notifies it tells everybody."""
        ...

    def tell(self, store: Store, text: str) -> None:
        """Let everybody hear it when the transaction of ``store``, which is about to be committed, is."""
        ...

    def say(self, text: str) -> None:
        """Let everybody hear it now."""
        ...

    def is_watched(self, store: Store) -> bool:
        """Whether an ear that it reaches, in another process, watches. It may ask the database."""
        ...

    def listen(self) -> Ear:
        """Begin to hear. :raises OSError: or the driver's error, when that cannot be."""
        ...


class Bell:
    """A socket that becomes readable when it is rung, to be waited for beside another."""

    def __init__(self) -> None:
        self._mine, self._theirs = socket.socketpair()
        self._mine.setblocking(False)
        self._theirs.setblocking(False)

    def fileno(self) -> int:
        return self._mine.fileno()

    def ring(self) -> None:
        with contextlib.suppress(OSError):  # full: it rings already; or closed
            self._theirs.send(b"!")

    def hush(self) -> None:
        """Make it silent again."""
        with contextlib.suppress(OSError):
            self._mine.recv(4096)

    def close(self) -> None:
        self._mine.close()
        self._theirs.close()


class LocalEar:
    """Hears what is told in this process."""

    def __init__(self, leave: t.Callable[[LocalEar], None]) -> None:
        self._told: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._leave = leave

    def hear(self, text: str) -> None:
        self._told.put(text)

    def wait(self, seconds: float | None) -> list[str]:
        try:
            said = self._told.get(timeout=seconds)
        except queue.Empty:
            return []
        return [] if said is None else [said]

    def stir(self) -> None:
        self._told.put(None)

    def watch(self, watching: bool) -> None:
        """Who tells is this process, and knows."""

    def close(self) -> None:
        self._leave(self)


class WireEar:
    """Hears what is told in this process, and what comes by a file descriptor."""

    def __init__(self, leave: t.Callable[[t.Any], None]) -> None:
        self._told: collections.deque[str] = collections.deque()
        self._leave = leave
        self._bell, self._selector = Bell(), selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ)

    def attend(self, fileno: int) -> None:
        """Wake up when there is something to be read, see :meth:`receive`."""
        self._selector.register(fileno, selectors.EVENT_READ)

    def receive(self) -> list[str]:
        """Return what has come, without waiting."""
        raise NotImplementedError

    def hear(self, text: str) -> None:
        self._told.append(text)
        self._bell.ring()

    def wait(self, seconds: float | None) -> list[str]:
        self._selector.select(seconds)
        self._bell.hush()
        told = [self._told.popleft() for _ in range(len(self._told))]
        return told + self.receive()

    def stir(self) -> None:
        self._bell.ring()

    def watch(self, watching: bool) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._leave(self)
        self._selector.close()
        self._bell.close()


def keep_alive(fileno: int) -> None:
    """Let the system notice when the other side is gone without a word."""
    with socket.socket(fileno=os.dup(fileno)) as same:
        if same.family in (socket.AF_INET, socket.AF_INET6):
            same.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE.items():
                if hasattr(socket, name):
                    same.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
