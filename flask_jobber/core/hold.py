"""What a holder may do, and how it is known to be one. Extend and release.

Every verb of a holder takes a list of items, locks all their jobs by one read whose
WHERE holds id, attempt, locker, state and the scope (the fence), decides, and writes
all. One item that is refused spoils nothing else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import logging
import typing as t

import sqlalchemy as sa

from ..errors import AlreadySettled, Cancelled, JobberError, LeaseLost, NotFound, TooManyClaims
from . import seats, trust
from .candidates import lapsed, word
from .engines import is_transient, utcnow
from .lockers import of_login
from .news import hint, hint_due
from .payload import MAX_ID, MAX_NOTE, check_seconds, check_text
from .process import call, call_on_failure, describe, has_say
from .quota import check_room
from .scope import Expression, Scope
from .series import ENDS, follow
from .states import State, Verb
from .store import Store, missed
from .tally import note
from .transition import UNHELD, Change, append, apply, forget

logger = logging.getLogger("flask_jobber")
Row = sa.Row[t.Any]


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who acts, and what it may see."""

    locker: str
    scope: Scope


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One hand-out of one job, and what its holder wants of it."""

    job_id: int
    attempt: int

    def check(self, store: Store) -> None:
        """Refuse what may not enter.

        :raises Invalid, TooLarge: for the item's own fields.
        """


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an item: the job's state now, or the error."""

    item: Item
    state: State | None = None
    error: JobberError | None = None
    run_at: dt.datetime | None = None
    lease_seconds: float | None = None


Decision = tuple[Outcome, Change | None]
I_ = t.TypeVar("I_", bound=Item)
# Jobs that are taken back by one statement.
_SOME = 1000


def fence(store: Store, holder: Holder, items: t.Sequence[Item]) -> dict[tuple[int, int], Row]:
    """Lock and return the jobs that the holder holds, by id and attempt."""
    keys = [(item.job_id, item.attempt) for item in items if possible(item)]
    if not keys:
        return {}
    one = len(keys) == 1
    values = {"locker": holder.locker, **holder.scope.values}
    values |= (
        {"id": keys[0][0], "attempt": keys[0][1]} if one else {"ids": [key[0] for key in keys], "keys": keys}
    )
    key = ("fence", one, store.settings.late_results, holder.scope.key)
    rows = store.run(key, lambda: _fence(store, holder, one), values)
    return {(row.id, row.attempts): row for row in rows}


def _fence(store: Store, holder: Holder, one: bool) -> sa.Executable:
    c = store.jobs.c
    columns = (
        c.state, c.attempts, c.failures, c.max_attempts, c.backoff, c.lease_seconds, c.not_for, c.locked_by,
        c.locked_until, *followed(store), utcnow().label("now"),
    )  # fmt: skip
    held = held_by(store, missed("locker", sa.String()), holder.scope.template)
    if one:
        mine = [c.id == missed("id", c.id.type), c.attempts == missed("attempt", sa.Integer())]
    else:  # the ids once more, for engines that search no index by pairs
        ids, keys = missed("ids", expanding=True), missed("keys", expanding=True)
        mine = [c.id.in_(ids), sa.tuple_(c.id, c.attempts).in_(keys)]
    return store.locking(columns, *mine, *held)


def held_by(store: Store, locker: Expression | str, scope: Expression) -> list[Expression]:
    """Return what must hold of a job that a locker holds, whatever its attempt."""
    c = store.jobs.c
    conditions = [c.state == word(State.LOCKED), c.locked_by == locker, scope]
    if store.settings.late_results == "reject":
        conditions.append(sa.not_(lapsed(store, utcnow())))
    return conditions


def possible(item: Item) -> bool:
    """Whether there may be such a job and attempt at all."""
    return 1 <= item.job_id <= MAX_ID and 1 <= item.attempt < 2**31


def refusal(store: Store, holder: Holder, item: Item) -> tuple[JobberError, Row | None]:
    """Tell why a job is not held: the error, and the row when the holder delivered it."""
    row = _look(store, holder, item) if possible(item) else None
    if row is None or item.attempt > row.attempts:
        return NotFound(), None
    if row.locked_by != holder.locker or row.attempts != item.attempt:
        hidden = row.copy_of is not None and not _had(store, holder, item)
        return NotFound() if hidden else LeaseLost(), None
    if row.state == State.CANCELLED:
        return Cancelled(), None
    return (AlreadySettled(), row) if row.delivered else (LeaseLost(), None)


def _had(store: Store, holder: Holder, item: Item) -> bool:
    """Whether a hand-out was this holder's."""
    h = store.history.c
    mine = (h.job_id == item.job_id, h.attempt == item.attempt, h.locker == holder.locker)
    return bool(store.execute(sa.select(sa.exists().where(*mine))).scalar_one())


def _look(store: Store, holder: Holder, item: Item) -> Row | None:
    c = store.jobs.c
    columns = (c.state, c.attempts, c.locked_by, c.result, c.extras, c.run_at, c.copy_of)
    delivered = sa.case((c.result.is_(sa.null()), sa.false()), else_=sa.true()).label("delivered")
    select = sa.select(*columns, delivered).where(c.id == item.job_id, holder.scope.expression)
    return store.execute(store.current(select)).one_or_none()


def settle(
    store: Store,
    holder: Holder,
    items: t.Sequence[I_],
    decide: t.Callable[[Store, Row, I_], Decision],
    missing: t.Callable[[Store, Holder, I_], Outcome] | None = None,
) -> list[Outcome]:
    """Fence the items, decide each, write what was decided; outcomes in the order given."""
    outcomes: dict[int, Outcome] = {}
    for batch in _rounds(items):
        sound = {place: item for place, item in batch.items() if _checked(store, place, item, outcomes)}
        rows = fence(store, holder, list(sound.values()))
        trust.lock(store, {row.copy_of for row in rows.values() if row.copy_of is not None})
        seats.lock(store, rows.values())
        changes, known = list[Change](), {row.id: row for row in rows.values()}
        called = False
        for place, item in sound.items():
            row = rows.get((item.job_id, item.attempt))
            calls = row is not None and has_say(store, row)
            if calls or called:
                # The app's code may change any job: write what is decided before it, look again after.
                finish(store, changes, known)
                rest = [item] if calls else [other for there, other in sound.items() if there >= place]
                changes, rows = [], fence(store, holder, rest)
                row = rows.get((item.job_id, item.attempt))
            called = calls
            if row is None:
                outcomes[place] = (missing or refuse)(store, holder, item)
                continue
            outcomes[place], change = decide(store, row, item)
            changes += [change] if change else []
        finish(store, changes, known)
    return [outcomes[place] for place in sorted(outcomes)]


def _rounds(items: t.Sequence[I_]) -> list[dict[int, I_]]:
    """Part the items so that no job is twice in a round: the second sees what the first did."""
    rounds: list[dict[int, I_]] = []
    seen: dict[int, int] = {}
    for place, item in enumerate(items):
        turn = seen.get(item.job_id, 0)
        seen[item.job_id] = turn + 1
        if turn == len(rounds):
            rounds.append({})
        rounds[turn][place] = item
    return rounds


def _checked(store: Store, place: int, item: Item, outcomes: dict[int, Outcome]) -> bool:
    try:
        item.check(store)
    except JobberError as error:
        outcomes[place] = Outcome(item, error=error)
    return place not in outcomes


def refuse(store: Store, holder: Holder, item: Item) -> Outcome:
    """Return the outcome of an item that its sender does not hold."""
    return Outcome(item, error=refusal(store, holder, item)[0])


def followed(store: Store) -> tuple[t.Any, ...]:
    """Return the columns that decide what follows a job's end."""
    c = store.jobs.c
    repeats = c.every.is_not(sa.null()).label("repeats")
    plain = (c.type, c.on_success, c.on_failure, c.copy_of, c.locked_at)
    return *plain, repeats, c.batch_id, c.concurrency_key, c.seated


def finish(store: Store, changes: t.Sequence[Change], rows: t.Mapping[int, t.Any]) -> None:
    """Write the changes, count them in batches, make the next jobs of series, tell failure processors.

    :param rows: by id, with the columns of :func:`followed`.
    """
    apply(store, changes)
    note(store, [(rows[change.job_id].batch_id, change) for change in changes])
    seats.after(store, changes, rows)
    for change in changes:
        row, broken = rows[change.job_id], list[dict[str, t.Any]]()
        if row.copy_of is not None:  # the app hears of its original alone
            _finish_original(store, change, row)
            continue
        if change.to_state in ENDS and row.repeats:
            broken += _follow(store, change.job_id)
        if change.to_state is State.FAILED:
            broken += call_on_failure(store, row, change.error)
        for error in broken:
            append(store, [dataclasses.replace(change, from_state=change.to_state, error=error)])


def _finish_original(store: Store, change: Change, row: t.Any) -> None:
    for following, original in trust.follow(store, change, row):
        finish(store, [following], {original.id: original})


def _follow(store: Store, job_id: int) -> t.Iterator[dict[str, t.Any]]:
    """Make the next job of a series; log and describe why there cannot be one.

    A job that could not end for it would be met by every claim, and break them all.
    """
    error = call(store, follow, store, job_id)
    if error is not None:
        if is_transient(error):
            raise error
        about = {"action": "follow", "job_id": job_id}
        logger.error("a series has ended: it has no next job", exc_info=error, extra=about)
        yield describe(error)


@dataclasses.dataclass(frozen=True, slots=True)
class Extension(Item):
    """A heartbeat. Without a length it grants the last length again, from now."""

    lease_seconds: float | None = None
    progress: float | None = None
    note: str | None = None

    def check(self, store: Store) -> None:
        if self.lease_seconds is not None:
            check_seconds("lease_seconds", self.lease_seconds, store.settings.max_lease_seconds)
        if self.progress is not None:
            check_seconds("progress", self.progress, 1, zero=True)
        if self.note is not None:
            check_text("note", self.note, MAX_NOTE)


def extend(store: Store, holder: Holder, items: t.Sequence[Extension]) -> list[Outcome]:
    """Move the ends of leases, and note how far the work is. No transition, no history."""
    return settle(store, holder, items, _extend)


def _extend(store: Store, row: Row, item: Extension) -> Decision:
    if row.locked_until <= row.now:  # to revive it is to claim it
        try:
            check_room(store, row.locked_by, new=False)
        except TooManyClaims as error:
            return Outcome(item, error=error), None
    length = item.lease_seconds or row.lease_seconds
    values = {"locked_until": row.now + dt.timedelta(seconds=length), "lease_seconds": length}
    said = {"progress": item.progress, "note": item.note}
    values |= {name: value for name, value in said.items() if value is not None}
    c = store.jobs.c
    mine = (c.id == row.id, c.attempts == row.attempts, c.state == row.state)
    store.execute(sa.update(store.jobs).where(*mine).values(values))
    forget(store, row.id)
    if not row.now < row.locked_until <= values["locked_until"]:
        hint_due(store, length)  # else whoever looks at the end that is known finds the new one
    hint(store, changed=(row.id,))
    return Outcome(item, State.LOCKED, lease_seconds=length), None


@dataclasses.dataclass(frozen=True, slots=True)
class Release(Item):
    """A job given back unworked; nothing is counted.

    :param by: who does, if not its holder.
    """

    delay_seconds: float = 0
    by: str | None = None

    def check(self, store: Store) -> None:
        check_seconds("delay_seconds", self.delay_seconds, store.settings.max_backoff_seconds, zero=True)


def release(store: Store, holder: Holder, items: t.Sequence[Release]) -> list[Outcome]:
    """Give jobs back, at once or after a delay."""
    return settle(store, holder, items, _release)


def _release(store: Store, row: Row, item: Release) -> Decision:
    values: dict[str, t.Any] = dict(UNHELD)
    state = State.QUEUED
    if item.delay_seconds:
        state = State.SCHEDULED
        values["run_at"] = row.now + dt.timedelta(seconds=item.delay_seconds)
    change = change_of(row, Verb.RELEASE, state, item, values)
    return Outcome(item, state), dataclasses.replace(change, by=item.by)


def take_back(store: Store, login: str, queue: str | None = None) -> int:
    """Give back all that a login holds, on whatever node; nothing is counted. Return how many.

    It takes no scope and asks nobody: a server's verb, for a login that has lost its rights.

    :param queue: only jobs of this queue.
    """
    total = 0
    while taken := _take_some_back(store, login, queue):
        total += taken
    return total


def _take_some_back(store: Store, login: str, queue: str | None) -> int:
    c = store.jobs.c
    held = [c.state == word(State.LOCKED), of_login(store, login)]
    held += [c.queue == queue] if queue is not None else []
    some = sa.select(c.id).where(*held).limit(_SOME)
    # By ids then: MySQL locks all that it reads on its way.
    ids = store.execute(store.current(some)).scalars().all()
    columns = (c.state, c.attempts, c.locked_by, *followed(store))
    rows = store.lock(columns, c.id.in_(ids), *held) if ids else ()
    trust.lock(store, {row.copy_of for row in rows if row.copy_of is not None})
    finish(store, [_taken_back(row) for row in rows], {row.id: row for row in rows})
    return len(rows)


def _taken_back(row: Row) -> Change:
    values = dict(UNHELD)
    return Change(
        Verb.RELEASE, row.id, State.LOCKED, State.QUEUED, row.attempts, row.locked_by, values=values
    )


def change_of(
    row: Row, verb: Verb, state: State, item: Item, values: dict[str, t.Any], error: t.Any = None
) -> Change:
    """Return the change that ends a hold."""
    return Change(verb, row.id, State.LOCKED, state, row.attempts, row.locked_by, error, values)
