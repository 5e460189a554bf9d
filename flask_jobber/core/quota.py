"""How many jobs one login may hold."""

from __future__ import annotations

import typing as t

import sqlalchemy as sa

from ..config import Settings
from ..errors import TooManyClaims
from . import candidates as find
from . import lockers
from .engines import utcnow
from .lockers import of_login
from .states import State
from .store import Store


def check_room(store: Store, locker: str, *, new: bool = True) -> int:
    """Return how many more jobs the locker's login may hold; others of that login wait until the end.

    :param new: whether they would be handed out, and not taken up again.
    :raises TooManyClaims: when it holds ``MAX_OPEN_CLAIMS``, or has used up a quota of its own.
    """
    settings = store.settings
    if not has_quotas(settings):
        return settings.max_claim
    login = lockers.login_of(locker)
    _serialize(store, login)
    limits = lockers.limits(store, login)
    room = settings.max_claim
    if limits.open_claims is not None:
        open_claims = store.execute(store.current(_count_held(store, login))).scalar_one()
        if open_claims >= limits.open_claims:
            raise TooManyClaims(
                f"You hold {open_claims} jobs, the most that you may. Deliver or release some."
            )
        room = t.cast(int, limits.open_claims - open_claims)
    if new and limits.left_today is not None:
        if limits.left_today <= 0:
            raise TooManyClaims("You have claimed as many jobs as you may in a day.", limits.seconds_of_today)
        room = min(room, limits.left_today)
    return room


def has_quotas(settings: Settings) -> bool:
    """Whether any login may hold only so many jobs."""
    quotas = (settings.max_open_claims, settings.first_open_claims, settings.first_daily_claims)
    return any(quota is not None for quota in quotas)


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
