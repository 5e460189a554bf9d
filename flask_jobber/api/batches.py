"""The endpoints of batches, and who may add to one."""

from __future__ import annotations

import dataclasses
import typing as t

import sqlalchemy as sa
from flask import Response

from ..core import batches, hold
from ..core import cancel as cancel_verbs
from ..errors import NotFound
from . import schemas
from .call import Call, answer_with
from .operation import operation


@operation("GET", "/batches/<job_id>", answers={200: schemas.Batch()}, refusals=("not_found",))
def show_batch(call: Call, job_id: int) -> Response:
    """Show how far a batch is, or what a job waits for. Its id is that of its job."""
    return _show(call, job_id, call.identity.scope.expression)


@operation(
    "POST",
    "/batches/<job_id>/cancel",
    answers={200: schemas.Batch()},
    refusals=("forbidden", "not_found", "illegal_transition"),
)
def cancel_batch(call: Call, job_id: int) -> Response:
    """End a batch, and cancel its members: a thousand at once, the rest soon."""
    scope = call.identity.scope.expression
    batches.progress(call.store, job_id, scope)
    call.identity.require("cancel", call.load(job_id))
    cancel_verbs.cancel(call.store, job_id, scope, call.identity.locker)
    call.commit()
    return _show(call, job_id, sa.true())


def _show(call: Call, job_id: int, scope: sa.ColumnElement[t.Any]) -> Response:
    progress = batches.progress(call.store, job_id, scope)
    href = f"{call.path.removesuffix('/jobs')}/batches/{job_id}"
    return answer_with(schemas.Batch(), {**dataclasses.asdict(progress), "href": href})


def check_may_add(call: Call, *, batch: int | None = None, beside: int | None = None) -> None:
    """Refuse a client that neither holds a member of a batch nor has the permission to add to it.

    :raises NotFound: when the batch is not in its scope, or it does not hold the job.
    :raises Forbidden: when it has no permission.
    """
    if beside is not None:
        c = call.store.jobs.c
        held = hold.held_by(call.store, call.holder.locker, call.holder.scope.expression)
        if call.store.execute(sa.select(c.id).where(c.id == beside, *held)).one_or_none() is None:
            raise NotFound
    if batch is not None:
        call.identity.require("batch", call.load(batch))
