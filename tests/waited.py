"""An app whose claims wait, to be served by real servers, and clients that may hang up."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import typing as t

import sqlalchemy as sa
from flask import Flask
from werkzeug.serving import make_server

from support import PREFIX, World

#: Programs that serve it from a socket which they inherit.
THREADS = (
    sys.executable, "-m", "gunicorn", "--threads", "8", "--log-level", "error", "--bind", "fd://{fd}",
    "waited:create_app()",
)  # fmt: skip
GEVENT = (
    sys.executable, "-m", "gunicorn", "--worker-class", "gevent", "--log-level", "error",
    "--bind", "fd://{fd}", "waited:create_app()",
)  # fmt: skip
DEVELOPMENT = (sys.executable, __file__, "{fd}")


def create_app() -> Flask:
    """Return the app, which tells at ``/asked`` how many statements it has made."""
    settings = json.loads(os.environ.get("WAITED_SETTINGS", "{}"))
    world = World(os.environ["SERVED_URL"], scoped=False, JOBBER_TIDY_SECONDS=0, **settings)
    asked: list[str] = []
    with world.app.app_context():
        sa.event.listen(world.db.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    world.app.add_url_rule("/asked", "asked", lambda: {"asked": len(asked)})
    world.app.add_url_rule("/waiting", "waiting", lambda: {"waiting": _count_waiting(world)})
    return world.app


def _count_waiting(world: World) -> int:
    return sum(one.looking is None for one in tuple(world.jobber.wakeup.room._waiters))


class Caller:
    """A client that has asked for a job, and may hang up before it is answered."""

    def __init__(self, port: int, seconds: float, user: str = "ann") -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        body = json.dumps({"wait_seconds": seconds})
        head = (
            f"POST {PREFIX}/claims HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {user}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self._socket.sendall((head + body).encode())

    def hang_up(self) -> None:
        self._socket.close()

    def answer(self) -> tuple[int, t.Any]:
        """Return the status and the body. :raises OSError: for a reset."""
        with self._socket as caller:
            said = b"".join(iter(lambda: caller.recv(65_536), b""))
        head, _, body = said.partition(b"\r\n\r\n")
        if not head:
            raise ConnectionResetError("no answer")
        return int(head.split()[1]), json.loads(body)


if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    make_server("127.0.0.1", 0, create_app(), threaded=True, fd=int(sys.argv[1])).serve_forever()
