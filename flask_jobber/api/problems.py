"""Errors on the wire: RFC 9457 problem documents. The only table of status codes."""

from __future__ import annotations

import json
import logging
import math
import typing as t

from flask import Response
from werkzeug.exceptions import InternalServerError

from .. import errors
from ..core.engines import is_transient

logger = logging.getLogger("flask_jobber")


class Problem(t.NamedTuple):
    """A kind of refusal: its stable code, its status, a title."""

    code: str
    status: int
    title: str
    retryable: bool = False


class LoginRequired(errors.JobberError):
    """Log in, or send a token; then try again."""


class CrossSite(errors.JobberError):
    """A page of another site may not use this login."""


class MethodNotAllowed(errors.JobberError):
    """This path takes other methods; see the Allow header."""

    def __init__(self, methods: t.Iterable[str]) -> None:
        self.methods = sorted(methods)
        super().__init__()


class NotJson(errors.JobberError):
    """Send the body as application/json."""


class BrokenJson(errors.JobberError):
    """The body is not JSON in UTF-8."""


class BrokenBody(errors.JobberError):
    """The body ended before its time, or could not be read. Nothing of it is kept; send it again."""


class Changed(errors.JobberError):
    """This is not, or no more, what you know of it."""


class OutOfRange(errors.JobberError):
    """There is no such range in it."""

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__()


class Busy(errors.JobberError):
    """The database is busy or away. Nothing was changed; send the same again in a while."""


class Internal(errors.JobberError):
    """Something broke here. It has been logged."""


PROBLEMS: dict[type[BaseException], Problem] = {
    LoginRequired: Problem("login_required", 401, "Login required"),
    CrossSite: Problem("cross_site", 403, "Cross-site request"),
    errors.Forbidden: Problem("forbidden", 403, "Forbidden"),
    errors.NotFound: Problem("not_found", 404, "Not found"),
    MethodNotAllowed: Problem("method_not_allowed", 405, "Method not allowed"),
    errors.LeaseLost: Problem("lease_lost", 409, "Lease lost"),
    errors.Cancelled: Problem("cancelled", 409, "Job cancelled"),
    errors.AlreadySettled: Problem("already_settled", 409, "Already settled"),
    errors.DuplicateJob: Problem("duplicate", 409, "Duplicate job"),
    errors.IllegalTransition: Problem("illegal_transition", 409, "Illegal transition"),
    errors.BatchEnded: Problem("batch_ended", 409, "Batch ended"),
    errors.NameTaken: Problem("name_taken", 409, "Name taken"),
    Changed: Problem("changed", 412, "Changed"),
    OutOfRange: Problem("out_of_range", 416, "Range not satisfiable"),
    errors.TooLarge: Problem("too_large", 413, "Too large"),
    NotJson: Problem("not_json", 415, "Not JSON"),
    BrokenJson: Problem("broken_json", 400, "Broken JSON"),
    BrokenBody: Problem("broken_body", 400, "Broken body"),
    errors.InvalidResult: Problem("invalid_result", 422, "Invalid result"),
    errors.ResultRejected: Problem("result_rejected", 422, "Result rejected"),
    errors.Invalid: Problem("invalid", 422, "Invalid input"),
    errors.KeyReused: Problem("key_reused", 422, "Key reused"),
    errors.TooManyClaims: Problem("too_many_claims", 429, "Too many claims", retryable=True),
    errors.QueueFull: Problem("queue_full", 429, "Queue full", retryable=True),
    Busy: Problem("busy", 503, "Busy", retryable=True),
    errors.JobberError: Problem("internal", 500, "Internal error"),
}
CODES = {problem.code: problem for problem in PROBLEMS.values()}
# Seconds that a client is told to wait before it tries the same again.
RETRY_AFTER = 2
_BY_STATUS: dict[int | None, type[errors.JobberError]] = {
    400: BrokenJson,
    404: errors.NotFound,
    413: errors.TooLarge,
}


def document(error: errors.JobberError) -> dict[str, t.Any]:
    """Return the problem document of an error."""
    problem = _of(error)
    body: dict[str, t.Any] = {
        "type": "about:blank",
        "title": problem.title,
        "status": problem.status,
        "detail": _detail(error),
        "code": problem.code,
        "retryable": problem.retryable,
    }
    if isinstance(error, errors.Invalid):
        body["errors"] = error.errors
    if isinstance(error, errors.ResultRejected):
        body["then"] = error.then
    return body


def _of(error: BaseException) -> Problem:
    return next(PROBLEMS[cls] for cls in type(error).__mro__ if cls in PROBLEMS)


def _detail(error: errors.JobberError) -> str:
    if _of(error).status == 500:  # what broke is for the log alone
        return str(Internal())
    if isinstance(error, errors.Invalid):
        return "The input is not valid; see errors."
    return str(error)


def respond(error: errors.JobberError) -> Response:
    """Return the answer to a request that ended in this error."""
    body = document(error)
    response = Response(json.dumps(body), body["status"], mimetype="application/problem+json")
    if body["retryable"]:
        response.headers["Retry-After"] = retry_after(getattr(error, "retry_after", RETRY_AFTER))
    if isinstance(error, LoginRequired):
        response.headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, OutOfRange):
        response.headers["Content-Range"] = f"bytes */{error.size}"
    if isinstance(error, MethodNotAllowed):
        response.headers["Allow"] = ", ".join(error.methods)
    return response


def from_exception(error: Exception) -> errors.JobberError | None:
    """Return the error of ours that another library's means, if it means one."""
    if isinstance(error, errors.StorageAway):
        return Busy(str(error))
    if isinstance(error, errors.JobberError):
        return error
    if is_transient(error):
        logger.warning("the database is busy or away: %s", error, extra={"action": "busy"})
        return Busy()
    return Internal() if isinstance(error, InternalServerError) else None


def retry_after(seconds: float) -> str:
    """Return the header's value: whole seconds, at least as long."""
    return str(math.ceil(seconds))
