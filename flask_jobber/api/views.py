"""The endpoints. Each loads, calls a verb, and dumps."""

from __future__ import annotations

import typing as t
from pathlib import Path

import sqlalchemy as sa
from flask import Response, request, send_file

from ..core import cancel as cancel_verbs
from ..core import enqueue as enqueue_verbs
from ..core import hold, payload, queries, settle
from ..core.at_once import Delivery
from ..core.candidates import Wanted
from ..core.claim import Claims
from ..core.exchange import Exchange
from ..core.hold import Row
from ..core.lanes import Lanes
from ..errors import Invalid
from . import columns as columns_verbs
from . import idempotency, schemas, waiting
from .batches import check_may_add
from .call import Call, answer, answer_claims, answer_with, status_of
from .operation import operation

_SCRIPT = Path(__file__).parent / "static" / "jobber.js"
# Rows of one more look, when some of the first are not to be seen; and looks.
_WIDE, _MOST_LOOKS = 1000, 20
_WIRE = {"after": "after_seconds"}
# Of a kept answer: no job was made.
_THERE = "there"
_HELD = ("not_found", "lease_lost", "cancelled", "already_settled")
_ATTEMPT = "/jobs/<job_id>/attempts/<attempt>"


@operation(
    "POST",
    "/claims",
    body=schemas.ClaimBody(),
    answers={200: schemas.Claimed()},
    refusals=("too_many_claims",),
)
def claim(call: Call, **wish: t.Any) -> Response:
    """Claim jobs: a lease on each, for as long as it says. It may wait until there are some."""
    return answer_claims(call, take(call, **wish))


def take(call: Call, results: Exchange | None = None, *, wait_seconds: float, **wish: t.Any) -> Claims:
    """Claim what a request asks for, once its results are settled, and commit."""
    seconds = min(wait_seconds, call.settings.max_wait_seconds)
    return waiting.take(call, lambda: _wanted(call, **wish), seconds, results)


def _wanted(
    call: Call,
    *,
    limit: int,
    types: list[str] | None = None,
    queues: list[str] | None = None,
    lease_seconds: float | None = None,
    min_priority: int | None = None,
    max_priority: int | None = None,
) -> Wanted:
    """Return what a request asks for, on behalf of the client as it is now."""
    identity = call.identity
    payload.check_int("limit", limit, 1, call.settings.max_claim)
    if lease_seconds is not None:
        payload.check_seconds("lease_seconds", lease_seconds, call.settings.max_lease_seconds)
    payload.check_priorities(min_priority, max_priority)
    for type_ in types or ():
        payload.check_unreserved("types", type_)
    asked = (_distinct(types), _distinct(queues), min_priority, max_priority, lease_seconds)
    return Wanted(identity.locker, identity.scope, *asked, limit=limit, reserved=False)


def _distinct(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(dict.fromkeys(names))


@operation("GET", "/claims", answers={200: schemas.Claims()})
def list_claims(call: Call) -> Response:
    """List what this client holds, to take it up again after a crash or a reload."""
    claims = Claims(queries.open_claims(call.store, call.holder))
    return answer({"jobs": call.dump_claims(call.with_files(claims))})


@operation("GET", _ATTEMPT, answers={200: schemas.ClaimedJob()}, refusals=_HELD)
def show_attempt(call: Call, job_id: int, attempt: int) -> Response:
    """Show a handed-out job again, to its holder."""
    claims = Claims([queries.open_claim(call.store, call.holder, hold.Item(job_id, attempt))])
    return answer(call.dump_claims(call.with_files(claims))[0])


@operation(
    "PATCH",
    _ATTEMPT,
    body=schemas.ExtendBody(),
    answers={200: schemas.Lease()},
    refusals=(*_HELD, "too_many_claims"),
)
def extend(call: Call, job_id: int, attempt: int, **said: t.Any) -> Response:
    """Heartbeat: renew the lease from now; say how far the work is."""
    outcome = _settle(call, hold.extend, hold.Extension(job_id, attempt, **said))
    return answer({"lease_seconds": outcome.lease_seconds})


@operation(
    "PUT",
    f"{_ATTEMPT}/result",
    body=schemas.ResultBody(),
    answers={200: schemas.Settled(), 202: schemas.Settled()},
    refusals=(*_HELD, "invalid_result", "result_rejected"),
    large=True,
)
def deliver(call: Call, job_id: int, attempt: int, **said: t.Any) -> Response:
    """Deliver the result. 202: accepted, and still to be processed."""
    outcome = _settle(call, settle.deliver, Delivery(job_id, attempt, **said))
    return answer({"state": outcome.state}, status_of(outcome.state))


@operation(
    "PUT",
    f"{_ATTEMPT}/failure",
    body=schemas.FailureBody(),
    answers={200: schemas.Failed()},
    refusals=_HELD,
)
def fail(call: Call, job_id: int, attempt: int, **said: t.Any) -> Response:
    """Report that the work failed."""
    outcome = _settle(call, settle.fail, settle.Failure(job_id, attempt, **said))
    return answer_with(schemas.Failed(), outcome)


@operation(
    "DELETE",
    _ATTEMPT,
    query=schemas.ReleaseQuery(),
    answers={204: None},
    refusals=_HELD,
)
def release(call: Call, job_id: int, attempt: int, **said: t.Any) -> Response:
    """Give the job back unworked; nothing is counted."""
    _settle(call, hold.release, hold.Release(job_id, attempt, **said))
    return Response(status=204)


def _settle(call: Call, verb: t.Callable[..., list[hold.Outcome]], item: hold.Item) -> hold.Outcome:
    outcome = verb(call.store, call.holder, [item])[0]
    call.commit()  # a rejection is an error for the client and a change of the job
    if outcome.error is not None:
        raise outcome.error
    return outcome


@operation(
    "GET",
    "/jobs",
    query=schemas.ListQuery(),
    answers={200: schemas.SeenJobs()},
)
def list_jobs(
    call: Call,
    *,
    limit: int,
    cursor: str = "0",
    owner: str | None = None,
    batch: int | None = None,
    **equals: t.Any,
) -> Response:
    """List the jobs that this client may see, by id, page by page."""
    equals |= {"owner_ref": owner, "batch_id": batch}
    rows, more = _look(call, int(cursor), limit + 1, equals)
    page = rows[:limit]
    following = str(page[-1].id) if len(rows) > limit else more
    return answer_with(schemas.SeenJobs(), {"jobs": call.seen(page), "cursor": following})


def _look(call: Call, after: int, size: int, equals: dict[str, str | None]) -> tuple[list[Row], str | None]:
    """Return the next jobs that this client may see; and where to go on if too much lay between."""
    found: list[Row] = []
    for _ in range(_MOST_LOOKS):
        rows = queries.visible(call.store, call.sight, after=after, limit=size, **equals)
        found += call.permitted(rows)
        if len(rows) < size or len(found) >= size:
            return found, None
        after, size = rows[-1].id, _WIDE
    return found, str(after)


@operation(
    "POST",
    "/jobs",
    body=schemas.EnqueueBody(),
    answers={200: schemas.SeenJob(), 201: schemas.SeenJob()},
    refusals=("forbidden", "duplicate", "key_reused", "queue_full", "not_found", "batch_ended"),
    large=True,
    headers={idempotency.HEADER: "The same answer for the same request by the same login."},
)
def enqueue(call: Call, **spec: t.Any) -> Response:
    """Enqueue a job, if the permission hook allows it. 200: the one that has the unique_key already."""
    said = idempotency.once(call, spec, lambda: _enqueue(call, **spec))
    if said.pop(_THERE, False):
        return answer(said)
    return answer(said, 201, {"Location": said["href"]})


def _enqueue(
    call: Call,
    *,
    after_seconds: float | None = None,
    columns: t.Mapping[str, t.Any] | None = None,
    **spec: t.Any,
) -> dict[str, t.Any]:
    store, lanes = call.store, Lanes(call.store)
    check_may_add(call, batch=spec.get("batch"), beside=spec.get("beside"))
    own = columns_verbs.load(call.store.Job, columns or {})
    try:
        job = enqueue_verbs.build(store, {**spec, **own, "after": after_seconds}, store.now, lanes=lanes)
    except Invalid as error:  # the wire's name is another
        raise Invalid({_WIRE.get(name, name): said for name, said in error.errors.items()}) from error
    call.identity.require("enqueue", job)
    if job.every is not None:
        call.identity.require("repeat", job)
    with columns_verbs.accountable(own):
        [found] = enqueue_verbs.insert(store, [job], lanes, by=call.identity.locker, allow=call.allow)
    return _dump(call, job.id) if found is job else {**_dump(call, found.id, current=True), _THERE: True}


@operation("GET", "/jobs/<job_id>", answers={200: schemas.SeenJob()}, refusals=("not_found",))
def show_job(call: Call, job_id: int) -> Response:
    """Show one job."""
    return answer_with(schemas.SeenJob(), call.seen([call.one(job_id)])[0])


def _show(call: Call, job_id: int) -> Response:
    return answer(_dump(call, job_id))


def _dump(call: Call, job_id: int, *, current: bool = False) -> dict[str, t.Any]:
    row = queries.one(call.store, sa.true(), job_id, current=current)
    return t.cast(dict[str, t.Any], schemas.SeenJob().dump(call.seen([row])[0]))


@operation(
    "GET",
    "/jobs/<job_id>/history",
    answers={200: schemas.History()},
    refusals=("not_found",),
)
def show_history(call: Call, job_id: int) -> Response:
    """Show what has happened to a job, oldest first."""
    everything = call.identity.may("history", call.load(job_id))
    rows = call.history(queries.history(call.store, job_id), everything=everything)
    return answer_with(schemas.History(), {"history": rows})


@operation(
    "POST",
    "/jobs/<job_id>/cancel",
    answers={200: schemas.SeenJob()},
    refusals=("forbidden", "not_found", "illegal_transition"),
)
def cancel(call: Call, job_id: int) -> Response:
    """End an unfinished job at once."""
    return _operate(call, "cancel", cancel_verbs.cancel, job_id)


@operation(
    "POST",
    "/jobs/<job_id>/retry",
    answers={200: schemas.SeenJob()},
    refusals=("forbidden", "not_found", "illegal_transition", "queue_full"),
)
def retry(call: Call, job_id: int) -> Response:
    """Give a failed, cancelled or expired job another life."""
    return _operate(call, "retry", cancel_verbs.retry, job_id)


def _operate(
    call: Call, action: t.Literal["cancel", "retry"], verb: t.Callable[..., None], job_id: int
) -> Response:
    call.identity.require(action, call.load(job_id))
    verb(call.store, job_id, call.identity.scope.expression, call.identity.locker)
    call.commit()
    return _show(call, job_id)


@operation("GET", "/jobber.js", answers={200: None, 304: None}, public=True)
def script(call: Call) -> Response:
    """The browser client, an ES module."""
    response = send_file(_SCRIPT, mimetype="text/javascript")
    response.make_conditional(request)
    return response
