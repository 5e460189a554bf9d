"""Claim, do and deliver the jobs of a flask_jobber app over HTTP, from any machine with a login.

::

    with JobberClient("https://example.org/jobber", auth="token") as client:
        client.work({"resize": resize})

This package needs nothing but the HTTP library: ``pip install flask-jobber[worker]``.

What is tried again is one table (:class:`.transport.Verb`): an answer that says ``retryable``, as long
as it asks (``Retry-After``), and a lost connection, unless a second request could do a second
thing. A claim is among those: jobs of an answer that was lost stay with this login until
their leases lapse, and :meth:`.verbs.JobberClient.claims` lists them.
"""

from __future__ import annotations

try:
    import httpx2  # noqa: F401
except ImportError as error:
    raise ImportError("flask_jobber.client needs httpx2: pip install flask-jobber[worker]") from error

from .credentials import ClientCredentials
from .errors import (
    AlreadySettled,
    BatchEnded,
    Busy,
    Cancelled,
    ClientError,
    Disconnected,
    Duplicate,
    Forbidden,
    IllegalTransition,
    Invalid,
    KeyReused,
    LeaseLost,
    LoginRequired,
    NameTaken,
    NotFound,
    QueueFull,
    ResultRefused,
    ServerError,
    TooLarge,
    TooManyClaims,
)
from .records import Attachment, Batch, ClaimedJob, Exchange, HistoryRow, Job, Outcome
from .verbs import JobberClient

__all__ = [
    "AlreadySettled",
    "Attachment",
    "Batch",
    "BatchEnded",
    "Busy",
    "Cancelled",
    "ClaimedJob",
    "ClientCredentials",
    "ClientError",
    "Disconnected",
    "Duplicate",
    "Exchange",
    "Forbidden",
    "HistoryRow",
    "IllegalTransition",
    "Invalid",
    "Job",
    "JobberClient",
    "KeyReused",
    "LeaseLost",
    "LoginRequired",
    "NameTaken",
    "NotFound",
    "Outcome",
    "QueueFull",
    "ResultRefused",
    "ServerError",
    "TooLarge",
    "TooManyClaims",
]
