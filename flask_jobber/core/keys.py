"""Idempotency keys: a request that comes twice has one effect, and one answer.

A key is stored in the transaction of what it stands for, so there is no key without its
effect, whatever crashes. Who comes second waits for the first one's transaction at the
primary key, and then finds its answer.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import typing as t

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..errors import KeyReused
from .engines import TransactionLost, plus_seconds, utcnow
from .enqueue import begin
from .scope import Expression
from .store import Store

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclasses.dataclass(frozen=True, slots=True)
class Key:
    """One request by one login.

    :param digest: of the login and its key: neither is kept as it is, and no login has another's.
    :param fingerprint: of what is asked.
    """

    digest: str
    fingerprint: str


def make(login: str, text: str, asked: t.Mapping[str, t.Any]) -> Key:
    """Return the key of a request.

    :param asked: what it asks, JSON and aware datetimes.
    """
    return Key(_digest([login, text]), _digest(asked))


def _digest(value: t.Any) -> str:
    # What breaks a rule (infinity, a lone surrogate, depth) must reach the check that refuses it.
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_instant).encode()).hexdigest()


def _instant(value: dt.datetime) -> str:
    return str(value - _EPOCH)  # in UTC it might be before the year 1


def take(store: Store, key: Key) -> dict[str, t.Any] | None:
    """Take a key for the first answer to a request, or return that answer when it was given before.

    It waits for a request with this key that is being answered now.

    :raises KeyReused: when the key was used for another request.
    :raises TransactionLost: when who had it has just let it go.
    """
    # Not a locking read: MySQL's would lock the gap that the others insert into.
    row = _look(store, key)
    if row is not None and row.old:
        store.execute(sa.delete(store.keys).where(store.keys.c.digest == key.digest, _old(store)))
        row = None
    if row is None:
        if _insert(store, key):
            return None
        row = _look(store, key, again=True)
    if row is None:
        raise TransactionLost("The request with this key was undone.")
    if row.fingerprint != key.fingerprint:
        raise KeyReused
    return t.cast(dict[str, t.Any], row.answer)


def _look(store: Store, key: Key, *, again: bool = False) -> sa.Row[t.Any] | None:
    k = store.keys.c
    select = sa.select(k.fingerprint, k.answer, _old(store).label("old")).where(k.digest == key.digest)
    return store.execute(store.current(select) if again else select).one_or_none()


def _insert(store: Store, key: Key) -> bool:
    begin(store)
    savepoint = store.session.begin_nested()
    try:
        store.execute(sa.insert(store.keys).values(digest=key.digest, fingerprint=key.fingerprint))
    except IntegrityError:
        savepoint.rollback()
        return False
    savepoint.commit()
    return True


def keep(store: Store, key: Key, said: t.Mapping[str, t.Any]) -> None:
    """Store the answer to a request whose key this transaction has taken."""
    written = sa.update(store.keys).where(store.keys.c.digest == key.digest).values(answer=dict(said))
    store.execute(written)


def prune(store: Store, limit: int = 1000) -> int:
    """Forget up to ``limit`` keys that are old enough; return how many."""
    k = store.keys.c
    chosen = sa.select(k.digest).where(_old(store)).order_by(k.created_at).limit(limit)
    digests = store.execute(chosen).scalars().all()
    for digest in digests:  # one by one, see prune.py
        store.execute(sa.delete(store.keys).where(k.digest == digest))
    return len(digests)


def _old(store: Store) -> Expression:
    age: Expression = sa.literal(-store.settings.keep_keys_seconds, sa.Double())
    return store.keys.c.created_at <= plus_seconds(utcnow(), age)
