"""Limits of claims: so many at once, or in so many seconds, of a type, of a queue, by a login.

A rate is kept by the generic cell rate algorithm (ITU-T I.371; a leaky bucket as a meter): a
row says when all that was handed out would have been, one by one at the rate. A claim that
limits may concern locks their rows until its end, looks how much room each has, leaves out
what has none, and writes what it took. The clock is the database's.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from .candidates import Wanted, is_held
from .engines import Instant, plus_seconds, utcnow
from .limits import Limit
from .lockers import login_of
from .scope import EVERYTHING, Expression
from .store import Store, missed

_LEAST = 1e-9
_UNSEEN = "flask_jobber.unseen_claims"
# Seconds for which a count of what is held is believed: processes that know nothing of a limit, of a
# version before, hand out past it.
_BELIEVED = 10


class Meter(t.NamedTuple):
    """What is counted of a limit.

    :param ahead: seconds by which what was handed out is ahead of the rate.
    :param handed: jobs that were ever handed out.
    :param held: no more than these are held; ``None``: that is to be counted.
    :param unseen: jobs that others have handed out, which this transaction does not see.
    """

    ahead: float
    handed: int
    held: int | None
    unseen: int


class Handed(t.Protocol):
    """A job that was handed out."""

    @property
    def type(self) -> str: ...

    @property
    def queue(self) -> str: ...


@dataclasses.dataclass(slots=True)
class Gate:
    """What limits leave of a claim.

    :param wanted: without what there is no room for.
    :param room: how many jobs.
    :param retry_after: seconds until there is room for what was left out; ``None``: nobody knows.
    :param limits: those that concern it, by the names of their rows.
    :param ended: what was counted now, see :class:`~.models.MeterMixin`.
    """

    wanted: Wanted
    room: int
    retry_after: float | None = None
    limits: dict[str, Limit] = dataclasses.field(default_factory=dict)
    ended: dict[str, int] = dataclasses.field(default_factory=dict)


def precede(store: Store, locker: str) -> None:
    """Lock the limits of a login's claims first, in a transaction that settles and then claims.

    What it settles leaves locks on gaps in MySQL's indexes, into which whoever has the limits
    would hand out.
    """
    limits = store.rules.limits.values()
    if limits and store.engine_name == "mysql":
        own = Wanted(locker, EVERYTHING)
        _lock(store, sorted(_row(limit, own) for limit in limits if _concerns(limit, own)))


def open_gate(store: Store, wanted: Wanted) -> Gate:
    """Lock the limits that concern a claim, and return what they leave of it."""
    limits = {_row(limit, wanted): limit for limit in store.rules.limits.values() if _concerns(limit, wanted)}
    gate = Gate(wanted, wanted.limit, limits=limits)
    if limits:
        meters = _lock(store, sorted(limits))
        held = _held(store, gate, meters)
        for name, limit in limits.items():
            _narrow(gate, limit, *_room(limit, meters[name].ahead, held.get(name, 0)))
    return gate


def _held(store: Store, gate: Gate, meters: t.Mapping[str, Meter]) -> dict[str, int]:
    """Return how many jobs are held, at the most, of what has a limit at once.

    It is counted where a limit may be reached: else each claim would read all that are held.
    """
    few = {name: limit for name, limit in gate.limits.items() if limit.at_once is not None}
    held = {name: meters[name].held for name in few}
    near = (most is None or most + gate.room > t.cast(int, few[name].at_once) for name, most in held.items())
    some = few if any(near) else {}  # all of them, in one statement
    found = _count_held(store, some)
    gate.ended = {
        name: meters[name].handed - meters[name].unseen - locked for name, (_, locked) in found.items()
    }
    counted = {name: number + meters[name].unseen for name, (number, _) in found.items()}
    return {name: number or 0 for name, number in held.items()} | counted


def _concerns(limit: Limit, wanted: Wanted) -> bool:
    if limit.what == "locker":
        return limit.name in ("*", _login(wanted))
    names = wanted.types if limit.what == "type" else wanted.queues
    return names is None or limit.name in names


def _login(wanted: Wanted) -> str:
    return login_of(wanted.locker)


def _row(limit: Limit, wanted: Wanted) -> str:
    # What is said of each login, and of one by name, are two limits of it.
    name = f"*{_login(wanted)}" if limit.what == "locker" and limit.name == "*" else limit.name
    return f"{limit.what}:{name}"


def _room(limit: Limit, ahead: float, held: int) -> tuple[int, float | None]:
    """Return how many jobs there is room for, and when there is more; ``None``: when others end."""
    free = math.inf if limit.at_once is None else limit.at_once - held
    if limit.rate is None:
        return max(int(free), 0), None
    step = limit.per_seconds / limit.rate
    room = math.floor(limit.burst - ahead / step + _LEAST)
    return max(int(min(free, room)), 0), (ahead - step * (limit.burst - 1) if room < 1 else None)


def _narrow(gate: Gate, limit: Limit, room: int, seconds: float | None) -> None:
    if room > 0:
        gate.room = min(gate.room, room)
        return
    if seconds is not None:
        gate.retry_after = min(seconds, math.inf if gate.retry_after is None else gate.retry_after)
    if limit.what == "locker":
        gate.room = 0
        return
    names, without = ("types", "but_types") if limit.what == "type" else ("queues", "but_queues")
    asked: tuple[str, ...] | None = getattr(gate.wanted, names)
    if asked is None:
        left: dict[str, t.Any] = {without: (*getattr(gate.wanted, without), limit.name)}
    else:
        left = {names: tuple(name for name in asked if name != limit.name)}
        gate.room = gate.room if left[names] else 0
    gate.wanted = dataclasses.replace(gate.wanted, **left)


def _lock(store: Store, names: t.Sequence[str]) -> dict[str, Meter]:
    """Lock the meters of limits, in one order, and read them as they are now."""
    seen: dict[str, int] | None = None
    if store.engine_name == "mysql":  # as this transaction sees them
        seen = {row.name: row.handed for row in _read(store, names, lock=False)}
    found = _read(store, names, lock=True)
    if len(found) < len(names):
        _make(store, names)
        found = _read(store, names, lock=True)
    unseen = {} if seen is None else {row.name: _since(row.handed, seen.get(row.name, 0)) for row in found}
    unseen = _remembered(store, unseen)
    return {row.name: _meter(row, unseen.get(row.name, 0)) for row in found}


def _meter(row: sa.Row[t.Any], unseen: int) -> Meter:
    ahead = max((row.ready_at - row.now).total_seconds(), 0.0)
    is_known = row.counted_at is not None and (row.now - row.counted_at).total_seconds() < _BELIEVED
    return Meter(ahead, row.handed, row.handed - row.ended if is_known else None, unseen)


def _since(now: int, then: int) -> int:
    """Return how far a counter has come, which may have been forgotten and begun anew."""
    return now - then if now >= then else now


def _read(store: Store, names: t.Sequence[str], *, lock: bool) -> t.Sequence[sa.Row[t.Any]]:
    def build() -> sa.Executable:
        meters = store.rules.Meter.__table__
        # When the lock was had, where that can be told; others may have held it for long.
        postgres = store.engine_name == "postgresql"
        now = sa.func.clock_timestamp(type_=Instant()) if postgres else utcnow()
        plain = (meters.c.name, meters.c.ready_at, meters.c.handed, meters.c.ended, meters.c.counted_at)
        columns = (*plain, now.label("now"))
        places = [missed(f"name_{place}", meters.c.name.type) for place in range(len(names))]
        of_them = meters.c.name == places[0] if len(places) == 1 else meters.c.name.in_(places)
        if store.engine_name == "sqlite":
            return sa.update(meters).where(of_them).values(handed=meters.c.handed).returning(*columns)
        select = sa.select(*columns).where(of_them).order_by(meters.c.name)
        return select.with_for_update() if lock else select

    values = {f"name_{place}": name for place, name in enumerate(names)}
    return store.run(("meters", len(names), lock), build, values).all()


def _make(store: Store, names: t.Sequence[str]) -> None:
    """Insert the meters that are not there; others may be doing the same."""
    meters = store.rules.Meter.__table__
    rows = [{"name": name, "ready_at": utcnow(), "handed": 0, "ended": 0} for name in names]
    if store.engine_name == "mysql":
        store.execute(mysql.insert(meters).values(rows).on_duplicate_key_update(name=meters.c.name))
        return
    insert = sqlite.insert if store.engine_name == "sqlite" else postgresql.insert
    store.execute(insert(meters).values(rows).on_conflict_do_nothing())


def _remembered(store: Store, unseen: dict[str, int]) -> dict[str, int]:
    """Return what others have handed out since this transaction began, as it was when it looked first.

    Since then it has the locks, and what it has written itself it sees.
    """
    known = store.remembered(_UNSEEN)
    known |= unseen | known
    return known


def _count_held(store: Store, few: t.Mapping[str, Limit]) -> dict[str, tuple[int, int]]:
    """Return how many jobs are held of each, and how many with those that a heartbeat may yet revive.

    It reads all that are held.

    MySQL's plain reads show the moment at which the transaction began, and others would lock
    jobs that are being delivered. So what was handed out since is told by the meter; what has
    ended since is not seen.
    """
    c = store.jobs.c
    if not few:
        return {}

    def count() -> sa.Select[t.Any]:
        of_them = [c[limit.what] == limit.name for limit in few.values()]
        live = [sa.and_(one, c.locked_until > utcnow()) for one in of_them]
        kinds: list[t.Any] = [sa.func.count(sa.case((one, 1))) for one in (*live, *of_them)]
        return sa.select(*kinds).where(is_held(store))

    numbers = store.run(("held", *few), count, {}).one()
    return dict(zip(few, zip(numbers[: len(few)], numbers[len(few) :], strict=True), strict=True))


def take(store: Store, gate: Gate, handed: t.Sequence[Handed]) -> None:
    """Write what was handed out through a gate."""
    for name, limit in sorted(gate.limits.items()):
        of_it = [one for one in handed if limit.what == "locker" or getattr(one, limit.what) == limit.name]
        if of_it:
            seconds = 0.0 if limit.rate is None else len(of_it) * limit.per_seconds / limit.rate
            values = {"name": name, "seconds": _ceil(store, seconds), "number": len(of_it)}
            counted = {"ended": gate.ended[name]} if name in gate.ended else {}
            store.run(("take", *counted), lambda: _taken(store, bool(counted)), values | counted)  # noqa: B023


def _taken(store: Store, counted: bool) -> sa.Update:
    m = store.rules.Meter.__table__.c
    ready = plus_seconds(_later(store, m.ready_at), missed("seconds", sa.Double()))
    written: dict[str, t.Any] = {"ready_at": ready, "handed": m.handed + missed("number", sa.BigInteger())}
    if counted:
        written |= {"ended": missed("ended", sa.BigInteger()), "counted_at": utcnow()}
    of_it = sa.update(store.rules.Meter.__table__).where(m.name == missed("name", m.name.type))
    return of_it.values(written)


def _later(store: Store, instant: Expression) -> Expression:
    latest = sa.func.max if store.engine_name == "sqlite" else sa.func.greatest
    return latest(instant, utcnow(), type_=Instant())


def _ceil(store: Store, seconds: float) -> float:
    """Return a length as an engine can add it: never a shorter one."""
    steps = 1e3 if store.engine_name == "sqlite" else 1e6
    return math.ceil(seconds * steps - _LEAST) / steps


def prune(store: Store, limit: int = 1000) -> None:
    """Forget limits in which there has been room for a day: of lockers that are gone, for one."""
    meters = store.rules.Meter.__table__
    # Not those of types and queues, which are few: their counters go on for who has seen them before.
    of_lockers = meters.c.name.startswith("locker:")
    old = sa.and_(of_lockers, meters.c.ready_at <= plus_seconds(utcnow(), sa.literal(-86_400.0, sa.Double())))
    chosen = sa.select(meters.c.name).where(old).order_by(meters.c.ready_at).limit(limit)
    for name in store.execute(chosen).scalars().all():
        store.execute(sa.delete(meters).where(meters.c.name == name, old))
