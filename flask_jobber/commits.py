"""What is done when, and only when, a transaction commits: a roll-back, of a savepoint too, forgets it.

Or does something else instead.
"""

from __future__ import annotations

import dataclasses
import typing as t

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_PENDING = "flask_jobber.pending"
_COMMITTED = "flask_jobber.committed"
Effect = t.Callable[[], None]
E = t.TypeVar("E")


@dataclasses.dataclass(frozen=True, slots=True)
class _Pending:
    effect: Effect
    savepoint: SessionTransaction | None
    otherwise: Effect | None


def on_commit(session: Session, effect: Effect, otherwise: Effect | None = None) -> None:
    """Call ``effect``, which must not raise, when the session's transaction has committed.

    :param otherwise: is called when it is rolled back, and must not raise either.
    """
    savepoint = session.get_nested_transaction()
    session.info.setdefault(_PENDING, []).append(_Pending(effect, savepoint, otherwise))


def take(session: Session, kind: type[E]) -> list[E]:
    """Take back the effects of a kind, in their order."""
    pending: list[_Pending] = session.info.get(_PENDING, [])
    taken = [one.effect for one in pending if isinstance(one.effect, kind)]
    if taken:
        session.info[_PENDING] = [one for one in pending if not isinstance(one.effect, kind)]
    return taken


def is_last(session: Session) -> bool:
    """Whether what is about to be committed is the transaction, not a savepoint in it."""
    return session.get_nested_transaction() is None


@event.listens_for(Session, "after_transaction_end")
def _settle(session: Session, transaction: SessionTransaction) -> None:
    if transaction.nested:
        _forget(session, transaction)
    elif transaction.parent is None:
        is_committed = session.info.pop(_COMMITTED, False)
        for one in session.info.pop(_PENDING, ()):
            _end(one, is_committed)


@event.listens_for(Session, "after_commit")
def _note_commit(session: Session) -> None:
    savepoint = session.get_nested_transaction()
    if savepoint is None:
        session.info[_COMMITTED] = True
    elif _PENDING in session.info:
        _move(session, savepoint, savepoint.parent if savepoint.parent.nested else None)  # type: ignore[union-attr]


def _end(one: _Pending, is_committed: bool) -> None:
    effect = one.effect if is_committed else one.otherwise
    if effect is not None:
        effect()


def _forget(session: Session, savepoint: SessionTransaction) -> None:
    """Forget what a savepoint has left when it ends: what it committed has been moved."""
    pending: list[_Pending] = session.info.get(_PENDING, [])
    if left := [one for one in pending if one.savepoint is savepoint]:
        session.info[_PENDING] = [one for one in pending if one.savepoint is not savepoint]
        for one in left:
            _end(one, is_committed=False)


def _move(session: Session, inner: SessionTransaction, outer: SessionTransaction | None) -> None:
    session.info[_PENDING] = [
        dataclasses.replace(one, savepoint=outer) if one.savepoint is inner else one
        for one in session.info[_PENDING]
    ]
