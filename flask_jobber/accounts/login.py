"""How a worker comes in: by its token, through the app's own Flask-Login, and only to its Jobber.

A token that is a worker's by its form is never shown to the app's own request loader, and
gives a user only where the Jobber's blueprint answers. Anywhere else it is nobody's.
"""

from __future__ import annotations

import typing as t

import sqlalchemy as sa
from flask import Flask, Request, Response, current_app, request
from flask_login import LoginManager, UserMixin

from ..api.guard import has_cookie_login
from ..api.identity import Account, Action
from ..api.problems import LoginRequired, respond
from . import verbs
from .secret import TOKEN

if t.TYPE_CHECKING:
    from .workers import Workers

#: The key of ``app.extensions`` under which an app's :class:`Workers` are, by their Jobbers' names.
EXTENSION = "jobber_workers"
RequestLoader = t.Callable[[Request], t.Any]


class Worker(Account, UserMixin):  # type: ignore[misc]
    """The user that a worker is while its request is answered. It brings its own rights."""

    def __init__(self, workers: Workers, worker_id: int, name: str) -> None:
        self._workers, self._worker_id, self.name = workers, worker_id, name
        #: No number: it could be a person's.
        self.id = verbs.locker_of(name)

    def jobber_locker_name(self) -> str:
        """Its account; each of its nodes adds its own name."""
        return verbs.locker_of(self.name)

    def jobber_scope(self) -> t.Any:
        """The jobs of the queues that have hired it, as it is now.

        The worker's row stays held until the transaction ends: who takes a right away waits for
        the requests that still have it.
        """
        book = self._workers.book()
        mine = verbs.queues_of(book, self._worker_id)
        if book.store.engine_name == "sqlite":  # it holds no rows: let the write itself look
            return book.store.jobs.c.queue.in_(mine)
        queues = book.store.execute(mine.with_for_update(read=True)).scalars().all()
        return {"queue": sorted(queues)} if queues else sa.false()

    def jobber_permission(self, action: Action, job: t.Any) -> t.Any:
        """Nothing, unless the app says otherwise: the Jobber's own hook is for people."""
        may = self._workers.may
        return may is not None and may(self, action, job)


class Loader:
    """Stands in for an app's request loader: it knows workers by their tokens, and asks it for others.

    It belongs to a LoginManager, which several apps may share; whose workers are meant is
    the current app's affair.
    """

    def __init__(self, others: RequestLoader | None) -> None:
        self._others = others

    def __call__(self, request: Request) -> t.Any:
        token = token_of(request)
        if token is None:
            return self._others(request) if self._others is not None else None
        workers = _meant()
        return workers.load(token) if workers is not None else None


def install(app: Flask) -> None:
    """Put the loader before what the app has now: it may have come, or changed, since the last request."""
    manager: LoginManager | None = getattr(app, "login_manager", None)
    if manager is None:
        return
    callback = manager.request_callback
    if not isinstance(callback, Loader):
        manager.request_loader(Loader(callback))


def token_of(request: Request) -> str | None:
    """Return the token of a worker's that a request carries, good or not. It is looked for nowhere else."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    return token if scheme.lower() == "bearer" and token.startswith(TOKEN) else None


def _meant() -> Workers | None:
    """Return the workers of the Jobber for which the current request is, if it is for one."""
    known: dict[str, Workers] = current_app.extensions.get(EXTENSION, {})
    return next((workers for workers in known.values() if workers.jobber.blueprint.is_asked), None)


def refuse_two_logins() -> Response | None:
    """Refuse a worker's token beside a person's cookie: which of the two is meant nobody can know."""
    if token_of(request) is None or _meant() is None or not has_cookie_login():
        return None
    return respond(LoginRequired("This request has a worker's token and a person's cookie: send one."))


def tell_of_bad_token(response: Response) -> Response:
    """Tell a worker whose token is not good (RFC 6750), so that it asks for another."""
    if response.status_code == 401 and token_of(request) is not None and _meant() is not None:
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    return response
