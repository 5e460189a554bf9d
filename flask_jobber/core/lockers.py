"""What is known of those who lock jobs: one record for each login, kept of jobs under trust alone.

Verbs leave marks, which are written when the transaction commits, in the order of logins: so
nobody who holds a record waits for anything else, and two who write the same ones do not die.

A login is told of itself, and bound by its quotas, as things stood when the day (UTC) began:
who could see its record grow at once would know which of its answers were checked.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
import statistics
import typing as t

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import Session

from .. import commits
from .engines import utcnow
from .scope import Expression
from .states import State
from .store import Store, missed

Row = sa.Row[t.Any]
Kind = t.Literal["claim", "valid", "invalid", "lapse", "time", "handed"]
# Answers of which the time is kept.
_TIMES = 50
_LOWEST, _HIGHEST = 1 / 64, 64.0


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """What is known of one login.

    :param streak: valid answers since the last invalid one.
    :param standing: what its quotas are multiplied with.
    :param median_seconds: of its last answers; ``None``: there is none.
    """

    login: str
    claims: int = 0
    valid: int = 0
    invalid: int = 0
    lapses: int = 0
    streak: int = 0
    standing: float = 1.0
    median_seconds: float | None = None
    blocked_at: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """Something to be noted of a login when the transaction commits."""

    store: Store
    login: str
    kind: Kind
    amount: float = 0.0

    def __call__(self) -> None:
        """Nothing: what comes when all has been written is another listener's, and is not counted."""


def login_of(locker: str) -> str:
    """Return the login's part of a locker: a client chooses the name of its node."""
    return locker.partition("/")[0]


def of_login(store: Store, login: str) -> sa.ColumnElement[bool]:
    """Return the condition that a job's locker is a login, on whatever node."""
    c = store.jobs.c
    # The first part lets MySQL lock a range of an index; elsewhere texts may have another order.
    near = c.locked_by.between(f"{login}/", f"{login}0") if store.engine_name == "mysql" else sa.true()
    on_node = sa.func.substr(c.locked_by, 1, len(login) + 1) == f"{login}/"
    return sa.or_(c.locked_by == login, sa.and_(near, on_node))


def mark(store: Store, login: str, kind: Kind, amount: float = 0.0) -> None:
    """Note something of a login."""
    commits.on_commit(store.session, Mark(store, login, kind, amount))


@event.listens_for(Session, "before_commit")
def _write_marks(session: Session) -> None:
    if not commits.is_last(session):
        return
    by_table: dict[str, list[Mark]] = {}
    for one in commits.take(session, Mark):
        by_table.setdefault(one.store.lockers.name, []).append(one)
    for _, marks in sorted(by_table.items()):
        _write(marks[0].store, marks)


def _write(store: Store, marks: t.Sequence[Mark]) -> None:
    for row in lock(store, {one.login for one in marks}):
        values = _begin_day(dict(row._mapping))
        for one in marks:
            if one.login == row.login:
                _NOTE[one.kind](values, one.amount)
        put(store, row.login, values)


def lock(store: Store, logins: t.Collection[str]) -> t.Sequence[Row]:
    """Make the records that are not there, and lock and return all, by login."""
    # In MySQL who reads a record that is not there keeps others from making one near it; and who has
    # locked some of several when another makes the first of them would lock that after those behind it.
    at_once = len(logins) == 1 and store.engine_name != "mysql"
    rows = _rows(store, logins, lock=at_once)
    missing = sorted(set(logins) - {row.login for row in rows})
    for login in missing:
        store.execute(_insert(store, login))
    return _rows(store, logins, lock=True) if missing or not at_once else rows


def _rows(store: Store, logins: t.Collection[str], *, lock: bool) -> t.Sequence[Row]:
    def build() -> sa.Executable:
        r = store.lockers.c
        mine = r.login.in_(missed("logins", expanding=True))
        some = sa.select(store.lockers, utcnow().label("now")).where(mine).order_by(r.login)
        return some.with_for_update() if lock else some  # SQLite's only write lock is held

    return store.run(("lockers", lock), build, {"logins": sorted(logins)}).all()


def _insert(store: Store, login: str) -> t.Any:
    """Return an insertion that lets be what another has inserted meanwhile."""
    counts = dict.fromkeys(("claims", "valid", "invalid", "lapses", "streak", "today"), 0)
    values = {"login": login, **counts, "standing": 1.0, "created_at": utcnow()}
    if store.engine_name == "mysql":
        insert = mysql.insert(store.lockers).values(values)
        return insert.on_duplicate_key_update(login=insert.inserted.login)
    insert_ = postgresql.insert if store.engine_name == "postgresql" else sqlite.insert
    return insert_(store.lockers).values(values).on_conflict_do_nothing()


def put(store: Store, login: str, values: t.Mapping[str, t.Any]) -> None:
    """Write a record that is locked."""
    r = store.lockers.c
    names = sorted(name for name in values if name in r and name not in ("login", "created_at"))

    def build() -> sa.Executable:
        written = {name: missed(name, r[name].type) for name in names}
        return sa.update(store.lockers).where(r.login == missed("of_login", r.login.type)).values(written)

    written = {name: values[name] for name in names}
    store.run(("put", *names), build, {"of_login": login, **written})


def _begin_day(values: dict[str, t.Any]) -> dict[str, t.Any]:
    today = values["now"].date().isoformat()
    if values["day"] != today:
        values |= {"day": today, "today": 0, "told": _facts(values)}
    return values


def _facts(values: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    counts = ("claims", "valid", "invalid", "lapses", "standing")
    return {name: values[name] for name in counts} | {"median_seconds": _median(values["durations"])}


def _median(durations: t.Sequence[float] | None) -> float | None:
    return statistics.median(durations) if durations else None


def _note_claim(values: dict[str, t.Any], seconds: float) -> None:
    values["claims"] += 1


def _note_valid(values: dict[str, t.Any], seconds: float) -> None:
    values["valid"] += 1
    values["streak"] += 1
    values["standing"] = min(values["standing"] * 2, _HIGHEST)


def _note_invalid(values: dict[str, t.Any], seconds: float) -> None:
    values["invalid"] += 1
    values["streak"] = 0
    # One in three wrong is too many: two right ones make up for it, no fewer.
    values["standing"] = max(values["standing"] / 4, _LOWEST)


def _note_lapse(values: dict[str, t.Any], seconds: float) -> None:
    values["lapses"] += 1


def _note_time(values: dict[str, t.Any], seconds: float) -> None:
    values["durations"] = [*(values["durations"] or ()), round(seconds, 3)][-_TIMES:]


def _note_handed(values: dict[str, t.Any], number: float) -> None:
    values["today"] += int(number)


_NOTE: t.Mapping[str, t.Callable[[dict[str, t.Any], float], None]] = {
    "claim": _note_claim,
    "valid": _note_valid,
    "invalid": _note_invalid,
    "lapse": _note_lapse,
    "time": _note_time,
    "handed": _note_handed,
}


def read(store: Store, login: str) -> Record:
    """Return the record of a login; an empty one of a login that has none."""
    records = [one for one in all_(store, login) if one.login == login]
    return records[0] if records else Record(login)


def all_(store: Store, login: str | None = None) -> list[Record]:
    """Return all records, or that of one login, by login."""
    written, held = sa.select(store.lockers), _held(store)
    if login is not None:
        written = written.where(store.lockers.c.login == login)
        held = held.where(of_login(store, login))
    records = {row.login: _record(row) for row in store.execute(written)}
    for row in store.execute(held):
        name = login_of(row.locked_by)
        one = records.get(name, Record(name))
        records[name] = dataclasses.replace(one, claims=one.claims + row.number)
    return [records[name] for name in sorted(records)]


def _held(store: Store) -> sa.Select[t.Any]:
    """Return how many copies are held, by locker: a record counts a claim when it ends."""
    c = store.jobs.c
    held = (c.state == State.LOCKED.value, c.copy_of.is_not(None))
    return sa.select(c.locked_by, sa.func.count().label("number")).where(*held).group_by(c.locked_by)


def _record(row: Row) -> Record:
    counts = (row.claims, row.valid, row.invalid, row.lapses, row.streak, row.standing)
    return Record(row.login, *counts, _median(row.durations), row.blocked_at)


def told(store: Store, login: str) -> Record:
    """Return the record of a login as it may know it: as it stood when the day began."""
    mine = store.lockers.c.login == login
    select = sa.select(store.lockers, utcnow().label("now")).where(mine)
    row = store.execute(select).one_or_none()
    if row is None:
        return Record(login)
    today = row.day == row.now.date().isoformat()
    facts = row.told if today and row.told else _facts(dict(row._mapping))
    return dataclasses.replace(_record(row), **facts, streak=0)


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What a login may claim; ``None`` is no limit.

    :param left_today: jobs that it may still be handed on this day (UTC).
    """

    open_claims: int | None
    left_today: int | None
    seconds_of_today: float


def limits(store: Store, login: str) -> Limits:
    """Return the quotas of a login: what the settings say, by its standing when the day began."""
    settings, r = store.settings, store.lockers.c
    mine = sa.select(r.standing, r.told, r.day, r.today).where(r.login == login)
    row = store.execute(store.current(mine)).one_or_none()
    now = store.now()
    today = row is not None and row.day == now.date().isoformat()
    standing = 1.0 if row is None else row.told["standing"] if today and row.told else row.standing
    open_claims, daily = settings.first_open_claims, settings.first_daily_claims
    if open_claims is not None:
        open_claims = max(int(open_claims * standing), 1)
    most = [bound for bound in (open_claims, settings.max_open_claims) if bound is not None]
    left = None if daily is None else max(int(daily * standing), 1) - (row.today if row and today else 0)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + dt.timedelta(days=1)
    return Limits(min(most, default=None), left, (midnight - now).total_seconds())


def is_reliable(store: Store, login: str) -> bool:
    """Whether an answer of this login may count alone: by its record, and not drawn for a check.

    The longer it has been right without a break, the more seldom it is checked.
    """
    mine = sa.select(store.lockers.c.streak).where(store.lockers.c.login == login)
    streak = store.execute(mine).scalar_one_or_none() or 0
    return streak >= store.settings.trust_after and random.random() > 1 / max(streak, 1)


def set_blocked(store: Store, login: str, blocked: bool) -> None:
    """Note that a login is handed nothing any more, or that it is again."""
    [row] = lock(store, [login])
    if blocked != (row.blocked_at is not None):
        put(store, login, {"blocked_at": row.now if blocked else None})


def unblocked(store: Store) -> Expression:
    """Whether the login that a statement is for (``login``) is handed jobs at all."""
    r = store.lockers.c
    mine = sa.and_(r.login == missed("login", sa.String()), r.blocked_at.is_not(None))
    return sa.not_(sa.exists().where(mine))
