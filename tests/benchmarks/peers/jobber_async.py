"""flask_jobber with a coroutine function, as those peers have one that know no others."""

from __future__ import annotations

import functools
import typing as t

from . import jobber
from .jobber import app, set_up
from .ticks import tick

__all__ = ["app", "sending", "set_up"]

sending = functools.partial(jobber.sending, type="looped")


@jobber.jobber.handlers("looped")
async def looped(job: t.Any) -> None:
    tick(job.data)
