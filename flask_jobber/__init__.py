"""Any logged-in user of your Flask app can be a worker."""

from __future__ import annotations

from .core.backoff import Backoff, Constant, Exponential, Linear, Polynomial
from .core.cadence import Cron
from .core.models import HistoryMixin, JobMixin
from .core.states import State
from .errors import (
    AlreadySettled,
    Cancelled,
    DuplicateJob,
    Forbidden,
    HookError,
    IllegalTransition,
    Invalid,
    InvalidResult,
    JobberError,
    LeaseLost,
    NotFound,
    ResultRejected,
    SetupError,
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
    job_rescheduled,
    job_retried,
    job_submitted,
    job_succeeded,
)
from .worker.handlers import Cancel, Fail, Handlers, Retry, Snooze

__all__ = [
    "AlreadySettled",
    "Backoff",
    "Cancel",
    "Cancelled",
    "Constant",
    "Cron",
    "DuplicateJob",
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
    "NotFound",
    "Polynomial",
    "ResultRejected",
    "Retry",
    "SetupError",
    "Snooze",
    "State",
    "Tidied",
    "TooLarge",
    "TooManyClaims",
    "job_cancelled",
    "job_claimed",
    "job_enqueued",
    "job_expired",
    "job_failed",
    "job_released",
    "job_rescheduled",
    "job_retried",
    "job_submitted",
    "job_succeeded",
]
