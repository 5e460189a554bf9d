"""Signals, one for each thing that may happen to a job.

Each is sent after the commit that made it true, as ``send(jobber, job_id=…,
attempt=…, locker=…)``; a roll-back, of a savepoint too, sends nothing. A receiver that
raises is logged: what it hears of has happened and cannot be undone by it.
"""

from __future__ import annotations

import dataclasses
import logging
import typing as t

from blinker import NamedSignal, Namespace
from sqlalchemy.orm import Session

from .commits import on_commit

logger = logging.getLogger("flask_jobber")
_namespace = Namespace()

job_enqueued = _namespace.signal("job-enqueued")
job_claimed = _namespace.signal("job-claimed")
job_succeeded = _namespace.signal("job-succeeded")
#: A result is kept, its processor broke and will be called again.
job_submitted = _namespace.signal("job-submitted")
#: Back in the pool after a failure, a rejection or a lapsed lease, or moved by ``on_conflict="reschedule"``.
job_rescheduled = _namespace.signal("job-rescheduled")
job_released = _namespace.signal("job-released")
job_failed = _namespace.signal("job-failed")
job_cancelled = _namespace.signal("job-cancelled")
job_expired = _namespace.signal("job-expired")
#: The operator's retry of an ended job.
job_retried = _namespace.signal("job-retried")
#: Another's content is in it, by ``on_conflict="replace"``.
job_replaced = _namespace.signal("job-replaced")


@dataclasses.dataclass(frozen=True, slots=True)
class _Sending:
    signal: NamedSignal
    sender: object
    facts: dict[str, t.Any]

    def __call__(self) -> None:
        try:
            self.signal.send(self.sender, **self.facts)
        except Exception:
            logger.exception("a receiver of %s raised", self.signal.name, extra=self.facts)


def announce(session: Session, signal: NamedSignal, sender: object, **facts: t.Any) -> None:
    """Send ``signal`` when, and only when, the session's transaction commits."""
    if signal.receivers:
        on_commit(session, _Sending(signal, sender, facts))
