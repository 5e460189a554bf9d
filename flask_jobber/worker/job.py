"""A job as its handler sees it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import time
import typing as t

from ..core.payload import MAX_NOTE
from ..core.process import storable

if t.TYPE_CHECKING:
    from ..core.attachments import Content
    from .files import Files


class Abandoned(BaseException):
    """Raised in the thread of a handler that ran over its time; not for ``except Exception``."""


@dataclasses.dataclass(eq=False, kw_only=True)
class Job:
    """A job that is being done.

    :param attempt: the number of this hand-out, from 1.
    :param lease_seconds: for how long it was handed out; heartbeats renew it.
    :param node: the name of the worker that runs it.
    :param extras: what callbacks, errbacks and the app's processor are to know beside the
        result: a JSON object.
    """

    id: int
    type: str
    data: t.Any
    queue: str
    priority: int
    attempt: int
    failures: int
    max_attempts: int
    lease_seconds: float
    enqueued_at: dt.datetime
    node: str
    has_files: bool | None = None
    started_at: dt.datetime = dataclasses.field(default_factory=lambda: dt.datetime.now(dt.UTC))
    extras: dict[str, t.Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self._gone = False
        self._news: dict[str, t.Any] = {}
        self._on_news: t.Callable[[], None] = lambda: None
        self._on_begin: t.Callable[[], None] = lambda: None
        self._enqueued: list[dict[str, t.Any]] = []
        self._files: Files | None = None
        self.renew(self.lease_seconds)

    @property
    def cancelled(self) -> bool:
        """Whether the work is for nothing: cancelled, lost to another, or over its time."""
        return self._gone

    @property
    def lease_left(self) -> float:
        """Seconds until the lease ends, if no heartbeat renews it."""
        return self._lease_end - time.monotonic()

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Tell how far the work is, 0 to 1, with the next heartbeat."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is from 0 to 1, not {fraction!r}")
        self._news = {"progress": float(fraction)} | (
            {} if note is None else {"note": storable(str(note))[:MAX_NOTE]}
        )
        self._on_news()

    def enqueue(self, type: str, data: t.Any = None, **spec: t.Any) -> None:
        """Add a job, which comes into being with this one's result; of an attempt that fails, none does.

        :param spec: keywords of :meth:`flask_jobber.Jobber.enqueue`; over HTTP, what ``POST /jobs`` takes.
        """
        self._enqueued.append({**spec, "type": type, "data": data})

    @property
    def attachments(self) -> list[str]:
        """The names of the files that it came with, or of which its holder has brought some before."""
        return self._its_files().names() if self.has_files is not None else []

    def open(self, name: str) -> t.BinaryIO:
        """Return one of its files, to be read and closed."""
        return self._its_files().open(name)

    def attach(self, name: str, content: Content, content_type: str | None = None) -> None:
        """Put a file beside its result, at once; of an attempt that comes to nothing, so does the file.

        :param content: bytes, the path of a file, or an open one.
        """
        self._its_files().attach(name, content, content_type)
        self.has_files = True

    def _its_files(self) -> Files:
        if self._files is None:
            raise RuntimeError("This job's source knows no files.")
        return self._files

    # -- for the worker --------------------------------------------------------------------

    def with_files(self, files: Files) -> t.Self:
        """Give it the way to its files."""
        self._files = files
        return self

    def renew(self, lease_seconds: float) -> None:
        """Note that the lease lasts so long from now."""
        self._lease_end = time.monotonic() + lease_seconds
        self.lease_seconds = lease_seconds

    def abandon(self) -> None:
        """Tell the handler that the work is for nothing."""
        self._gone = True

    def take_news(self) -> dict[str, t.Any]:
        """Return the progress that was told since the last time."""
        news, self._news = self._news, {}
        return news

    def call_on_news(self, function: t.Callable[[], None]) -> None:
        """Call a function whenever there is progress to tell."""
        self._on_news = function

    def call_on_begin(self, function: t.Callable[[], None]) -> None:
        """Call a function when the handler begins; a process takes its time to come up."""
        self._on_begin = function

    def begin(self) -> None:
        """Note that the handler begins."""
        self.started_at = dt.datetime.now(dt.UTC)
        self._on_begin()

    @property
    def enqueued(self) -> list[dict[str, t.Any]]:
        """What :meth:`enqueue` has gathered."""
        return self._enqueued
