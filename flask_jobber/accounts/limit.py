"""How often one may fail to log in.

Failures are counted for each client from each address, and for each address, in windows
that begin with the first failure. Who has too many is not looked at any more until the
window has ended. A client's failures elsewhere do not count against it: nobody can shut
another's worker out by guessing.
"""

from __future__ import annotations

import hmac
import ipaddress
import typing as t

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..core.engines import plus_seconds, utcnow
from ..core.enqueue import begin
from .verbs import Book

#: Failures in a window: of a client from one address, and of an address with whatever clients.
MOST_OF_CLIENT, MOST_OF_ADDRESS = 10, 100
WINDOW_SECONDS = 60
# Counters are told apart by a keyed hash: their number is bounded, whatever anybody sends.
_SLOTS = 2**16
# What one subscriber has of IPv6.
_NETWORK = 64


class Guesser(t.NamedTuple):
    """Who tries to log in: the slots of its two counters."""

    client: int
    address: int

    @classmethod
    def of(cls, key: bytes, address: str | None, client_id: str) -> Guesser:
        """:param key: keeps others from choosing an address that has another's slot."""
        network = _network(address or "")
        of_client = _slot(key, f"client {network} {client_id}")
        return cls(of_client + _SLOTS, _slot(key, f"address {network}"))


def _network(address: str) -> str:
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if ip.version == 4:
        return str(ip)
    return str(ip.ipv4_mapped or ipaddress.ip_network((ip, _NETWORK), strict=False))


def _slot(key: bytes, text: str) -> int:
    digest = hmac.digest(key, text.encode("utf-8", "replace"), "sha256")
    return int.from_bytes(digest[:8], "big") % _SLOTS


def wait_for(book: Book, who: Guesser) -> float:
    """Return how many seconds are left until this one is looked at again; 0 is now."""
    f = book.tables.failure.c
    most = sa.case((f.slot == who.client, MOST_OF_CLIENT), else_=MOST_OF_ADDRESS)
    full = sa.select(f.until, utcnow().label("now")).where(
        f.slot.in_(who), f.count >= most, f.until > utcnow()
    )
    rows = book.store.execute(book.store.current(full)).all()
    return max(((row.until - row.now).total_seconds() for row in rows), default=0.0)


def count(book: Book, who: Guesser) -> None:
    """Count a failure."""
    for slot in sorted(who):  # in one order, so that two who count wait instead of dying
        if not _count_up(book, slot):
            _begin(book, slot)


def _count_up(book: Book, slot: int) -> bool:
    f = book.tables.failure
    ended = f.c.until <= utcnow()
    # Ordered: MySQL evaluates from left to right, and sees the new values.
    values = (
        (f.c.count, sa.case((ended, 1), else_=f.c.count + 1)),
        (f.c.until, sa.case((ended, _end_of_window()), else_=f.c.until)),
    )
    statement = sa.update(f).where(f.c.slot == slot).ordered_values(*values)
    return book.store.execute(statement).rowcount > 0


def _end_of_window() -> plus_seconds:
    return plus_seconds(utcnow(), sa.literal(float(WINDOW_SECONDS), sa.Double()))


def _begin(book: Book, slot: int) -> None:
    begin(book.store)
    savepoint = book.store.session.begin_nested()
    try:
        values = {"slot": slot, "count": 1, "until": _end_of_window()}
        book.store.execute(sa.insert(book.tables.failure).values(values))
    except IntegrityError:  # another has begun it since
        savepoint.rollback()
        _count_up(book, slot)
    else:
        savepoint.commit()
