"""The object that an app holds beside its Jobber."""

from __future__ import annotations

import typing as t

from flask import Blueprint, Flask, current_app
from flask.signals import request_started

from ..errors import SetupError
from . import queries, verbs
from .endpoints import make_blueprint
from .login import EXTENSION, Worker, install, refuse_two_logins, tell_of_bad_token
from .oauth import Server
from .tables import Tables
from .verbs import Book, Credentials

if t.TYPE_CHECKING:
    from ..extension import Jobber

F = t.TypeVar("F", bound=t.Callable[..., t.Any])
_HOUR = 3600
_YEAR = 31_536_000


class Workers:
    """The accounts of workers, which may do the jobs of the queues that hired them.

    :param jobber: whose jobs they do. Their tables are beside its own.
    :param token_seconds: for which a token is good.
    :param allow_http: answer the token endpoint without TLS too, on a network that you trust.
        A worker on this machine (``localhost``, ``127.0.0.1``, ``::1``) needs none.

    It holds no app. Its verbs act on ``db.session``, in the caller's transaction, and never
    commit. All that take a name raise :class:`~.verbs.NoSuchWorker`.
    """

    def __init__(self, jobber: Jobber, *, token_seconds: int = _HOUR, allow_http: bool = False) -> None:
        if isinstance(token_seconds, bool) or not 1 <= token_seconds <= _YEAR:
            raise SetupError(f"token_seconds is a length of 1 to {_YEAR} seconds, not {token_seconds!r}.")
        metadata = jobber.Job.__table__.metadata
        if f"{jobber.name}_worker" in metadata.tables:
            raise SetupError(f"There is a table {jobber.name}_worker already: a Jobber has one Workers.")
        self.jobber = jobber
        self.token_seconds, self.allow_http = token_seconds, allow_http
        self._tables = Tables(metadata, jobber.name)
        #: What the app says that workers may.
        self.may: t.Callable[..., t.Any] | None = None
        self.blueprint: Blueprint = make_blueprint(self, Server(self))

    def init_app(self, app: Flask) -> None:
        """Let workers come in to an app. Registering the blueprint does this too.

        :raises SetupError: for a second one of the same Jobber's name.
        """
        known = app.extensions.setdefault(EXTENSION, {})
        if not known:
            app.before_request(refuse_two_logins)
            app.after_request(tell_of_bad_token)
            # Before anything of the app's can look at current_user.
            request_started.connect(install, app)
        if known.setdefault(self.jobber.name, self) is not self:
            raise SetupError(f"This app has Workers of a Jobber {self.jobber.name!r} already.")

    def permission(self, function: F) -> F:
        """Register ``(worker, action, job) -> bool``: what workers may beside their own jobs.

        The actions are those of :meth:`Jobber.permission`, which is for people. Without it, none.

        :raises SetupError: when there is one, or after the first request.
        """
        if self.may is not None or self.jobber.registry.closed:
            raise SetupError("Register the one permission of workers before the first request.")

        def may(*args: t.Any) -> t.Any:
            return current_app.ensure_sync(function)(*args)

        self.may = may
        return function

    def book(self) -> Book:
        """Return what the functions of :mod:`.verbs` work on, in the current app."""
        return Book(self.jobber.store(), self._tables)

    def load(self, token: str) -> Worker | None:
        """Return the user that a token is, while it is good."""
        row = verbs.bearer(self.book(), token)
        return None if row is None else Worker(self, row.id, row.name)

    def seen(self, name: str | None = None) -> list[dict[str, t.Any]]:
        """Return what there is to know of all accounts, or of one: no secret is among it."""
        return queries.seen(self.book(), name)

    def stats(self, name: str | None = None) -> list[dict[str, t.Any]]:
        """Return what all workers have done, or one, as far as the history goes back."""
        return queries.stats(self.book(), name)

    def create(self, name: str) -> Credentials:
        """Make an account. What it logs in with is told this once.

        :param name: ``[A-Za-z0-9_.-]{1,60}``.
        :raises Invalid: when it is none. :raises WorkerExists: when it is taken.
        """
        return verbs.create(self.book(), name)

    def add_secret(self, name: str) -> Credentials:
        """Return one more secret, for one more machine; those of before stay good.

        :raises TooManySecrets: when there are 20.
        """
        return verbs.add_secret(self.book(), name)

    def reset(self, name: str) -> Credentials:
        """Return a new secret; those of before and all tokens are dead."""
        return verbs.reset(self.book(), name)

    def lock(self, name: str) -> int:
        """Shut a worker out: its tokens are dead, its claims back. Return how many claims."""
        return verbs.lock(self.book(), name)

    def unlock(self, name: str) -> None:
        """Let a worker in again, with the secrets it had."""
        verbs.unlock(self.book(), name)

    def destroy(self, name: str) -> int:
        """Delete an account: as :meth:`lock`, for good. Return how many claims are back."""
        return verbs.destroy(self.book(), name)

    def hire(self, queue: str, name: str) -> bool:
        """Let a worker do the jobs of a queue; return whether it did not before."""
        return verbs.hire(self.book(), queue, name)

    def fire(self, queue: str, name: str) -> tuple[bool, int]:
        """Take a queue from a worker; return whether it had it, and how many claims are back."""
        return verbs.fire(self.book(), queue, name)
