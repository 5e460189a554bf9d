"""What those who wait are told when a transaction commits.

Verbs give hints (:func:`hint`); before the commit all hints of a transaction become one
:class:`News`, which the store's ``teller`` sends with it. What is rolled back is not told.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import json
import typing as t
import uuid

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.orm import Session

from .. import commits
from .candidates import due, lapsed, still, word
from .engines import utcnow
from .front import come_back
from .models import UNLED, UNTYPED, JobMixin, is_left_null
from .payload import MAX_ID
from .states import State
from .store import Store, missed

#: The text of a value that a scope may lead with; ``False``: not to be compared.
Lead = str | None | t.Literal[False]
# More than this of one transaction are not told one by one.
_MOST = 1000
# Characters that are read at all: every way has shorter news.
_MOST_TEXT = 65_536
# Seconds: no instant of a database is further ahead.
_LATEST = 1e12


@dataclasses.dataclass(frozen=True, slots=True)
class Fresh:
    """Jobs to be claimed, alike in all that is known of who may.

    :param leads: their values of ``__claim_by__``.
    :param attempts: how often they have been handed out; once more, and the news is old.
    """

    type: str
    queue: str
    priority: int = 0
    only_for: str | None = None
    not_for: tuple[str, ...] = ()
    leads: tuple[Lead, ...] = ()
    attempts: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """What a transaction has changed for those who wait.

    :param jobs: what may be claimed now, and the ids of each.
    :param more: there may be other jobs, of any kind.
    :param due: seconds until the first of those that are to be claimed later.
    :param wish: seconds until others may have one that is there for somebody.
    :param left: ids of users who have logged out.
    :param changed: ids of jobs that are not as they were.
    :param untidy: a result is to be processed later.
    :param unnamed: there are others that are not as they were.
    """

    jobs: t.Mapping[Fresh, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    more: bool = False
    due: float | None = None
    wish: float | None = None
    left: tuple[str, ...] = ()
    changed: tuple[int, ...] = ()
    unnamed: bool = False
    untidy: bool = False

    def __bool__(self) -> bool:
        timed = self.due is not None or self.wish is not None
        told = self.jobs or self.more or self.left or self.changed or self.unnamed or self.untidy
        return bool(told or timed)

    def write(self) -> str:
        """Return it as text, see :meth:`read`."""
        jobs = [[*dataclasses.astuple(fresh), _spans(ids)] for fresh, ids in self.jobs.items()]
        said = {
            "jobs": jobs, "more": self.more, "due": self.due, "wish": self.wish, "left": self.left,
            "changed": self.changed, "unnamed": self.unnamed, "untidy": self.untidy,
        }  # fmt: skip
        return json.dumps({name: value for name, value in said.items() if value or isinstance(value, float)})

    @classmethod
    def read(cls, text: str) -> News:
        """Others may be able to write where it comes from, so that nothing of it is trusted.

        :raises ValueError: for what nobody of ours wrote.
        """
        try:
            _check(len(text) <= _MOST_TEXT)
            said = json.loads(text)
            return cls(**{name: _READERS[name](value) for name, value in said.items()})
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise ValueError(f"no news: {text[:100]!r}") from error

    def short(self) -> News:
        """Return what can be told in few words."""
        more, unnamed = bool(self.jobs) or self.more, bool(self.changed) or self.unnamed
        kept = {"due": self.due, "wish": self.wish, "left": self.left[:10], "untidy": self.untidy}
        return News(more=more, unnamed=unnamed, **t.cast(t.Any, kept))

    def unwatched(self) -> News:
        """Return what is left of it when nobody wants to hear of changes."""
        return dataclasses.replace(self, changed=(), unnamed=False)


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError


def _spans(ids: t.Iterable[int]) -> list[int]:
    """Return the first and the last of each run of ids: those of a bulk are one."""
    spans: list[int] = []
    for id in ids:
        if spans and spans[-1] + 1 == id:
            spans[-1] = id
        else:
            spans += [id, id]
    return spans


def _read_jobs(value: t.Any) -> dict[Fresh, tuple[int, ...]]:
    return {_read_fresh(*facts): _read_ids(spans) for *facts, spans in _read_list(value)}


def _read_ids(value: t.Any) -> tuple[int, ...]:
    ends = _read_wholes(value)
    runs = [range(first, last + 1) for first, last in zip(ends[::2], ends[1::2], strict=True)]
    _check(0 < sum(map(len, runs)) <= _MOST)
    return tuple(id for run in runs for id in run)


def _read_fresh(type_: t.Any, queue: t.Any, priority: t.Any, only_for: t.Any, *more: t.Any) -> Fresh:
    not_for, leads, attempts = more
    for number in (priority, attempts):
        _check(type(number) is int and abs(number) <= MAX_ID)
    _check(all(lead is None or lead is False or isinstance(lead, str) for lead in _read_list(leads)))
    for_ = None if only_for is None else _read_text(only_for)
    plain = (_read_text(type_), _read_text(queue), priority, for_)
    return Fresh(*plain, _read_texts(not_for), tuple(leads), attempts)


def _read_list(value: t.Any) -> list[t.Any]:
    _check(isinstance(value, list))
    return t.cast(list[t.Any], value)


def _read_text(value: t.Any) -> str:
    _check(isinstance(value, str))
    return t.cast(str, value)


def _read_texts(value: t.Any) -> tuple[str, ...]:
    return tuple(map(_read_text, _read_list(value)))


def _read_whole(value: t.Any) -> int:
    _check(type(value) is int and 1 <= value <= MAX_ID)
    return t.cast(int, value)


def _read_wholes(value: t.Any) -> tuple[int, ...]:
    return tuple(map(_read_whole, _read_list(value)))


def _read_seconds(value: t.Any) -> float:
    _check(type(value) in (int, float) and 0 <= value <= _LATEST)  # nor is NaN
    return t.cast(float, value)


def _read_flag(value: t.Any) -> bool:
    _check(isinstance(value, bool))
    return t.cast(bool, value)


_READERS: dict[str, t.Callable[[t.Any], t.Any]] = {
    "jobs": _read_jobs,
    "more": _read_flag,
    "due": _read_seconds,
    "wish": _read_seconds,
    "left": _read_texts,
    "changed": _read_wholes,
    "unnamed": _read_flag,
    "untidy": _read_flag,
}


class Notification(t.NamedTuple):
    """What PostgreSQL's ``pg_notify`` is given."""

    channel: str
    text: str


class Teller(t.Protocol):
    """Tells those who wait."""

    #: Seconds after which everybody looks for themselves: what is due later need not be told.
    horizon: float

    def tell(self, store: Store, news: News) -> None:
        """Take news of a transaction that is about to be committed."""
        ...

    def notification(self, news: News) -> Notification | None:
        """Return what tells it at the commit, whatever statement says it, if there is such a way."""
        ...

    def say(self, news: News) -> None:
        """Tell of what has been committed. It must not raise."""
        ...

    def is_watched(self, store: Store) -> bool:
        """Whether anybody, in any process, wants to hear of jobs that are changed."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """A part of the news of a transaction.

    :param ids: of jobs that may be fit to be claimed, now or later.
    """

    store: Store
    news: News = News()
    ids: tuple[int, ...] = ()

    def __call__(self) -> None:
        """Tell what came when all had been told: another listener of the session's may do its work then."""
        self.store.teller.say(dataclasses.replace(self.news, more=self.news.more or bool(self.ids)))


def hint(store: Store, *, ids: tuple[int, ...] = (), back: bool = True, **said: t.Any) -> None:
    """Give a hint: keywords of :class:`News`, or ids.

    :param back: whether these may come back among those that wait, before others.
    """
    if back and (ids or said.get("more")):
        come_back(store.session, store.fronts.forget)
    commits.on_commit(store.session, Hint(store=store, news=News(**said), ids=ids))


def hint_due(store: Store, seconds: float) -> None:
    """Tell that something will be due, if nobody would look in time."""
    if seconds < store.teller.horizon:
        hint(store, due=seconds)


class Entry(t.NamedTuple):
    """A job that has just been inserted.

    :param fresh: what it is for those who wait; ``None``: not yet anything that may be claimed.
    :param later: whether it is going to be, by time.
    """

    id: int
    fresh: Fresh | None
    later: bool = False


def entry(store: Store, job: JobMixin) -> Entry:
    """Return what there is to tell of a job object that has just been inserted."""
    # Not by attribute: where an insertion returns nothing, it would be read from the database.
    if job.state == State.SCHEDULED or job.__dict__.get("only_for_until") is not None:
        return Entry(job.id, None, later=True)
    ready = job.state == State.QUEUED
    return Entry(job.id, _of_object(store, job, store.Job.__claim_by__) if ready else None)


def hint_new(store: Store, entries: t.Sequence[Entry]) -> Notification | None:
    """Tell of jobs that have just been inserted.

    :returns: what the statement that records a single one is to tell, which else were one more.
    """
    later = tuple(one.id for one in entries if one.later)
    if len(entries) > _MOST:
        hint(store, more=True, ids=later[:_MOST])
        return None
    fresh = _group((one.fresh, one.id) for one in entries if one.fresh is not None)
    notification = store.teller.notification(News(jobs=fresh)) if fresh and len(entries) == 1 else None
    if notification is None:
        hint(store, jobs=fresh, ids=later)
    return notification


def _of_object(store: Store, job: JobMixin, names: t.Sequence[str]) -> Fresh:
    # Not by attribute: one that is not loaded would be read from the database.
    leads = tuple(_lead(job.__dict__.get(name, _absent(store.jobs.c[name]))) for name in names)
    not_for = tuple(job.not_for or ())
    return Fresh(job.type, job.queue, job.priority, job.only_for, not_for, leads, job.attempts)


def _absent(column: sa.Column[t.Any]) -> t.Any:
    """Return what a column holds that the app has not set: NULL, or who knows."""
    return None if is_left_null(column) else ...


def _lead(value: t.Any) -> Lead:
    return None if value is None else comparable(value)


def comparable(value: t.Any) -> Lead:
    """Return the text of a value when equal texts mean equal values, else ``False``."""
    return str(value) if type(value) in (int, str, uuid.UUID) else False


def _group(jobs: t.Iterable[tuple[Fresh, int]]) -> dict[Fresh, tuple[int, ...]]:
    groups = collections.defaultdict[Fresh, list[int]](list)
    for fresh, id in jobs:
        groups[fresh].append(id)
    return {fresh: tuple(sorted(set(ids))) for fresh, ids in groups.items()}


@event.listens_for(Session, "before_commit")
def _tell(session: Session) -> None:
    if not commits.is_last(session):
        return
    by_teller: dict[int, list[Hint]] = {}
    for one in commits.take(session, Hint):
        by_teller.setdefault(id(one.store.teller), []).append(one)
    for hints in by_teller.values():
        store = hints[0].store
        news = _gather(store, hints)
        # Asked now, not by the verb: who begins to watch meanwhile looks once others must know.
        if (news.changed or news.unnamed) and not store.teller.is_watched(store):
            news = news.unwatched()
        if news:
            store.teller.tell(store, news)


def _gather(store: Store, hints: t.Sequence[Hint]) -> News:
    news = [one.news for one in hints]
    ids = {id for one in hints for id in one.ids}
    changed = tuple(dict.fromkeys(id for one in news for id in one.changed))
    news += [_read(store, sorted(ids)[:_MOST])] if ids else []
    return News(
        jobs=_group((fresh, id) for one in news for fresh, ids in one.jobs.items() for id in ids),
        more=any(one.more for one in news) or len(ids) > _MOST,
        due=min((one.due for one in news if one.due is not None), default=None),
        wish=min((one.wish for one in news if one.wish is not None), default=None),
        left=tuple(dict.fromkeys(user for one in news for user in one.left)),
        changed=changed if len(changed) <= _MOST else (),
        unnamed=len(changed) > _MOST,
        untidy=any(one.untidy for one in news),
    )


def _read(store: Store, ids: t.Sequence[int]) -> News:
    """Read what is to be told of jobs as they are now."""
    c = store.jobs.c
    waits = (State.QUEUED, State.SCHEDULED)
    some = sa.select(c.id, *facts(store)).where(c.id.in_(ids), c.state.in_([str(state) for state in waits]))
    return told(store, store.execute(some).all())


def facts(store: Store) -> list[t.Any]:
    """Return the columns from which :func:`told` makes news, besides the id."""
    c = store.jobs.c
    plain = (
        c.state, c.type, c.queue, c.priority, c.only_for, c.not_for, c.run_at, c.only_for_until,
        c.attempts,
    )  # fmt: skip
    leads = (c[name].label(f"lead_{place}") for place, name in enumerate(store.Job.__claim_by__))
    return [*plain, utcnow().label("now"), *leads]


def told(store: Store, rows: t.Sequence[sa.Row[t.Any]]) -> News:
    """Return the news that rows of :func:`facts` are."""
    later = [row.run_at for row in rows if row.run_at > row.now]
    wishes = [until for row in rows if (until := row.only_for_until) is not None and until > row.now]
    ready = [row for row in rows if row.state != State.SCHEDULED or row.run_at <= row.now]
    jobs = _group((_of_row(store, row), row.id) for row in ready)
    return News(jobs=jobs, due=_seconds(rows, later), wish=_seconds(rows, wishes))


def _seconds(rows: t.Sequence[sa.Row[t.Any]], instants: t.Collection[dt.datetime]) -> float | None:
    return (min(instants) - rows[0].now).total_seconds() if instants else None


def like(store: Store, row: t.Any, **own: t.Any) -> Fresh:
    """Return what a job is that is like a row of :func:`facts`, but for these fields."""
    return dataclasses.replace(_of_row(store, row), **own)


def _of_row(store: Store, row: t.Any) -> Fresh:
    leads = [getattr(row, f"lead_{place}") for place in range(len(store.Job.__claim_by__))]
    # Others may have it too once a wish is over.
    wish_is_over = row.only_for_until is not None and row.only_for_until <= row.now
    only_for = None if wish_is_over else row.only_for
    not_for, priority = tuple(row.not_for or ()), row.priority
    leading = tuple(map(_lead, leads))
    return Fresh(row.type, row.queue, priority, only_for, not_for, leading, row.attempts)


def look(store: Store, *, everything: bool, limit: int = 100) -> tuple[News, float | None]:
    """Look for what may be claimed now: what has become due, or ``everything``.

    :returns: the news, and the seconds until the next moment at which there may be more.
    """
    found: list[sa.Row[t.Any]] = []
    more = False
    for condition in (*_become_due(store), *([_is(store, State.QUEUED)] if everything else ())):
        rows = store.execute(sa.select(store.jobs.c.id, *facts(store)).where(condition).limit(limit)).all()
        found += rows
        more = more or len(rows) == limit
    return dataclasses.replace(told(store, found), more=more, due=None), _next(store)


def still_there(store: Store, ids: t.Collection[int]) -> set[int]:
    """Return which of the jobs may be claimed now."""
    return set(store.run("still there", lambda: _of_those(store), {"ids": sorted(ids)}).scalars())


def _of_those(store: Store) -> sa.Select[t.Any]:
    return sa.select(store.jobs.c.id).where(
        store.jobs.c.id.in_(missed("ids", expanding=True)), still(due(store, utcnow()))
    )


def _become_due(store: Store) -> tuple[t.Any, t.Any]:
    """Return the two ways in which time makes a job one to be claimed."""
    c, now = store.jobs.c, utcnow()
    return sa.and_(_is(store, State.SCHEDULED), c.run_at <= now), lapsed(store, now)


def _is(store: Store, state: State) -> t.Any:
    """Whether a job is in a state, with what a partial index needs to hear to be of use."""
    marks = (UNTYPED, UNLED) if state is State.QUEUED else ()
    return sa.and_(store.jobs.c.state == word(state), *map(sa.text, marks))


def _next(store: Store) -> float | None:
    """Read the seconds until the next job becomes due, a lease ends, or a wish."""
    c, now = store.jobs.c, utcnow()
    run_at = sa.select(sa.func.min(c.run_at)).where(_is(store, State.SCHEDULED), c.run_at > now)
    lapse = sa.select(sa.func.min(c.locked_until)).where(_is(store, State.LOCKED), c.locked_until > now)
    row: t.Any = store.execute(sa.select(now, run_at.scalar_subquery(), lapse.scalar_subquery())).one()
    instants = [instant for instant in row[1:] if instant is not None]
    return max((min(instants) - row[0]).total_seconds(), 0.0) if instants else None
