"""A script that paints: ``python -m examples.mosaic.client http://127.0.0.1:5000 ada``

It needs no Flask app, no database and no picture: a login and an HTTP connection.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import sys
import threading

import httpx2

from flask_jobber.client import ClaimedJob, JobberClient

from .mandelbrot import counts


def main() -> None:
    parser = argparse.ArgumentParser(description="Paint tiles until the end of the standard input (Ctrl-D).")
    parser.add_argument("url", help="where the mosaic is")
    parser.add_argument("name", help="your name there; a new one is signed up")
    options = parser.parse_args()
    cookies = log_in(options.url, options.name, _read_password())
    with JobberClient(f"{options.url}/jobber", cookies=cookies, node="script") as client:
        client.work({"tile": compute}, stop=_end_of_input())


def compute(job: ClaimedJob) -> dict[str, list[int]]:
    """Compute the counts of a tile."""
    return {"counts": counts(job.data)}


def log_in(url: str, name: str, password: str) -> httpx2.Cookies:
    """Log in as browsers do, with the form, and return the cookies."""
    form = {"name": name, "password": password}
    with httpx2.Client(base_url=url, timeout=60) as http:
        answer = http.post("/log-in", data=form)
        if answer.status_code == 401:
            answer = http.post("/sign-up", data=form)
        if not answer.is_redirect:
            sys.exit(f"{url} does not let {name} in: {answer.status_code} {answer.reason_phrase}")
        return http.cookies


def _read_password() -> str:
    return getpass.getpass() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")


def _end_of_input() -> threading.Event:
    """Return what is set when the standard input ends: at Ctrl-D, and with the process that wrote to it."""
    ended = threading.Event()

    def wait() -> None:
        # Not sys.stdin.read(), which would hold a lock that the interpreter needs to exit.
        while os.read(sys.stdin.fileno(), 1024):
            pass
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
