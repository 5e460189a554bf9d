"""Results in which no code of the app's has a say, settled at once.

On PostgreSQL by one statement, their own or a claim's; on SQLite, where a statement writes to one
table, by two.
"""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa

from ..errors import JobberError
from .candidates import still, word
from .engines import Json, utcnow
from .hold import Holder, Item, Outcome, held_by, possible
from .payload import check_json
from .states import State, Verb
from .store import Store, missed
from .transition import Change, announce_if_heard

_IDS = "ids"
# What a result says, by names that a scope in text does not know.
_SAID = ("said_id", "said_attempt", "said_result", "said_extras")
Done = dict[tuple[int, int], Outcome]


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery(Item):
    """A result, and what the client has to say beside it (a JSON object)."""

    result: t.Any = None
    extras: dict[str, t.Any] | None = None

    def check(self, store: Store) -> None:
        check_json("result", self.result, store.settings.max_result_bytes)
        if self.extras is not None:
            check_json("extras", self.extras, store.settings.max_result_bytes)


@dataclasses.dataclass(frozen=True, slots=True)
class Results:
    """Sound results of one holder, each of another job."""

    holder: Holder
    items: t.Sequence[Delivery]

    @property
    def values(self) -> dict[str, t.Any]:
        """The values of the one statement, by name."""
        rows = [
            dict(zip(_SAID, (item.job_id, item.attempt, item.result, item.extras), strict=True))
            for item in self.items
        ]
        return {"items": rows, _IDS: [item.job_id for item in self.items], **self._whose}

    def values_as_kept(self, store: Store) -> dict[str, t.Any]:
        """The values of the first of two statements: results are as their columns keep them."""
        c, dialect = store.jobs.c, store.connection.dialect
        result, extras = (t.cast(Json, c[name].type).process_bind_param for name in ("result", "extras"))
        rows = [
            (item.job_id, item.attempt, result(item.result, dialect), extras(item.extras, dialect))
            for item in self.items
        ]
        return {"items": rows, **self._whose}

    @property
    def _whose(self) -> dict[str, t.Any]:
        return {"locker": self.holder.locker, **self.holder.scope.values}


def read(store: Store, holder: Holder, items: t.Sequence[Delivery]) -> Results | None:
    """Return results as they can be settled at once, if so: what else there is the long way tells."""
    if store.engine_name == "mysql" or any(known.takes_results for known in store.types.values()):
        return None
    different = len({item.job_id for item in items}) == len(items) > 0
    is_sound = different and all(map(possible, items)) and _are_sound(store, items)
    return Results(holder, items) if is_sound else None


def _are_sound(store: Store, items: t.Sequence[Delivery]) -> bool:
    """Whether each would pass its check: looked at as one list, unless they are too large together."""
    said = [(item.result, item.extras) for item in items]
    try:
        check_json("result", said, store.settings.max_result_bytes)
    except JobberError:
        return all(_is_sound(store, item) for item in items)
    return True


def _is_sound(store: Store, item: Item) -> bool:
    try:
        item.check(store)
    except JobberError:
        return False
    return True


def deliver(store: Store, results: Results) -> Done:
    """Settle those that can be, and return their outcomes."""
    write = _deliver_in_one if store.engine_name == "postgresql" else _deliver_in_two
    return settled(store, results, write(store, results))


def _deliver_in_one(store: Store, results: Results) -> t.Sequence[int]:
    one = len(results.items) == 1
    build = lambda: statement(store, results.holder, one=one)  # noqa: E731
    key = ("deliver", one, store.settings.late_results, results.holder.scope.key)
    return store.run(key, build, results.values).scalars().all()


def _deliver_in_two(store: Store, results: Results) -> t.Sequence[int]:
    holder = results.holder
    key = ("deliver", store.settings.late_results, holder.scope.key)
    values = results.values_as_kept(store)
    ids = store.run(key, lambda: _write(store, holder), values).scalars().all()
    if ids:
        store.run("record delivered", lambda: _record_written(store), {_IDS: ids})
    return ids


def settled(store: Store, results: Results, ids: t.Iterable[int]) -> Done:
    """Announce what a statement has settled, and return the outcomes."""
    given = {item.job_id: item for item in results.items}
    items = [given[job_id] for job_id in ids]
    was, locker = (State.LOCKED, State.SUCCEEDED), results.holder.locker
    announce_if_heard(
        store,
        [item.job_id for item in items],
        lambda: [Change(Verb.DELIVER, item.job_id, *was, item.attempt, locker) for item in items],
    )
    return {(item.job_id, item.attempt): Outcome(item, State.SUCCEEDED) for item in items}


def _ids() -> sa.BindParameter[t.Any]:
    return missed(_IDS, sa.ARRAY(sa.BigInteger))


def are_all(settled: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether all of the results were settled."""
    count = sa.select(sa.func.count()).select_from(settled).scalar_subquery()
    return count == sa.func.cardinality(_ids())


def statement(store: Store, holder: Holder, *, one: bool = False, skip_locked: bool = False) -> sa.Insert:
    """Return what fences, writes and records in one statement, and selects the ids of what it has settled.

    :param one: it is for one result, and planned as for an equality: PostgreSQL takes any list to have
        ten, and planned each of one anew, which took as long as the statement (0.5 ms).
    :param skip_locked: leave out what others have locked, instead of waiting for it.
    """
    c = store.jobs.c
    columns = [sa.column(_SAID[0], sa.BigInteger), sa.column(_SAID[1], sa.Integer)]
    columns += [sa.column(name, sa.JSON) for name in _SAID[2:]]
    items = sa.func.json_to_recordset(sa.cast(missed("items", sa.JSON()), sa.JSON))
    said = items.table_valued(*columns).render_derived(name="said", with_types=True)
    none = sa.literal_column("'null'::json", sa.JSON)
    job_id, attempt, result, extras = said.c
    # By ids alone: of what a locker has held before there are dead rows in its index, until a vacuum. And
    # by ids that are told apart: how many JSON holds is not known, and a small table would be read whole.
    these = c.id == (sa.select(sa.func.unnest(_ids())).scalar_subquery() if one else sa.any_(_ids()))
    pairs = sa.and_(c.id == job_id, c.attempts == attempt)
    given = (sa.func.coalesce(result, none).label("result"), extras.label("extras"))
    look = sa.select(c.id, *given).select_from(said.join(store.jobs, pairs))
    look = look.where(these, _still_held(store, holder))
    mine = look.order_by(c.id).with_for_update(of=store.jobs, skip_locked=skip_locked).cte("_mine")
    write = sa.update(store.jobs).where(c.id == mine.c.id).values(_ending(mine.c.result, mine.c.extras))
    ended = write.returning(c.id, c.attempts, c.locked_by).cte("_ended")
    return _record(store, ended).returning(store.history.c.job_id)


def _still_held(store: Store, holder: Holder) -> sa.ColumnElement[bool]:
    """Whether a job is held, and its end is followed by nothing: else it goes the long way."""
    c = store.jobs.c
    held = held_by(store, missed("locker", c.locked_by.type), holder.scope.template)
    plain = (c.on_success, c.batch_id, c.concurrency_key, c.copy_of)
    alone = (c.every.is_(sa.null()), *(column.is_(None) for column in plain))
    return still(*held, *alone)


def _ending(result: t.Any, extras: t.Any) -> dict[str, t.Any]:
    """Return what is written of a job that succeeds."""
    gone = dict.fromkeys(("locked_until", "lease_seconds", "unique_key"), sa.null())
    kept = {"result": result, "extras": extras, "state": word(State.SUCCEEDED), "finished_at": utcnow()}
    return kept | gone


def _record(store: Store, ended: sa.FromClause) -> sa.Insert:
    """Return what records the ends of jobs, given by ``id, attempts, locked_by``."""
    words = (word(State.LOCKED), word(State.SUCCEEDED), word(Verb.DELIVER))
    names = ["job_id", "attempt", "locker", "from_state", "to_state", "reason", "at"]
    return sa.insert(store.history).from_select(names, sa.select(*ended.c, *words, utcnow()))


def _write(store: Store, holder: Holder) -> sa.Update:
    """Return what fences and writes, and selects the ids of what it has written."""
    c, item = store.jobs.c, _each("items")
    fields = [sa.func.json_extract(item, f"$[{place}]").label(name) for place, name in enumerate(_SAID)]
    job_id, attempt, result, extras = sa.select(*fields).subquery("said").c
    these = (c.id == job_id, c.attempts == attempt, _still_held(store, holder))
    write = sa.update(store.jobs).where(*these)
    return write.values(_ending(result, extras)).returning(c.id)


def _record_written(store: Store) -> sa.Insert:
    c = store.jobs.c
    these = sa.select(c.id, c.attempts, c.locked_by).where(c.id.in_(sa.select(_each(_IDS))))
    return _record(store, these.subquery())


def _each(name: str) -> t.Any:
    """Return what a JSON list holds, row by row."""
    return sa.func.json_each(missed(name, sa.JSON())).table_valued("value").c.value
