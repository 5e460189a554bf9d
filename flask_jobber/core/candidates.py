"""Which jobs a claim may take, best first, found at a cost that does not grow with the table.

A claim has three kinds of candidates: queued jobs, scheduled jobs that are due, and
locked jobs whose lease has lapsed. Queued ones are read in order from one index.
Scheduled ones cannot be: ordered by priority, a million that are not due may stand in
front of the first that is; ordered by time, a million may be due. So their priorities
are walked downwards, one probe of the index for each, and within a priority the time
orders them. Lapsed ones are few.

An ``OR`` in a scope and a list of types would both cost the order of the index. Each
combination becomes a branch of its own (:class:`Branch`), and the best of each are
merged.

What is built here holds no value: :meth:`Wanted.values` has them, by name.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import math
import typing as t

import sqlalchemy as sa
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList

from .engines import Instant, plus_seconds, position, unforeseen, utcnow
from .front import WHOLE, Start
from .lanes import unpaused
from .lockers import login_of, unblocked
from .models import UNLED, UNTYPED, JobMixin
from .payload import RESERVED, names_of
from .scope import Expression, Scope, bare, is_equality
from .states import State, Verb
from .store import Store, missed

# More branches than this cost more than reading past jobs of other types.
_MOST_BRANCHES = 16
# Looks for the priorities of scheduled jobs before they are sorted after all. SQLite takes
# 500 terms of a UNION.
_MOST_LEVELS = 25
#: What is told of candidates: ``id, priority, turn, run_at``, by names that a scope in text does not know.
BEST = ("best_id", "best_priority", "best_turn", "best_run_at")
#: Of each branch the priorities at which a scheduled job is due; ``None``: too many to walk.
#: Without a mapping the statement walks them itself.
Levels = dict[int, list[int] | None] | None


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Whose claim it is and what it asks for.

    :param min_priority: of this priority at least; ``max_priority``: at most.
    :param lease_seconds: the length it asks for, of its own.
    :param now: the present moment, by the database's clock when it is ``None``.
    :param limit: how many jobs.
    :param reserved: whether it gets jobs of reserved types when it names no types.
    """

    locker: str
    scope: Scope
    types: tuple[str, ...] | None = None
    queues: tuple[str, ...] | None = None
    min_priority: int | None = None
    max_priority: int | None = None
    lease_seconds: float | None = None
    now: dt.datetime | None = None
    limit: int = 1
    reserved: bool = True
    #: Not these types and queues, though it names none.
    but_types: tuple[str, ...] = ()
    but_queues: tuple[str, ...] = ()
    #: How many candidates are looked at.
    window: int = 36
    #: Whether to see what it leaves.
    ahead: bool = False
    #: Where it begins.
    start: Start = WHOLE

    @property
    def reach(self) -> int:
        """How many of each kind are read: of queued jobs alone it may skip as many as it looks at."""
        return 2 * self.window if self.start.queued_only else self.window

    @property
    def key(self) -> t.Hashable:
        """What decides the text of the claim's statements."""
        lengths = (len(names_of(self.locker)), _length(self.types), _length(self.queues))
        return (
            self.scope.key,
            *lengths,
            self.lease_seconds is None,
            self.now is None,
            self.min_priority is None,
            self.max_priority is None,
            self.window,
            self.ahead,
            self.start.front is None,
            self.start.queued_only,
            self.reserved,
            _length(self.but_types),
            _length(self.but_queues),
        )

    def values(self, store: Store, levels: Levels = None) -> dict[str, t.Any]:
        """Return the values of the statements, by name."""
        names = names_of(self.locker)
        given = {
            "locker": self.locker,
            "login": login_of(self.locker),
            "limit": self.limit,
            "least": self.min_priority,
            "most": self.max_priority,
            "leases_from": self.start.leases,
            "ahead": min(self.start.ahead, self.window),
            "lease": store.settings.lease_seconds if self.lease_seconds is None else self.lease_seconds,
            **self.scope.values,
            **_numbered("name", names),
            **_numbered("line", [f"\n{name}\n" for name in names]),
            **_listed("type", self.types),
            **_listed("queue", self.queues),
            **_listed("but_type", self.but_types),
            **_listed("but_queue", self.but_queues),
        }
        if self.start.front is not None:
            given |= {f"front_{name}": value for name, value in self.start.front._asdict().items()}
        for branch, priorities in (levels or {}).items():
            given |= _numbered(f"level_{branch}", priorities or ())
        return given if self.now is None else {**given, "now": self.now}

    @property
    def kind(self) -> t.Hashable:
        """What decides which jobs it may have."""
        bounds = (self.min_priority, self.max_priority, self.reserved, self.but_types, self.but_queues)
        given = (tuple(value) if isinstance(value, list) else value for value in self.scope.values.values())
        return (self.locker, self.scope.key, *given, self.types, self.queues, *bounds)

    @property
    def clock(self) -> Expression:
        """The present moment in SQL."""
        return utcnow() if self.now is None else missed("now", Instant())


def _length(names: tuple[str, ...] | None) -> int | None:
    # Not of long lists: a client could have a statement made for each length.
    return None if names is None else min(len(names), _MOST_BRANCHES + 1)


def _listed(name: str, values: tuple[str, ...] | None) -> dict[str, t.Any]:
    """Return the values that :func:`_among` misses."""
    few = _numbered(name, (values or ())[:_MOST_BRANCHES])
    return few if len(few) == len(values or ()) else {**few, f"{name}s": values}


def _numbered(name: str, values: t.Iterable[t.Any]) -> dict[str, t.Any]:
    return {f"{name}_{place}": value for place, value in enumerate(values)}


@dataclasses.dataclass(frozen=True, slots=True)
class Branch:
    """A part of the wanted jobs that stands together in an index.

    :param lead: equalities on the index's first columns.
    :param rest: what is left to compare row by row.
    :param order: what to order by before all else. PostgreSQL sorts what ``IS NULL`` finds,
        unless it is told that it wants the column's order.
    """

    lead: tuple[Expression, ...]
    rest: tuple[Expression, ...]
    order: tuple[Expression, ...] = ()


def number(value: int) -> t.Any:
    """Return a number as a literal."""
    # PostgreSQL keeps no plan for a number that it knows once it has the values, such as a limit, and
    # planning a claim took it 1.1 ms, executing it 0.5.
    return sa.literal_column(str(value), sa.Integer())


def word(one: State | Verb) -> Expression:
    """Return a state or a verb as a literal: a partial index is no use to a parameter."""
    return sa.literal_column(f"'{one}'", sa.String())


def fits(store: Store, wanted: Wanted) -> tuple[Expression, ...]:
    """Return what must hold of a job that was a candidate."""
    is_queued = store.jobs.c.state == word(State.QUEUED)
    is_due = is_queued if wanted.start.queued_only else due(store, wanted.clock)
    return is_due, wanted.scope.template, *wished(store, wanted)


def due(store: Store, now: Expression) -> Expression:
    """Whether a row may be taken now."""
    c = store.jobs.c
    return sa.or_(
        c.state == word(State.QUEUED),
        sa.and_(c.state == word(State.SCHEDULED), c.run_at <= now),
        lapsed(store, now),
    )


def still(*conditions: Expression) -> Expression:
    """Whether rows that are found by their ids are as they were.

    Wrapped up: SQLite would take an ``OR`` in it for a way to find the rows, and read
    every waiting job for it.
    """
    holds = sa.case((sa.and_(*conditions), number(1)), else_=number(0))
    return t.cast(Expression, holds == number(1))


def is_held(store: Store) -> Expression:
    """Whether a row is held; it says what holds anyway, so that the index of leases can be read for it."""
    c = store.jobs.c
    return sa.and_(c.state == word(State.LOCKED), c.locked_until.is_not(None))


def lapsed(store: Store, now: Expression) -> Expression:
    """Whether a row's lease is over."""
    c = store.jobs.c
    return sa.and_(c.state == word(State.LOCKED), c.locked_until <= now)


def exhausted(store: Store) -> Expression:
    """Whether a row, having lapsed, has used up its last attempt."""
    c = store.jobs.c
    return sa.and_(c.state == word(State.LOCKED), c.failures + number(1) >= c.max_attempts)


def dead(store: Store, now: Expression) -> Expression:
    """Whether a due row has no life left: exhausted, or past its ``expires_at``."""
    return sa.or_(exhausted(store), expired(store, now))


def expired(store: Store, now: Expression) -> Expression:
    """Whether a row is past its ``expires_at``."""
    return sa.func.coalesce(store.jobs.c.expires_at <= now, sa.false())


def granted(store: Store, wanted: Wanted) -> Expression:
    """Return the length in seconds of the lease that a row gets."""
    length = missed("lease", sa.Double())
    return length if wanted.lease_seconds is not None else sa.func.coalesce(store.jobs.c.lease_for, length)


def lease_end(wanted: Wanted, length: Expression) -> Expression:
    """Return the instant at which a lease that begins now is over."""
    return plus_seconds(wanted.clock, length)


def candidates(
    store: Store, wanted: Wanted, levels: Levels = None, first: Expression | None = None
) -> sa.Select[t.Any]:
    """Select :data:`BEST` of the best, in order, at most ``wanted.window``.

    :param first: the end of the lease that ends first, see :func:`first_lease`.
    """
    queued_only = wanted.start.queued_only
    parts = [] if queued_only else [_lapsed_part(store, wanted, first)]
    for place, branch in enumerate(_branches(store, wanted)):
        parts += _queued_parts(store, wanted, branch, place)
        parts += [] if queued_only else _scheduled_parts(store, wanted, branch, place, levels)
    selects = [sa.select(part.subquery("part")) for part in parts]
    if store.engine_name == "postgresql":
        # It does not know the limit within: it would guess a tenth of the table, and compile what is so dear.
        selects = [part.limit(number(wanted.reach)) for part in selects]
    # Arms of an OR may overlap.
    unite = sa.union if _count_arms(wanted.scope.expression) > 1 else sa.union_all
    c = unite(*selects).subquery("found").c
    named = (column.label(name) for column, name in zip(c, BEST, strict=True))
    best = sa.select(*named).where(unblocked(store))
    best = best.order_by(c.priority.desc(), c.turn, c.run_at, c.id).limit(number(wanted.window))
    return best.offset(missed("ahead", sa.Integer())) if queued_only else best


def unmaterialized(select: sa.Select[t.Any], name: str) -> sa.CTE:
    """Return a CTE that PostgreSQL plans where it is read: in full it would lose bounds and order."""
    return select.cte(name).prefix_with("NOT MATERIALIZED")


def turn(store: Store) -> Expression:
    """Return the turn of a job among all others of its priority, due ones that were scheduled too."""
    c = store.jobs.c
    return sa.func.coalesce(c.later_turn, c.turn, type_=c.turn.type).label("turn")


def read_levels(store: Store, wanted: Wanted) -> Levels:
    """Read the priorities of scheduled jobs, where one statement cannot walk them and use them.

    SQLite and MariaDB have no LATERAL, and MariaDB reads every scheduled row for a
    ``max(priority)`` in a recursion: one look at an index for each level it is.
    """
    if store.engine_name == "postgresql":
        return None
    values, places = wanted.values(store), range(_count_branches(wanted))
    levels: dict[int, list[int]] = {place: [] for place in places}
    below = dict.fromkeys(places, 2**31 if wanted.max_priority is None else wanted.max_priority + 1)
    for _ in range(_MOST_LEVELS):
        bounds = {f"below_{place}": below.get(place, -(2**31)) for place in places}
        rows = store.run(("below", wanted.key), lambda: _next_levels(store, wanted), values | bounds).all()
        for row in rows:
            levels[row.place] += [row.priority] if row.due else []
        below = {row.place: row.priority for row in rows if len(levels[row.place]) < wanted.window}
        if not below:
            break
    return {place: None if place in below else found for place, found in levels.items()}


def _next_levels(store: Store, wanted: Wanted) -> sa.CompoundSelect[t.Any]:
    """Select ``place, priority, due`` of each branch's next level, and whether a job of it is due."""
    looks = (_next_level(store, wanted, *numbered) for numbered in enumerate(_branches(store, wanted)))
    return sa.union_all(*looks)


def _next_level(store: Store, wanted: Wanted, place: int, branch: Branch) -> sa.Select[t.Any]:
    c = store.jobs.c
    scheduled = (*branch.lead, c.state == word(State.SCHEDULED))
    lower = c.priority < missed(f"below_{place}", sa.BigInteger())
    levels = sa.select(c.priority).where(*scheduled, lower, *_least(store, wanted))
    look = levels.order_by(c.priority.desc()).limit(number(1)).subquery()
    here = (c.priority == look.c.priority, c.turn == number(0), c.run_at <= wanted.clock)
    due = sa.exists().where(*scheduled, *here)
    return sa.select(number(place).label("place"), look.c.priority, due.label("due"))


def read(store: Store, wanted: Wanted, levels: Levels, values: dict[str, t.Any]) -> t.Sequence[int]:
    """Read the ids of the best candidates, locking nothing."""
    key = ("candidates", wanted.key, shape(levels))
    return store.run(key, lambda: candidates(store, wanted, levels), values).scalars().all()


def shape(levels: Levels) -> t.Hashable:
    """Return what the levels decide of a statement's text."""
    return tuple((place, -1 if found is None else len(found)) for place, found in (levels or {}).items())


def _part(store: Store, wanted: Wanted, *conditions: Expression) -> sa.Select[t.Any]:
    c = store.jobs.c
    part = sa.select(c.id, c.priority, turn(store), c.run_at).where(*conditions)
    return part.limit(unforeseen(number(wanted.window)))


def _lapsed_part(store: Store, wanted: Wanted, first: Expression | None) -> sa.Select[t.Any]:
    c = store.jobs.c
    bound = () if first is None else (c.locked_until >= first,)
    found = (lapsed(store, wanted.clock), *bound, wanted.scope.template, *wished(store, wanted))
    return _part(store, wanted, *found).order_by(c.priority.desc(), turn(store), c.run_at, c.id)


def first_lease(store: Store) -> Expression:
    """Return the end of the lease that ends first: no lease ends earlier, and what is before is dead.

    Each settled job leaves an entry in PostgreSQL's index, which a claim meets once its lease would
    be over. A bitmap scan, of which PostgreSQL may think here, reads all of them each time until a
    vacuum takes them away, and in a large table none does for long: half an hour of steady load came
    down from 126 jobs a second to 50. The look for the first marks them, and the next one skips them.
    """
    j = store.jobs.alias("held").c
    there = (j.state == word(State.LOCKED), j.locked_until >= missed("leases_from", Instant()))
    held = sa.select(j.locked_until).where(*there).order_by(j.locked_until)
    return sa.select(held.limit(number(1)).cte("_first").c.locked_until).scalar_subquery()


def _queued_parts(store: Store, wanted: Wanted, branch: Branch, place: int) -> t.Iterator[sa.Select[t.Any]]:
    c = store.jobs.c
    queued = (*branch.lead, c.state == word(State.QUEUED), *branch.rest)
    if wanted.start.front is None:
        order = (*branch.order, c.priority.desc(), c.turn, c.run_at, c.id)
        yield _part(store, wanted, *queued).order_by(*order)
        return
    leads = [column.label(f"lead_{step}") for step, column in enumerate(branch.order)]
    waiting = sa.select(c.id, c.priority, c.turn, c.run_at, *leads).where(*queued)
    # Written once, and planned as if it were written twice; but where a function may be volatile
    # PostgreSQL would read all of it.
    name = f"_queued_{place}"
    q = waiting.subquery(name).c if wanted.scope.reads_others else unmaterialized(waiting, name).c
    part: sa.Select[t.Any] = sa.select(q.id, q.priority, q.turn, q.run_at)
    part = part.limit(unforeseen(number(wanted.reach)))
    part = part.order_by(*(q[lead.name] for lead in leads), q.priority.desc(), q.turn, q.run_at, q.id)
    types = {"priority": sa.Integer(), "turn": sa.BigInteger(), "run_at": Instant(), "id": sa.BigInteger()}
    priority, *begin = (unforeseen(missed(f"front_{name}", type_)) for name, type_ in types.items())
    yield part.where(q.priority > priority)
    yield part.where(q.priority == priority, sa.tuple_(q.turn, q.run_at, q.id) >= sa.tuple_(*begin))


def _scheduled_parts(
    store: Store, wanted: Wanted, branch: Branch, place: int, levels: Levels
) -> t.Iterator[sa.Select[t.Any]]:
    if levels is None:
        level = _level(store, wanted, branch)
        here = _scheduled_part(store, wanted, branch, level.c.priority).lateral()
        walk = sa.select(here).select_from(level.join(here, sa.true()))
        yield walk.limit(number(wanted.window))
        return
    known = levels[place]
    if known is None:
        yield _scheduled_sorted(store, wanted, branch)
    for step in range(len(known or ())):
        yield _scheduled_part(store, wanted, branch, missed(f"level_{place}_{step}", sa.Integer()))


def _level(store: Store, wanted: Wanted, branch: Branch) -> sa.CTE:
    """Walk down the wanted priorities of scheduled jobs; the last row is NULL."""
    c = store.jobs.c
    scheduled = (*branch.lead, c.state == word(State.SCHEDULED), *_least(store, wanted))
    # Not max(priority), for which an IS NULL would be read to its end.
    highest = (
        sa.select(c.priority).where(*scheduled).order_by(*branch.order, c.priority.desc()).limit(number(1))
    )
    first = highest.where(*_most(store, wanted)).scalar_subquery()
    level = sa.select(first.label("priority")).cte(recursive=True)
    lower = highest.where(c.priority < level.c.priority)
    return level.union_all(
        sa.select(lower.scalar_subquery()).select_from(level).where(level.c.priority.is_not(None))
    )


def _scheduled_part(store: Store, wanted: Wanted, branch: Branch, priority: Expression) -> sa.Select[t.Any]:
    c = store.jobs.c
    # Their turns are equal: of one priority the time orders them.
    level = (c.state == word(State.SCHEDULED), c.priority == priority, c.turn == number(0))
    here = (*level, c.run_at <= wanted.clock)
    return _part(store, wanted, *branch.lead, *here, *branch.rest).order_by(*branch.order, c.run_at, c.id)


def _scheduled_sorted(store: Store, wanted: Wanted, branch: Branch) -> sa.Select[t.Any]:
    c = store.jobs.c
    here = (c.state == word(State.SCHEDULED), c.run_at <= wanted.clock)
    part = _part(store, wanted, *branch.lead, *here, *branch.rest)
    return part.order_by(c.priority.desc(), c.run_at, c.id)


def wished(store: Store, wanted: Wanted, *, typed: bool = True) -> tuple[Expression, ...]:
    """Return what must hold of a job besides the scope and its being due."""
    c = store.jobs.c
    names = _missed_all("name", names_of(wanted.locker))
    lines = sa.type_coerce(c.not_for, sa.Text())
    absent = [position(lines, line) == number(0) for line in _missed_all("line", names_of(wanted.locker))]
    conditions: list[Expression] = [
        sa.or_(c.only_for.is_(None), c.only_for.in_(names), c.only_for_until <= wanted.clock),
        sa.or_(c.not_for.is_(None), sa.and_(*absent)),
        unpaused(store),
    ]
    if wanted.types is None and not wanted.reserved:
        conditions.append(_unreserved(c.type))
    if typed and wanted.types is not None:
        conditions.append(_among(c.type, "type", wanted.types))
    if wanted.queues is not None:
        conditions.append(_among(c.queue, "queue", wanted.queues))
    if wanted.but_types:
        conditions.append(sa.not_(_among(c.type, "but_type", wanted.but_types)))
    if wanted.but_queues:
        conditions.append(sa.not_(_among(c.queue, "but_queue", wanted.but_queues)))
    return (*conditions, *_least(store, wanted), *_most(store, wanted))


def _least(store: Store, wanted: Wanted) -> tuple[Expression, ...]:
    if wanted.start.front is not None and not wanted.start.queued_only:
        return (store.jobs.c.priority >= missed("front_priority", sa.Integer()),)
    bound = missed("least", sa.Integer())
    return () if wanted.min_priority is None else (store.jobs.c.priority >= bound,)


def _most(store: Store, wanted: Wanted) -> tuple[Expression, ...]:
    bound = missed("most", sa.Integer())
    return () if wanted.max_priority is None else (store.jobs.c.priority <= bound,)


def _unreserved(column: sa.Column[t.Any]) -> Expression:
    # Not a range: between "jobber:" and "jobber;" there is nothing in most collations of PostgreSQL.
    start = sa.func.substr(column, number(1), number(len(RESERVED)))
    return start != sa.literal_column(f"'{RESERVED}'", sa.String())


def _among(column: sa.Column[t.Any], name: str, values: tuple[str, ...]) -> Expression:
    """Return ``IN``; what has a place for each value is ready as text, what expands is made each time."""
    if len(values) > _MOST_BRANCHES:
        return column.in_(missed(f"{name}s", sa.String(), expanding=True))
    return column.in_(_missed_all(name, values))


def _missed_all(name: str, values: t.Sequence[str]) -> list[sa.BindParameter[t.Any]]:
    return [missed(f"{name}_{place}", sa.String()) for place in range(len(values))]


def _branches(store: Store, wanted: Wanted) -> list[Branch]:
    scope = wanted.scope.template
    split = _count_all(wanted) <= _MOST_BRANCHES
    arms = arms_of(scope) if split else [[scope]]
    places = list(range(len(wanted.types or ()))) if split else []
    common = wished(store, wanted, typed=not places)
    leads: list[tuple[Expression, ...]] = [
        (store.jobs.c.type == unforeseen(missed(f"type_{place}", sa.String())),) for place in places
    ]
    return [_branch(store, arm, lead, common) for arm, lead in itertools.product(arms, leads or [()])]


def _count_branches(wanted: Wanted) -> int:
    count = _count_all(wanted)
    return count if count <= _MOST_BRANCHES else 1


def _count_all(wanted: Wanted) -> int:
    """Count the combinations of alternatives and types."""
    return _count_arms(wanted.scope.expression) * max(len(wanted.types or ()), 1)


def _branch(
    store: Store, arm: list[Expression], typed: tuple[Expression, ...], rest: tuple[Expression, ...]
) -> Branch:
    lead = {term.left.name: term for term in arm if _leads(store.Job, term)}
    marks = () if typed else (sa.text(UNTYPED),)
    if lead.keys() != set(store.Job.__claim_by__):
        lead, marks = {}, (*marks, sa.text(UNLED))
    others = [term for term in arm if not any(term is one for one in lead.values())]
    nulls = tuple(term.left for term in lead.values() if term.operator is operators.is_)
    order = nulls if store.engine_name == "postgresql" else ()
    return Branch((*map(_unforeseen, lead.values()), *typed, *marks), (*others, *rest), order)


def _unforeseen(term: t.Any) -> Expression:
    if term.operator is operators.is_:
        return t.cast(Expression, term)
    return BinaryExpression(term.left, unforeseen(term.right), term.operator)


def _leads(job: type[JobMixin], term: Expression) -> bool:
    """Whether a term is ``column = value`` or ``column IS NULL`` on a column of ``__claim_by__``."""
    return is_equality(term) and term.left.table is job.__table__ and term.left.name in job.__claim_by__


def leading(job: type[JobMixin], arm: t.Iterable[Expression]) -> t.Iterator[tuple[int, t.Any]]:
    """Yield what the terms of an alternative compare columns of ``__claim_by__`` with, by their places."""
    for term in arm:
        if _leads(job, term):
            value = None if term.operator is operators.is_ else term.right.effective_value
            yield job.__claim_by__.index(term.left.name), value


def arms_of(scope: Expression) -> list[list[Expression]]:
    """Take a scope apart: a list of alternatives, each a list of terms that must all hold."""
    return _arms(scope) if _count_arms(scope) <= _MOST_BRANCHES else [[scope]]


def _arms(scope: Expression) -> list[list[Expression]]:
    inner = bare(scope)
    if isinstance(inner, BooleanClauseList) and inner.operator is operators.or_:
        return [arm for clause in inner.clauses for arm in _arms(clause)]
    if isinstance(inner, BooleanClauseList) and inner.operator is operators.and_:
        products = itertools.product(*(_arms(clause) for clause in inner.clauses))
        return [[term for arm in arms for term in arm] for arms in products]
    return [[scope]]


def _count_arms(scope: Expression) -> int:
    """Count the alternatives without making them: there may be two to the power of the terms."""
    scope = bare(scope)
    if isinstance(scope, BooleanClauseList):
        counts = [_count_arms(clause) for clause in scope.clauses]
        return sum(counts) if scope.operator is operators.or_ else math.prod(counts)
    return 1
