"""Jobs whose ``unique_key`` an unfinished job has already: what becomes of that one.

Who asks for such a job locks the one that is there until its own transaction ends. So nobody
begins it, or ends it, before what was written along with the request can be seen: whoever is
told that there is a job is not too late for it.
"""

from __future__ import annotations

import collections
import typing as t

import sqlalchemy as sa

from ..errors import DuplicateJob, Invalid
from .attachments import forget_all
from .candidates import still
from .engines import TransactionLost, utcnow
from .expire import end_these, over
from .lanes import Lanes
from .models import JobMixin, is_left_null
from .seats import arrange
from .states import POOL, State, Verb
from .store import Store
from .transition import Change, apply

Row = sa.Row[t.Any]
Conflict = t.Literal["raise", "skip", "replace", "reschedule"]
#: Gets the job that is there and what is to become of it; raises when that may not be.
Allow = t.Callable[[t.Any, str], None]
#: Inserts jobs. :raises DuplicateJob: when a key is taken; then none is inserted.
Insert = t.Callable[[list[JobMixin]], object]
#: What a job keeps when another's content replaces its own.
KEPT = frozenset({
    "id", "state", "attempts", "unique_key", "result", "extras", "every", "series", "slot", "batch_id",
    "concurrency_key", "seated", "turn", "later_turn", "copy_of", "shown_as", "trust", "has_files",
    "created_at", "updated_at", "finished_at",
})  # fmt: skip
_VERBS = {"replace": Verb.REPLACE, "reschedule": Verb.RESCHEDULE}
_BEGUN = "The job with this unique_key has been begun, or waits for others: it is not changed now."
# Looks for jobs that others make and end meanwhile.
_MOST_LOOKS = 10
# Keys of one statement.
_MOST_KEYS = 1000


def read(given: t.Mapping[str, t.Any]) -> str:
    """Return what an enqueue says in ``on_conflict``.

    :raises Invalid: for another word, or without a key that could be taken.
    """
    said = given.get("on_conflict", "raise")
    if said not in t.get_args(Conflict):
        raise Invalid({"on_conflict": [f"This is one of {', '.join(t.get_args(Conflict))}."]})
    if said != "raise" and "unique_key" not in given:
        raise Invalid({"on_conflict": ["It needs a unique_key."]})
    return t.cast(str, said)


def enter(
    store: Store,
    jobs: t.Sequence[JobMixin],
    lanes: Lanes,
    insert: Insert,
    by: str | None,
    allow: Allow | None,
) -> list[JobMixin]:
    """Insert built jobs, or change those that are there; return for each the one that there is then.

    Several with one key meet each other as if each came after the one before it. Those with
    keys are inserted in the order of these, so that two who insert the same wait instead of dying.

    :param by: who asked for them.
    :raises DuplicateJob: when one that is there is to stay, or has been begun.
    :raises TransactionLost: when others make and end such jobs all the time.
    """
    there: dict[int, JobMixin] = {}
    for wave in _waves(jobs):
        left = sorted(wave, key=lambda job: job.unique_key or "")
        for look in range(_MOST_LOOKS):
            rows = _look(store, [job.unique_key for job in left if job.unique_key], again=look > 0)
            there |= _meet(store, [(job, rows[job.unique_key]) for job in left if job.unique_key in rows],
                           lanes, by, allow)  # fmt: skip
            left = [job for job in left if job.unique_key not in rows]
            if not left or _inserted(insert, left):
                break
        else:
            raise TransactionLost("Others make and end jobs with this unique_key all the time.")
    return [there.get(id(job), job) for job in jobs]


def _waves(jobs: t.Sequence[JobMixin]) -> list[list[JobMixin]]:
    """Part jobs so that no two in one part have the same key."""
    waves: list[list[JobMixin]] = []
    before: collections.Counter[str | None] = collections.Counter()
    for job in jobs:
        number = before[job.unique_key]
        if job.unique_key is not None:
            before[job.unique_key] += 1
        if number == len(waves):
            waves.append([])
        waves[number].append(job)
    return waves


def _inserted(insert: Insert, jobs: list[JobMixin]) -> bool:
    try:
        insert(jobs)
    except DuplicateJob:  # another was first
        return False
    return True


def _look(store: Store, keys: t.Sequence[str], *, again: bool) -> dict[str, Row]:
    """Lock the unfinished jobs that have these keys; end those that are over."""
    rows: list[Row] = []
    for start in range(0, len(keys), _MOST_KEYS):
        rows += _lock(store, keys[start : start + _MOST_KEYS], again=again)
    end_these(store, [row.id for row in rows if row.over])
    return {row.unique_key: row for row in rows if not row.over}


def _lock(store: Store, keys: t.Sequence[str], *, again: bool) -> t.Sequence[Row]:
    c = store.jobs.c
    columns = (
        c.unique_key, c.state, c.attempts, c.queue, c.has_files, c.concurrency_key, c.turn, c.later_turn,
        over(store).label("over"),
    )  # fmt: skip
    taken = c.unique_key.in_(keys)
    if store.engine_name != "mysql":
        return store.lock((*columns, utcnow().label("now")), taken)
    # By their ids: a lock by a key that nobody has is one on the gap that others insert into.
    # What others have inserted since this transaction began is seen only by who looks again.
    found = sa.select(c.id).where(taken)
    ids = store.execute(store.current(found) if again else found).scalars().all()
    return store.lock((*columns, utcnow().label("now")), c.id.in_(ids), still(taken)) if ids else ()


def _meet(
    store: Store,
    pairs: t.Sequence[tuple[JobMixin, Row]],
    lanes: Lanes,
    by: str | None,
    allow: Allow | None,
) -> dict[int, JobMixin]:
    """Do to locked jobs what each new one says; return them by the ids of the new objects."""
    if any(job.on_conflict == "raise" for job, _ in pairs):
        raise DuplicateJob
    loaded = _load(store, [row.id for _, row in pairs])
    if any(job.batch_id not in (None, loaded[row.id].batch_id) for job, row in pairs):
        raise Invalid({"batch": ["The job that is there is in no batch, or in another, and stays so."]})
    for job, row in pairs:
        if allow is not None:
            allow(loaded[row.id], job.on_conflict)
    changed = [(job, row) for job, row in pairs if job.on_conflict != "skip"]
    _change(store, changed, lanes, by)
    return {id(job): loaded[row.id] for job, row in pairs}


def _load(store: Store, ids: t.Sequence[int]) -> dict[int, JobMixin]:
    """Return the session's objects of locked jobs, as their rows are now."""
    if not ids:
        return {}
    some = store.current(sa.select(store.Job).where(store.Job.id.in_(ids)))
    some = some.with_hint(store.Job, "FORCE INDEX (PRIMARY)", "mysql")
    some = some.with_hint(store.Job, "FORCE INDEX (PRIMARY)", "mariadb")
    jobs = store.session.scalars(some.execution_options(populate_existing=True)).unique()
    return {job.id: job for job in jobs}


def _change(store: Store, pairs: t.Sequence[tuple[JobMixin, Row]], lanes: Lanes, by: str | None) -> None:
    if any(row.state not in POOL for _, row in pairs):
        raise DuplicateJob(_BEGUN)
    if any(job.concurrency_key not in (None, row.concurrency_key) for job, row in pairs):
        raise Invalid({"concurrency_key": ["The job that is there keeps its own: cancel it for another."]})
    lanes.admit(collections.Counter(job.queue for job, row in pairs if _is_moved(job, row)))
    forget_all(store, [row.id for job, row in pairs if job.on_conflict == "replace" and row.has_files])
    if pairs:
        apply(store, [_transition(store, job, row, by) for job, row in pairs])
    for key in sorted({row.concurrency_key for _, row in pairs if row.concurrency_key is not None}):
        arrange(store, key)


def _is_moved(job: JobMixin, row: Row) -> bool:
    return job.on_conflict == "replace" and bool(job.queue != row.queue)


def _transition(store: Store, job: JobMixin, row: Row, by: str | None) -> Change:
    values = _content(store, job) if job.on_conflict == "replace" else {}
    # Said or not: one that says none begins now.
    values["run_at"] = job.run_at or row.now
    verb, was, to = _VERBS[job.on_conflict], State(row.state), State(job.state or State.QUEUED)
    turn = row.turn if row.later_turn is None else row.later_turn
    later = to is State.SCHEDULED
    values |= {"turn": 0, "later_turn": turn or None} if later else {"turn": turn, "later_turn": None}
    return Change(verb, row.id, was, to, row.attempts, None, None, values, by)


def _content(store: Store, job: JobMixin) -> dict[str, t.Any]:
    """Return the columns of a job as its insertion would write them.

    What the database or a function of the app's would fill stays: it may be a name, or a moment.
    """
    given, values = sa.inspect(job).dict, dict[str, t.Any]()
    attributes = {a.columns[0].key: a.key for a in sa.inspect(store.Job).column_attrs}
    column: t.Any
    for column in store.jobs.c:
        if column.key in KEPT or column.computed is not None:
            continue
        attribute = attributes.get(column.key, column.key)
        if attribute in given:
            values[column.key] = given[attribute]
        elif column.default is not None and column.default.is_scalar:
            values[column.key] = column.default.arg
        elif is_left_null(column):
            values[column.key] = None
    return values
