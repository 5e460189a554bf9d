"""How many jobs one login may hold."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..errors import TooManyClaims
from . import candidates as find
from .engines import utcnow
from .states import State
from .store import Store


def check_room(store: Store, locker: str) -> int:
    """Return how many more jobs the locker's login may hold; others of that login wait until the end.

    :raises TooManyClaims: when it holds ``MAX_OPEN_CLAIMS``.
    """
    most = store.settings.max_open_claims
    if most is None:
        return store.settings.max_claim
    login = locker.partition("/")[0]
    _serialize(store, login)
    open_claims = store.execute(store.current(_count_held(store, login))).scalar_one()
    if open_claims >= most:
        raise TooManyClaims(f"You hold {open_claims} jobs, the most that you may. Deliver or release some.")
    return t.cast(int, most - open_claims)


def of_login(store: Store, login: str) -> sa.ColumnElement[bool]:
    """Return the condition that a job's locker is a login, on whatever node."""
    c = store.jobs.c
    # The first part lets MySQL lock a range of an index; elsewhere texts may have another order.
    near = c.locked_by.between(f"{login}/", f"{login}0") if store.engine_name == "mysql" else sa.true()
    on_node = sa.func.substr(c.locked_by, 1, len(login) + 1) == f"{login}/"
    return sa.or_(c.locked_by == login, sa.and_(near, on_node))


def _count_held(store: Store, login: str) -> sa.Select[t.Any]:
    c = store.jobs.c
    held = sa.and_(c.state == find.word(State.LOCKED), c.locked_until > utcnow())
    return sa.select(sa.func.count()).where(held, of_login(store, login))


def _serialize(store: Store, login: str) -> None:
    """Let one login claim once at a time, or it would count the same room twice."""
    if store.engine_name == "postgresql":
        key = sa.func.hashtextextended(f"{store.jobs.name}/{login}", 0)
        store.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
    elif store.engine_name == "sqlite":
        nothing = sa.update(store.jobs).where(sa.false()).values(note=None)
        store.execute(nothing)  # takes the only write lock
    else:
        # The oldest row of the history, which nothing else locks; so all logins go one by one.
        # A named lock would outlive the transaction, and nothing of one login need exist yet.
        h = store.history.c.id
        store.execute(sa.select(h).order_by(h).limit(1).with_for_update()).all()
