"""How news travels: what the ways have in common."""

from __future__ import annotations

import contextlib
import queue
import socket
import typing as t

from ..core.store import Store


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

    def close(self) -> None:
        """Hear no more."""
        ...


class Transport(t.Protocol):
    """A way for news between those who may use the same jobs."""

    #: Seconds between two looks where it does not reach everybody; ``None``: it does.
    look_every: float | None

    def tell(self, store: Store, text: str) -> None:
        """Let everybody hear it when the transaction of ``store``, which is about to be committed, is."""
        ...

    def say(self, text: str) -> None:
        """Let everybody hear it now."""
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

    def close(self) -> None:
        self._leave(self)
