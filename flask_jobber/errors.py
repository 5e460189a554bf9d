"""Everything this package raises on purpose.

The domain knows no HTTP: which status and code an error becomes is one table,
``api/problems.py``.
"""

from __future__ import annotations

import inspect
import typing as t

Then = t.Literal["release", "correct", "exclude"]


class JobberError(Exception):
    """Something went wrong in flask_jobber."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or ""))


class SetupError(JobberError):
    """The extension is set up wrongly; the message says what to change."""


class HookError(JobberError):
    """A hook of the app's raised, or returned what it may not. Nothing was handed out."""


class Invalid(JobberError):
    """The input is not valid; see the errors of its fields.

    :param errors: field name to messages.
    """

    def __init__(self, errors: t.Mapping[str, t.Any], message: str | None = None) -> None:
        self.errors = dict(errors)
        super().__init__(message or f"The input is not valid: {self.errors}")


class InvalidResult(Invalid):
    """The result does not fit its type's schema. The lease is kept; deliver a corrected one."""


class TooLarge(JobberError):
    """This is larger than the server takes."""


class DuplicateJob(JobberError):
    """An unfinished job has this unique_key already."""


class QueueFull(JobberError):
    """This queue holds as many unfinished jobs as it may. Try again when some have ended.

    :param retry_after: seconds after which that may be.
    """

    def __init__(self, message: str | None = None, retry_after: float = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DuplicateQueue(JobberError):
    """A queue of this name is declared already. Change that one."""


class QueueInUse(JobberError):
    """Unfinished jobs are in this queue."""


class KeyReused(JobberError):
    """This Idempotency-Key was sent with another request. Give each request a key of its own."""


class NotFound(JobberError):
    """There is nothing here that you may see."""


class Forbidden(JobberError):
    """You may see this, but not do that to it."""


class LeaseLost(JobberError):
    """This attempt is not yours now. Stop working on it and claim again."""


class Cancelled(JobberError):
    """This job was cancelled. Stop working on it."""


class AlreadySettled(JobberError):
    """You delivered another result on this attempt already; that one counts."""


class IllegalTransition(JobberError):
    """The job's state does not allow this."""


class BatchEnded(JobberError):
    """This batch has ended, or there is none: nothing can be added to it."""


class NameTaken(JobberError):
    """The job has an attachment of this name from another side. Choose another name."""


class StorageAway(JobberError):
    """The place of the attachments does not answer. Send the same again in a while."""


class TooManyClaims(JobberError):
    """You hold as many jobs as you may. Deliver or release some, then claim again.

    :param retry_after: seconds after which it may be otherwise, if that is known.
    """

    def __init__(self, message: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message or "You hold as many jobs as you may. Deliver or release some.")
        if retry_after is not None:
            self.retry_after = retry_after


class ResultRejected(JobberError):
    """Raised by a processor: the result is not acceptable.

    :param reason: told to the client and kept in the history.
    :param then: ``"release"`` puts the job back into the pool with one failure and its
        back-off, ``"correct"`` lets the holder keep the lease and deliver a corrected
        result with nothing counted, ``"exclude"`` is a release after which this locker
        never gets the job again.
    """

    def __init__(self, reason: str, then: Then = "release") -> None:
        if then not in t.get_args(Then):
            raise ValueError(f"then is one of {t.get_args(Then)}, not {then!r}")
        self.reason = reason
        self.then: str = then
        super().__init__(reason)
