"""Settings of gunicorn's for many who wait, as the guide has them."""

from __future__ import annotations

import gc


def post_worker_init(worker: object) -> None:
    """Let full collections of garbage be rare: each goes through all that waits, and stops the process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(700, 10, 1000)
