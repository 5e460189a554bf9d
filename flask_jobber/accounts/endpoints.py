"""The endpoints of OAuth: token, revocation, and the metadata of the server (RFC 8414)."""

from __future__ import annotations

import functools
import json
import logging
import typing as t
import weakref

from authlib.oauth2.rfc6749.errors import InvalidRequestError
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from flask import Blueprint, Flask, Response, current_app, request, url_for
from flask.blueprints import BlueprintSetupState
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import InternalServerError, RequestEntityTooLarge

from ..api.guard import exempt_from_csrf_protect
from ..api.problems import RETRY_AFTER
from ..core.engines import is_transient, undo
from ..errors import SetupError
from .oauth import METHODS, Server

if t.TYPE_CHECKING:
    from .workers import Workers

logger = logging.getLogger("flask_jobber")
WELL_KNOWN = "/.well-known/oauth-authorization-server"
PREFIX = "/oauth"
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_MAX_BYTES = 16_384
_OTHERWISE, _OTHER_METHODS = "_otherwise", ["GET", "PUT", "PATCH", "DELETE"]


def make_blueprint(workers: Workers, server: Server) -> Blueprint:
    """Return the blueprint that serves workers their tokens, to be registered on the app."""
    blueprint = Blueprint(f"{workers.jobber.name}_workers", __name__, url_prefix=PREFIX)

    def token() -> Response:
        return _commit(workers, server.create_token_response())

    def revoke() -> Response:
        return _commit(workers, server.create_endpoint_response("revocation"))

    for view in (token, revoke):
        name = view.__name__
        blueprint.add_url_rule(f"/{name}", name, _checked(server, view), methods=["POST"])
        blueprint.add_url_rule(f"/{name}", f"{name}{_OTHERWISE}", _by_post, methods=_OTHER_METHODS)
    blueprint.record(lambda state: _check_place(t.cast(Flask, state.app), state))
    blueprint.record(lambda state: _serve_metadata(t.cast(Flask, state.app), state))
    blueprint.record(lambda state: workers.init_app(t.cast(Flask, state.app)))
    blueprint.url_value_preprocessor(_Exempter())
    for kind in (SQLAlchemyError, InternalServerError):
        blueprint.register_error_handler(kind, functools.partial(_broken, workers))
    return blueprint


def _checked(server: Server, view: t.Callable[[], Response]) -> t.Callable[[], Response]:
    def check() -> Response:
        request.max_content_length = _MAX_BYTES
        try:
            server.check()
        except InvalidRequestError as error:
            return t.cast(Response, server.handle_response(*error()))
        except RequestEntityTooLarge:
            return _answer(413, "invalid_request", f"The body may have {_MAX_BYTES} bytes.")
        return view()

    return check


def _commit(workers: Workers, response: Response) -> Response:
    """Keep what an answer tells of; a refusal has kept what it wants by itself."""
    session = workers.jobber.db.session
    (session.commit if response.status_code == 200 else session.rollback)()
    return response


def _by_post() -> Response:
    response = _answer(405, "invalid_request", "This takes POST only.")
    response.headers["Allow"] = "POST"
    return response


def _answer(status: int, error: str, description: str) -> Response:
    body = json.dumps({"error": error, "error_description": description})
    return Response(body, status, mimetype="application/json", headers=_NO_STORE)


def _broken(workers: Workers, error: Exception) -> Response:
    undo(workers.jobber.db.session())
    if is_transient(error):
        logger.warning("the database is busy or away: %s", error, extra={"action": "busy"})
        response = _answer(503, "temporarily_unavailable", "The database is busy or away; try again.")
        response.headers["Retry-After"] = str(RETRY_AFTER)
        return response
    logger.error("a request failed: %s", error, exc_info=error, extra={"action": "request"})
    return _answer(500, "server_error", "Something broke here. It has been logged.")


class _Exempter:
    """Exempts the views from an app's CSRFProtect, once for each app: no cookie means anything to them."""

    def __init__(self) -> None:
        self._done: weakref.WeakSet[Flask] = weakref.WeakSet()

    def __call__(self, endpoint: str | None, values: object) -> None:
        app = t.cast(Flask, current_app._get_current_object())  # type: ignore[attr-defined]
        if app not in self._done:
            self._done.add(app)
            prefix = (endpoint or "").rpartition(".")[0]
            exempt_from_csrf_protect(
                f"{prefix}.{name}{by}" for name in ("token", "revoke") for by in ("", _OTHERWISE)
            )


def _check_place(app: Flask, state: BlueprintSetupState) -> None:
    """:raises SetupError: when another's endpoints are there, which would answer for these."""
    path = f"{(state.url_prefix or '').rstrip('/')}/token"
    taken = [rule.endpoint for rule in app.url_map.iter_rules() if rule.rule == path]
    mine = f"{state.name_prefix}.{state.name}.".lstrip(".")
    if any(not endpoint.startswith(mine) for endpoint in taken):
        raise SetupError(f"{path} is taken: register these Workers with a url_prefix of their own.")


def _serve_metadata(app: Flask, state: BlueprintSetupState) -> None:
    """Serve the metadata where RFC 8414 wants them: for the whole site, and for the prefix alone.

    When an app has several, the first speaks for the site.
    """
    name = f"{state.name_prefix}.{state.name}".lstrip(".")
    prefix = (state.url_prefix or "").rstrip("/")
    for place, path in enumerate(dict.fromkeys(("", prefix))):
        endpoint = f"{name}.metadata{place or ''}"
        app.add_url_rule(f"{WELL_KNOWN}{path}", endpoint, _metadata(name, path))


def _metadata(name: str, path: str) -> t.Callable[[], Response]:
    def show() -> Response:
        site = f"{request.host_url.rstrip('/')}{request.script_root}"
        facts = {
            "issuer": f"{site}{path}",
            "token_endpoint": url_for(f"{name}.token", _external=True),
            "revocation_endpoint": url_for(f"{name}.revoke", _external=True),
            "token_endpoint_auth_methods_supported": list(METHODS),
            "revocation_endpoint_auth_methods_supported": list(METHODS),
            "grant_types_supported": ["client_credentials"],
            # Required, and never empty; there is no authorization endpoint to respond.
            "response_types_supported": ["none"],
        }
        body = json.dumps(AuthorizationServerMetadata(facts))
        return Response(body, mimetype="application/json", headers=_NO_STORE)

    return show
