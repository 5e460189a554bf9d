"""The work: ``jobber-worker examples.remote_worker.handlers --server URL --server URL``

Nothing here knows the servers' app or their database.
"""

from __future__ import annotations

import time

from flask_jobber import Cancel, Handlers, Retry
from flask_jobber.worker.job import Job

handlers = Handlers()


@handlers("count", max_run_seconds=10)
def count(job: Job) -> int:
    """Return the words of a text."""
    words = job.data["text"].split()
    if not words:
        raise Cancel("There is nothing to count.")
    if job.data.get("smudged") and not job.failures:
        raise Retry("It could not be read at first.", after=0)
    time.sleep(0.2)  # a real one would take its time
    job.extras["longest"] = max(words, key=len)
    return len(words)


@count.callback
def say(job: Job, words: int) -> None:
    """Print what was done; this comes before the server hears of it."""
    print(f"{job.node}: {job.data['title']} has {words} words", flush=True)
