"""A claim that waits, until another thread hangs up."""

from __future__ import annotations

import contextlib
import socket
import threading
import typing as t

import httpx2

from .records import ClaimedJob, claimed
from .transport import CLAIM, Transport

# Where the trace of a connection tells its stream; the one with TLS comes last.
_CONNECTED = ("connection.connect_tcp.complete", "connection.start_tls.complete")
# Seconds for a server to answer one who has said all; those that do not see it are cut off.
_GRACE = 1.0


class Line:
    """A connection of its own, for one call at a time.

    :param http: a client that has one connection at the most.
    """

    def __init__(self, http: httpx2.Client, timeout: float, patience: float) -> None:
        self._transport = Transport(http, timeout, patience, trace=self._note)
        self._lock = threading.Lock()
        self._stream: t.Any = None
        self._is_over = False
        self._is_silent = threading.Event()
        self._is_silent.set()

    def claim(
        self, body: dict[str, t.Any], stop: threading.Event | None = None
    ) -> tuple[list[ClaimedJob], float]:
        """Claim; return the jobs, and the seconds to wait before the next claim.

        :param stop: ends the waiting for another try.
        :raises Disconnected: also when it is hung up, and not known what the server has done.
        """
        with self._lock:
            if self._is_over:
                return [], 0
            self._is_silent.clear()
        wait = body.get("wait_seconds") or 0
        try:
            answer = self._transport.call(CLAIM, body=body, wait_seconds=wait, stop=stop)
        finally:
            self._is_silent.set()
        return claimed(answer), answer["retry_after"]

    def hang_up(self) -> None:
        """End the call under way, and make no more until :meth:`pick_up`.

        First by telling the server that there is no more to come: it sees its client leave, and
        answers, so that both know what was handed out.
        """
        with self._lock:
            self._is_over = True
            self._shut(socket.SHUT_WR)
        if not self._is_silent.wait(_GRACE):
            self._shut(socket.SHUT_RDWR)
            self._is_silent.wait(_GRACE)

    def pick_up(self) -> None:
        """Allow calls again."""
        with self._lock:
            self._is_over = False

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    def _note(self, event: str, info: t.Mapping[str, t.Any]) -> None:
        if event not in _CONNECTED:
            return
        with self._lock:
            self._stream = info["return_value"]
            if self._is_over:
                self._shut(socket.SHUT_RDWR)

    def _shut(self, how: int) -> None:
        found = self._stream and self._stream.get_extra_info("socket")
        if found is not None:
            with contextlib.suppress(OSError):
                # Not what TLS makes of it: that forgets its state, which the other thread reads with.
                socket.socket.shutdown(found, how)


def keep(transport: httpx2.BaseTransport | None) -> httpx2.BaseTransport | None:
    """Return a transport that a line may use, but not close."""
    return None if transport is None else _Kept(transport)


class _Kept(httpx2.BaseTransport):
    def __init__(self, transport: httpx2.BaseTransport) -> None:
        self._transport = transport

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self._transport.handle_request(request)
