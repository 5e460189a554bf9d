"""Enqueue: jobs come into being."""

from __future__ import annotations

import collections
import datetime as dt
import typing as t
import uuid
from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from ..errors import DuplicateJob, Invalid
from . import cadence, owners, payload
from .backoff import read_backoff
from .lanes import DEFAULT, Lanes
from .models import JobMixin
from .news import hint_new
from .series import UNNAMED, key_of
from .states import State, Verb
from .store import Store
from .transition import Change, record


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
    only_for: str
    only_for_seconds: float | dt.timedelta
    not_for: str | t.Iterable[str]
    on_success: str
    on_failure: str
    every: cadence.Every
    repeat_after_success: float | dt.timedelta
    repeat_after_failure: float | dt.timedelta
    owner: t.Any


_OWN = frozenset(Spec.__annotations__)
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
    if not reserved:
        payload.check_unreserved("type", payload.check_name("type", given.get("type")))
    times = _times(given, now)
    own = (
        _plain(store, given, lanes or Lanes(store))
        | times
        | _affinity(given, lambda: times.get("run_at") or now())
    )
    own |= _feedback(store, given) | _series(given, own, times)
    if "owner" in given:
        own["owner_ref"] = owners.reference(store.Job, given["owner"])
    return store.Job(**own, **columns)


def _check_columns(store: Store, columns: t.Mapping[str, t.Any]) -> None:
    ours = {name for name in JobMixin.__annotations__ if not name.startswith("_")}
    attributes = sa.inspect(store.Job).attrs
    unknown = [name for name in columns if name in ours or name not in attributes]
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

    :raises Invalid, TooLarge: for a keyword of any of them; none is inserted.
    :raises DuplicateJob: when a unique_key is taken; none is inserted.
    :raises QueueFull: when a queue has no room for its share of them; none is inserted.
    """
    specs, lanes = list(specs), Lanes(store)
    lanes.read(spec.get("queue") or DEFAULT for spec in specs)
    clock: list[dt.datetime] = []

    def now() -> dt.datetime:
        if not clock:
            clock.append(store.now())
        return clock[0]

    return insert(store, [build(store, spec, now, lanes=lanes) for spec in specs], lanes)


def insert(
    store: Store, jobs: list[JobMixin], lanes: Lanes | None = None, *, by: str | None = None
) -> list[JobMixin]:
    """Insert built jobs, see :func:`enqueue_many`.

    :param lanes: as they were built with.
    :param by: who asked for them.
    :raises Invalid: when the data of one does not fit its type's schema.
    """
    for job in jobs:
        if job.type in store.types:
            store.types[job.type].check_data(job.data)
    (lanes or Lanes(store)).admit(collections.Counter(job.queue for job in jobs))
    if any(job.unique_key is not None for job in jobs):
        _insert_unique(store, jobs)
    else:
        store.session.add_all(jobs)
        store.session.flush()
    hint_new(store, jobs)
    record(store, [Change(Verb.ENQUEUE, job.id, None, State(job.state), 0, by=by) for job in jobs])
    return jobs


def _insert_unique(store: Store, jobs: list[JobMixin]) -> None:
    """Insert in a savepoint, so that a taken key leaves the caller's transaction whole."""
    begin(store)
    savepoint = store.session.begin_nested()
    try:
        store.session.add_all(jobs)
        store.session.flush()
    except IntegrityError as error:
        savepoint.rollback()
        # Every engine names the constraint or the column; of two that are broken any one.
        if any(name in str(error.orig) for name in ("unique_key", "_slot", ".slot")):
            raise DuplicateJob from error
        raise
    savepoint.commit()


def begin(store: Store) -> None:
    """Begin a transaction in SQLite, whose driver would commit with a savepoint that came first."""
    if store.engine_name == "sqlite" and not store.connection.connection.dbapi_connection.in_transaction:  # type: ignore[union-attr]
        store.connection.exec_driver_sql("BEGIN")
