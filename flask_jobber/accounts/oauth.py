"""OAuth 2.0 for workers (RFC 6749, 6750, 7009), by Authlib, on the Jobber's own session."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
import re
import typing as t
from urllib.parse import unquote_plus

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.rfc6749 import ClientMixin, OAuth2Payload, OAuth2Request
from authlib.oauth2.rfc6749.errors import InvalidRequestError, InvalidScopeError
from authlib.oauth2.rfc6749.grants import ClientCredentialsGrant
from authlib.oauth2.rfc7009 import RevocationEndpoint
from flask import Request, current_app, request

from . import limit, verbs

if t.TYPE_CHECKING:
    from .workers import Workers

METHODS = ("client_secret_basic", "client_secret_post")
# Nothing else is ever looked up.
_CLIENT_ID = re.compile(r"[A-Za-z0-9_-]{1,60}")
#: What nobody may say in an address: these end up in logs.
_SECRETS = frozenset({"access_token", "token", "client_id", "client_secret", "grant_type"})


class InvalidClient(OAuth2Error):  # type: ignore[misc]
    """Who asks is no client of this server: one answer for all that it may be."""

    error = "invalid_client"
    description = "There is no such client with this secret, or it is locked."
    status_code = 401

    def get_headers(self) -> list[tuple[str, str]]:
        return [*super().get_headers(), ("WWW-Authenticate", 'Basic realm="workers"')]


class TooManyFailures(OAuth2Error):  # type: ignore[misc]
    """Whoever asks has failed too often to be looked at now."""

    error = "too_many_failures"
    description = "Too many failed logins: wait as long as Retry-After says."
    status_code = 429

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def get_headers(self) -> list[tuple[str, str]]:
        return [*super().get_headers(), ("Retry-After", str(math.ceil(self._seconds)))]


class Client(ClientMixin):  # type: ignore[misc]
    """A worker that has authenticated, as Authlib wants to see it."""

    def __init__(self, row: t.Any, secret: str) -> None:
        self.worker_id, self.client_id, self.secret = row.id, row.client_id, secret

    def get_client_id(self) -> str:
        return str(self.client_id)

    def check_grant_type(self, grant_type: str) -> bool:
        return bool(grant_type == ClientCredentialsGrant.GRANT_TYPE)

    def get_allowed_scope(self, scope: str) -> str:
        return ""  # its queues are its scope, and not for it to choose


class _Payload(OAuth2Payload):  # type: ignore[misc]
    """The parameters of a request: those of its body, and no others."""

    @property
    def data(self) -> t.Any:
        return request.form

    @property
    def datalist(self) -> t.Any:
        return dict(request.form.lists())


class _Request(OAuth2Request):  # type: ignore[misc]
    """A request whose transport and form have been looked at, see :meth:`Server.check`."""

    def __init__(self, request: Request) -> None:
        # Authlib asks its environment whether a network may be trusted; here the app says so.
        super().__init__(request.method, f"https:{request.url.partition(':')[2]}", headers=request.headers)
        self.payload = _Payload()

    @property
    def form(self) -> t.Any:
        return request.form


class _Revocation(RevocationEndpoint):  # type: ignore[misc]
    CLIENT_AUTH_METHODS = METHODS

    def authenticate_token(self, request: OAuth2Request, client: Client) -> tuple[Client, str] | None:
        # Another's token looks like one that does not exist: nothing is done about either.
        self.check_params(request, client)
        return client, request.form["token"]

    def revoke_token(self, token: tuple[Client, str], request: OAuth2Request) -> None:
        client, text = token
        server: Server = self.server
        verbs.revoke(server.workers.book(), client.worker_id, text)


class Server(AuthorizationServer):  # type: ignore[misc]
    """The authorization server of one Jobber's workers. It holds no app, and reads no configuration."""

    def __init__(self, workers: Workers) -> None:
        super().__init__()
        self.workers = workers
        self.register_grant(ClientCredentialsGrant)
        self.register_endpoint(_Revocation)

    def check(self) -> None:
        """Refuse a request that is not as it must be, before anything of it is looked at.

        :raises InvalidRequestError: when it came without TLS, or by the wrong form, says a thing
            twice or in its address, or authenticates in two ways.
        """
        if not (request.is_secure or self.workers.allow_http or _is_here(request.host)):
            raise InvalidRequestError("Use https. Behind a proxy the app needs ProxyFix to know that you do.")
        if _SECRETS & request.args.keys():
            raise InvalidRequestError("Parameters go into the body, never into the address.")
        if request.mimetype != "application/x-www-form-urlencoded":
            raise InvalidRequestError("Send the body as application/x-www-form-urlencoded.")
        if any(len(values) > 1 for _, values in request.form.lists()):
            raise InvalidRequestError("A parameter is there twice.")
        if "Authorization" in request.headers and "client_secret" in request.form:
            raise InvalidRequestError("Authenticate in one way: by the header, or in the body.")

    def create_oauth2_request(self, request_: t.Any) -> OAuth2Request:
        return _Request(request)

    def validate_requested_scope(self, scope: str | None) -> None:
        if scope:
            raise InvalidScopeError("There are no scopes to ask for: the queues are given on the server.")

    def authenticate_client(self, request_: OAuth2Request, methods: t.Any, endpoint: str = "token") -> Client:
        """Return who asks.

        :raises InvalidClient: when it is nobody; this is counted, and committed.
        :raises TooManyFailures: when that was counted too often.
        """
        client_id, secret = _credentials(request)
        book = self.workers.book()
        key = current_app.secret_key or b""
        who = limit.Guesser.of(key.encode() if isinstance(key, str) else key, request.remote_addr, client_id)
        if seconds := limit.wait_for(book, who):
            raise TooManyFailures(seconds)
        row = verbs.authenticate(book, client_id if _CLIENT_ID.fullmatch(client_id) else "", secret)
        if row is None:
            limit.count(book, who)
            book.store.session.commit()
            raise InvalidClient
        if row.locked_at is not None:
            raise InvalidClient
        return Client(row, secret)

    def generate_token(self, grant_type: str, client: Client, **said: t.Any) -> dict[str, t.Any]:
        """Return a token's answer; the token is stored, by its hash."""
        seconds = self.workers.token_seconds
        token = verbs.issue(self.workers.book(), client.client_id, client.secret, seconds)
        if token is None:
            raise InvalidClient
        return {"token_type": "Bearer", "access_token": token, "expires_in": seconds}

    def save_token(self, token: t.Any, request_: t.Any) -> None:
        """Nothing is left to do."""


def _is_here(host: str) -> bool:
    """Whether a request has not left this machine, by what it calls its host."""
    name = host.rpartition(":")[0] if re.search(r":\d+\Z", host) else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def _credentials(request: Request) -> tuple[str, str]:
    """Return a client's id and secret, from the header or the body; empty ones when there are none."""
    scheme, _, said = request.headers.get("Authorization", "").partition(" ")
    if not scheme:
        return request.form.get("client_id", ""), request.form.get("client_secret", "")
    if scheme.lower() != "basic":
        return "", ""
    try:
        text = base64.b64decode(said.strip(), validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return "", ""
    client_id, _, secret = text.partition(":")
    return unquote_plus(client_id), unquote_plus(secret)
