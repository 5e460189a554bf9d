"""Handlers: what does the work of a type, what follows it, and what they may say of a job."""

from __future__ import annotations

import dataclasses
import inspect
import typing as t

from ..core.backoff import Backoff
from ..core.payload import RESERVED, check_name
from ..errors import SetupError

if t.TYPE_CHECKING:
    from .job import Job

#: As long as a job may be put off.
MOST_SECONDS = 1e9
F = t.TypeVar("F", bound=t.Callable[..., t.Any])
#: Seconds that a job may run, or what tells them of a job; ``None``: as long as it likes.
Limit = float | t.Callable[["Job"], float | None] | None


class Verdict(Exception):
    """What a handler may raise to say what is to become of its job."""


class Retry(Verdict):
    """It failed; try again, not before ``after`` seconds have passed."""

    def __init__(self, message: str = "", *, after: float = 0) -> None:
        super().__init__(message or "The handler asks for another try.")
        self.after = _seconds(after)


class Fail(Verdict):
    """It failed, and trying again is no use."""


class Cancel(Verdict):
    """It is not wanted any more; if it is one of a series, neither are those to come."""


class Snooze(Verdict):
    """Not now: give it back for ``after`` seconds, nothing counted."""

    def __init__(self, message: str = "", *, after: float = 60) -> None:
        super().__init__(message)
        self.after = _seconds(after)


def _seconds(after: float) -> float:
    if not 0 <= after <= MOST_SECONDS:
        raise ValueError(f"after is seconds, from 0 to {MOST_SECONDS:g}, not {after!r}")
    return float(after)


@dataclasses.dataclass(eq=False, slots=True)
class Handler:
    """What does the work of one type. Calling it calls the function alone.

    :param backoff: how long a failed job waits; the server's own may be longer.
    :param process: run it in a process of its own, which can be ended at any moment.
    """

    type: str
    function: t.Callable[[Job], t.Any]
    backoff: Backoff | None = None
    max_run_seconds: Limit = None
    process: bool = False
    callbacks: list[t.Callable[..., t.Any]] = dataclasses.field(default_factory=list)
    errbacks: list[t.Callable[..., t.Any]] = dataclasses.field(default_factory=list)
    #: Whether it runs on the event loop.
    is_async: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.is_async = inspect.iscoroutinefunction(self.function)

    def __call__(self, job: Job) -> t.Any:
        return self.function(job)

    def callback(self, function: F) -> F:
        """Add ``(job, result)``, called after the work; what it returns, if anything, is the new result."""
        self._check(function)
        self.callbacks.append(function)
        return function

    def errback(self, function: F) -> F:
        """Add ``(job, error)``, called when the handler or a callback raised; it may raise a verdict."""
        self._check(function)
        self.errbacks.append(function)
        return function

    def _check(self, function: t.Callable[..., t.Any]) -> None:
        if inspect.iscoroutinefunction(function) and not self.is_async:
            raise SetupError(f"{function.__name__} is async, which the handler of {self.type!r} is not.")

    def limit(self, job: Job) -> float | None:
        """Return the seconds that a job may run."""
        return self.max_run_seconds(job) if callable(self.max_run_seconds) else self.max_run_seconds


class Handlers:
    """A registry of handlers, by type.

    >>> handlers = Handlers()
    >>> @handlers("double", max_run_seconds=60)
    ... def double(job):
    ...     return job.data * 2
    """

    def __init__(self) -> None:
        self._known: dict[str, Handler] = {}

    def __call__(
        self,
        type: str,
        *,
        backoff: Backoff | None = None,
        max_run_seconds: Limit = None,
        process: bool = False,
    ) -> t.Callable[[t.Callable[[Job], t.Any]], Handler]:
        """Register ``(job) -> result`` for a type: a function runs in a thread, ``async def`` on the loop.

        :raises SetupError: for a second handler of a type, or a coroutine function with ``process``.
        """
        name = check_name("type", type)

        def register(function: t.Callable[[Job], t.Any]) -> Handler:
            handler = Handler(name, function, backoff, max_run_seconds, process)
            if handler.is_async and process:
                raise SetupError(f"The handler of {name!r} is async: it runs on the loop, not in a process.")
            self.add(handler)
            return handler

        return register

    def add(self, handler: Handler) -> None:
        """Add a handler. :raises SetupError: when its type has one."""
        if handler.type in self._known:
            raise SetupError(f"The type {handler.type!r} has a handler already: each has one.")
        self._known[handler.type] = handler

    def update(self, others: Handlers) -> None:
        """Add all of another registry but those of reserved types: each Jobber has its own of these."""
        for handler in others:
            if not handler.type.startswith(RESERVED):
                self.add(handler)

    def __iter__(self) -> t.Iterator[Handler]:
        return iter(self._known.values())

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, type: object) -> bool:
        return type in self._known

    def __getitem__(self, type: str) -> Handler:
        return self._known[type]

    @property
    def types(self) -> tuple[str, ...]:
        """The types that can be done."""
        return tuple(self._known)
