"""Claim and settle as a request does, without its HTTP: in the tables of the app that is current."""

from __future__ import annotations

import time
import typing as t

from flask_jobber.core import scope as scopes
from flask_jobber.core.candidates import Wanted
from flask_jobber.core.claim import Claims, claim
from flask_jobber.core.hold import Holder
from flask_jobber.core.settle import Delivery, deliver
from flask_jobber.core.states import State

from . import apps

RESULT = {"answer": 42}


def claim_once(type_: str = "work") -> float:
    """Return the seconds of one claim by user 1, with its commit."""
    return claim_some(1, type_)[1]


def work_once(user: int, type_: str | None) -> tuple[float, float]:
    """Return the seconds of a claim and of the delivery of its result, each with its commit."""
    claims, took = claim_some(user, type_)
    return took, deliver_some(user, claims)


def claim_some(user: int, type_: str | None, limit: int = 1) -> tuple[Claims, float]:
    """Claim jobs of a type, or of any; return them, and the seconds that it took."""
    start = time.perf_counter()
    types = None if type_ is None else (type_,)
    wanted = Wanted(f"user_{user}", _scope(user), types=types, limit=limit)
    claims = claim(apps.jobber.store(), wanted)
    apps.db.session.commit()
    took = time.perf_counter() - start
    assert len(claims) == limit, (user, type_, claims)
    return claims, took


def deliver_some(user: int, claims: Claims) -> float:
    """Deliver a result of each in one transaction; return the seconds that it took."""
    start = time.perf_counter()
    items = [Delivery(one.id, one.attempt, RESULT) for one in claims]
    outcomes = deliver(apps.jobber.store(), Holder(f"user_{user}", _scope(user)), items)
    apps.db.session.commit()
    took = time.perf_counter() - start
    assert all(outcome.state is State.SUCCEEDED for outcome in outcomes), outcomes
    return took


def _scope(user: int) -> t.Any:
    return scopes.read(apps.Job.user_id == user)
