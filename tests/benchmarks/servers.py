"""The app under load, on one of several servers: of eight threads a process if it has threads."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import typing as t
import urllib.request

_APP = "tests.benchmarks.apps"
#: By name, what follows ``python -m``.
COMMANDS = {
    "gunicorn threads": f"gunicorn --threads 8 --bind 127.0.0.1:{{port}} {_APP}:create_app()",
    "gunicorn threads, two processes": (
        f"gunicorn --workers 2 --threads 8 --bind 127.0.0.1:{{port}} {_APP}:create_app()"
    ),
    "gunicorn gevent": f"gunicorn --worker-class gevent --bind 127.0.0.1:{{port}} {_APP}:create_app()",
    "granian": f"granian --interface wsgi --blocking-threads 8 --port {{port}} --factory {_APP}:create_app",
}


class Server(t.NamedTuple):
    """A server that answers, by the id of its process."""

    pid: int
    port: int


@contextlib.contextmanager
def serve(name: str, url: str) -> t.Iterator[Server]:
    """Run the app over a database.

    :raises OSError: when the server does not start.
    """
    port = free_port()
    command = [sys.executable, "-m", *COMMANDS[name].format(port=port).split()]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=os.environ | {"BENCH_URL": url}, **quiet)
    try:
        wait_for(port, process)
        urllib.request.urlopen(f"http://127.0.0.1:{port}/empty", b"{}", timeout=30).close()
        yield Server(process.pid, port)
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes] | None = None) -> None:
    """Wait until someone listens there."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise ChildProcessError(f"it ended with code {process.returncode}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError("the server did not start")
