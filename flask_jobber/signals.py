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
from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

logger = logging.getLogger("flask_jobber")
_namespace = Namespace()

job_enqueued = _namespace.signal("job-enqueued")
job_claimed = _namespace.signal("job-claimed")
job_succeeded = _namespace.signal("job-succeeded")
#: A result is kept, its processor broke and will be called again.
job_submitted = _namespace.signal("job-submitted")
#: Back in the pool after a failure, a rejection or a lapsed lease.
job_rescheduled = _namespace.signal("job-rescheduled")
job_released = _namespace.signal("job-released")
job_failed = _namespace.signal("job-failed")
job_cancelled = _namespace.signal("job-cancelled")
job_expired = _namespace.signal("job-expired")
#: The operator's retry of an ended job.
job_retried = _namespace.signal("job-retried")

_PENDING = "flask_jobber.pending"
_COMMITTED = "flask_jobber.committed"


@dataclasses.dataclass(frozen=True, slots=True)
class _Event:
    signal: NamedSignal
    sender: object
    facts: dict[str, t.Any]
    savepoint: SessionTransaction | None

    def send(self) -> None:
        try:
            self.signal.send(self.sender, **self.facts)
        except Exception:
            logger.exception("a receiver of %s raised", self.signal.name, extra=self.facts)


def announce(session: Session, signal: NamedSignal, sender: object, **facts: t.Any) -> None:
    """Send ``signal`` when, and only when, the session's transaction commits."""
    if signal.receivers:
        event_ = _Event(signal, sender, facts, session.get_nested_transaction())
        session.info.setdefault(_PENDING, []).append(event_)


@event.listens_for(Session, "after_transaction_end")
def _settle(session: Session, transaction: SessionTransaction) -> None:
    if not transaction.nested and transaction.parent is None:
        pending = session.info.pop(_PENDING, ())
        if session.info.pop(_COMMITTED, False):
            for event_ in pending:
                event_.send()


@event.listens_for(Session, "after_commit")
def _note_commit(session: Session) -> None:
    savepoint = session.get_nested_transaction()
    if savepoint is None:
        session.info[_COMMITTED] = True
    elif _PENDING in session.info:
        _move(session, savepoint, savepoint.parent if savepoint.parent.nested else None)  # type: ignore[union-attr]


@event.listens_for(Session, "after_soft_rollback")
def _forget(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested and _PENDING in session.info:
        pending = session.info[_PENDING]
        session.info[_PENDING] = [e for e in pending if e.savepoint is not transaction]


def _move(session: Session, inner: SessionTransaction, outer: SessionTransaction | None) -> None:
    session.info[_PENDING] = [
        dataclasses.replace(e, savepoint=outer) if e.savepoint is inner else e for e in session.info[_PENDING]
    ]
