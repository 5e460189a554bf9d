"""Claim: the atomic hand-out."""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import types
import typing as t

import sqlalchemy as sa

from .. import commits
from . import at_once, rates
from . import candidates as find
from .at_once import Done, Results
from .candidates import Levels, Wanted
from .engines import utcnow
from .expire import LAPSED, end_dead
from .front import Bookmark, Found, Front
from .hold import Holder
from .lockers import login_of, mark
from .news import hint_due
from .payload import canonical, check_int, check_locker, check_names, check_priorities, check_seconds
from .quota import check_room, has_quotas
from .scope import EVERYTHING
from .states import State, Verb
from .store import Store, missed
from .transition import Change, announce_if_heard, record
from .trust import taken

Rows = t.Sequence[sa.Row[t.Any]]
# Jobs that rivals hold locked at this moment are skipped; this many more are looked at
# than are wanted, before a second look at eight times as many.
_SPARE = 12
# A window is sized for one of these numbers of jobs: each size is a statement of its own, and
# the first executions of one cost 100 ms, to build, compile and plan.
_SIZES = (1, 10, 40, 100)
# Rounds of a claim that meets jobs to be ended; each ends up to a thousand.
_MOST_ROUNDS = 50


class _Look(t.NamedTuple):
    """What a claim has locked, of what it saw.

    :param rows: as they were before, the best first.
    :param live: those that are handed out.
    :param seen: the ids of what it looked at, if it was to say; these among them.
    :param full: whether there may be more than it looked at.
    :param lease: the end of the lease that ends first, if it looked for it.
    """

    rows: Rows
    live: Rows
    seen: t.Collection[int] | None = None
    full: bool = False
    lease: dt.datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """A handed-out job."""

    id: int
    type: str
    data: t.Any
    queue: str
    priority: int
    attempt: int
    failures: int
    max_attempts: int
    #: Length of the lease, from now.
    lease_seconds: float
    enqueued_at: dt.datetime
    #: Whether there may be attachments; ``None``: there are none.
    has_files: bool | None = None


class Claims(list[Claim]):
    """Handed-out jobs.

    :ivar retry_after: seconds until a limit that left some out has room; ``None``: there was none.
    :ivar files: by the ids of jobs their attachments, if somebody has read them.
    """

    retry_after: float | None = None
    files: t.Mapping[int, t.Sequence[sa.Row[t.Any]]] = types.MappingProxyType({})


def want(
    store: Store,
    locker: str,
    *,
    types: t.Sequence[str] | None = None,
    queues: t.Sequence[str] | None = None,
    limit: int = 1,
    lease_seconds: float | None = None,
    min_priority: int | None = None,
    max_priority: int | None = None,
) -> Wanted:
    """Return what server code wants to claim, of every job.

    :raises Invalid: for bad names, a limit or lease over its bound, or priorities out of order.
    """
    check_int("limit", limit, 1, store.settings.max_claim)
    if lease_seconds is not None:
        lease_seconds = check_seconds("lease_seconds", lease_seconds, store.settings.max_lease_seconds)
    check_locker(locker)
    check_priorities(min_priority, max_priority)
    asked = check_names("types", types), check_names("queues", queues), min_priority, max_priority
    return Wanted(locker, EVERYTHING, *asked, lease_seconds=lease_seconds, limit=limit)


def claim(store: Store, wanted: Wanted) -> Claims:
    """Hand out up to ``wanted.limit`` jobs, the best first. Fewer does not mean that there are no more.

    What limits have no room for is left out. Jobs met on the way that are exhausted or past
    their ``expires_at`` are ended.

    :raises TooManyClaims: when the login holds ``MAX_OPEN_CLAIMS`` jobs.
    """
    return claim_and_see(store, wanted)[0]


def claim_and_see(store: Store, wanted: Wanted) -> tuple[Claims, set[int] | None]:
    """Claim, see :func:`claim`.

    :returns: also the ids of the jobs that are left, others than which there are none; ``None``
        when there may be others, or it was not wanted to look ahead.
    """
    limit = min(wanted.limit, check_room(store, wanted.locker))
    if not store.rules.limits:
        bookmark = _bookmark(store, wanted)
        return _claim_some(store, _begin(store, wanted, limit, bookmark), bookmark)
    gate = rates.open_gate(store, wanted)
    room = min(limit, gate.room)
    claims, bookmark = Claims(), Bookmark(is_dry=True)
    if room:
        claims, _ = _claim_some(store, _begin(store, gate.wanted, room, bookmark), bookmark)
    rates.take(store, gate, claims)
    claims.retry_after = None if claims else gate.retry_after
    return claims, None


def can_claim_beside(store: Store, wanted: Wanted, holder: Holder) -> bool:
    """Whether one statement may settle a holder's results and claim.

    It sees no job as it has left it: nothing may be counted between the two, nor a scope look at other jobs.
    """
    if store.engine_name != "postgresql":
        return False
    same = holder.locker == wanted.locker and holder.scope is wanted.scope
    counted = store.rules.limits or has_quotas(store.settings) or wanted.scope.reads_others
    return same and not counted


def claim_beside(store: Store, wanted: Wanted, results: Results) -> tuple[Done, Claims, set[int] | None]:
    """Settle results and claim, see :func:`claim_and_see`: nothing is claimed unless all are settled.

    :returns: also the outcomes of those that are.
    """
    bookmark = _bookmark(store, wanted)
    wanted = _begin(store, wanted, wanted.limit, bookmark)
    done, look = _settle_and_take(store, wanted, results)
    if len(done) < len(results.items):
        store.fronts.undo(bookmark, wanted.start)
        return done, Claims(), None
    return done, *_claim_some(store, wanted, bookmark, look)


def _bookmark(store: Store, wanted: Wanted) -> Bookmark:
    """Return the bookmark of claims like this one; what is to see all that there is gets an empty one."""
    is_plain = store.engine_name == "postgresql" and not wanted.ahead and wanted.now is None
    return store.fronts.of(wanted.kind) if is_plain and wanted.scope.is_known else Bookmark(is_dry=True)


def _begin(store: Store, wanted: Wanted, limit: int, bookmark: Bookmark) -> Wanted:
    """Return how a claim of so many begins, of which others know until its transaction ends."""
    fronts, start = store.fronts, store.fronts.start(bookmark, limit)
    if store.engine_name == "postgresql":
        undo = functools.partial(fronts.undo, bookmark, start)
        commits.on_commit(store.session, functools.partial(fronts.end, bookmark, start), undo)
    return dataclasses.replace(wanted, limit=limit, window=_window(limit), start=start)


def _note(store: Store, wanted: Wanted, bookmark: Bookmark, look: _Look) -> None:
    """Note how far this claim has come, and where the next may begin, once it is committed."""
    if store.engine_name == "postgresql":
        rows = look.rows
        queued_only = wanted.start.queued_only or all(row.was == State.QUEUED for row in rows)
        front = _place(rows[0]) if rows else None
        end = _place(rows[-1], 1) if rows and queued_only else None
        found = Found(front, end, len(rows), queued_only, look.lease)
        wanted.start.taking.find(found)
        note = functools.partial(store.fronts.note, bookmark, wanted.start, found)
        commits.on_commit(store.session, note)


def _place(row: sa.Row[t.Any], behind: int = 0) -> Front:
    return Front(row.priority, row.turn, row.run_at, row.id + behind)


def _claim_some(
    store: Store, wanted: Wanted, bookmark: Bookmark, first: _Look | None = None
) -> tuple[Claims, set[int] | None]:
    """Claim what is wanted, as it has begun.

    :param first: what its first look has locked, if it was made.
    """
    limit, window = wanted.limit, wanted.window
    claims, places = Claims(), dict[int, t.Any]()
    for _ in range(_MOST_ROUNDS):
        look, first = first or _take(store, wanted), None
        _note(store, wanted, bookmark, look)
        kept = list(_handed_out(look.live, taken(store, wanted.locker, look.live)))
        claims += kept
        if places or len(kept) < limit:  # the best of several looks is told first
            places |= {row.id: _order(row) for row in look.live}
        if len(look.live) < len(look.rows):
            end_dead(store, wanted)
        elif look.full and not look.rows:  # rivals have locked all of them
            window *= 8
        elif len(kept) == len(look.live) and wanted.start.is_whole:
            break
        if len(claims) == limit:
            break
        start = store.fronts.whole(wanted.start.taking)
        wanted = dataclasses.replace(wanted, limit=limit - len(claims), window=window, start=start)
    if places:
        claims.sort(key=lambda one: places[one.id])
    if claims:
        if store.settings.first_daily_claims is not None:
            mark(store, login_of(wanted.locker), "handed", len(claims))
        hint_due(store, min(one.lease_seconds for one in claims))
    return claims, _left(store, look)


def _left(store: Store, look: _Look) -> set[int] | None:
    if look.full or look.seen is None or has_quotas(store.settings):
        return None
    return set(look.seen).difference(row.id for row in look.rows)


def _window(limit: int) -> int:
    return 4 * _size(limit) + _SPARE


def _size(limit: int) -> int:
    """Return the number of jobs for which a claim of so many is sized."""
    return next((size for size in _SIZES if size >= limit), limit)


def _handed_out(
    rows: t.Iterable[t.Sequence[t.Any]], copies: t.Mapping[int, bool | None]
) -> t.Iterator[Claim]:
    """Yield the claims of living rows, of copies only those that were taken."""
    locked = State.LOCKED.value
    # Unpacked: to read them by their names took 8 % of the Python of an exchange of 100.
    for row in rows:
        (
            job_id, type_, data, queue, priority, max_attempts, created_at, has_files, copy_of, was, attempts,
            failures, lease_seconds, *_,
        ) = row  # fmt: skip
        if copy_of is None or job_id in copies:
            yield Claim(
                id=job_id,
                type=type_,
                data=data,
                queue=queue,
                priority=priority,
                attempt=attempts + 1,
                failures=failures + (was == locked),
                max_attempts=max_attempts,
                lease_seconds=lease_seconds,
                enqueued_at=created_at,
                has_files=copies.get(job_id, has_files),
            )


def _take(store: Store, wanted: Wanted) -> _Look:
    """Lock up to ``wanted.limit`` jobs and give the living ones to the client."""
    if store.engine_name == "postgresql":
        return _take_in_one(store, wanted)
    levels = find.read_levels(store, wanted)
    lock = _lock_in_sqlite if store.engine_name == "sqlite" else _lock_in_mysql
    look = lock(store, wanted, levels)
    _hand_out(store, wanted, look.live)
    return look


def _hand_out(store: Store, wanted: Wanted, rows: Rows) -> None:
    """Write the hand-out of locked rows, and record it."""
    if rows:
        ids = {"ids": [row.id for row in rows]}
        write = ("hand out", wanted.key)
        store.run(write, lambda: _write(store, wanted), wanted.values(store) | ids)
        record(store, [change for row in rows for change in _changes(wanted, row)])


def _write(store: Store, wanted: Wanted) -> sa.Update:
    ids = missed("ids", expanding=True)
    guard = (store.jobs.c.id.in_(ids), find.still(find.due(store, wanted.clock)))
    lease = _lease(store, wanted, find.granted(store, wanted))
    write = sa.update(store.jobs).where(*guard).ordered_values(*lease)
    return write.with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql").with_hint(
        "FORCE INDEX (PRIMARY)", dialect_name="mariadb"
    )


def _lease(store: Store, wanted: Wanted, length: t.Any) -> list[tuple[sa.Column[t.Any], t.Any]]:
    """Return what a hand-out writes.

    In this order: MySQL evaluates from left to right and would see the new state in the
    case, and count a failure at every claim.
    """
    c = store.jobs.c
    lapse = sa.case((c.state == find.word(State.LOCKED), find.number(1)), else_=find.number(0))
    return [
        *([] if wanted.start.queued_only else [(c.failures, c.failures + lapse)]),
        (c.state, find.word(State.LOCKED)),
        (c.attempts, c.attempts + find.number(1)),
        (c.locked_by, missed("locker", sa.String())),
        (c.locked_at, wanted.clock),
        (c.locked_until, find.lease_end(wanted, length)),
        (c.lease_seconds, length),
        (c.progress, sa.null()),
        (c.note, sa.null()),
    ]


def _before(store: Store, wanted: Wanted) -> list[t.Any]:
    """Return the columns of a job about to be taken, but its id, in the order of :func:`_handed_out`."""
    c = store.jobs.c
    plain = (c.type, c.data, c.queue, c.priority, c.max_attempts, c.created_at, c.has_files, c.copy_of)
    old = (c.state.label("was"), c.attempts, c.failures, find.granted(store, wanted).label("granted"))
    held, dead = [c.locked_by.label("was_by")], find.dead
    if wanted.start.queued_only:
        held, dead = [], find.expired
    live = sa.not_(dead(store, wanted.clock)).label("live")
    return [*plain, *old, find.turn(store), c.run_at, *held, live]


def _take_in_one(store: Store, wanted: Wanted) -> _Look:
    build = lambda: _statement(store, wanted)  # noqa: E731
    return _taken(store, wanted, store.run(("claim", wanted.key), build, wanted.values(store)).all())


def _settle_and_take(store: Store, wanted: Wanted, results: Results) -> tuple[Done, _Look]:
    """Settle, and take if all were settled.

    It waits for no lock: a lease begins with its statement, and what waits there claims by old sights.
    """
    holder = results.holder

    def build() -> sa.Executable:
        return _statement(store, wanted, at_once.statement(store, holder, skip_locked=True).cte("_settled"))

    key = ("settle and claim", wanted.key, store.settings.late_results)
    found = store.run(key, build, wanted.values(store) | results.values).all()
    some: list[int] | None = found[0].some
    ids = [item.job_id for item in results.items] if some is None else some
    return at_once.settled(store, results, ids), _taken(store, wanted, found)


def _taken(store: Store, wanted: Wanted, found: Rows) -> _Look:
    # What is told besides comes in one row at least.
    rows = found if found and found[0].id is not None else ()
    live = _living(rows)
    made = [row.id for row in live]
    announce_if_heard(store, made, lambda: [change for row in live for change in _changes(wanted, row)])
    if wanted.start.queued_only:
        return _Look(rows, live)
    seen: list[int] | None = found[0].seen
    return _Look(rows, live, seen, seen is None or len(seen) >= wanted.window, found[0].lease)


def _living(rows: Rows) -> Rows:
    return [row for row in rows if row.live]


def _statement(store: Store, wanted: Wanted, settled: sa.CTE | None = None) -> sa.Select[t.Any]:
    """Return PostgreSQL's claim: find, lock in order, write and record, in one statement.

    The locks are taken above the sort and below the limit, so exactly the rows that are
    handed out are locked. ``UPDATE … WHERE id IN (SELECT … LIMIT 1 FOR UPDATE SKIP
    LOCKED)`` may run the subselect again for each row and hand out everything.

    :param settled: what settles the results that come with it. It is run to its end before the
        first candidate is looked for, and nothing is claimed unless it settles all.
    """
    c = store.jobs.c
    first = find.first_lease(store)
    best = find.candidates(store, wanted, first=first)
    if settled is not None:
        best = best.where(at_once.are_all(settled))
    found = find.unmaterialized(best, "_best")
    best_id, priority, turn, run_at = found.c
    picked = (
        sa.select(c.id, *_before(store, wanted))
        .select_from(found.join(store.jobs, best_id == c.id))
        # By its id alone: PostgreSQL thought of other ways to it, which pass all that is gone.
        .where(find.still(*find.fits(store, wanted)))
        .order_by(priority.desc(), turn, run_at, best_id)
        .limit(missed("limit", sa.Integer()))
        .with_for_update(of=store.jobs, skip_locked=True)
        .cte("_picked")
    )
    write = sa.update(store.jobs).where(c.id == picked.c.id, picked.c.live)
    written = write.ordered_values(*_lease(store, wanted, picked.c.granted)).cte("_written")
    facts = _facts_of_settled(settled)
    if not wanted.start.queued_only:
        facts += _facts_of_look(wanted, picked, found, first)
    told = sa.select(picked)
    if facts:  # in one row at least
        look = sa.select(*facts).subquery("look")
        told = sa.select(picked, *look.c).select_from(look.outerjoin(picked, sa.true()))
    # PostgreSQL runs what is written although nothing reads it.
    return told.add_cte(written, _recorded(store, wanted, picked))


def _facts_of_look(
    wanted: Wanted, picked: sa.CTE, found: sa.CTE, first: t.Any
) -> list[sa.ColumnElement[t.Any]]:
    """Return what only a look from the beginning can tell: what there was to be looked at."""
    seen: t.Any = sa.func.array(sa.select(found.c.best_id).scalar_subquery())
    if not wanted.ahead:  # of interest only when all of it may have been locked
        seen = sa.case((~sa.exists().select_from(picked), seen))
    return [seen.label("seen"), sa.func.coalesce(first, utcnow()).label("lease")]


def _facts_of_settled(settled: sa.CTE | None) -> list[sa.ColumnElement[t.Any]]:
    """Return the ids of the results that were settled, NULL for all of them."""
    if settled is None:
        return []
    some: t.Any = sa.func.array(sa.select(settled.c.job_id).scalar_subquery())
    return [sa.case((~at_once.are_all(settled), some)).label("some")]


def _recorded(store: Store, wanted: Wanted, picked: sa.CTE) -> sa.CTE:
    """Return the insertion of what :func:`_changes` says of each picked row."""
    p = picked.c
    claim = {
        "job_id": p.id, "from_state": p.was, "to_state": find.word(State.LOCKED),
        "attempt": p.attempts + find.number(1), "locker": missed("locker", sa.String()),
        "reason": find.word(Verb.CLAIM), "at": utcnow(),
    }  # fmt: skip
    entries = _select(claim).where(p.live)
    if not wanted.start.queued_only:
        entries = _with_lapses(store, picked, claim)
    insert = sa.insert(store.history).from_select(list(entries.selected_columns.keys()), entries)
    return insert.cte("_recorded")


def _with_lapses(store: Store, picked: sa.CTE, claim: dict[str, t.Any]) -> sa.Select[t.Any]:
    """Return the entries of claims, behind those of the leases that have lapsed."""
    p, lapsed, json = picked.c, picked.c.was == find.word(State.LOCKED), store.history.c.error.type
    queued = find.word(State.QUEUED)
    lapse = claim | {
        "to_state": queued, "attempt": p.attempts, "locker": p.was_by, "reason": find.word(Verb.LAPSE),
        "error": sa.cast(sa.literal_column(f"'{canonical(LAPSED)}'"), json), "turn": find.number(1),
    }  # fmt: skip
    claim = claim | {
        "from_state": sa.case((lapsed, queued), else_=p.was), "error": sa.cast(sa.null(), json),
        "turn": find.number(2),
    }  # fmt: skip
    rows = sa.union_all(_select(lapse).where(p.live, lapsed), _select(claim).where(p.live)).subquery()
    names = (name for name in lapse if name != "turn")
    return sa.select(*(rows.c[name] for name in names)).order_by(rows.c.turn)


def _select(columns: dict[str, t.Any]) -> sa.Select[t.Any]:
    return sa.select(*(column.label(name) for name, column in columns.items()))


def _lock_in_sqlite(store: Store, wanted: Wanted, levels: Levels) -> _Look:
    # Nobody else can hold a lock meanwhile: there is no more to look at than is wanted.
    wanted = dataclasses.replace(wanted, window=_size(wanted.limit))

    def build() -> sa.Executable:
        best = find.candidates(store, wanted, levels).limit(missed("limit", sa.Integer())).subquery()
        chosen = store.jobs.c.id.in_(sa.select(best.c.best_id))
        guard = (chosen, find.still(find.due(store, wanted.clock), wanted.scope.template))
        return store.locking(_before(store, wanted), *guard)

    key = ("lock", wanted.key, find.shape(levels))
    rows = sorted(store.run(key, build, wanted.values(store, levels)).all(), key=_order)
    return _Look(rows, _living(rows), [row.id for row in rows], len(rows) == wanted.limit)


def _lock_in_mysql(store: Store, wanted: Wanted, levels: Levels) -> _Look:
    """Lock by primary key as many as are wanted, in the order of a read that locks nothing.

    A locking read that orders by anything else locks every row it looks at; everyone else
    is then told that there is none.
    """

    def build() -> sa.Executable:
        ids = missed("ids", expanding=True)
        guard = (store.jobs.c.id.in_(ids), find.still(*find.fits(store, wanted)))
        lock = sa.select(store.jobs.c.id, *_before(store, wanted)).where(*guard)
        # By nothing but the key: what MySQL reads on its way it locks.
        return lock.with_hint(store.jobs, "FORCE INDEX (PRIMARY)").with_for_update(skip_locked=True)

    values = wanted.values(store, levels)
    ids = find.read(store, wanted, levels, values)
    rows: list[sa.Row[t.Any]] = []
    start = 0
    while start < len(ids) and len(rows) < wanted.limit:
        chunk = ids[start : start + wanted.limit - len(rows)]
        start += len(chunk)
        rows += sorted(store.run(("lock", wanted.key), build, values | {"ids": chunk}).all(), key=_order)
    return _Look(rows, _living(rows), ids, len(ids) >= wanted.window)


def _order(row: sa.Row[t.Any]) -> tuple[t.Any, ...]:
    return -row.priority, row.turn, row.run_at, row.id


def _changes(wanted: Wanted, row: sa.Row[t.Any]) -> t.Iterator[Change]:
    was = State(row.was)
    if was is State.LOCKED:
        yield Change(Verb.LAPSE, row.id, was, State.QUEUED, row.attempts, row.was_by, LAPSED)
        was = State.QUEUED
    yield Change(Verb.CLAIM, row.id, was, State.LOCKED, row.attempts + 1, wanted.locker)
