"""Any logged-in user of your Flask app can be a worker."""

from __future__ import annotations

from .attachments import Attachment
from .batches import Batch
from .core.agreement import close_to
from .core.backoff import Backoff, Constant, Exponential, Linear, Polynomial
from .core.cadence import Cron
from .core.models import HistoryMixin, JobMixin, QueueMixin
from .core.states import State
from .errors import (
    AlreadySettled,
    BatchEnded,
    Cancelled,
    DuplicateJob,
    DuplicateQueue,
    Forbidden,
    HookError,
    IllegalTransition,
    Invalid,
    InvalidResult,
    JobberError,
    LeaseLost,
    NameTaken,
    NotFound,
    QueueFull,
    QueueInUse,
    ResultRejected,
    SetupError,
    StorageAway,
    TooLarge,
    TooManyClaims,
)
from .extension import Jobber, Tidied
from .signals import (
    job_cancelled,
    job_claimed,
    job_enqueued,
    job_expired,
    job_failed,
    job_released,
    job_replaced,
    job_rescheduled,
    job_retried,
    job_submitted,
    job_succeeded,
)
from .worker.handlers import Cancel, Fail, Handlers, Retry, Snooze

__all__ = [
    "AlreadySettled",
    "Attachment",
    "Backoff",
    "Batch",
    "BatchEnded",
    "Cancel",
    "Cancelled",
    "Constant",
    "Cron",
    "DuplicateJob",
    "DuplicateQueue",
    "Exponential",
    "Fail",
    "Forbidden",
    "Handlers",
    "HistoryMixin",
    "HookError",
    "IllegalTransition",
    "Invalid",
    "InvalidResult",
    "JobMixin",
    "Jobber",
    "JobberError",
    "LeaseLost",
    "Linear",
    "NameTaken",
    "NotFound",
    "Polynomial",
    "QueueFull",
    "QueueInUse",
    "QueueMixin",
    "ResultRejected",
    "Retry",
    "SetupError",
    "Snooze",
    "State",
    "StorageAway",
    "Tidied",
    "TooLarge",
    "TooManyClaims",
    "close_to",
    "job_cancelled",
    "job_claimed",
    "job_enqueued",
    "job_expired",
    "job_failed",
    "job_released",
    "job_replaced",
    "job_rescheduled",
    "job_retried",
    "job_submitted",
    "job_succeeded",
]
