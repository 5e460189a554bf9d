"""Several workers at once, each in a process of its own, which is started again when it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from .worker import PARENT, signalled

_TICK = 0.25
# Seconds before one that has failed is started again.
_PAUSE = 1.0


def supervise(name: str, count: int, *, ends: bool) -> int:
    """Run this command so many times, as ``<name>-1``, ``<name>-2``, …; return the worst code.

    :param ends: whether one that has ended well is done, and not to be started again.
    """
    with signalled() as signals:
        running = {number: _start(name, number) for number in range(1, count + 1)}
        worst, stopping = 0, False
        while running:
            for _ in range(signals(_TICK)):
                stopping = True
                for process in running.values():
                    process.terminate()
            for number, process in list(running.items()):
                code = process.poll()
                if code is None:
                    continue
                del running[number]
                if stopping or (ends and code == 0):
                    worst = max(worst, abs(code))
                    continue
                if code:
                    time.sleep(_PAUSE)
                running[number] = _start(name, number)
        return worst


def _start(name: str, number: int) -> subprocess.Popen[bytes]:
    # In a session of its own: a terminal's Ctrl-C is for the parent, which tells it.
    return subprocess.Popen(
        [*sys.orig_argv, "--processes", "1", "--name", f"{name}-{number}"],
        env=os.environ | {PARENT: str(os.getpid())},
        start_new_session=True,
    )
