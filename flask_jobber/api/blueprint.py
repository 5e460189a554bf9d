"""The blueprint of a Jobber: the table of endpoints made into routes."""

from __future__ import annotations

import logging
import typing as t
import weakref

from flask import Blueprint, Flask, Response, current_app, request
from flask.blueprints import BlueprintSetupState
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import InternalServerError
from werkzeug.exceptions import MethodNotAllowed as WrongMethod
from werkzeug.routing import RequestRedirect

from ..core.engines import undo
from ..core.payload import MAX_ID
from ..errors import JobberError, NotFound
from . import attachments, batches, columns, events, exchange, openapi, trust, views  # noqa: F401
from .call import Call
from .guard import check_request, exempt_from_csrf_protect
from .operation import OPERATIONS, Operation
from .problems import MethodNotAllowed, document, from_exception, respond

if t.TYPE_CHECKING:
    from ..extension import Jobber

logger = logging.getLogger("flask_jobber")
# A body may be this many times larger than the JSON in it: six for escapes, the rest for
# spaces; an exchange may carry several.
_SLACK, _SLACK_OF_MANY = 6, 8
# Of calls that carry neither data nor results: a long traceback, a thousand names.
_SMALL = 262_144
_PUBLIC = {row.name for row in OPERATIONS if row.public}


class JobberBlueprint(Blueprint):
    """The blueprint of a Jobber, which knows the prefixes that it has in its apps."""

    def __init__(self, name: str) -> None:
        super().__init__(name, __name__)
        self.prefixes: weakref.WeakKeyDictionary[Flask, set[str]] = weakref.WeakKeyDictionary()

    @property
    def is_asked(self) -> bool:
        """Whether the current request is for it, be it for a path that is not there."""
        if request.routing_exception is not None:
            return _is_below(self.prefixes.get(_app(), set()))
        return current_app.blueprints.get(request.blueprint or "") is self


def make_blueprint(jobber: Jobber) -> JobberBlueprint:
    """Return the blueprint that serves a Jobber, to be registered on its apps."""
    columns.check(jobber.Job)
    blueprint = JobberBlueprint(jobber.name)
    for row in OPERATIONS:
        blueprint.add_url_rule(row.rule, row.name, _view(jobber, row), methods=[row.method])
    prefixes = blueprint.prefixes

    def remember(state: BlueprintSetupState) -> None:
        app = t.cast(Flask, state.app)
        jobber.init_app(app)
        prefixes.setdefault(app, set()).add((state.url_prefix or "").rstrip("/"))

    blueprint.record(remember)
    blueprint.url_value_preprocessor(_Exempter(blueprint))
    blueprint.before_request(lambda: _guard(jobber))
    blueprint.before_app_request(lambda: _answer_unmatched(jobber, prefixes[_app()]))
    blueprint.teardown_request(lambda _: jobber.tidy_soon())
    # Other HTTP errors are the app's own, of a rate limit or a maintenance: it answers them.
    for kind in (JobberError, SQLAlchemyError, InternalServerError):
        blueprint.register_error_handler(kind, _handle)
    return blueprint


def _app() -> Flask:
    return t.cast(Flask, current_app._get_current_object())  # type: ignore[attr-defined]


def _guard(jobber: Jobber) -> None:
    if (request.endpoint or "").rpartition(".")[2] not in _PUBLIC:
        check_request(jobber)


def _view(jobber: Jobber, row: Operation) -> t.Callable[..., Response]:
    def view(**parts: str) -> Response:
        call = Call(jobber)
        try:
            numbers = {n: text if n == "name" else _number(text) for n, text in parts.items()}
            arguments = row.arguments(request, _max_bytes(call, row))
            if not row.public:
                call.identity.check_node()
            return row.view(call, **numbers, **arguments)
        except BaseException:
            undo(jobber.db.session())
            raise

    view.__name__ = row.name
    return view


def _number(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 19 and int(text) <= MAX_ID:
        return int(text)
    raise NotFound


def _max_bytes(call: Call, row: Operation) -> int:
    if not row.large:
        return _SMALL
    largest = max(call.settings.max_data_bytes, call.settings.max_result_bytes)
    return largest * (_SLACK_OF_MANY if row.name == "exchange" else _SLACK)


class _Exempter:
    """Exempts the views from an app's CSRFProtect, before its check runs, once for each app."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint
        self._done: weakref.WeakSet[Flask] = weakref.WeakSet()

    def __call__(self, endpoint: str | None, values: object) -> None:
        if _app() not in self._done:
            self._done.add(_app())
            prefix = (endpoint or "").rpartition(".")[0]
            exempt_from_csrf_protect(f"{prefix}.{row.name}" for row in OPERATIONS)


def _answer_unmatched(jobber: Jobber, prefixes: set[str]) -> Response | None:
    """Answer for paths and methods that are not there: no blueprint handles these for Flask."""
    error = request.routing_exception
    if error is None or isinstance(error, RequestRedirect) or not _is_below(prefixes):
        return None
    try:
        check_request(jobber)
    except Exception as refused:
        return _handle(refused)
    if isinstance(error, WrongMethod):
        return respond(MethodNotAllowed(error.valid_methods or ()))
    return respond(NotFound())


def _is_below(prefixes: set[str]) -> bool:
    # Without a prefix, what is missing may be missing anywhere in the app.
    return any(prefix and f"{request.path}/".startswith(f"{prefix}/") for prefix in prefixes)


def _handle(error: Exception) -> Response:
    problem = from_exception(error)
    if problem is None:
        raise error
    if document(problem)["status"] == 500:
        logger.error("a request failed: %s", problem, exc_info=error, extra={"action": "request"})
    return respond(problem)
