"""What a call may raise: one class for each code of the server's."""

from __future__ import annotations

import typing as t


class ClientError(Exception):
    """The server refused, or gave no answer.

    :param status: the HTTP status; ``None`` when no answer came.
    :param code: the server's word for it, ``unexpected_answer`` when what answered is no Jobber.
    :param detail: a sentence for people.
    :param retryable: whether the same request may succeed later.
    :param retry_after: seconds to wait before that, when the server said so.
    :param errors: field to messages, when fields are wrong.
    :param then: what became of a job whose result was rejected.
    """

    #: Whether what was asked may have been done all the same.
    in_doubt = False

    def __init__(
        self,
        status: int | None,
        code: str,
        detail: str,
        *,
        retryable: bool = False,
        retry_after: float | None = None,
        errors: t.Mapping[str, t.Any] | None = None,
        then: str | None = None,
    ) -> None:
        super().__init__(status, code, detail)
        self.status, self.code, self.detail = status, code, detail
        self.retryable, self.retry_after = retryable, retry_after
        self.errors, self.then = dict(errors or {}), then

    def __str__(self) -> str:
        fields = f" {self.errors}" if self.errors else ""
        return f"{self.detail}{fields} ({self.status or 'no answer'}, {self.code})"


class LoginRequired(ClientError):
    """The server does not know this login. Check ``auth``; a token may have ended."""


class Forbidden(ClientError):
    """This login may not do that."""


class NotFound(ClientError):
    """There is nothing here that this login may see."""


class LeaseLost(ClientError):
    """This attempt is not yours now. Stop working on it and claim again."""


class Cancelled(ClientError):
    """The job was cancelled. Stop working on it."""


class AlreadySettled(ClientError):
    """Another result, or the failure after a result, of this attempt; the first one counts."""


class Invalid(ClientError):
    """The server does not take this input; ``errors`` says which fields and why."""


class ResultRefused(ClientError):
    """The result does not fit its type, or its processor rejected it; see ``errors`` and ``then``."""

    @property
    def lease_kept(self) -> bool:
        """Whether the job is still held, so that a corrected result may be delivered."""
        return self.code == "invalid_result" or self.then == "correct"


class Duplicate(ClientError):
    """An unfinished job has this ``unique_key`` already."""


class KeyReused(ClientError):
    """This ``idempotency_key`` was sent with another request. Give each its own, or none."""


class IllegalTransition(ClientError):
    """The job's state does not allow this."""


class BatchEnded(ClientError):
    """This batch has ended: nothing can be added to it."""


class NameTaken(ClientError):
    """The job has an attachment of this name from another side."""


class TooManyClaims(ClientError):
    """This login holds as many jobs as it may. Deliver or release some first."""


class QueueFull(ClientError):
    """This queue holds as many unfinished jobs as it may."""


class TooLarge(ClientError):
    """This is larger than the server takes."""


class Busy(ClientError):
    """The server cannot do it now."""


class ServerError(ClientError):
    """The server broke."""


class Disconnected(ClientError):
    """No answer of the app's: no connection, a lost one, or a gateway answered in its place.

    :param in_doubt: the request may have reached the app, which then did what was asked.
    """

    def __init__(
        self, status: int | None, detail: str, *, in_doubt: bool = True, retry_after: float | None = None
    ) -> None:
        super().__init__(status, "disconnected", detail, retryable=True, retry_after=retry_after)
        self.args = (status, detail)
        self.in_doubt = in_doubt


_BY_CODE: t.Mapping[str, type[ClientError]] = {
    "login_required": LoginRequired,
    "forbidden": Forbidden,
    "cross_site": Forbidden,
    "not_found": NotFound,
    "lease_lost": LeaseLost,
    "cancelled": Cancelled,
    "already_settled": AlreadySettled,
    "invalid": Invalid,
    "invalid_result": ResultRefused,
    "result_rejected": ResultRefused,
    "duplicate": Duplicate,
    "key_reused": KeyReused,
    "illegal_transition": IllegalTransition,
    "too_many_claims": TooManyClaims,
    "queue_full": QueueFull,
    "too_large": TooLarge,
    "name_taken": NameTaken,
    "batch_ended": BatchEnded,
    "broken_body": ClientError,
    "changed": ClientError,
    "out_of_range": ClientError,
    "busy": Busy,
    "internal": ServerError,
}
#: Whoever holds a job and hears one of these holds it no longer.
GONE = (NotFound, LeaseLost, Cancelled, AlreadySettled)


def from_problem(
    status: int, problem: t.Mapping[str, t.Any], retry_after: float | None = None
) -> ClientError:
    """Return the error that a problem document is."""
    code = problem["code"]
    return _BY_CODE.get(code, ClientError)(
        status,
        code,
        problem.get("detail", code),
        retryable=problem.get("retryable") is True,
        retry_after=retry_after,
        errors=problem.get("errors"),
        then=problem.get("then"),
    )
