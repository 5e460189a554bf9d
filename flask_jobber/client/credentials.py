"""OAuth 2.0 client credentials: tokens that are asked for, kept and renewed by themselves."""

from __future__ import annotations

import threading
import time
import typing as t

import httpx2

from .errors import Busy, ClientError, Disconnected, LoginRequired

# Seconds before its end at which a token is renewed, or this part of its length.
_MARGIN, _PART = 30.0, 0.1


class ClientCredentials(httpx2.Auth):
    """Logs a :class:`JobberClient` in with an account: ``auth=ClientCredentials(…)``.

    A token is renewed before it ends, and once when the server does not know it any more.
    Threads may share it; clients of one server too. It is not for asynchronous clients.

    :param token_url: ``https://example.org/oauth/token``.
    """

    def __init__(self, token_url: str, client_id: str, client_secret: str) -> None:
        if httpx2.URL(token_url).scheme not in ("http", "https"):
            raise ValueError(f"token_url begins with http:// or https://, unlike {token_url!r}.")
        self._url = httpx2.URL(token_url)
        self._form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        self._lock = threading.Lock()
        self._token: str | None = None
        #: When it is to be renewed, by the monotonic clock.
        self._until = 0.0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self._url)!r}, {self._form['client_id']!r})"

    def sync_auth_flow(self, request: httpx2.Request) -> t.Generator[httpx2.Request, httpx2.Response, None]:
        token = yield from self._current(request, None)
        request.headers["Authorization"] = f"Bearer {token}"
        response = yield request
        if response.status_code == 401:
            response.read()
            token = yield from self._current(request, token)
            request.headers["Authorization"] = f"Bearer {token}"
            yield request

    def _current(
        self, request: httpx2.Request, refused: str | None
    ) -> t.Generator[httpx2.Request, httpx2.Response, str]:
        """Return a token that is good, and is not the one that was refused."""
        with self._lock:  # who comes second takes what the first has got
            if self._token is None or self._token == refused or time.monotonic() >= self._until:
                # By the request's own client, with its time limits.
                asked = time.monotonic()
                response = yield httpx2.Request(
                    "POST",
                    self._url,
                    data=self._form,
                    headers={"Accept": "application/json"},
                    extensions=request.extensions,
                )
                response.read()
                self._token, length = _read(response)
                self._until = asked + length - min(_MARGIN, length * _PART)
            return self._token

    async def async_auth_flow(
        self, request: httpx2.Request
    ) -> t.AsyncGenerator[httpx2.Request, httpx2.Response]:
        raise RuntimeError("ClientCredentials is for JobberClient, which is not asynchronous.")
        yield request


def _read(response: httpx2.Response) -> tuple[str, float]:
    """Return the token of an answer, and for how many seconds it is good.

    :raises LoginRequired: when the server does not know these credentials.
    :raises ClientError: when there is no token for another reason.
    """
    body = _object(response)
    if not response.is_success:
        raise _refusal(response, body)
    token, kind, length = (body.get(name) for name in ("access_token", "token_type", "expires_in"))
    if not isinstance(token, str) or not isinstance(kind, str) or kind.lower() != "bearer":
        raise _foreign(response)
    if not token.isascii() or not token.isprintable() or " " in token:
        raise _foreign(response)
    return token, float(length) if isinstance(length, int | float) and length > 0 else _MARGIN


def _object(response: httpx2.Response) -> dict[str, t.Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _refusal(response: httpx2.Response, body: dict[str, t.Any]) -> ClientError:
    status, code = response.status_code, body.get("error")
    after = response.headers.get("Retry-After", "")
    seconds = float(after) if after.isdecimal() else None
    if status in (429, 502, 503, 504):
        if not isinstance(code, str):
            detail = f"{response.request.url} was answered by no token endpoint."
            return Disconnected(status, detail, in_doubt=False, retry_after=seconds)
        return Busy(status, code, _detail(body, code), retryable=True, retry_after=seconds)
    if not isinstance(code, str):
        return _foreign(response)
    kind = LoginRequired if code == "invalid_client" else ClientError
    return kind(status, code, _detail(body, code))


def _detail(body: dict[str, t.Any], code: str) -> str:
    return f"No token: {body.get('error_description') or code}"


def _foreign(response: httpx2.Response) -> ClientError:
    kind = response.headers.get("Content-Type", "without a type")
    detail = f"{response.request.url} was answered by no token endpoint: {response.reason_phrase} {kind}."
    return ClientError(response.status_code, "unexpected_answer", f"{detail} Is token_url right?")
