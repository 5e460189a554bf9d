"""Results in which no code of the app's has a say: one statement settles them, their own or a claim's."""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa

from ..errors import JobberError
from .candidates import still, word
from .engines import utcnow
from .hold import Holder, Item, Outcome, held_by, possible
from .payload import check_json
from .states import State, Verb
from .store import Store, missed
from .transition import Change, announce_if_heard

_IDS = "ids"
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
        """The values of the statement, by name."""
        rows = [
            {"id": item.job_id, "attempt": item.attempt, "result": item.result, "extras": item.extras}
            for item in self.items
        ]
        ids = [item.job_id for item in self.items]
        return {"items": rows, _IDS: ids, "locker": self.holder.locker, **self.holder.scope.values}


def read(store: Store, holder: Holder, items: t.Sequence[Delivery]) -> Results | None:
    """Return results as one statement takes them, if it can: what else there is the long way tells."""
    if store.engine_name != "postgresql" or any(known.takes_results for known in store.types.values()):
        return None
    different = len({item.job_id for item in items}) == len(items) > 0
    is_sound = different and all(possible(item) and _is_sound(store, item) for item in items)
    return Results(holder, items) if is_sound else None


def _is_sound(store: Store, item: Item) -> bool:
    try:
        item.check(store)
    except JobberError:
        return False
    return True


def deliver(store: Store, results: Results) -> Done:
    """Settle those that can be, and return their outcomes."""
    build = lambda: statement(store, results.holder)  # noqa: E731
    key = ("deliver", store.settings.late_results, results.holder.scope.key)
    return settled(store, results, store.run(key, build, results.values).scalars().all())


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


def are_all(settled: sa.FromClause) -> sa.ColumnElement[bool]:
    """Whether all of the results were settled."""
    count = sa.select(sa.func.count()).select_from(settled).scalar_subquery()
    return count == sa.func.cardinality(missed(_IDS, sa.ARRAY(sa.BigInteger)))


def statement(store: Store, holder: Holder, *, skip_locked: bool = False) -> sa.Insert:
    """Return what fences, writes and records in one statement, and selects the ids of what it has settled.

    :param skip_locked: leave out what others have locked, instead of waiting for it.
    """
    c, h = store.jobs.c, store.history.c
    columns = [sa.column("id", sa.BigInteger), sa.column("attempt", sa.Integer)]
    columns += [sa.column(name, sa.JSON) for name in ("result", "extras")]
    items = sa.func.json_to_recordset(sa.cast(missed("items", sa.JSON()), sa.JSON))
    said = items.table_valued(*columns).render_derived(name="said", with_types=True)
    held = held_by(store, missed("locker", c.locked_by.type), holder.scope.template)
    # What has something to follow goes the long way.
    plain = (c.on_success, c.batch_id, c.concurrency_key, c.copy_of)
    alone = (c.every.is_(sa.null()), *(column.is_(None) for column in plain))
    none = sa.literal_column("'null'::json", sa.JSON)
    given = [sa.func.coalesce(said.c.result, none).label("result"), said.c.extras]
    pairs = sa.and_(c.id == said.c.id, c.attempts == said.c.attempt)
    # By ids alone: of what a locker has held before there are dead rows in its index, until a vacuum. And
    # by ids that are told apart: how many JSON holds is not known, and a small table would be read whole.
    these = c.id == sa.any_(missed(_IDS, sa.ARRAY(sa.BigInteger)))
    look = (
        sa.select(c.id, *given).select_from(said.join(store.jobs, pairs)).where(these, still(*held, *alone))
    )
    mine = look.order_by(c.id).with_for_update(of=store.jobs, skip_locked=skip_locked).cte("mine")
    kept: dict[str, t.Any] = {name: mine.c[name] for name in ("result", "extras")}
    gone = dict.fromkeys(("locked_until", "lease_seconds", "unique_key"), sa.null())
    write = sa.update(store.jobs).where(c.id == mine.c.id)
    write = write.values({**kept, **gone, "state": word(State.SUCCEEDED), "finished_at": utcnow()})
    ended = write.returning(c.id, c.attempts, c.locked_by).cte("ended")
    words = (word(State.LOCKED), word(State.SUCCEEDED), word(Verb.DELIVER))
    row = sa.select(*ended.c, *words, utcnow())
    names = ["job_id", "attempt", "locker", "from_state", "to_state", "reason", "at"]
    return sa.insert(store.history).from_select(names, row).returning(h.job_id)
