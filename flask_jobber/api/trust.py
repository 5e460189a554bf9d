"""What a client is told of itself, and an operator of the answers to a job."""

from __future__ import annotations

import typing as t

from flask import Response

from ..core import copies, lockers
from . import schemas
from .call import Call, answer_with
from .operation import operation


@operation("GET", "/me", answers={200: schemas.Me()})
def show_me(call: Call) -> Response:
    """Show who this client is, its own record as it stood when the day began, and its quotas."""
    login = call.identity.login
    record, limits = lockers.told(call.store, login), lockers.limits(call.store, login)
    return answer_with(
        schemas.Me(),
        {
            "login": login,
            "node": call.identity.check_node(),
            "blocked": record.blocked_at is not None,
            "record": record,
            "max_open_claims": limits.open_claims,
            "claims_left_today": limits.left_today,
        },
    )


@operation(
    "GET",
    "/jobs/<job_id>/answers",
    answers={200: schemas.Answers()},
    refusals=("forbidden", "not_found"),
)
def list_answers(call: Call, job_id: int) -> Response:
    """List the copies of a job that wants several results, and what they brought, for an operator."""
    job = call.load(job_id)
    call.identity.require("history", job)
    results = call.identity.may("result", job)
    return answer_with(
        schemas.Answers(),
        {"answers": [_told(call, one, results) for one in copies.answers(call.store, job_id)]},
    )


def _told(call: Call, one: copies.Answer, results: bool) -> dict[str, t.Any]:
    facts = {"id": one.job_id, "is": one.becomes, "login": one.login, "href": f"{call.path}/{one.job_id}"}
    return facts | {"result": one.result if results else None}
