"""What this process knows of the server that runs it: how many may wait, and when it ends."""

from __future__ import annotations

import signal
import sys
import typing as t

# Where each request has a thread of its own, or none at all.
_MANY_THREADS, _GREENLETS = 100, 1000


def most_waiters(environ: t.Mapping[str, t.Any]) -> int:
    """Return how many requests may wait in this process, so that others are still answered.

    Half of gunicorn's threads. Of a pool of unknown size one: there are at least two.
    """
    if is_green():
        return _GREENLETS
    if not environ.get("wsgi.multithread"):
        return 0
    if "werkzeug.socket" in environ:
        return _MANY_THREADS
    worker = _gunicorn_worker()
    return max(int(worker.cfg.threads) // 2, 1) if worker is not None else 1


def is_green() -> bool:
    """Whether waiting costs no thread, thanks to gevent."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def is_ending() -> bool:
    """Whether the server has been told to end, and waits for its requests to be answered."""
    worker = _gunicorn_worker()
    return worker is not None and not worker.alive


def _gunicorn_worker() -> t.Any:
    """Return gunicorn's worker, which handles the signals of its process."""
    base = sys.modules.get("gunicorn.workers.base")
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if base is not None and isinstance(owner, base.Worker) else None
