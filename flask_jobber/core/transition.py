"""The end of every transition: the guarded write, its row of history, its signal."""

from __future__ import annotations

import collections
import dataclasses
import typing as t

import sqlalchemy as sa
from blinker import NamedSignal
from sqlalchemy.orm.attributes import flag_dirty

from .. import signals
from .engines import utcnow
from .news import Entry, Notification, hint, hint_new
from .states import TERMINAL, TRANSITIONS, State, Verb
from .store import Store, missed

_SIGNALS: dict[State, NamedSignal] = {
    State.LOCKED: signals.job_claimed,
    State.SUCCEEDED: signals.job_succeeded,
    State.SUBMITTED: signals.job_submitted,
    State.SCHEDULED: signals.job_rescheduled,
    State.QUEUED: signals.job_rescheduled,
    State.BLOCKED: signals.job_rescheduled,
    State.FAILED: signals.job_failed,
    State.CANCELLED: signals.job_cancelled,
    State.EXPIRED: signals.job_expired,
}
_WAITING = (State.QUEUED, State.SCHEDULED)
_SIGNALS_OF_VERBS: dict[Verb, NamedSignal] = {
    Verb.ENQUEUE: signals.job_enqueued,
    Verb.RELEASE: signals.job_released,
    Verb.RETRY: signals.job_retried,
    Verb.REPLACE: signals.job_replaced,
}
_ALL_SIGNALS = (*_SIGNALS.values(), *_SIGNALS_OF_VERBS.values())
#: What leaving the lock clears. Whoever was handed out has had its turn.
UNHELD: t.Mapping[str, int | None] = dict.fromkeys(
    ("locked_by", "locked_at", "locked_until", "lease_seconds", "progress", "note", "later_turn")
) | {"turn": 0}
_HISTORY = ("job_id", "from_state", "to_state", "attempt", "locker", "reason", "error", "by")


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One transition of one job.

    :param attempt: the number of the hand-out it belongs to.
    :param locker: who held the job, or holds it now.
    :param by: who did it, where that is not the locker.
    :param values: what else is written into the row.
    """

    verb: Verb
    job_id: int
    from_state: State | None
    to_state: State
    attempt: int
    locker: str | None = None
    error: dict[str, t.Any] | None = None
    values: dict[str, t.Any] = dataclasses.field(default_factory=dict)
    by: str | None = None


def apply(store: Store, changes: t.Sequence[Change]) -> None:
    """Write the rows of jobs that this transaction has locked, and record it.

    :raises RuntimeError: when one is not as it was locked: code of the app's, in the same
        transaction, has changed its state past the verbs.
    """
    _check(changes)
    groups: dict[tuple[str, ...], list[Change]] = collections.defaultdict(list)
    for change in changes:
        groups[tuple(sorted(change.values))].append(change)
    for columns, group in groups.items():
        if store.engine_name == "postgresql" and len(group) == 1:
            written = _write_and_append(store, columns, group[0])
        else:
            written = _write(store, columns, group)
            append(store, group)
        if written != len(group):
            raise RuntimeError(f"Jobs were changed behind their locks: {group}")
    announce(store, changes)


def _write(store: Store, columns: tuple[str, ...], group: t.Sequence[Change]) -> int:
    rows = [_values(change) for change in group]
    return store.run(("write", columns), lambda: _update(store, columns), rows).rowcount


def _values(change: Change) -> dict[str, t.Any]:
    return {
        "of_id": change.job_id,
        "of_attempts": change.attempt,
        "of_state": change.from_state,
        "to": change.to_state,
        **change.values,
    }


def _update(store: Store, columns: tuple[str, ...]) -> sa.Update:
    c = store.jobs.c
    held = (
        c.id == missed("of_id", c.id.type),
        c.attempts == missed("of_attempts", c.attempts.type),
        c.state == missed("of_state", c.state.type),
    )
    values = {name: missed(name, c[name].type) for name in columns}
    update = sa.update(store.jobs).where(*held).values(values | {"state": missed("to", c.state.type)})
    # By an index of states MySQL would lock the jobs of others, who end theirs at the same time.
    return update.with_hint("FORCE INDEX (PRIMARY)", dialect_name="mysql").with_hint(
        "FORCE INDEX (PRIMARY)", dialect_name="mariadb"
    )


def _write_and_append(store: Store, columns: tuple[str, ...], change: Change) -> int:
    """Write a row and its history in one statement: one round trip less for each job."""
    key = ("write and append", columns)
    values = _values(change) | {f"history_{name}": value for name, value in _history_row(change).items()}
    return store.run(key, lambda: _update_and_insert(store, columns), values).rowcount


def _update_and_insert(store: Store, columns: tuple[str, ...]) -> sa.Insert:
    h = store.history.c
    written = _update(store, columns).returning(store.jobs.c.id).cte("_written")
    row: dict[str, t.Any] = {
        name: missed(f"history_{name}", h[name].type) for name in _HISTORY if name != "job_id"
    }
    row["error"] = sa.cast(row["error"], h.error.type)
    select = sa.select(written.c.id, *row.values(), utcnow())
    insert = sa.insert(store.history).from_select(["job_id", *row, "at"], select)
    return insert.execution_options(preserve_rowcount=True)


def record(store: Store, changes: t.Sequence[Change]) -> None:
    """Append the rows of history of what has been written, and announce its signals."""
    if changes:
        _check(changes)
        append(store, changes)
        announce(store, changes)


class Also(t.NamedTuple):
    """An update of jobs that need not be a statement of its own, see :meth:`.Store.run`."""

    key: str
    build: t.Callable[[], sa.Update]
    values: t.Sequence[dict[str, t.Any]]


def record_new(
    store: Store,
    changes: t.Sequence[Change],
    entries: t.Sequence[Entry],
    unless: str | None = None,
    also: Also | None = None,
) -> bool:
    """Do as :func:`record` for jobs that have been inserted, and tell of them.

    :param unless: do nothing for the one job when this queue is declared.
    :returns: whether it was done.
    """
    told = hint_new(store, entries)
    if told is None and unless is None:
        record(store, changes)
        if also is not None:
            store.run(*also)
        return True
    return _record_and_tell(store, changes[0], told, unless, also)


def _record_and_tell(
    store: Store, change: Change, told: Notification | None, unless: str | None, also: Also | None
) -> bool:
    """Record one change, tell of it, and do something beside, in one statement."""
    _check([change])
    values = _history_row(change) | ({} if told is None else told._asdict())
    values |= {} if unless is None else {"queue": unless}
    values |= {} if also is None else also.values[0]
    key = ("append and tell", unless is not None, told is not None, also and also.key)
    build = lambda: _insert_and_notify(store, unless is not None, told is not None, also)  # noqa: E731
    is_done = bool(store.run(key, build, values).all())
    if is_done:
        announce(store, [change])
    return is_done


def _insert_and_notify(store: Store, guarded: bool, telling: bool, also: Also | None) -> sa.Executable:
    h, q = store.history.c, store.queues.c
    row: dict[str, t.Any] = {name: missed(name, h[name].type) for name in _HISTORY}
    row["error"] = sa.cast(row["error"], h.error.type)
    select = sa.select(*row.values(), utcnow())
    if guarded:
        select = select.where(~sa.exists().where(q.name == missed("queue", q.name.type)))
    insert = sa.insert(store.history).from_select([*row, "at"], select).returning(h.id)
    if not telling:
        return insert
    appended = insert.cte("_appended")
    tell = sa.select(sa.func.pg_notify(missed("channel"), missed("text"))).select_from(appended)
    return tell if also is None else tell.add_cte(also.build().returning(store.jobs.c.id).cte("_also"))


def _check(changes: t.Iterable[Change]) -> None:
    for change in changes:
        row = TRANSITIONS[change.verb]
        legal = change.from_state in row.from_states if change.from_state else not row.from_states
        assert legal, f"no such transition: {change}"
        assert change.to_state in row.to_states, f"no such transition: {change}"


def announce_if_heard(store: Store, ids: t.Sequence[int], changes: t.Callable[[], list[Change]]) -> None:
    """Announce what has been written; its changes are made only if somebody hears of them."""
    if any(signal.receivers for signal in _ALL_SIGNALS):
        announce(store, changes())
    elif ids:
        if any(isinstance(one, store.Job) for one in store.session):
            for job_id in ids:
                forget(store, job_id)
        hint(store, changed=tuple(ids), more=store.rules.counts_held)


def announce(store: Store, changes: t.Sequence[Change]) -> None:
    """Announce the signals of what has been written, and the news of it."""
    _hint(store, changes)
    owners = _owners(store, changes)
    for change in changes:
        if change.verb is not Verb.ENQUEUE:  # what has just been inserted is as it is in the session
            forget(store, change.job_id)
        facts = {"job_id": change.job_id, "attempt": change.attempt, "locker": change.locker}
        if change.job_id in owners:
            facts["owner"] = owners[change.job_id]
        signals.announce(store.session, _signal(change), store.sender, **facts)


def _hint(store: Store, changes: t.Sequence[Change]) -> None:
    """Hint at jobs that may be claimed again; those who insert some tell of them in full."""
    last = {one.job_id: one for one in changes}
    fit = [id for id, one in last.items() if one.to_state in _WAITING and one.verb is not Verb.ENQUEUE]
    if fit:
        hint(store, ids=tuple(fit), back=any(last[id].to_state is State.QUEUED for id in fit))
    if last:
        # Whoever tidies is to hear of those that are to be processed again.
        submitted = any(one.to_state is State.SUBMITTED for one in last.values())
        # Where it is counted what is held, the end of one lets others in.
        left = store.rules.counts_held and any(one.from_state is State.LOCKED for one in changes)
        hint(store, changed=tuple(last), untidy=submitted, more=left)


def _signal(change: Change) -> NamedSignal:
    return _SIGNALS_OF_VERBS.get(change.verb) or _SIGNALS[change.to_state]


def _owners(store: Store, changes: t.Iterable[Change]) -> dict[int, str]:
    """Return the owners of those jobs whose end somebody hears of."""
    heard = [one.job_id for one in changes if one.to_state in TERMINAL and _signal(one).receivers]
    if not heard:
        return {}
    c = store.jobs.c
    owned = sa.select(c.id, c.owner_ref).where(c.id.in_(heard), c.owner_ref.is_not(None))
    return {row.id: row.owner_ref for row in store.execute(owned)}


def append(store: Store, changes: t.Sequence[Change]) -> None:
    """Append rows to the history."""
    store.run("append", lambda: _insert(store), [_history_row(change) for change in changes])


def _insert(store: Store) -> sa.Insert:
    h = store.history.c
    # Inline: nothing asks for the ids.
    return sa.insert(store.history).inline().values({name: missed(name, h[name].type) for name in _HISTORY})


def _history_row(change: Change) -> dict[str, t.Any]:
    said = (
        change.job_id, change.from_state, change.to_state, change.attempt, change.locker, change.verb,
        change.error, change.by,
    )  # fmt: skip
    return dict(zip(_HISTORY, said, strict=True))


def forget(store: Store, job_id: int) -> None:
    """Let an object of the job that the session holds be read again."""
    session = store.session
    job = session.identity_map.get(store.identity_of(job_id)) if session.identity_map else None
    if job is not None:
        session.expire(job)
        if session.in_nested_transaction():  # who rolls the savepoint back has it read once more
            flag_dirty(job)
