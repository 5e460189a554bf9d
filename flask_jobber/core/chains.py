"""Jobs that wait for others come into being: batches, and those that follow."""

from __future__ import annotations

import collections
import typing as t

import sqlalchemy as sa

from ..errors import Invalid
from . import payload, trust
from .enqueue import LINKS, build, enqueue_many, insert
from .enqueue import begin as begin_transaction
from .lanes import Lanes
from .models import JobMixin
from .states import TERMINAL, State
from .store import Store
from .tally import CANCEL, GO_ON, Ends, counter_of, gather
from .transition import forget

# A chain that is longer is a mistake.
_LONGEST = 100


def enqueue(store: Store, specs: t.Iterable[t.Mapping[str, t.Any]]) -> list[JobMixin]:
    """Insert jobs, see :func:`.enqueue.enqueue_many`; they may wait for others, or others for them.

    :raises Invalid: when one that is waited for is not there, or another waits for it already.
    """
    specs = list(specs)
    if not any(spec.get(name) is not None for spec in specs for name in LINKS):
        return enqueue_many(store, specs)
    begin_transaction(store)
    # None, or all with those that follow: one that nobody would unblock is not to stay.
    with store.session.begin_nested():
        return [_enqueue(store, _given(spec)) for spec in specs]


def _refuse_conflicts(spec: t.Mapping[str, t.Any]) -> None:
    if spec.get("on_conflict", "raise") not in (None, "raise"):
        raise Invalid({"on_conflict": ["A job that others wait for, or that waits, is a new one."]})


def _given(spec: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {name: value for name, value in spec.items() if value is not None or name not in LINKS}


def _enqueue(store: Store, spec: dict[str, t.Any]) -> JobMixin:
    if any(spec.get(name) is not None for name in LINKS):
        _refuse_conflicts(spec)
    then, waits = _list("then", spec.pop("then", None)), spec.pop("wait_for", None)
    policy = spec.pop("if_failed", None)
    if then:
        spec["batch"] = _follow(store, then, spec.get("batch"))
    if waits is not None:
        return _wait(store, spec, waits, policy or CANCEL)
    if policy is not None:
        raise Invalid({"if_failed": ["Say for what it waits, in wait_for."]})
    return enqueue_many(store, [spec])[0]


def _list(field: str, value: t.Any) -> list[dict[str, t.Any]]:
    given = [] if value is None else [value] if isinstance(value, t.Mapping) else value
    if not isinstance(given, list | tuple) or not all(isinstance(one, t.Mapping) for one in given):
        raise Invalid({field: ["This is what an enqueue takes, as a mapping, or a list of them."]})
    return [dict(one) for one in given]


def _follow(store: Store, chain: t.Sequence[dict[str, t.Any]], batch: t.Any) -> JobMixin:
    """Insert jobs of which each waits for the one before; return the first.

    :param batch: that they are members of; it sees the last of them end, as each ends in the next.
    """
    if len(chain) > _LONGEST:
        raise Invalid({"then": [f"A chain has at most {_LONGEST} jobs."]})
    following = batch
    for one in reversed(chain):
        if unfit := [name for name in ("then", "wait_for", "batch") if one.get(name) is not None]:
            raise Invalid({"then": [f"What follows waits for that alone: it takes no {unfit[0]}."]})
        spec = {**_given(one), "batch": following}
        policy = spec.pop("if_failed", None) or CANCEL
        following = _insert_waiting(store, spec, processed=False, if_failed=policy, open=False)
    return t.cast(JobMixin, following)


def _wait(store: Store, spec: dict[str, t.Any], waits: t.Any, policy: str) -> JobMixin:
    """Insert a job that waits for jobs that are there."""
    given = waits if isinstance(waits, list | tuple | set | frozenset) else [waits]
    ids = sorted({payload.check_reference("wait_for", one) for one in given})
    if not ids:
        raise Invalid({"wait_for": ["These are one or more jobs."]})
    c = store.jobs.c
    rows = store.lock((c.state, c.batch_id), c.id.in_(ids))
    if len(rows) < len(ids):
        raise Invalid({"wait_for": ["There is no such job."]})
    if any(row.batch_id is not None for row in rows):
        raise Invalid({"wait_for": ["Another job, or a batch, waits for one of them already."]})
    number = {"total": len(ids), "remaining": len(ids)}
    job = _insert_waiting(store, spec, processed=False, if_failed=policy, open=False, **number)
    store.execute(sa.update(store.jobs).where(c.id.in_(ids)).values(batch_id=job.id))
    over = collections.Counter(counter_of(State(row.state)) for row in rows if row.state in TERMINAL)
    failed = [(row.id, State(row.state)) for row in rows if row.state in TERMINAL - {State.SUCCEEDED}]
    gather(Ends(store, job.id, over, failed[0] if failed else None))
    for job_id in ids:
        forget(store, job_id)
    return job


def begin(store: Store, spec: t.Mapping[str, t.Any], **counters: t.Any) -> JobMixin:
    """Insert the job of a batch that has no members yet. :raises: as :func:`enqueue`."""
    begin_transaction(store)
    with store.session.begin_nested():
        own = dict(spec)
        if then := _list("then", own.pop("then", None)):
            own["batch"] = _follow(store, then, own.get("batch"))
        return _insert_waiting(store, own, **counters)


def _insert_waiting(store: Store, spec: t.Mapping[str, t.Any], **counters: t.Any) -> JobMixin:
    """Insert a job that waits, with its counters (columns of :class:`.models.BatchMixin`).

    :raises Invalid: for a keyword that is not what it must be.
    """
    _refuse_conflicts(spec)
    _check(store, spec, counters)
    lanes = Lanes(store)
    job = build(store, spec, store.now, lanes=lanes)
    job.state = State.BLOCKED.value
    if counters["processed"]:
        # It is never worked on: JSON's null is its result from the beginning.
        job.result = None
    insert(store, [job], lanes)
    store.execute(sa.insert(store.batches).values(id=job.id, **counters))
    return job


def _check(store: Store, spec: t.Mapping[str, t.Any], counters: t.Mapping[str, t.Any]) -> None:
    if counters["if_failed"] not in (GO_ON, CANCEL):
        raise Invalid({"if_failed": [f"This is {GO_ON!r} or {CANCEL!r}."]})
    known = store.types.get(spec.get("type") or "")
    if known is not None and counters["processed"] and known.takes_results:
        raise Invalid({"type": ["A batch has a type of its own: this one's results have a processor."]})
    name = counters.get("on_finish")
    if name is not None and name not in store.feedback:
        raise Invalid({"on_finish": ["No feedback of this name is registered."]})
    alone = {"every", "repeat_after_success", "repeat_after_failure"}
    if repeated := [name for name in alone if spec.get(name) is not None]:
        raise Invalid({name: ["A job that waits for others does not repeat."] for name in repeated})
    if unfit := [name for name in ("concurrency_key", *trust.OWN) if spec.get(name) is not None]:
        raise Invalid({name: ["This is not for a job that waits for others."] for name in unfit})
