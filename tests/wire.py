"""A wire to a database server that can be cut and mended."""

from __future__ import annotations

import contextlib
import socket
import threading
import typing as t

import sqlalchemy as sa

_PORTS = {"postgresql": 5432, "mysql": 3306}


class Wire:
    """Forwards a port of this machine to a server.

    :param url: of the server; :attr:`url` is the same through the wire.
    """

    def __init__(self, url: str) -> None:
        whole = sa.make_url(url)
        self._server = (whole.host or "127.0.0.1", whole.port or _PORTS[whole.get_backend_name()])
        self._ends: list[socket.socket] = []
        self._port = 0
        self.mend()
        self.url = whole.set(host="127.0.0.1", port=self._port).render_as_string(hide_password=False)

    def mend(self) -> None:
        """Listen, on the port of before."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:  # cut
                return
            far = socket.create_connection(self._server)
            self._ends += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=_forward, args=(source, target), daemon=True).start()

    def close(self) -> None:
        """Cut it: every connection breaks, new ones are refused."""
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._ends.clear()

    @contextlib.contextmanager
    def cut(self) -> t.Iterator[None]:
        """Be cut for a while."""
        self.close()
        try:
            yield
        finally:
            self.mend()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def wire_to(url: str) -> t.Iterator[Wire]:
    """Lay a wire."""
    wire = Wire(url)
    try:
        yield wire
    finally:
        wire.close()
