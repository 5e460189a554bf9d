"""What an operator sees of accounts. Nothing here changes anything."""

from __future__ import annotations

import collections
import typing as t

import sqlalchemy as sa

from ..api.identity import ACCOUNT
from ..core.engines import utcnow
from ..core.lockers import login_of
from ..core.states import State, Verb
from .verbs import NAME, Book, NoSuchWorker, locker_of

Seen = dict[str, t.Any]
# What each verb of a worker is counted as; a delivery depends on what came of it.
_COUNTED: dict[str, str] = {
    Verb.CLAIM: "claimed",
    Verb.FAIL: "failed",
    Verb.RELEASE: "released",
    Verb.LAPSE: "lapsed",
}
_DELIVERED: dict[str, str] = {State.SUCCEEDED: "succeeded", State.SUBMITTED: "submitted"}
_REJECTED = "rejected"
#: What is counted of a worker.
COUNTS = ("held", "claimed", *_DELIVERED.values(), _REJECTED, "failed", "released", "lapsed")


def seen(book: Book, name: str | None = None) -> list[Seen]:
    """Return the accounts by name, or the one of this name.

    :raises NoSuchWorker: when there is none of this name.
    """
    w, k = book.tables.worker, book.tables.token
    good = sa.and_(k.c.worker_id == w.c.id, k.c.expires_at > utcnow())
    tokens = sa.select(sa.func.count()).select_from(k).where(good).scalar_subquery().label("tokens")
    select = sa.select(w, tokens).order_by(w.c.name)
    if name is not None:
        select = select.where(w.c.name == (name if NAME.fullmatch(name) else ""))
    rows = book.store.execute(select).all()
    if name is not None and not rows:
        raise NoSuchWorker(name)
    queues, held = _queues(book), _held(book)
    return [
        {
            "name": row.name,
            "client_id": row.client_id,
            "locker": locker_of(row.name),
            "locked": row.locked_at is not None,
            "queues": queues[row.id],
            "held": held[locker_of(row.name)],
            "tokens": row.tokens,
            "created_at": row.created_at,
            "locked_at": row.locked_at,
            "last_login_at": row.last_login_at,
        }
        for row in rows
    ]


def _queues(book: Book) -> t.Mapping[int, list[str]]:
    h = book.tables.hire.c
    found = collections.defaultdict[int, list[str]](list)
    for row in book.store.execute(sa.select(h.worker_id, h.queue).order_by(h.queue)):
        found[row.worker_id].append(row.queue)
    return found


def _held(book: Book) -> t.Mapping[str, int]:
    """Return how many jobs each account holds, by its locker name."""
    c = book.store.jobs.c
    mine = (c.state == State.LOCKED, c.locked_by.startswith(ACCOUNT))
    number = sa.func.count().label("number")
    counted = sa.select(c.locked_by, number).where(*mine).group_by(c.locked_by)
    held = collections.Counter[str]()
    for row in book.store.execute(counted):
        held[login_of(row.locked_by)] += row.number
    return held


def stats(book: Book, name: str | None = None) -> list[Seen]:
    """Return what each worker has done, or the one of this name, as far as the history goes back.

    :raises NoSuchWorker: when there is none of this name.
    """
    h = book.store.history.c
    columns = (h.locker, h.reason, h.to_state)
    number = sa.func.count().label("number")
    counted = sa.select(*columns, number).where(h.locker.startswith(ACCOUNT)).group_by(*columns)
    counts = collections.defaultdict[str, collections.Counter[str]](collections.Counter)
    for row in book.store.execute(counted):
        counts[login_of(row.locker)][_told(row.reason, row.to_state)] += row.number
    workers = seen(book, name)
    for worker in workers:
        counts[worker["locker"]]["held"] = worker["held"]
    return [
        {"name": worker["name"], **{key: counts[worker["locker"]][key] for key in COUNTS}}
        for worker in workers
    ]


def _told(reason: str, state: str) -> str:
    if reason == Verb.DELIVER:
        return _DELIVERED.get(state, _REJECTED)
    return _COUNTED.get(reason, "")
