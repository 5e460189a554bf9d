"""Enqueue: jobs come into being."""

from __future__ import annotations

import collections
import contextlib
import datetime as dt
import functools
import typing as t
import uuid
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..errors import BatchEnded, DuplicateJob, Invalid
from ..hooks import JobType
from . import cadence, copies, owners, payload, seats, trust, turns, unique
from .backoff import read_backoff
from .engines import is_transient
from .front import come_back
from .lanes import DEFAULT, Declared, Lanes
from .models import OURS, JobMixin
from .news import entry
from .series import UNNAMED, key_of
from .states import State, Verb
from .store import Store
from .tally import join
from .transition import Change, record_new


class Spec(t.TypedDict, total=False):
    """The keywords of an enqueue, besides the app's own columns."""

    type: str
    data: t.Any
    queue: str
    priority: int
    run_at: dt.datetime
    after: float | dt.timedelta
    expires_at: dt.datetime
    max_attempts: int
    backoff: t.Any
    lease_for: float | dt.timedelta
    unique_key: str
    on_conflict: str
    concurrency_key: str
    only_for: str
    only_for_seconds: float | dt.timedelta
    not_for: str | t.Iterable[str]
    on_success: str
    on_failure: str
    every: cadence.Every
    repeat_after_success: float | dt.timedelta
    repeat_after_failure: float | dt.timedelta
    owner: t.Any
    batch: t.Any
    beside: t.Any
    then: t.Any
    wait_for: t.Any
    if_failed: str
    results_wanted: int
    agreement: int
    max_results: int
    adaptive: bool


_OWN = frozenset(Spec.__annotations__)
_PLAIN = frozenset({
    "type", "data", "queue", "priority", "expires_at", "max_attempts", "backoff", "lease_for", "only_for",
    "not_for", "on_success", "on_failure", "owner",
})  # fmt: skip
#: What is said of other jobs, see :mod:`.chains`.
LINKS = ("then", "wait_for", "if_failed")
_FEEDBACK = ("on_success", "on_failure")
_LONGEST = payload.MAX_LOCKER + 61
# MySQL's TEXT holds 65,535; rejections may add some.
_MAX_NAMES_BYTES = 40_000


def build(
    store: Store,
    spec: t.Mapping[str, t.Any],
    now: t.Callable[[], dt.datetime],
    *,
    lanes: Lanes | None = None,
    reserved: bool = False,
) -> JobMixin:
    """Return an unsaved job.

    :param lanes: what is known of its queue, to be given to :func:`insert` too.
    :param reserved: whether its type may be one of our own.
    :raises Invalid, TooLarge: for keywords that are not what they must be.
    """
    given = {key: value for key, value in spec.items() if value is not None or key == "data"}
    columns = {key: value for key, value in spec.items() if key not in _OWN}
    _check_columns(store, columns)
    if linked := [name for name in LINKS if name in given]:
        raise Invalid({name: ["This job cannot be linked to others."] for name in linked})
    if not reserved:
        payload.check_unreserved("type", payload.check_name("type", given.get("type")))
    times = _times(given, now)
    own = (
        _plain(store, given, lanes or Lanes(store))
        | times
        | _affinity(given, lambda: times.get("run_at") or now())
    )
    own |= _feedback(store, given) | _series(given, own, times)
    own["on_conflict"] = unique.read(given)
    own |= trust.asked(given)
    if "owner" in given:
        own["owner_ref"] = owners.reference(store.Job, given["owner"])
    if "batch" in given or "beside" in given:
        own["batch_id"] = _batch(store, given, times)
    return store.Job(**own, **columns)


def _check_columns(store: Store, columns: t.Mapping[str, t.Any]) -> None:
    unknown = [name for name in columns if name in OURS or name not in store.mapper.attrs]
    if unknown:
        raise Invalid({name: ["A job has no such keyword or column of the app's."] for name in unknown})


def _plain(store: Store, given: t.Mapping[str, t.Any], lanes: Lanes) -> dict[str, t.Any]:
    settings = store.settings
    type_ = payload.check_name("type", given.get("type"))
    data = given.get("data")
    payload.check_json("data", data, settings.max_data_bytes)
    queue = payload.check_name("queue", given.get("queue", DEFAULT))
    given = {**lanes.defaults(queue), **given}
    own = {
        "type": type_,
        "data": data,
        "queue": queue,
        "priority": payload.check_int("priority", given["priority"]),
        "max_attempts": payload.check_int(
            "max_attempts", given.get("max_attempts", settings.max_attempts), 1
        ),
    }
    if "lease_for" in given:
        own["lease_for"] = payload.check_seconds("lease_for", given["lease_for"], settings.max_lease_seconds)
    if "backoff" in given:
        own["backoff"] = _backoff(given["backoff"])
    if "unique_key" in given:
        own["unique_key"] = payload.check_key("unique_key", given["unique_key"], payload.MAX_UNIQUE_KEY)
    if "concurrency_key" in given:
        key = payload.check_key("concurrency_key", given["concurrency_key"], payload.MAX_UNIQUE_KEY)
        own["concurrency_key"] = key
    return own


def _backoff(value: object) -> dict[str, t.Any]:
    try:
        return read_backoff(value).as_json()
    except ValueError as error:
        raise Invalid({"backoff": [str(error)]}) from error


def _times(given: t.Mapping[str, t.Any], now: t.Callable[[], dt.datetime]) -> dict[str, t.Any]:
    times: dict[str, t.Any] = {}
    every = _every(given)
    if every:
        times["every"] = every
    if "run_at" in given and "after" in given:
        raise Invalid({"after": ["Give run_at or after, not both."]})
    if "run_at" in given:
        times["run_at"] = payload.check_instant("run_at", given["run_at"])
    if "after" in given:
        length = payload.check_seconds("after", given["after"], payload.MAX_SECONDS, zero=True)
        times["run_at"] = now() + dt.timedelta(seconds=length)
    if "every" in times and "run_at" not in times:
        times["run_at"] = cadence.first(times["every"], now())
    if "run_at" in times and times["run_at"] > now():
        times["state"] = State.SCHEDULED.value
    if "expires_at" in given:
        times["expires_at"] = payload.check_instant("expires_at", given["expires_at"])
    _check_lifetime(times)
    return times


def _every(given: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what says when the next job of a series runs; empty for a job that is alone."""
    repeats = cadence.read_repeats(given)
    if "every" not in given:
        return repeats
    if repeats:
        raise Invalid({name: ["Give this or every, not both."] for name in repeats})
    return cadence.read(given["every"])


def _check_lifetime(times: t.Mapping[str, t.Any]) -> None:
    """Refuse an end before the beginning where it leads to another job with such an end, and so on."""
    repeats = cadence.AFTER_FAILURE in times.get("every", ())
    if repeats and "expires_at" in times and times["expires_at"] <= times["run_at"]:
        raise Invalid({"expires_at": ["It would expire before it may begin, as would all that follow."]})


def _affinity(given: t.Mapping[str, t.Any], begin: t.Callable[[], dt.datetime]) -> dict[str, t.Any]:
    own: dict[str, t.Any] = {}
    if "only_for" in given:
        own["only_for"] = payload.check_key("only_for", given["only_for"], _LONGEST)
    if "only_for_seconds" in given:
        if "only_for" not in given:
            raise Invalid({"only_for_seconds": ["Say for whom, in only_for."]})
        length = payload.check_seconds("only_for_seconds", given["only_for_seconds"], payload.MAX_SECONDS)
        own["only_for_until"] = begin() + dt.timedelta(seconds=length)
    if "not_for" in given:
        own["not_for"] = _names(given["not_for"])
    return own


def _feedback(store: Store, given: t.Mapping[str, t.Any]) -> dict[str, str]:
    own = {field: payload.check_name(field, given[field]) for field in _FEEDBACK if field in given}
    unknown = [field for field, name in own.items() if name not in store.feedback]
    if unknown:
        raise Invalid({field: ["No feedback of this name is registered."] for field in unknown})
    return own


def _series(
    given: t.Mapping[str, t.Any], own: t.Mapping[str, t.Any], times: t.Mapping[str, t.Any]
) -> dict[str, t.Any]:
    """Return what makes a job the first of a series, without a name that anyone knows."""
    if "every" not in times:
        return {}
    if "unique_key" in given:
        raise Invalid({"unique_key": ["A job of a series has one already."]})
    not_for = {"not_for": own["not_for"]} if "not_for" in own else {}
    name = f"{UNNAMED}{uuid.uuid4().hex}"
    chain = {"series": name, "unique_key": key_of(name), "slot": times["run_at"]}
    return {**chain, "every": times["every"] | not_for}


def _batch(store: Store, given: t.Mapping[str, t.Any], times: t.Mapping[str, t.Any]) -> int:
    if "every" in times:
        raise Invalid({"batch": ["A job of a series is in no batch."]})
    if "beside" not in given:
        return payload.check_reference("batch", given["batch"])
    if "batch" in given:
        raise Invalid({"beside": ["Give this or batch, not both."]})
    one = store.jobs.c.id == payload.check_reference("beside", given["beside"])
    batch_id: int | None = store.execute(
        sa.select(copies.shown(store, "batch_id")).where(one)
    ).scalar_one_or_none()
    if batch_id is None:
        raise Invalid({"beside": ["This job is in no batch."]})
    return batch_id


def _names(value: t.Any) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Iterable):
        raise Invalid({"not_for": ["This is a name, or several."]})
    checked = sorted({payload.check_key("not_for", name, _LONGEST) for name in names})
    if len("\n".join(checked).encode()) > _MAX_NAMES_BYTES:
        raise Invalid({"not_for": [f"These names are over {_MAX_NAMES_BYTES} bytes."]})
    return checked


def enqueue_many(store: Store, specs: t.Iterable[t.Mapping[str, t.Any]]) -> list[JobMixin]:
    """Insert jobs in bulk into the caller's transaction; they have their ids, no commit is made.

    Of those with an ``on_conflict`` the one that there is then is returned, see :mod:`.unique`.

    :raises Invalid, TooLarge: for a keyword of any of them; none is inserted.
    :raises DuplicateJob: when a unique_key is taken; none is inserted.
    :raises QueueFull: when a queue has no room for its share of them; none is inserted.
    """
    specs = list(specs)
    if store.engine_name == "postgresql" and len(specs) == 1 and _is_plain(specs[0]):
        with contextlib.suppress(Declared):
            return _enqueue(store, specs, Lanes(store, guess=True))
    return _enqueue(store, specs, Lanes(store))


def _is_plain(spec: t.Mapping[str, t.Any]) -> bool:
    """Whether a job is nothing but itself, and to be had now: its insertion is undone by its deletion."""
    return all(spec.get(name) is None for name in _OWN - _PLAIN)


def _enqueue(store: Store, specs: t.Sequence[t.Mapping[str, t.Any]], lanes: Lanes) -> list[JobMixin]:
    """Insert jobs. :raises Declared: when their queue was guessed to be undeclared; none is inserted."""
    lanes.read(spec.get("queue") or DEFAULT for spec in specs)
    clock: list[dt.datetime] = []

    def now() -> dt.datetime:
        if not clock:
            clock.append(store.now())
        return clock[0]

    return insert(store, [build(store, spec, now, lanes=lanes) for spec in specs], lanes)


def insert(
    store: Store,
    jobs: list[JobMixin],
    lanes: Lanes | None = None,
    *,
    by: str | None = None,
    allow: unique.Allow | None = None,
) -> list[JobMixin]:
    """Insert built jobs, see :func:`enqueue_many`.

    :param lanes: as they were built with.
    :param by: who asked for them.
    :param allow: asked before one of them meets a job that is there.
    :raises Invalid: when the data of one does not fit its type's schema.
    :raises BatchEnded: when one is for a batch that has ended; none is inserted.
    """
    for job in jobs:
        if job.type in store.types:
            _check_type(store.types[job.type], job)
    lanes = lanes or Lanes(store)
    if all(job.on_conflict == "raise" for job in jobs):
        return _insert(store, jobs, lanes, by)
    with _whole(store):
        return unique.enter(store, jobs, lanes, lambda new: _insert(store, new, lanes, by), by, allow)


def _insert(store: Store, jobs: list[JobMixin], lanes: Lanes, by: str | None) -> list[JobMixin]:
    lanes.admit(collections.Counter(job.queue for job in jobs))
    full = _add_or_undo(store, jobs) if _may_fail(jobs) else _add(store, jobs)
    _record(store, jobs, lanes, by)
    for key in full:
        seats.arrange(store, key)
    trust.begin(store, jobs)
    return jobs


def _record(store: Store, jobs: list[JobMixin], lanes: Lanes, by: str | None) -> None:
    changes = [Change(Verb.ENQUEUE, job.id, None, State(job.state), 0, by=by) for job in jobs]
    entries = [entry(store, job) for job in jobs]
    if not record_new(store, changes, entries, unless=next(iter(lanes.guessed), None)):
        store.undeclared.difference_update(lanes.guessed)
        store.session.delete(jobs[0])
        store.session.flush()
        raise Declared
    _enter(store, jobs)


def _enter(store: Store, jobs: list[JobMixin]) -> None:
    """Let claims look at places that new jobs take before others."""
    if store.engine_name != "postgresql":
        return
    # Not by attribute: what the insertion has not returned would be read from the database.
    waiting = [job.__dict__ for job in jobs if job.state == State.QUEUED]
    places = [(job["priority"], job["turn"], job["run_at"]) for job in waiting if "run_at" in job]
    is_told = len(places) == len(waiting)
    come_back(
        store.session, functools.partial(store.fronts.enter, places) if is_told else store.fronts.forget
    )


def _check_type(known: JobType, job: JobMixin) -> None:
    if known.batch is not None and job.state != State.BLOCKED:
        raise Invalid({"type": ["This is a type of batches: begin one with batch()."]})
    known.check_data(job.data)


def _may_fail(jobs: t.Sequence[JobMixin]) -> bool:
    """Whether the insertion may be refused when something has been written."""
    is_member, has_seat = (
        any(getattr(job, name) is not None for job in jobs) for name in ("batch_id", "concurrency_key")
    )
    return (is_member and has_seat) or any(job.unique_key is not None for job in jobs)


def _add(store: Store, jobs: list[JobMixin]) -> list[str]:
    """Insert; return the concurrency keys of which not all have a seat."""
    full = seats.take(store, jobs)
    turns.take(store, jobs)
    # After the seats, as by those who end jobs.
    join(store, collections.Counter(job.batch_id for job in jobs if job.batch_id is not None))
    store.session.add_all(jobs)
    store.session.flush()
    return full


def _add_or_undo(store: Store, jobs: list[JobMixin]) -> list[str]:
    """Insert in a savepoint: a taken key, or an ended batch, leaves the transaction whole."""
    begin(store)
    savepoint = store.session.begin_nested()
    try:
        full = _add(store, jobs)
    except BatchEnded:
        savepoint.rollback()
        raise
    except IntegrityError as error:
        savepoint.rollback()
        # Every engine names the constraint or the column; of two that are broken any one.
        if any(name in str(error.orig) for name in ("unique_key", "_slot", ".slot")):
            raise DuplicateJob from error
        raise
    savepoint.commit()
    return full


@contextlib.contextmanager
def _whole(store: Store) -> t.Iterator[None]:
    """Undo what was done within the block when it raises, and nothing else of the transaction."""
    begin(store)
    savepoint = store.session.begin_nested()
    try:
        yield
    except Exception as error:
        if not is_transient(error):  # then there is no transaction any more
            savepoint.rollback()
        raise
    savepoint.commit()


def begin(store: Store) -> None:
    """Begin a transaction in SQLite, whose driver would commit with a savepoint that came first."""
    if store.engine_name == "sqlite" and not store.connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
        store.connection.exec_driver_sql("BEGIN")
